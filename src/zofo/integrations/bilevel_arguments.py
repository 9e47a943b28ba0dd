"""The arguments of a bilevel trainer, converted to options of zofo's method."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from transformers import TrainingArguments

from zofo.adapters import AdapterConfig
from zofo.config import parse_model
from zofo.errors import ConfigError, reworded
from zofo.integrations.arguments import GOES_ON_FROM, IN_HALF, OBJECTIVE, PrivateArguments, in_line, parsed, said
from zofo.methods.bilevel.config import BilevelConfig
from zofo.optim.words import in_python
from zofo.processes import GOES_ON

_OPTIMIZERS = {"adamw_torch": "adamw", "adamw_torch_fused": "adamw", "sgd": "sgd"}
_OF_HEAD = "set model.head=causal-lm, or these to null"
_WHOLE = "leave it out: every step on theta writes whole tensors"
_DRAWN = "leave it out: batches are drawn by `seed`, or with group_by_length"
_MEANINGLESS = {
    "fp16": IN_HALF,
    "bf16": IN_HALF,
    "deepspeed": _WHOLE,
    "fsdp": _WHOLE,
    "parallelism_config": _WHOLE,
    "neftune_noise_alpha": "leave it out: two points of one step would have other noise in their embeddings",
    "auto_find_batch_size": "set per_device_train_batch_size",
    "optim_args": "leave it out",
    "optim_target_modules": "leave it out",
    "activation_offloading": "leave it out",
}
_ONLY: dict[str, tuple[list[Any], str]] = {
    "optim": (list(_OPTIMIZERS), f"choose among {', '.join(_OPTIMIZERS)}"),
    "adam_beta1": ([0.9], "leave it out"),
    "adam_beta2": ([0.999], "leave it out"),
    "adam_epsilon": ([1e-8], "leave it out"),
    "train_sampling_strategy": (["random", "group_by_length"], _DRAWN),
    "data_seed": ([None], _DRAWN),
}
_ARGUMENTS = {  # of the method's options, where they are called otherwise; longer ones first
    "rule.lr": "zo_learning_rate",
    "estimator.epsilon": "zo_epsilon",
    "lr_adapter": "learning_rate",
    "lr_lower": "lower_learning_rate",
    "lr": "learning_rate",
    "batch_size": "per_device_train_batch_size",
    "optimizer": "optim",
    "adapter": "peft_config",
    "gradient_checkpointing": "gradient_checkpointing",
}
_GROUPS = ("penalty", "zo_noise", "zo_estimator", "zo_rule", "zo_evaluator", "backbone_adapter", "control_variate")
_ZO = ("noise", "estimator", "rule", "evaluator", "directions", "num_directions", "trainable", "epsilon")


@dataclass
class BilevelTrainingArguments(PrivateArguments, TrainingArguments):  # type: ignore[misc]
    """`transformers.TrainingArguments`, with the two levels of Bilevel-ZOFO.

    `learning_rate`, `optim` (AdamW or SGD), `weight_decay`, `max_grad_norm` and `gradient_checkpointing` apply to the
    first-order steps on the adapters; arguments that begin with `zo_` to the zeroth-order steps on the model.

    Raises:
        ConfigError: an argument does not apply here; the message says what to do instead.
    """

    learning_rate: float | None = said(None, "Of the adapters; by default 1e-3, and 1e-2 for a prefix or prompt.")
    lower_learning_rate: float | None = said(None, "Of the lower adapter; by default learning_rate.")
    zo_learning_rate: float | None = said(None, "Of the model; by default 5e-5 over 1 + the largest penalty.")
    inner_steps: int = said(10, "First-order steps on the lower adapter in each step.")
    penalty: float | str = said(
        1.0, "How strongly both adapters are held together; or a schedule: {start, end, steps}."
    )
    max_grad_norm: float = said(0.0, "Longer gradients of the adapters are scaled to this length; 0 leaves them.")
    bf16: bool = said(False, "Must be False: load the model in bfloat16 instead.")
    zo_epsilon: float | None = said(None, "How far from theta losses are asked for; by default 1e-3, 3e-3 in half.")
    zo_num_directions: int = said(1, "Directions a step; their estimates are averaged.")
    zo_noise: str = said("low-rank", "The distribution of directions; a name, or a dict with its options.")
    zo_estimator: str = said("two-sided", "How losses become a gradient estimate.")
    zo_rule: str = said("sgd", "How an estimate becomes an update; a name, or a dict with its options.")
    zo_evaluator: str | None = said(None, "How losses at points are found; by default in-forward, or in-place.")
    zo_directions: str = said("shared", "Who shares a direction: shared, per-example or per-group(n).")
    zo_trainable: list[str] | None = said(None, "Glob patterns of the model's parameters that move.")
    backbone_update: str = said("zeroth-order", "How the model moves; frozen and random are controls.")
    backbone_adapter: str | None = said(None, "An adapter that moves instead of the model's weights, such as subspace.")
    control_variate: str | None = said(None, "An adapter whose gradient is taken off the noise of the model's step.")

    def __post_init__(self) -> None:
        for name, instead in _MEANINGLESS.items():
            if value := getattr(self, name, None):
                raise ConfigError(f"{name}={in_line(value)} does not go with steps of two levels", instead)
        for name in _GROUPS:
            value = getattr(self, name)
            if isinstance(value, str) and value.startswith("{"):
                setattr(self, name, parsed(name, value))
        super().__post_init__()
        for name, (known, instead) in _ONLY.items():
            value = getattr(self, name, known[0])
            value = getattr(value, "value", value)
            if str(value) not in map(str, known):
                raise ConfigError(f"{name}={value!r} does not go with steps of two levels", instead)
        if self.save_only_model and self.load_best_model_at_end:
            raise ConfigError("save_only_model leaves out what load_best_model_at_end loads", "leave one of them out")
        with reworded(as_arguments):
            method_of(self, AdapterConfig.model_validate({}), None, 1)

    @property
    def checkpoints_layers(self) -> bool:
        """Whether gradient checkpointing is on, under either name in versions of transformers."""
        return bool(self.gradient_checkpointing or getattr(self, "activation_checkpointing", False))


def method_of(
    args: BilevelTrainingArguments, adapter: AdapterConfig, dtype: str | None, batch_size: int
) -> BilevelConfig:
    """The configuration of the method.

    Args:
        args: arguments of the trainer.
        adapter: the adapter that first-order steps train.
        dtype: dtype of the model, if it is in half precision.
        batch_size: examples per step, over all accumulated batches and all processes.
    """
    rate, lower = args.learning_rate, args.lower_learning_rate
    rule = {"name": args.zo_rule} if isinstance(args.zo_rule, str) else dict(args.zo_rule)
    estimator = {"name": args.zo_estimator} if isinstance(args.zo_estimator, str) else dict(args.zo_estimator)
    given: dict[str, Any] = {
        "adapter": adapter.model_dump(),
        "batch_size": batch_size,
        "inner_steps": args.inner_steps,
        "penalty": args.penalty,
        "lr_adapter": rate,
        "lr_lower": rate if lower is None else lower,
        "optimizer": _OPTIMIZERS[str(getattr(args.optim, "value", args.optim))],
        "weight_decay": args.weight_decay,
        "max_grad_norm": args.max_grad_norm or None,
        "gradient_checkpointing": args.checkpoints_layers,
        "rule": {**rule, "lr": args.zo_learning_rate} if args.zo_learning_rate is not None else rule,
        "estimator": {**estimator, "epsilon": args.zo_epsilon} if args.zo_epsilon is not None else estimator,
        "noise": args.zo_noise,
        "evaluator": args.zo_evaluator,
        "directions": args.zo_directions,
        "num_directions": args.zo_num_directions,
        "trainable": args.zo_trainable,
        "backbone_update": args.backbone_update,
        "backbone_adapter": args.backbone_adapter,
        "control_variate": args.control_variate,
    }
    tree = {"name": "bilevel", **{key: value for key, value in given.items() if value is not None}}
    return parse_model(BilevelConfig, tree, "method", {"dtype": dtype}).model_copy(update={"adapter": adapter})


def as_arguments(text: str) -> str:
    """A message of the method, with the trainer's arguments instead of keys."""

    def argument(found: re.Match[str]) -> str:
        key = found.group(1)
        for option, name in _ARGUMENTS.items():
            if key == option or key.startswith(f"{option}."):
                return name + key[len(option) :]
        return f"zo_{key}" if key.split(".")[0] in _ZO else key

    text = text.replace(OBJECTIVE, "trainer.compute_losses(model, inputs)")
    text = text.replace(GOES_ON, GOES_ON_FROM).replace(_OF_HEAD, "give a causal language model, or set these to None")
    text = re.sub(r"\bmethod\.([a-z_]+(?:\.[a-z_]+)*)", argument, in_python(text, "zo_"))
    return re.sub(r"(?<![a-z_])batch_size\b", "per_device_train_batch_size", text.replace("training.lr_", "lr_"))
