"""From text to batches: corpora, tokenizer, span corruption."""

from fusion_core.text.batches import SpanCorruption as SpanCorruption
from fusion_core.text.corpus import default_corpus as default_corpus
from fusion_core.text.corpus import read_documents as read_documents
from fusion_core.text.corpus import split_documents as split_documents
from fusion_core.text.tokenizer import Tokenizer as Tokenizer
from fusion_core.text.tokenizer import train_tokenizer as train_tokenizer
