"""Checkpoint folders fused, compared and described without loading them: tensors stream by ranges of bytes."""

from fusion_core.checkpoints.checkpoint import Checkpoint as Checkpoint
from fusion_core.checkpoints.checkpoint import open_checkpoint as open_checkpoint
from fusion_core.checkpoints.comparison import Deviation as Deviation
from fusion_core.checkpoints.comparison import Difference as Difference
from fusion_core.checkpoints.comparison import compare as compare
from fusion_core.checkpoints.description import describe as describe
from fusion_core.checkpoints.fuse import check_output as check_output
from fusion_core.checkpoints.fuse import write_fusion as write_fusion
from fusion_core.checkpoints.plan import FusionPlan as FusionPlan
from fusion_core.checkpoints.plan import plan_fusion as plan_fusion
