"""Linear probing: a logistic regression on the model's last hidden state where the answer is predicted.

A baseline that only reads the model; "LP" in the tables of MeZO (Malladi et al. 2023).
"""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from zofo.errors import ConfigError, ModelError, NonFiniteError, RunError, raise_if_out_of_memory
from zofo.evaluators import Counts, counting_forwards
from zofo.methods.base import METHODS, Method, MethodConfig, ScoreFunction, StepLog, TrainingContext
from zofo.models import load_tensors, save_tensors
from zofo.objectives import scores

_UNSEEN = -1e4  # bias of a label that train has no row of: it is never chosen, and its loss is still a number
PROBE = "probe.safetensors"
"""The file of a run that holds the probe."""


class LinearProbeConfig(MethodConfig):
    """Configuration of `linear-probe`."""

    name: Literal["linear-probe"] = "linear-probe"
    """Which method."""
    folds: int = Field(5, ge=2)
    """Number of cross-validation folds to choose the strength of the regularisation."""


@METHODS.register("linear-probe")
class LinearProbe(Method):
    """score = W h + b, by logistic regression on the features h of the training examples, fitted in one step.

    h is the input of the output embedding (the language-model head) at the position from which candidates are
    predicted. scikit-learn's LogisticRegressionCV chooses the regularisation, on standardised features.

    Raises:
        ConfigError: the examples do not share a set of labels, or have only one label. ModelError: the model has no
            output embedding.
    """

    Config = LinearProbeConfig
    paper = "the linear probing rows of MeZO's tables"
    needs_gradient = False
    fixed_steps = 1

    def __init__(self, config: LinearProbeConfig, context: TrainingContext) -> None:
        self._config = config
        self._context = context
        self.model = context.model
        self.counts = Counts()
        self.queries_per_step = len(context.examples)
        labels = Counter(one.gold for one in context.examples)
        if len({one.example.candidates for one in context.examples}) > 1:
            raise ConfigError("method=linear-probe needs the same labels for every row", "choose a classification task")
        if len(labels) < 2:
            raise ConfigError("method=linear-probe needs rows of two labels or more in train", "give more rows")
        self._folds = min(config.folds, min(labels.values()))
        if self._folds < 2:
            rare = min(labels, key=lambda label: labels[label])
            raise ConfigError(f"only one row of train has the label number {rare}", "give more rows, or drop the label")
        output_embedding(self.model)
        self._weight = torch.zeros(0)
        self._bias = torch.zeros(0)
        self.score: ScoreFunction = scores

    def step(self, number: int) -> StepLog:
        """Compute the features of all training examples, and fit the regression."""
        from sklearn.linear_model import LogisticRegressionCV
        from sklearn.preprocessing import StandardScaler

        before = self.counts.copy()
        features = self._features()
        gold = [one.gold for one in self._context.examples]
        scaler = StandardScaler().fit(features.numpy())
        probe = LogisticRegressionCV(cv=self._folds, max_iter=5000, scoring="neg_log_loss")
        with warnings.catch_warnings():  # notes on defaults that will be named otherwise, but mean the same
            warnings.simplefilter("ignore", FutureWarning)
            fitted = probe.fit(scaler.transform(features.numpy()), gold)
        coefficients = torch.tensor(fitted.coef_, dtype=torch.float32)
        intercept = torch.tensor(fitted.intercept_, dtype=torch.float32)
        if len(coefficients) == 1:  # of two labels scikit-learn keeps the difference
            coefficients, intercept = (
                torch.cat([-coefficients, coefficients]) / 2,
                torch.cat([-intercept, intercept]) / 2,
            )
        scaled = coefficients / torch.tensor(scaler.scale_, dtype=torch.float32)
        width = len(self._context.examples[0].example.candidates)
        self._weight = torch.zeros(width, features.shape[1])
        self._bias = torch.full((width,), _UNSEEN)
        classes = torch.tensor(fitted.classes_)
        self._weight[classes] = scaled
        self._bias[classes] = intercept - scaled @ torch.tensor(scaler.mean_, dtype=torch.float32)
        self.score = probe_scores(self._weight, self._bias)
        loss = torch.nn.functional.cross_entropy(features @ self._weight.T + self._bias, torch.tensor(gold))
        return StepLog(loss.item(), self.counts - before)

    @torch.no_grad()
    def _features(self) -> torch.Tensor:
        examples, size = self._context.examples, self._config.batch_size
        order = sorted(range(len(examples)), key=lambda i: int(examples[i].length))
        found: list[torch.Tensor] = [torch.empty(0)] * len(examples)
        with counting_forwards(self.model, self.counts):
            for start in range(0, len(order), size):
                chosen = order[start : start + size]
                values = features_of(self.model, self._context.collate([examples[i] for i in chosen]))
                self.counts.queries += len(chosen)
                for i, value in zip(chosen, values, strict=True):
                    found[i] = value
        stacked = torch.stack(found)
        if not bool(torch.isfinite(stacked).all()):
            raise NonFiniteError("features of the training examples", consequence="nothing was fitted")
        return stacked

    def save(self, folder: Path) -> None:
        """Save the probe as `probe.safetensors`."""
        if len(self._weight):
            save_tensors({"weight": self._weight, "bias": self._bias}, folder / PROBE)


def features_of(model: nn.Module, batch: Any) -> torch.Tensor:
    """The input of the output embedding where the first token of a candidate is predicted: float32, [E, D]."""
    seen: list[torch.Tensor] = []
    with output_embedding(model).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        scores(model, batch)
    return seen[-1][:, -batch.logits_to_keep :].flatten(0, 1)[batch.gather_index[:, 0, 0]].float().cpu()


def output_embedding(model: Any) -> nn.Module:
    """The language-model head.

    Raises:
        ModelError: the model has none.
    """
    found = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if not isinstance(found, nn.Module):
        raise ModelError(
            f"{type(model).__name__} has no language-model head to read features from",
            "choose model.head=causal-lm or masked-lm; a classification head is tuned by method=first-order "
            "method.parameters=head",
        )
    return found


def probe_scores(weight: torch.Tensor, bias: torch.Tensor) -> ScoreFunction:
    """Scores of candidates by a fitted probe."""

    def score(model: nn.Module, batch: Any, by: str) -> torch.Tensor:
        return features_of(model, batch) @ weight.T + bias

    return score


def load_probe(folder: Path) -> ScoreFunction:
    """The scoring function of the probe of a run.

    Raises:
        RunError: the file is damaged.
    """
    tensors = load_tensors(folder / PROBE)
    try:
        return probe_scores(tensors["weight"], tensors["bias"])
    except (KeyError, ValueError, RuntimeError) as error:
        raise_if_out_of_memory(error)
        raise RunError(f"cannot read {str(folder / PROBE)!r}: {error}") from error
