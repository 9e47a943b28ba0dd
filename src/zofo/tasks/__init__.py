"""Tasks: versioned files that say where rows come from, how they become prompts, and what counts as right."""

from zofo.tasks.batch import Batch, Batches, collate
from zofo.tasks.data import Example, load_examples, render_prompt
from zofo.tasks.encoding import Encoded, encode
from zofo.tasks.metrics import METRICS, Metric
from zofo.tasks.task import SPLITS, Split, Task, TaskConfig, known_split, load_task, task_names

__all__ = [
    "METRICS",
    "SPLITS",
    "Batch",
    "Batches",
    "Encoded",
    "Example",
    "Metric",
    "Split",
    "Task",
    "TaskConfig",
    "collate",
    "encode",
    "known_split",
    "load_examples",
    "load_task",
    "render_prompt",
    "task_names",
]
