"""A lean T5 in plain JAX: configuration, model, Hugging Face files."""

from fusion_core.models.t5.compute import Compute as Compute
from fusion_core.models.t5.config import T5Config as T5Config
from fusion_core.models.t5.flops import peak_flops as peak_flops
from fusion_core.models.t5.flops import step_flops as step_flops
from fusion_core.models.t5.model import batch_loss as batch_loss
from fusion_core.models.t5.model import forward as forward
from fusion_core.models.t5.model import init as init
from fusion_core.models.t5.model import parameter_shapes as parameter_shapes
from fusion_core.models.t5.model import token_loss as token_loss
from fusion_core.models.t5.relatives import MT5Config as MT5Config
from fusion_core.models.t5.relatives import UMT5Config as UMT5Config
