"""Lean decoder-only transformers of the Llama, Qwen2 and GPT-2 kinds: configurations, models, Hugging Face files."""

from fusion_core.models.decoder.config import GPT2Config as GPT2Config
from fusion_core.models.decoder.config import Llama3Rope as Llama3Rope
from fusion_core.models.decoder.config import LlamaConfig as LlamaConfig
from fusion_core.models.decoder.qwen2 import Qwen2Config as Qwen2Config
