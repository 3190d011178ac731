"""Decoder-only transformers: configurations, Hugging Face's files, and for some of them lean forward passes."""

from fusion_core.models.decoder.config import GPT2Config as GPT2Config
from fusion_core.models.decoder.config import Llama3Rope as Llama3Rope
from fusion_core.models.decoder.config import LlamaConfig as LlamaConfig
from fusion_core.models.decoder.gemma2 import Gemma2Config as Gemma2Config
from fusion_core.models.decoder.gpt_neox import GPTNeoXConfig as GPTNeoXConfig
from fusion_core.models.decoder.mistral import MistralConfig as MistralConfig
from fusion_core.models.decoder.phi3 import Phi3Config as Phi3Config
from fusion_core.models.decoder.qwen2 import Qwen2Config as Qwen2Config
from fusion_core.models.decoder.qwen3 import Qwen3Config as Qwen3Config
