"""One loss per example from the outputs of a transformers model, for points that share a forward."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from zofo.errors import ConfigError

_IGNORED = -100
_OVERRIDE = (
    "override compute_losses(model, inputs) of the trainer, or set zo_evaluator='in-place' of ZerothOrderTrainer"
)


def example_losses(model: nn.Module, inputs: dict[str, Any], shifted: bool) -> torch.Tensor:
    """The loss of each example of a batch, as the model itself averages it.

    Args:
        model: a model with a transformers head for labels of examples or tokens.
        inputs: inputs of a batch, including `labels`.
        shifted: whether a token is predicted from the one before.

    Returns:
        float32, [examples]; for token labels, the mean over those that count.

    Raises:
        ConfigError: another kind of head or labels.
    """
    labels = inputs.get("labels")
    given = model(**{name: value for name, value in inputs.items() if name != "labels"})
    logits = getattr(given, "logits", None)
    if not isinstance(labels, torch.Tensor):
        raise _unknown(f"the batch holds {', '.join(inputs)}, and no labels", f"give the rows labels, or {_OVERRIDE}")
    if not isinstance(logits, torch.Tensor):
        raise _unknown(f"{type(model).__name__} gives no logits")
    logits = logits.float()
    if logits.dim() == 2:
        return _of_examples(model, logits, labels)
    if logits.dim() == 3 and labels.shape == logits.shape[:2]:
        if shifted:
            labels = F.pad(labels[:, 1:], (0, 1), value=_IGNORED)
        flat, targets = logits.reshape(-1, logits.shape[2]), labels.reshape(-1)
        each = F.cross_entropy(flat, targets, ignore_index=_IGNORED, reduction="none").view(labels.shape)
        return each.sum(dim=1) / (labels != _IGNORED).sum(dim=1).clamp(min=1)
    raise _unknown(f"logits have shape {list(logits.shape)}, and labels {list(labels.shape)}")


def scored(labels: Any, examples: int, shifted: bool) -> torch.Tensor:
    """The number of labels that count in each example: shape [examples]."""
    if not isinstance(labels, torch.Tensor) or labels.dim() != 2 or labels.is_floating_point():
        return torch.ones(examples)
    counted = labels[:, 1:] if shifted else labels
    return (counted != _IGNORED).sum(dim=1).cpu()


def _of_examples(model: nn.Module, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    kind = getattr(getattr(model, "config", None), "problem_type", None)
    if kind is None and logits.shape[1] == 1:
        kind = "regression"
    if kind == "regression":
        return (logits - labels.view(logits.shape).float()).square().mean(dim=1)
    if kind == "multi_label_classification" or labels.is_floating_point():
        return F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").mean(dim=1)
    return F.cross_entropy(logits, labels.view(-1), reduction="none")


def _unknown(what: str, hint: str = _OVERRIDE) -> ConfigError:
    return ConfigError(f"one loss for each example is needed, but {what}", hint)


def loss_of_its_own() -> ConfigError:
    """The error for a trainer whose loss is not the model's."""
    return ConfigError(
        "the trainer has a loss of its own, which is one number for a batch, but one for each example is needed",
        _OVERRIDE,
    )
