"""Save a trained model as a plain transformers folder, and its adapter as a peft folder."""

from __future__ import annotations

import json
import shlex
import shutil
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from zofo.embedded import EMBEDDED_MODELS
from zofo.errors import RunError
from zofo.filesystem import check_not_taken, real
from zofo.models import LoadedModel, ModelConfig
from zofo.models.heads import head_class
from zofo.models.loading import quiet_transformers
from zofo.tasks import Task
from zofo.temporary import temporarily
from zofo.training.run_record import CONFIG


def portable_name(model: str) -> str:
    """A name without local paths: an embedded name or Hub id is kept, a folder gives its last part."""
    if model in EMBEDDED_MODELS:
        return model
    path = Path(model)
    return real(path).name if path.is_dir() or path.is_absolute() or model.startswith((".", "~")) else model


def check_can_hold_model(path: Path, force: bool, apart_from: Iterable[Path]) -> None:
    """Raise RunError for a place where no model may be written: see `check_not_taken`; or a run's folder."""
    check_not_taken(path, force, apart_from)
    if (path / CONFIG).is_file():
        raise RunError(
            f"{str(path)!r} is a run, whose files would lie among those of the model",
            f"choose another folder, such as {shlex.quote(f'{path}-model')}",
        )


def label_texts(task: Task | None) -> list[str]:
    """The labels of a classification as texts, in the order of a head's outputs; empty for other tasks."""
    return [] if task is None else [str(label) for label in task.label_names]


def save_model(loaded: LoadedModel, folder: Path, labels: Sequence[str] = (), generation: Any = None) -> None:
    """Save model and tokenizer for `from_pretrained` and `pipeline`, without local paths.

    Args:
        labels: names of the outputs of a classification head; empty keeps those of the checkpoint.
        generation: generation settings instead of the model's own.

    Raises:
        RunError: a weight is not finite. Nothing is written.
    """
    check_finite(loaded.model)
    model, name = loaded.model, portable_name(loaded.name)
    if loaded.head == "classification" and labels:
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: number for number, label in enumerate(labels)}
    if generation is not None:
        model.generation_config = generation
    # training turned the cache off, and generation is slow without it
    with temporarily(model.config, use_cache=True, _name_or_path=name):
        with quiet_transformers(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        mode = (folder / "config.json").stat().st_mode
        for weights in folder.glob("*.safetensors"):  # which only the owner can read while they are written
            weights.chmod(mode)


def save_adapter(source: Path, model: ModelConfig, folder: Path) -> None:
    """Copy an adapter's folder, with the portable name of its base model instead of a path."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "adapter_model.safetensors", folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_bytes(portable_config(source, model))


def check_complete(adapter: Path, model: ModelConfig, labels: int | None, remote_code: bool = False) -> None:
    """Refuse an adapter of a classifier that cannot be loaded beside its base model.

    If neither the checkpoint nor the adapter has some tensors, such as BERT's pooler, zofo drew them from
    `model.head_seed`; transformers would draw others, differently in every process.

    `labels` is the number of labels of the task; None for those of the checkpoint's own head.
    """
    source = str(EMBEDDED_MODELS[model.name]()) if model.name in EMBEDDED_MODELS else model.name
    options = {"num_labels": labels} if labels else {}
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        _, found = head_class("classification").from_pretrained(
            source, revision=model.revision, trust_remote_code=remote_code, output_loading_info=True, **options
        )
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        held = list(file.keys())
    lost = sorted(name for name in found["missing_keys"] if not any(key.endswith(f".{name}") for key in held))
    if lost:
        raise RunError(
            f"the checkpoint of {model.name!r} lacks {lost[0]!r}, which the run drew, and an adapter folder does not "
            "hold",
            "write the whole model with --merged DIR",
        )


def portable_config(source: Path, model: ModelConfig) -> bytes:
    """The configuration of an adapter, with the portable name of its base model, and its revision."""
    content: dict[str, Any] = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
    content |= {"base_model_name_or_path": portable_name(model.name), "revision": model.revision}
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def check_finite(model: nn.Module) -> None:
    """Raise RunError for a weight that is NaN or infinite; the message names its tensor."""
    for name, tensor in model.named_parameters():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise RunError(
                f"the tensor {name!r} has values that are not finite, so nothing was written",
                "the run has diverged; export an earlier state with --best",
            )
