"""Tasks: versioned files that say where rows come from, how they become prompts, and what counts as right."""

from zofo.tasks.batches import Batch, TextBatch, collate, collate_masked, collate_texts
from zofo.tasks.config import TaskConfig
from zofo.tasks.control_tokens import Speller
from zofo.tasks.dataset import load_examples, origins_of, resolve_task
from zofo.tasks.drawing import EpochSampler, with_demonstrations
from zofo.tasks.metrics import METRICS, Metric, score_name
from zofo.tasks.multi_task import has_metaicl_rows
from zofo.tasks.overlap import check_not_trained_on, is_asked, trained_on_notes, trained_questions
from zofo.tasks.prompt_rendering import render
from zofo.tasks.readers.row import Example, rows_note
from zofo.tasks.readers.sources import file_name
from zofo.tasks.row_checks import check_token_ids, readable_splits, row_notes, unwritten_notes
from zofo.tasks.task import (
    NO_PROMPT,
    SEPARATOR,
    SPLITS,
    Split,
    Task,
    known_split,
    load_task,
    packaged_text,
    parse_task,
    register_tasks,
    task_content,
    task_names,
)
from zofo.tasks.tokenization import TokenizedChoices, encode
from zofo.tasks.tokenization_channel import encode_channel
from zofo.tasks.tokenization_encoder import TokenizedCloze, TokenizedText, encode_masked, encode_texts

__all__ = [
    "METRICS",
    "NO_PROMPT",
    "SEPARATOR",
    "SPLITS",
    "Batch",
    "EpochSampler",
    "TokenizedChoices",
    "TokenizedCloze",
    "TokenizedText",
    "Example",
    "Metric",
    "Speller",
    "Split",
    "Task",
    "TaskConfig",
    "TextBatch",
    "collate",
    "collate_masked",
    "collate_texts",
    "encode",
    "encode_channel",
    "encode_masked",
    "encode_texts",
    "file_name",
    "has_metaicl_rows",
    "known_split",
    "load_examples",
    "load_task",
    "parse_task",
    "origins_of",
    "packaged_text",
    "readable_splits",
    "check_not_trained_on",
    "register_tasks",
    "check_token_ids",
    "render",
    "resolve_task",
    "score_name",
    "row_notes",
    "rows_note",
    "is_asked",
    "trained_questions",
    "task_content",
    "task_names",
    "trained_on_notes",
    "unwritten_notes",
    "with_demonstrations",
]
