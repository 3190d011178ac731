"""From text to batches: corpora, tokenizer, span corruption, packing, streams, prefetch."""

from fusion_core.text.corpus import default_corpus as default_corpus
from fusion_core.text.corpus import read_documents as read_documents
from fusion_core.text.corpus import split_documents as split_documents
from fusion_core.text.documents import Documents as Documents
from fusion_core.text.documents import Part as Part
from fusion_core.text.documents import TextFiles as TextFiles
from fusion_core.text.documents import TextList as TextList
from fusion_core.text.packing import packing_efficiency as packing_efficiency
from fusion_core.text.prefetch import Prefetch as Prefetch
from fusion_core.text.prefetch import prefetch as prefetch
from fusion_core.text.sources import Batch as Batch
from fusion_core.text.sources import DataSource as DataSource
from fusion_core.text.sources import merge_states as merge_states
from fusion_core.text.span_corruption import SpanCorruption as SpanCorruption
from fusion_core.text.stream import StreamedSpans as StreamedSpans
from fusion_core.text.tokenizer import Tokenizer as Tokenizer
from fusion_core.text.tokenizer import train_tokenizer as train_tokenizer
