"""Zeroth-order steps in the loop of a `transformers.Trainer` or of a subclass."""

from __future__ import annotations

import inspect
from collections.abc import Sized
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from zofo.config import read_json_object
from zofo.errors import CheckpointError, ConfigError, reworded
from zofo.integrations.arguments import LOG, ZerothOrderArguments, as_arguments, options_of
from zofo.integrations.losses import example_losses, loss_of_its_own
from zofo.integrations.saved_state import OPTIMIZER, SCHEDULER, read_optimizer, write_json, write_tensors
from zofo.integrations.several_processes import (
    check_one_device,
    check_same_rows,
    processes_of,
    take_weights_of_first,
)
from zofo.integrations.trainer_card import options_of_card, say_steps, tagged
from zofo.integrations.trainer_losses import TrainerLosses
from zofo.optim import MeZO
from zofo.optim.base import ZerothOrderOptimizer
from zofo.processes import Processes

_MOST_LOGGED = 8  # coefficients of a step
_MOST_TIED = 5  # steps in a row without a slope
_OF_POLICIES = ("_calculate_rewards", "_generate_and_score_completions")  # of TRL's GRPOTrainer and RLOOTrainer
_OF_BATCHES = ("seed", "data_seed", "per_device_train_batch_size", "gradient_accumulation_steps", "max_steps")


