"""Lean decoder-only transformers of the Llama and GPT-2 kind: configurations, model, Hugging Face files."""

from fusion_core.models.decoder.config import GPT2Config as GPT2Config
from fusion_core.models.decoder.config import Llama3Rope as Llama3Rope
from fusion_core.models.decoder.config import LlamaConfig as LlamaConfig
from fusion_core.models.decoder.model import forward as forward
from fusion_core.models.decoder.model import init as init
from fusion_core.models.decoder.model import parameter_shapes as parameter_shapes
from fusion_core.models.decoder.model import token_loss as token_loss
