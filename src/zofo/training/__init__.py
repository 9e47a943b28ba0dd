"""Training: configuration, loop, callbacks and run folder."""

from zofo.training.config import RunConfig, read_config
from zofo.training.data_module import PreparedRun, prepare_run, scorer_of, training_context
from zofo.training.data_report import Preview, TaskReport, copy_packaged, preview, validate
from zofo.training.evaluation import Evaluation, TaskEvaluator, as_percent
from zofo.training.explain import ResolvedKey, explain_config
from zofo.training.identity import model_hash
from zofo.training.inference import evaluate_run, evaluate_zero_shot, predict
from zofo.training.issue_report import issue_report
from zofo.training.lr_finder import LrSearchResult, LrTrial, tune_lr
from zofo.training.peak_memory import PeakMemory
from zofo.training.prediction_file import PredictionFile, predict_file
from zofo.training.predictor import Conversation, Prediction, Predictor
from zofo.training.run_folder import RunFolder
from zofo.training.train import checked_steps, train, try_parts
from zofo.training.training_config import TrainingConfig
from zofo.training.versions import describe_environment, environment, names

__all__ = [
    "Conversation",
    "Evaluation",
    "PreparedRun",
    "PeakMemory",
    "Prediction",
    "PredictionFile",
    "Predictor",
    "Preview",
    "RunConfig",
    "RunFolder",
    "TaskEvaluator",
    "TrainingConfig",
    "LrTrial",
    "LrSearchResult",
    "TaskReport",
    "as_percent",
    "checked_steps",
    "copy_packaged",
    "describe_environment",
    "environment",
    "ResolvedKey",
    "explain_config",
    "evaluate_run",
    "evaluate_zero_shot",
    "issue_report",
    "prepare_run",
    "model_hash",
    "names",
    "predict",
    "predict_file",
    "preview",
    "read_config",
    "scorer_of",
    "training_context",
    "train",
    "try_parts",
    "tune_lr",
    "validate",
]
