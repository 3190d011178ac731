"""The trainer: optimizers and schedules, the data-parallel step, the loop, the run, checkpoints, metrics."""

from fusion_core.train.checkpoint import DamagedCheckpoint as DamagedCheckpoint
from fusion_core.train.checkpoint import load_state as load_state
from fusion_core.train.checkpoint import save_state as save_state
from fusion_core.train.distributed import initialize_distributed as initialize_distributed
from fusion_core.train.learning_rate import constant_schedule as constant_schedule
from fusion_core.train.learning_rate import cosine_schedule as cosine_schedule
from fusion_core.train.learning_rate import t5_schedule as t5_schedule
from fusion_core.train.loop import Dispatch as Dispatch
from fusion_core.train.loop import Interrupted as Interrupted
from fusion_core.train.loop import Trainer as Trainer
from fusion_core.train.loop import TrainingDiverged as TrainingDiverged
from fusion_core.train.losses import t5_loss as t5_loss
from fusion_core.train.metrics import Metrics as Metrics
from fusion_core.train.metrics import Record as Record
from fusion_core.train.optimizer import adafactor as adafactor
from fusion_core.train.optimizer import adamw as adamw
from fusion_core.train.optimizer import clipped as clipped
from fusion_core.train.optimizer import fuse_optimizer_state as fuse_optimizer_state
from fusion_core.train.optimizer import fuse_states as fuse_states
from fusion_core.train.optimizer import fuse_states as grow_states  # noqa: F401
from fusion_core.train.optimizer import preconditioner as preconditioner
from fusion_core.train.run import Cadence as Cadence
from fusion_core.train.run import Training as Training
from fusion_core.train.step import TrainState as TrainState
from fusion_core.train.step import displacement as displacement
from fusion_core.train.step import evaluate_step as evaluate_step
from fusion_core.train.step import init_state as init_state
from fusion_core.train.step import train_steps as train_steps
from fusion_core.train.store import Checkpoints as Checkpoints
