"""MeZO and Bilevel-ZOFO in a `transformers.Trainer`: two changed lines in a script that has one."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import Trainer, TrainingArguments

from zofo.integrations.arguments import ZerothOrderArguments
from zofo.integrations.bilevel import BilevelTrainer
from zofo.integrations.bilevel_arguments import BilevelTrainingArguments
from zofo.integrations.mixin import ZerothOrderMixin

__all__ = [
    "BilevelTrainer",
    "BilevelTrainingArguments",
    "ZerothOrderArguments",
    "ZerothOrderMixin",
    "ZerothOrderTrainer",
    "ZerothOrderTrainingArguments",
]


@dataclass
class ZerothOrderTrainingArguments(ZerothOrderArguments, TrainingArguments):  # type: ignore[misc]
    """`transformers.TrainingArguments` with options of zeroth-order steps, which begin with `zo_`."""


class ZerothOrderTrainer(ZerothOrderMixin, Trainer):  # type: ignore[misc]
    """`transformers.Trainer` with zeroth-order steps, for its datasets, collators, metrics, callbacks and checkpoints.

    See `ZerothOrderMixin`.
    """