class TrainerSteps:
    """Base class of trainers with zofo's steps; list it before the trainer's class."""

    lr_scheduler: Any
    _losses: TrainerLosses
    _processes: Processes

    def compute_losses(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        """One loss per example of a batch: float32, [examples]; for token labels, the mean of an example.

        Zeroth-order trainers use it if all points share a forward, and also in place if the mean is the trainer's loss,
        since differences of single losses have less rounding error. Override it for a model with another loss.

        Raises:
            ConfigError: the trainer has its own loss, or the model's head or labels are of another kind.
        """
        trainer: Any = self
        if trainer.label_smoother is not None or trainer.compute_loss_func is not None or self._losses.own:
            raise loss_of_its_own()
        return example_losses(model, inputs, self._losses.shifted)

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As in the trainer; in several processes, with the loss of a single one."""
        self._losses.look_at_scale(model, cast(Any, self)._prepare_inputs(inputs))
        return super().prediction_step(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def create_model_card(self, *args: Any, tags: Any = None, **kwargs: Any) -> None:
        """As in the trainer, plus a description of the steps."""
        trainer: Any = self
        super().create_model_card(*args, tags=tagged(tags), **kwargs)  # type: ignore[misc]
        if trainer.optimizer is not None and trainer.is_world_process_zero():
            self._say_steps()

    def _say_steps(self) -> None:
        """Describe the steps in the model card."""
        raise NotImplementedError

    def _clip_grad_norm(self, model: nn.Module) -> None:
        """No clipping in the trainer: there are no gradients, or the method clips them."""

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> None:
        """None: there is no gradient after a step."""

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save as JSON, and large tensors as safetensors."""
        if cast(Any, self).args.should_save:
            self._save_steps(Path(output_dir))
            write_json(Path(output_dir) / SCHEDULER, self.lr_scheduler.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load the state saved with a checkpoint.

        Raises:
            CheckpointError: it is missing, or belongs to another optimizer or other settings.
        """
        if checkpoint is not None:
            self._load_steps(Path(checkpoint))
            self.lr_scheduler.load_state_dict(read_json_object(Path(checkpoint) / SCHEDULER, CheckpointError))

    def _save_steps(self, folder: Path) -> None:
        """Save the state of the steps, beside the weights."""
        raise NotImplementedError

    def _load_steps(self, folder: Path) -> None:
        """Load the state that `_save_steps` wrote."""
        raise NotImplementedError


class ZerothOrderMixin(TrainerSteps):
    """Makes a trainer take zeroth-order steps; list it before the trainer's class.

    Everything except the step is the trainer's: data, evaluation, metrics, callbacks, schedules, logging, checkpoints.
    A step computes the trainer's loss, over all accumulated batches, at the points of the step, in evaluation mode:
    dropout is off. Checkpoints contain the weights as usual, and the state of optimizer and scheduler as JSON;
    `resume_from_checkpoint` continues with the same bits.

    With `zo_evaluator="in-forward"` the losses come from `compute_losses`, and their mean must be the trainer's loss.

    Raises:
        ConfigError: arguments or an optimizer need gradients; the loss of a TRL trainer is a policy gradient; one
            process has several devices; processes differ, or have batches of different sizes.
    """

    optimizer: Any
    _accumulated: list[tuple[Any, Any]]
    _tied: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = inspect.signature(super().__init__).bind_partial(*args, **kwargs).arguments
        if not isinstance(given.get("args"), ZerothOrderArguments):
            raise ConfigError(
                f"args is {type(given.get('args')).__name__}, which does not say how zeroth-order steps are made",
                "give ZerothOrderTrainingArguments, of zofo.integrations.transformers",
            )
        optimizers = (given.get("optimizers") or (None, None))[0], given.get("optimizer_cls_and_kwargs")
        if any(one is not None and not isinstance(one, ZerothOrderOptimizer) for one in optimizers):
            raise ConfigError(
                "the optimizer that was given takes gradients", "leave it out, or give one of zofo.optim, as SVRG"
            )
        _check_loss_has_value(type(self))
        super().__init__(*args, **kwargs)
        trainer: Any = self
        self._processes = processes_of(trainer)
        check_one_device(trainer)
        self._accumulated, self._losses, self._tied = [], TrainerLosses(self, self._processes), 0
        if not self._processes.alone and not trainer.accelerator.even_batches:
            raise ConfigError(
                "the batches of several processes must be of one size, since their losses count alike",
                'leave out accelerator_config={"even_batches": False}',
            )

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Create `zofo.optim.MeZO` for the model, with the options of the arguments."""
        trainer: Any = self
        if self.optimizer is None:
            take_weights_of_first(trainer.model, self._processes)
            with _in_arguments():
                self.optimizer = MeZO(trainer.model, **options_of(trainer.args, trainer.model))
        found: torch.optim.Optimizer = self.optimizer
        return found

    @property
    def zeroth_order(self) -> ZerothOrderOptimizer:
        """The optimizer itself, without accelerate's wrapper."""
        found: ZerothOrderOptimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return found

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in the trainer; then all pending updates are written."""
        self._accumulated = []  # those of a training that was interrupted in between
        self._check_same()
        try:
            return super().train(*args, **kwargs)  # type: ignore[misc]
        finally:
            if self.optimizer is not None:
                self.zeroth_order.flush()

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Make a step, once all accumulated batches are there; returns its loss, or 0 before.

        The following call of `optimizer.step()` does nothing.

        Raises:
            NonFiniteError: a loss that is not a finite number. Nothing was updated.
        """
        trainer: Any = self
        self._accumulated.append((trainer._prepare_inputs(inputs), num_items_in_batch))
        if not trainer.accelerator.sync_gradients:
            return torch.zeros((), device=trainer.args.device)
        batches, self._accumulated = self._accumulated, []
        _off(model, marked=hasattr(self, "_metrics"))
        optimizer = self.zeroth_order
        optimizer.say = lambda note: LOG.warning(as_arguments(note))
        with _in_arguments():
            loss = optimizer.step_ahead(self._losses.asks(model, batches, optimizer))
        self._watch_ties(optimizer)
        return loss.to(trainer.args.device)

    def _watch_ties(self, optimizer: ZerothOrderOptimizer) -> None:
        """Warn once if all points have the same loss for several steps in a row, so that nothing moves."""
        slopes = {} if optimizer.last_step is None else optimizer.last_step.coefficients
        tied = bool(slopes) and not any(slopes.values())
        self._tied = self._tied + 1 if tied else 0
        if self._tied == _MOST_TIED:
            LOG.warning(
                f"no direction of {_MOST_TIED} steps in a row changed the loss, so that nothing was trained. Has it a "
                "value that follows the weights? Those of policy gradients, as GRPO's, have none: train by the reward "
                "itself, zofo train --reward. Else raise zo_epsilon"
            )

    def _check_same(self) -> None:
        """Raise ConfigError if there are no rows, or processes would use other rows, or another order."""
        trainer: Any = self
        if isinstance(rows := trainer.train_dataset, Sized) and not len(rows):
            raise ConfigError("train_dataset has no rows", "give it some; whatever filters them has left none")
        own = {name: getattr(trainer.args, name) for name in _OF_BATCHES}
        self._processes.check_same(own, "give all processes the same arguments")
        check_same_rows({"train_dataset": trainer.train_dataset}, self._processes)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the projected gradients of the last step, under the names of `zofo train`."""
        step = None if self.optimizer is None else self.zeroth_order.last_step
        if step is not None and "loss" in logs:
            logs.update(step.coefficients if len(step.coefficients) <= _MOST_LOGGED else {})
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _say_steps(self) -> None:
        trainer, made = cast(Any, self), self.zeroth_order
        values = {"method": type(made).__name__, "learning_rate": made.defaults["lr"], "seed": trainer.args.seed}
        values |= options_of_card(made.config)
        say_steps(Path(trainer.args.output_dir), "Zeroth-order steps, which take losses and no gradients.", values)

    def _save_steps(self, folder: Path) -> None:
        state = self.zeroth_order.state_dict()
        own = dict(state["state"]["zofo"])
        write_tensors(folder, own.pop("tensors"))
        write_json(folder / OPTIMIZER, {**state, "state": {"zofo": own}})

    def _load_steps(self, folder: Path) -> None:
        state, tensors = read_optimizer(folder)
        state["state"]["zofo"]["tensors"] = tensors
        with _in_arguments():
            self.zeroth_order.load_state_dict(state)


def _check_loss_has_value(kind: type) -> None:
    """Raise ConfigError for TRL trainers whose loss uses exp(log p - log p_drawn) on texts that they draw themselves.

    Its value is always 1 where p_drawn is p, so it has a gradient, but no slope between two points.
    """
    if all(hasattr(kind, name) for name in _OF_POLICIES) and cast(Any, kind).compute_loss.__module__.startswith("trl."):
        raise ConfigError(
            f"the loss of {kind.__name__} has the gradient of a policy, but no value to compare: it is the same "
            "wherever the weights are, or tells of one draw of texts alone",
            "train by the reward itself, zofo train --reward, or give the trainer a compute_loss that has a value",
        )


def _off(model: nn.Module, marked: bool) -> None:
    """Context in evaluation mode, so that the points of a step are the same model.

    Args:
        model: the trainer's model.
        marked: keep the model's own flag at `training`, which some trainers use to decide what to count; its
            submodules, which contain anything random, are in evaluation mode all the same.
    """
    if any(part.training for part in model.modules()):
        model.eval()
    if marked:
        model.training = True


def _in_arguments() -> AbstractContextManager[None]:
    """Context in which errors name the arguments of a trainer."""
    return reworded(as_arguments)
