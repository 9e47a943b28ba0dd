"""Bilevel-ZOFO as a `transformers.Trainer`: two data sets, two adapters, and a model that moves beneath them."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from transformers import Trainer

from zofo.adapters import AdapterConfig, adapter_of, carries_adapters
from zofo.errors import CheckpointError, ConfigError, reworded
from zofo.integrations.arguments import LOG
from zofo.integrations.bilevel_arguments import BilevelTrainingArguments, as_arguments, method_of
from zofo.integrations.bilevel_theta import BASE, load_theta, name_base, save_theta
from zofo.integrations.mixin import TrainerSteps
from zofo.integrations.row_batch import RowBatch, Rows
from zofo.integrations.saved_state import OPTIMIZER, read_optimizer, write_json, write_tensors
from zofo.integrations.several_processes import (
    check_one_device,
    check_same_rows,
    processes_of,
    take_weights_of_first,
)
from zofo.integrations.trainer_card import say_bilevel_steps
from zofo.integrations.trainer_losses import TrainerLosses
from zofo.methods import StepLog, TrainingContext
from zofo.methods.bilevel.adapter_pair import VARIANTS
from zofo.methods.bilevel.bilevel import Bilevel, split_indices
from zofo.methods.bilevel.config import BilevelConfig
from zofo.optim.parameters import whole
from zofo.state_dict import StateDict
from zofo.temporary import temporarily

_MOST_LOGGED = 8  # projected gradients of a step


class BilevelTrainer(TrainerSteps, Trainer):  # type: ignore[misc]
    """min over theta, p, max over s of  F(theta, p; D_f) + penalty (F(theta, p; D_p) - F(theta, s; D_p)).

    The steps are those of zofo's method `bilevel`: first-order steps on the adapters p and s, zeroth-order steps on the
    model theta. Data sets, collators, evaluation, callbacks, schedules, logging and checkpoints are the trainer's. It
    evaluates, predicts with and saves the model with p.

    Batches are drawn as in `zofo train`, by `args.seed`; an epoch is a pass over `train_dataset`. A step has a batch of
    each set, of `per_device_train_batch_size` times `gradient_accumulation_steps` times the number of processes. Every
    process has all rows, and processes its share of the batch; losses and gradients are combined.

    Args:
        train_dataset: D_f, the rows of the upper objective.
        lower_train_dataset: D_p, the rows that the adapters are fitted to. By default `train_dataset` is split by seed,
            a third D_f and the rest D_p; an epoch is then a pass over D_p.
        peft_config: a peft configuration (LoRA, DoRA, IA3, prompt, prefix) for both adapters; or an adapter of zofo by
            name.

    The other arguments are those of `transformers.Trainer`; `args` is a `BilevelTrainingArguments`.

    Raises:
        ConfigError: arguments, data or an adapter do not fit; one process has several devices; processes differ.

    Source: Shirkavand et al. (2025), "Bilevel ZOFO".
    """

    args: BilevelTrainingArguments
    optimizer: Any

    def __init__(
        self,
        model: Any = None,
        args: BilevelTrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *more: Any,
        lower_train_dataset: Any = None,
        peft_config: Any = "lora",
        **kwargs: Any,
    ) -> None:
        if not isinstance(args, BilevelTrainingArguments):
            raise ConfigError(
                f"args is {type(args).__name__}, which does not say how the two levels are stepped",
                "give BilevelTrainingArguments, of zofo.integrations.transformers",
            )
        if isinstance(model, nn.Module) and carries_adapters(model):
            raise ConfigError("the model already has adapters", "give the model itself, and peft_config")
        if any(kwargs.get("optimizers") or (None,)) or kwargs.get("optimizer_cls_and_kwargs"):
            raise ConfigError("the steps have optimizers of their own", "leave them out, and see optim and zo_rule")
        with reworded(as_arguments):
            self._adapter: AdapterConfig = adapter_of(peft_config)
        with _adapters_to_come(model):
            super().__init__(model, args, data_collator, train_dataset, eval_dataset, *more, **kwargs)
        self.lower_train_dataset = lower_train_dataset
        self._processes = processes_of(self)
        self._losses = TrainerLosses(self, self._processes)
        check_one_device(self)

    @property
    def bilevel(self) -> Bilevel | None:
        """The method, after training has begun."""
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return optimizer.method if isinstance(optimizer, BilevelOptimizer) else None

    @property
    def _steps(self) -> BilevelOptimizer:
        found = getattr(self.optimizer, "optimizer", self.optimizer)
        assert isinstance(found, BilevelOptimizer)
        return found

    def _losses_of_rows(self, model: nn.Module, rows: RowBatch) -> torch.Tensor:
        losses = self.compute_losses(model, rows.inputs)
        if losses.shape != (len(rows),):
            raise ConfigError(
                f"the losses of {len(rows)} rows have shape {list(losses.shape)}, and not one for each",
                "let the collator keep rows apart, and compute_losses(model, inputs) give one loss for each",
            )
        return losses

    def get_train_dataloader(self) -> Any:
        """One empty batch per step of an epoch: the method draws its rows itself, from two data sets."""
        upper, lower = self._sets()
        rows = len(lower if self.lower_train_dataset is None else upper)
        parts = self.args.gradient_accumulation_steps
        batch = self.args.per_device_train_batch_size * self._processes.size
        return DataLoader(
            range(max(rows // (batch * parts), 1) * batch * parts),  # type: ignore[arg-type]
            batch_size=batch,
            collate_fn=_nothing,
        )

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Attach both adapters to the model, and build the method."""
        if self.optimizer is None:
            self.model.eval()
            take_weights_of_first(whole(self.model), self._processes)
            with reworded(as_arguments):
                method, config = self._build()
            for note in (*method.adapter_start.notes, *method.notes()):
                LOG.warning(as_arguments(note))
            self.optimizer = BilevelOptimizer(method, config)
        made: torch.optim.Optimizer = self.optimizer
        return made

    def _build(self) -> tuple[Bilevel, BilevelConfig]:
        halves = [str(p.dtype).removeprefix("torch.") for p in self.model.parameters() if p.dtype.itemsize == 2]
        size = self.args.per_device_train_batch_size
        of_step = size * self.args.gradient_accumulation_steps * self._processes.size
        config = method_of(self.args, self._adapter, halves[0] if halves else None, of_step)
        collate = self._get_collator_with_removed_columns(self.data_collator, "training")
        self._check_same(config)
        upper, lower = self._sets()
        for name, rows in (("train_dataset", upper), ("lower_train_dataset", lower)):
            if len(rows) < config.batch_size:
                raise ConfigError(
                    f"{name} has {len(rows)} rows of its level, fewer than a batch of {config.batch_size}",
                    "give more rows, or set a lower per_device_train_batch_size or gradient_accumulation_steps",
                )
        context = TrainingContext(
            model=self.model,
            objective=self._losses_of_rows,
            examples=upper,
            lower_examples=lower,
            collate=lambda rows: RowBatch(rows, lambda some: dict(self._prepare_inputs(collate(some))), size),
            seed=self.args.seed,
            length=self._length if self.args.train_sampling_strategy == "group_by_length" else None,
            processes=self._processes,
        )
        with self._processes.alike():
            method = Bilevel(config, context)
            method.check()
        return method, config

    def _check_same(self, config: BilevelConfig) -> None:
        """Raise ConfigError if processes have different arguments or rows."""
        own = {"seed": self.args.seed, "max_steps": self.args.max_steps, **config.model_dump(mode="json")}
        self._processes.check_same(own, "give all processes the same arguments")
        data_sets = {"train_dataset": self.train_dataset}
        data_sets |= {} if self.lower_train_dataset is None else {"lower_train_dataset": self.lower_train_dataset}
        check_same_rows(data_sets, self._processes)

    def _sets(self) -> tuple[Rows, Rows]:
        """D_f and D_p."""
        for name in ("train_dataset", "lower_train_dataset"):
            rows = getattr(self, name)
            if (rows is None and name == "train_dataset") or not hasattr(rows or [], "__len__"):
                raise ConfigError(f"{name} is {type(rows).__name__}, and has no length", "give a data set with rows")
        if self.lower_train_dataset is not None:
            return Rows(self.train_dataset), Rows(self.lower_train_dataset)
        d_f, d_p = split_indices(self.args.seed, len(self.train_dataset))
        return Rows(Subset(self.train_dataset, d_f)), Rows(Subset(self.train_dataset, d_p))

    def _length(self, row: Any) -> int:
        given = row.get(self.args.length_column_name)
        return len(row["input_ids"]) if given is None else int(given)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Make a step, once all accumulated batches are there; returns the loss F(theta, p; B_f) before it, or 0.

        Raises:
            NonFiniteError: a loss is not finite. Nothing was updated.
        """
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        if any(part.training for part in model.modules()):
            model.eval()
        with reworded(as_arguments):
            loss = self._steps.step_ahead()
        return torch.tensor(loss, device=self.args.device)

    def floating_point_ops(self, inputs: Any) -> int:
        """Not estimated; see `trainer.bilevel.counts` for forwards, backwards and queries."""
        return 0

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the results of the last step, under the names of `zofo train`."""
        step = None if self.bilevel is None else self._steps.last_step
        if step is not None and "loss" in logs:
            slopes = {name for name in step.coefficients if name.startswith("projected_gradient")}
            left_out = slopes if len(slopes) > _MOST_LOGGED else set()
            logs.update({name: value for name, value in step.coefficients.items() if name not in left_out})
        super().log(logs, *args, **kwargs)

    def _say_steps(self) -> None:
        say_bilevel_steps(self.args, self._steps.config, self._moves_base)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Also push the base model that moved, which the trainer does not know of."""
        if self.is_world_process_zero() and self.args.hub_strategy != "end":
            self._save(self.args.output_dir)
        super()._push_from_checkpoint(checkpoint_folder)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save p as a peft folder, s in `lower_adapter`, and theta, if it moved, as a transformers folder `base_model`.

        The adapter refers to that folder as its base model, so `from_pretrained(output_dir)` of a transformers class
        loads both.
        """
        method = self.bilevel
        if method is None:
            super()._save(output_dir, state_dict)
            return
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        p, s = VARIANTS
        method.adapters.save(p, folder)
        method.adapters.save(s, folder / s)
        if self._moves_base:
            save_theta(method, folder)
            pushed = self.hub_model_id is not None  # by an argument, or since `push_to_hub` was called
            for adapter in (folder, folder / s):
                name_base(adapter, BASE if pushed else str((folder / BASE).resolve()))
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    @property
    def _moves_base(self) -> bool:
        """Whether steps write the model's own weights, rather than an adapter."""
        return self.args.backbone_adapter is None and self.args.backbone_update != "frozen"

    def _save_steps(self, folder: Path) -> None:
        steps = self._steps
        state = steps.method.state_dict(weights=not self._moves_base)
        write_tensors(folder, state.tensors)
        rate = steps.param_groups[0]["lr"]  # which a schedule gives for the next step
        values = {"steps": steps.steps, "lr": rate, "settings": steps.settings, "values": state.values}
        write_json(folder / OPTIMIZER, {"state": {"zofo-bilevel": values}})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Check the folder now; it is loaded once the adapters are attached."""
        read_optimizer(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        """Load the model and the adapters of the best checkpoint."""
        self._load_steps(Path(self.state.best_model_checkpoint))

    def _load_steps(self, folder: Path) -> None:
        content, tensors = read_optimizer(folder)
        state = content.get("state", {}).get("zofo-bilevel")
        if not isinstance(state, dict):
            raise CheckpointError(f"{str(folder)!r} was not written by a BilevelTrainer", "name a checkpoint of one")
        steps = self._steps
        now = json.loads(json.dumps(steps.settings))
        for key, value in state["settings"].items():
            if now.get(key) != value:
                raise CheckpointError(
                    as_arguments(f"{str(folder)!r} was made with method.{key}={value!r}, now it is {now.get(key)!r}"),
                    "train with the arguments of then, or into another output_dir",
                )
        steps.method.load_state_dict(StateDict(state["values"], tensors))
        if self._moves_base:
            load_theta(steps.method, folder)
        steps.steps, steps.param_groups[0]["lr"] = int(state["steps"]), float(state["lr"])


class BilevelOptimizer(torch.optim.Optimizer):
    """zofo's method as an optimizer for a trainer's scheduler: its rate is that of p, and scales all others.

    Args:
        method: the method that makes the steps.
        config: its configuration.

    Attributes:
        steps: number of steps so far.
        last_step: the log of the last step.
        settings: everything that determines the bits of a step, except the learning rates.
    """

    def __init__(self, method: Bilevel, config: BilevelConfig) -> None:
        self.method, self.config, self.steps = method, config, 0
        self.last_step: StepLog | None = None
        options = config.model_dump(mode="json", exclude={"lr_adapter", "lr_lower", "name"})
        options["rule"].pop("lr", None)
        self.settings = options
        self._rate = config.lr_adapter or 1.0
        parameters = [one for name in VARIANTS for one in method.adapters.parameters(name)]
        super().__init__(parameters, {"lr": config.lr_adapter})

    def step_ahead(self) -> float:
        """Make a step; returns its loss."""
        factor = float(self.param_groups[0]["lr"]) / self._rate
        self.method.lr_factor = lambda _step: factor
        self.last_step = self.method.step(self.steps)
        self.steps += 1
        with self.method.using(VARIANTS[0]):  # so that theta is written, for whoever looks at the model next
            pass
        return self.last_step.loss

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Does nothing: `step_ahead` has already made the step, when the trainer computed the loss."""


def _adapters_to_come(model: Any) -> AbstractContextManager[None]:
    """Context in which a trainer accepts a quantised model, whose adapters are attached when training begins."""
    quantised = getattr(model, "is_quantized", False)
    return temporarily(model, _hf_peft_config_loaded=True) if quantised else nullcontext()


def _nothing(rows: Any) -> dict[str, Any]:
    return {}
