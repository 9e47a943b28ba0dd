"""The loss of a trainer's step in the form that zofo's optimizer needs: one number for all examples, or one each."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from zofo.errors import ConfigError
from zofo.integrations.losses import scored
from zofo.models import bare_model
from zofo.optim.base import Ask, ZerothOrderOptimizer
from zofo.processes import ALONE, Attempt, Processes

Batch = tuple[dict[str, Any], Any]
"""A batch, and how many labels all batches of its step have, where the trainer counts them."""

_WEIGHT = "zofo_weight"
_TOKENS, _METRICS = "_total_train_tokens", "_metrics"  # of TRL's trainers
_SAME, _SAME_HALF = 1e-4, 5e-2  # relative difference of two ways to sum the same losses


class TrainerLosses:
    """The trainer's loss of one step, possibly over several batches.

    Args:
        trainer: a `transformers.Trainer` with `compute_losses`.
        processes: the processes, each with its own batches; the loss of a step is their mean.
    """

    def __init__(self, trainer: Any, processes: Processes = ALONE) -> None:
        self._trainer, self._processes = trainer, processes
        self._scale_known = processes.alone
        self._counts_items: bool | None = None
        self._single: bool | None = None  # whether single losses are asked for; None before the first step

    @property
    def own(self) -> bool:
        """Whether the trainer's class computes another loss than the model."""
        return not type(self._trainer).compute_loss.__module__.startswith("transformers.")

    @property
    def shifted(self) -> bool:
        """Whether the model's loss is that of the next token."""
        return str(getattr(bare_model(self._trainer.model), "loss_type", "")) == "ForCausalLM"

    def asks(self, model: nn.Module, batches: Sequence[Batch], optimizer: ZerothOrderOptimizer) -> list[Ask]:
        """The asks of an optimizer for a step.

        Raises:
            ConfigError: all points share a forward, and the losses of single examples are unknown, or do not match the
                trainer's loss.
        """
        self._look(model, batches, optimizer.repeats_batch)
        if self._single:
            losses = self._weighted_losses(model)
            self._count_tokens([inputs for inputs, _ in batches])
            return [optimizer.ask(losses, batch) for batch in self._weighted(batches)]
        tokens = vars(self._trainer).get(_TOKENS)  # that TRL counts in each forward
        return [optimizer.ask(lambda: self._whole(model, batches, tokens))]

    def _look(self, model: nn.Module, batches: Sequence[Batch], needed: bool) -> None:
        """Find out, in the first step, how the trainer computes its loss."""
        self.look_at_scale(model, batches[0][0])
        if self._counts_items is None and len(batches) > 1:
            counts = self._look_at_items(model, *batches[0])
            self._counts_items = counts if counts is None else any(self._processes.gather_json(counts))
        if self._single is None:
            single = False
            with Attempt() as made, self._uncounted():
                single = self._look_at_losses(model, batches, needed)
            self._single = all(self._processes.gather_json(single, made.failure))

    @contextmanager
    def _uncounted(self) -> Iterator[None]:
        """Context in which TRL's trainers do not count the statistics that they collect in each forward.

        It copies all statistics, which grow between two logs: use it in the first step only.
        """
        own = vars(self._trainer)
        kept = {name: copy.deepcopy(own[name]) for name in (_TOKENS, _METRICS) if name in own}
        try:
            yield
        finally:
            own.update(kept)

    def _count_tokens(self, batches: Sequence[dict[str, Any]]) -> None:
        """Count the tokens of a step once, if the trainer would count them in a forward that is not made here."""
        own, masks = vars(self._trainer), [inputs.get("attention_mask") for inputs in batches]
        if _TOKENS in own and all(mask is not None for mask in masks):
            seen = sum(int(mask.sum()) for mask in masks if mask is not None)
            own[_TOKENS] += sum(self._processes.gather_json(seen))
            own[_METRICS]["train"]["num_tokens"] = [own[_TOKENS]]

    @torch.no_grad()
    def look_at_scale(self, model: nn.Module, inputs: dict[str, Any]) -> None:
        """Find out, once and before any loss, whether the model divides by the number of labels that it is passed.

        A trainer in several processes multiplies such a loss by their number. A head that accepts the number and
        ignores it, as for classification, returns a mean, which would then be too large.
        """
        trainer = self._trainer
        if self._scale_known or self.own or "labels" not in inputs or not trainer.model_accepts_loss_kwargs:
            return
        self._scale_known, ignored = True, False
        with Attempt() as made, self._uncounted(), trainer.compute_loss_context_manager():
            one, other = (float(trainer.compute_loss(model, dict(inputs), num_items_in_batch=n)) for n in (1, 2))
            ignored = one == other != 0
        if any(self._processes.gather_json(ignored, made.failure)):
            trainer.model_accepts_loss_kwargs = False

    def _whole(self, model: nn.Module, batches: Sequence[Batch], tokens: Any = None) -> torch.Tensor:
        """The trainer's loss over all batches; their tokens are counted once."""
        trainer, total = self._trainer, torch.zeros(())
        if tokens is not None:
            vars(trainer)[_TOKENS] = tokens
        for inputs, items in batches:
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(model, dict(inputs), num_items_in_batch=items)
            total = total.to(loss) + (loss if self._adds_up(items) else loss / len(batches))
        return total

    @property
    def _scale(self) -> int:
        """The factor by which the trainer multiplies losses, if labels are counted over all processes."""
        args = self._trainer.args
        return self._processes.size if getattr(args, "average_tokens_across_devices", False) else 1

    def _adds_up(self, items: Any) -> bool:
        """Whether the losses of accumulated batches add up to that of all; otherwise their mean is that of all."""
        trainer, said = self._trainer, getattr(self._trainer, "loss_is_scaled_for_ga", None)
        if said is not None:
            return bool(said)
        counted = trainer.model_accepts_loss_kwargs and items is not None and self._counts_items is not False
        return bool(counted or trainer.compute_loss_func is not None)

    @torch.no_grad()
    def _look_at_items(self, model: nn.Module, inputs: dict[str, Any], items: Any) -> bool | None:
        """Whether the loss of a batch depends on the number of labels in all batches; None if it is never passed.

        Some models accept the number and ignore it, so that the sum of their losses would be several times the mean.
        """
        trainer = self._trainer
        if items is None or not trainer.model_accepts_loss_kwargs:
            return None
        with self._uncounted(), trainer.compute_loss_context_manager():
            counted = float(trainer.compute_loss(model, dict(inputs), num_items_in_batch=items))
            alone = float(trainer.compute_loss(model, dict(inputs)))
        return counted != alone or not alone

    @torch.no_grad()
    def _look_at_losses(self, model: nn.Module, batches: Sequence[Batch], needed: bool) -> bool:
        """Whether one loss per example can be used: their mean must be the trainer's loss.

        Args:
            model: the trainer's model.
            batches: batches of the first step.
            needed: whether there is no alternative.
        """
        trainer = self._trainer
        if self.own and not needed:  # it may count its calls
            return False
        try:
            losses = self._weighted_losses(model)
            single = float(torch.cat([losses(batch) for batch in self._weighted(batches)]).mean())
        except ConfigError:
            if needed:
                raise
            return False
        if self.own:
            return True
        whole = float(self._whole(model, batches))
        half = any(parameter.dtype.itemsize == 2 for parameter in model.parameters())
        same = abs(single - whole) <= (_SAME_HALF if half else _SAME) * abs(whole)
        if not same and needed and type(trainer).compute_losses.__module__.startswith("zofo."):
            raise ConfigError(
                f"the loss of the first step is {whole:g}, but one loss for each example has the mean {single:g}, so "
                "that the model adds something to it",
                "override compute_losses(model, inputs) of the trainer, or set zo_evaluator='in-place'",
            )
        return same or needed

    def _weighted_losses(self, model: nn.Module) -> Any:
        def losses(batch: dict[str, Any]) -> torch.Tensor:
            inputs = {name: value for name, value in batch.items() if name != _WEIGHT}
            weights: torch.Tensor = batch[_WEIGHT]
            each: torch.Tensor = self._trainer.compute_losses(model, inputs)
            return each * weights

        return losses

    def _weighted(self, batches: Sequence[Batch]) -> Iterator[dict[str, Any]]:
        """Each batch with the weight of each example, so that the mean over all is the trainer's loss."""
        held = [next(value for value in inputs.values() if isinstance(value, torch.Tensor)) for inputs, _ in batches]
        examples = sum(len(tensor) for tensor in held)
        for tensor, (inputs, items) in zip(held, batches, strict=True):
            counted = scored(inputs.get("labels"), len(tensor), self.shifted).double()
            if self._adds_up(items) and items is not None:
                share = counted * examples * self._scale / float(items)
            else:
                share = counted / counted.mean().clamp(min=1e-9) * examples / (len(batches) * len(tensor))
            yield {**inputs, _WEIGHT: share.float().to(tensor.device)}
