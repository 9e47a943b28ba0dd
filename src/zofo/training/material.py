"""What a configuration names, loaded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zofo.backbone import LoadedModel, load_model
from zofo.methods import Setting
from zofo.objectives import classification_loss, packing_limit
from zofo.tasks import SPLITS, Batch, Encoded, Example, Split, Task, collate, encode, load_examples, load_task
from zofo.training.config import RunConfig


@dataclass(frozen=True)
class Material:
    """What a configuration names, loaded: the model, the task and its examples in tokens.

    Args:
        loaded: model and tokenizer.
        task: the task file.
        examples: of each split, as text.
        encoded: of each split, in tokens.
    """

    loaded: LoadedModel
    task: Task
    examples: dict[Split, list[Example]]
    encoded: dict[Split, list[Encoded]]

    @property
    def make(self) -> Callable[[Sequence[Encoded]], Batch]:
        """Turns encoded examples into a batch on the model's device."""
        return batch_maker(self.loaded)


def batch_maker(loaded: LoadedModel) -> Callable[[Sequence[Encoded]], Batch]:
    """Turns encoded examples into a batch that suits the model."""
    pad, limit = loaded.tokenizer.pad_token_id, packing_limit(loaded.model)
    return functools.partial(collate, pad=pad, device=loaded.device, pack_limit=limit)


def load_material(config: RunConfig, remote_code: bool = False, splits: Sequence[Split] = SPLITS) -> Material:
    """Load the task first, since its mistakes are the cheaper ones to find, then the model, and tokenise.

    Args:
        config: what is loaded.
        remote_code: allow the model's repository to run its own code.
        splits: those that are needed; the rows of others are not read.

    Raises:
        ZofoError: whatever is wrong with task, data or model.
    """
    task = load_task(config.task.name)
    examples = load_examples(task, config.task, splits)
    loaded = load_model(config.model, remote_code)
    encoded = {split: encode_for(config, loaded, rows) for split, rows in examples.items()}
    return Material(loaded, task, examples, encoded)


def setting_of(config: RunConfig, material: Material) -> Setting:
    """What a method is given to train with."""
    return Setting(
        model=material.loaded.model,
        objective=classification_loss,
        examples=material.encoded["train"],
        make=material.make,
        seed=config.training.seed,
        length=(lambda example: example.length) if config.training.group_by_length else None,
    )


def encode_for(config: RunConfig, loaded: LoadedModel, examples: Sequence[Example]) -> list[Encoded]:
    """Tokenise examples within the limit of the configuration and the model."""
    own = getattr(loaded.model.config, "max_position_embeddings", None)
    limits = [limit for limit in (config.task.max_length, own) if limit]
    limit = min(limits) if limits else None
    return encode(loaded.tokenizer, examples, limit, config.task.truncate == "left")
