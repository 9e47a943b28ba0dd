"""Training: configuration, loop, callbacks, trajectory and run folder."""

from zofo.training.config import RunConfig, TrainingConfig, read_config
from zofo.training.evaluation import Evaluation, as_percent, evaluate, score_candidates
from zofo.training.memory import PeakMemory
from zofo.training.run import Material, RunFolder, encode_for, environment, load_material, model_hash, replay
from zofo.training.train import train
from zofo.training.trajectory import Trajectory, TrajectoryWriter

__all__ = [
    "Evaluation",
    "Material",
    "PeakMemory",
    "RunConfig",
    "RunFolder",
    "TrainingConfig",
    "Trajectory",
    "TrajectoryWriter",
    "as_percent",
    "encode_for",
    "environment",
    "evaluate",
    "load_material",
    "model_hash",
    "read_config",
    "replay",
    "score_candidates",
    "train",
]
