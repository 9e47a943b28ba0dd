"""Training: configuration, loop, callbacks, trajectory and run folder."""

from zofo.training.config import RunConfig, TrainingConfig, read_config
from zofo.training.evaluation import Evaluation, Scorer, as_percent
from zofo.training.inventory import describe_environment, environment, names
from zofo.training.material import Material, load_material, scorer_of, setting_of
from zofo.training.memory import PeakMemory
from zofo.training.preview import Preview, preview
from zofo.training.replay import replay
from zofo.training.restoring import model_hash
from zofo.training.run import RunFolder
from zofo.training.train import train
from zofo.training.trajectory import Trajectory, TrajectoryWriter
from zofo.training.tuning import Trial, Tuning, tune_lr
from zofo.training.use import Prediction, evaluate_run, evaluate_zero_shot, predict
from zofo.training.validation import TaskReport, copy_recipe, copy_task, validate

__all__ = [
    "Evaluation",
    "Material",
    "PeakMemory",
    "Prediction",
    "Preview",
    "RunConfig",
    "RunFolder",
    "Scorer",
    "TrainingConfig",
    "Trajectory",
    "TrajectoryWriter",
    "Trial",
    "Tuning",
    "TaskReport",
    "as_percent",
    "copy_recipe",
    "copy_task",
    "describe_environment",
    "environment",
    "evaluate_run",
    "evaluate_zero_shot",
    "load_material",
    "model_hash",
    "names",
    "predict",
    "preview",
    "read_config",
    "replay",
    "scorer_of",
    "setting_of",
    "train",
    "tune_lr",
    "validate",
]
