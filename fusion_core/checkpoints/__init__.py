"""Checkpoint folders fused, compared and described without loading them: tensors stream by ranges of bytes."""

from fusion_core.checkpoints.checkpoint import Checkpoint as Checkpoint
from fusion_core.checkpoints.checkpoint import open_checkpoint as open_checkpoint
from fusion_core.checkpoints.comparison import Deviation as Deviation
from fusion_core.checkpoints.comparison import Difference as Difference
from fusion_core.checkpoints.comparison import compare as compare
from fusion_core.checkpoints.description import describe as describe
from fusion_core.checkpoints.fuse import rehearse as rehearse
from fusion_core.checkpoints.fuse import write_recipe as write_recipe
from fusion_core.checkpoints.growth_file import Event as Event
from fusion_core.checkpoints.growth_file import GrowthRecord as GrowthRecord
from fusion_core.checkpoints.growth_file import growth_record as growth_record
from fusion_core.checkpoints.growth_file import read_growth as read_growth
from fusion_core.checkpoints.growth_file import write_growth as write_growth
from fusion_core.checkpoints.recipe import Recipe as Recipe
from fusion_core.checkpoints.recipe import fusion_recipe as fusion_recipe
from fusion_core.checkpoints.recipe import growth_recipe as growth_recipe
