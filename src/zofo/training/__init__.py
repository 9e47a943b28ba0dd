"""Training: configuration, loop, callbacks, trajectory and run folder."""

from zofo.training.config import RunConfig, TrainingConfig, read_config
from zofo.training.evaluation import Evaluation, as_percent, evaluate, score_candidates
from zofo.training.inventory import describe_environment, environment, names
from zofo.training.material import Material, encode_for, load_material
from zofo.training.memory import PeakMemory
from zofo.training.preview import Preview, preview
from zofo.training.replay import replay
from zofo.training.run import RunFolder, model_hash
from zofo.training.train import train
from zofo.training.trajectory import Trajectory, TrajectoryWriter
from zofo.training.tuning import Trial, Tuning, tune_lr
from zofo.training.use import Prediction, evaluate_run, evaluate_zero_shot, predict

__all__ = [
    "Evaluation",
    "Material",
    "PeakMemory",
    "Prediction",
    "Preview",
    "RunConfig",
    "RunFolder",
    "TrainingConfig",
    "Trajectory",
    "TrajectoryWriter",
    "Trial",
    "Tuning",
    "as_percent",
    "describe_environment",
    "encode_for",
    "environment",
    "evaluate",
    "evaluate_run",
    "evaluate_zero_shot",
    "load_material",
    "model_hash",
    "names",
    "predict",
    "preview",
    "read_config",
    "replay",
    "score_candidates",
    "train",
    "tune_lr",
]
