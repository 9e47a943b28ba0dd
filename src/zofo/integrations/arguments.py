"""Arguments of a transformers trainer for zeroth-order steps, and checks of those that do not apply to them."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

from zofo.backbone.selection import movable
from zofo.config import as_group, parse_model
from zofo.config import options_of as part_options
from zofo.errors import ConfigError, reworded, truncate
from zofo.evaluators import EVALUATORS
from zofo.methods import ZerothOrderConfig
from zofo.optim.base import options_of_step
from zofo.optim.words import in_python
from zofo.processes import GOES_ON

GOES_ON_FROM = "see what it said; start the script again with trainer.train(resume_from_checkpoint=True)"
LOG = logging.getLogger("zofo")
OBJECTIVE = "objective(model, batch)"
"""What a trainer does not call so."""

_PARTS = ("zo_noise", "zo_estimator", "zo_rule", "zo_evaluator")
_SECRET = ("hub_token", "push_to_hub_token")
_OF_GRADIENTS = (
    "optim",
    "optim_args",
    "optim_target_modules",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
)


def said(default: Any, text: str) -> Any:
    """A dataclass field of arguments with its help text."""
    return field(default=default, metadata={"help": text})


class PrivateArguments:
    """Arguments without the access token when pickled: transformers saves and uploads them with the weights."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: None if name in _SECRET else value for name, value in vars(self).items()}

    def __deepcopy__(self, memo: dict[int, Any]) -> PrivateArguments:
        made = object.__new__(type(self))
        memo[id(self)] = made
        vars(made).update({name: copy.deepcopy(value, memo) for name, value in vars(self).items()})
        return made

    def __copy__(self) -> PrivateArguments:
        made = object.__new__(type(self))
        vars(made).update(vars(self))
        return made


@dataclass
class ZerothOrderArguments(PrivateArguments):
    """The options of zeroth-order steps, a mixin for a subclass of `TrainingArguments`; list it before that class.

    `learning_rate`, `weight_decay`, `seed`, the schedule, and everything about data, evaluation and checkpoints are
    those of `TrainingArguments`.

    Raises:
        ConfigError: an argument does not apply without gradients; the message says what to do instead.
    """

    learning_rate: float | None = said(None, "The learning rate; by default that of zofo.optim.MeZO on what moves.")
    max_grad_norm: float = said(0.0, "Must be 0: there is no gradient whose norm could be clipped.")
    bf16: bool = said(False, "Must be False: load the model in bfloat16 instead.")
    gradient_checkpointing: bool | None = said(None, "Must not be set: nothing is stored for a backward pass.")
    zo_epsilon: float | None = said(
        None, "How far from theta losses are asked for; by default 1e-3, 3e-3 in half precision, 1e-2 for an adapter."
    )
    zo_num_directions: int = said(1, "Directions a step; their estimates are averaged.")
    zo_noise: str = said("low-rank", "The distribution of directions; a name, or a dict with its options.")
    zo_estimator: str = said("two-sided", "How losses become a gradient estimate: two-sided or one-sided.")
    zo_rule: str = said("sgd", "How an estimate becomes an update; a name, or a dict with its options.")
    zo_momentum: float = said(0.0, "Momentum of the estimates, kept as a few numbers and no buffer.")
    zo_evaluator: str | None = said(
        None,
        "How losses at points are found: in-place takes no memory, from-copy a copy of what moves and half precision, "
        "in-forward asks for all points in one forward. By default in-place, and from-copy for half precision.",
    )
    zo_directions: str = said("shared", "Who shares a direction: shared, or per-example and per-group(n) in-forward.")
    zo_normalize_by_std: bool = said(False, "Divide by the standard deviation of the examples' slopes; in-forward.")
    zo_trainable: list[str] | None = said(None, "Glob patterns of the parameters that move; !pattern leaves out.")

    def __post_init__(self) -> None:
        self._check_meaningful()
        for name in _PARTS:
            value = getattr(self, name)
            if isinstance(value, str) and value.startswith("{"):
                setattr(self, name, parsed(name, value))
        super().__post_init__()  # type: ignore[misc]
        if getattr(self, "mixed_precision", "no") not in ("no", None):
            raise meaningless("mixed_precision", self.mixed_precision, _IN_HALF)  # type: ignore[attr-defined]
        with reworded(as_arguments):
            _check_options(options_of(self))

    def _check_meaningful(self) -> None:
        given: Any = self
        for name, instead in _MEANINGLESS.items():
            if value := getattr(given, name, None):
                raise meaningless(name, value, instead)
        defaults = {one.name: one.default for one in fields(given) if one.name in _OF_GRADIENTS}
        for name, default in defaults.items():
            if getattr(given, name) != default:
                raise meaningless(name, getattr(given, name), "leave it out, and see zo_rule")


def parsed(name: str, value: str) -> Any:
    """A part with options from a command line, as JSON. Raises ConfigError if it cannot be parsed."""
    try:
        return json.loads(value)
    except ValueError as error:
        raise ConfigError(
            f"{name}={value!r} cannot be read: {error}", 'write {"name": "low-rank", "rank": 2}'
        ) from error


IN_HALF = "load the model with dtype=torch.bfloat16: its updates are rounded stochastically, so that small ones arrive"
_IN_HALF = f'{IN_HALF}; and set zo_evaluator="from-copy", or "in-forward"'
_MEANINGLESS = {
    "fp16": _IN_HALF,
    "bf16": _IN_HALF,
    "max_grad_norm": "leave it out",
    "gradient_checkpointing": "leave it out: nothing is stored for a backward pass, so that nothing can be saved",
    "activation_checkpointing": "leave it out: nothing is stored for a backward pass, so that nothing can be saved",
    "activation_offloading": "leave it out: nothing is stored for a backward pass, so that nothing can be saved",
    "deepspeed": "leave it out: every step writes whole tensors, and there are no gradients or buffers to share out",
    "fsdp": "leave it out: every step writes whole tensors",
    "parallelism_config": "leave it out: every process has the whole model, and rows of its own",
    "neftune_noise_alpha": "leave it out: two points of one step would have other noise in their embeddings",
}


def in_line(value: Any) -> str:
    """The repr of a value in one line, truncated."""
    return truncate(" ".join(repr(value).split()), 80)


def meaningless(name: str, value: Any, instead: str) -> ConfigError:
    """The error for an argument that does not apply."""
    return ConfigError(f"{name}={in_line(value)} has no meaning for zeroth-order steps", instead)


_ARGUMENTS = {
    "rule.lr": "learning_rate",
    "lr": "learning_rate",
    "rule.weight_decay": "weight_decay",
    "weight_decay": "weight_decay",
    "estimator.epsilon": "zo_epsilon",
    "batch_size": "per_device_train_batch_size",
}
_ZO = "evaluator|noise|num_directions|trainable|rule|estimator|momentum|directions|normalize_by_std|epsilon"


def as_arguments(text: str) -> str:
    """A message of a step, with the trainer's arguments instead of keys and of an optimizer's options."""
    text = in_python(text, "zo_")
    text = re.sub(r"\bmethod\.([a-z_]+(?:\.[a-z_]+)*)", lambda key: _ARGUMENTS.get(key[1], f"zo_{key[1]}"), text)
    text = text.replace("model.dtype=float32", "dtype=torch.float32").replace(GOES_ON, GOES_ON_FROM)
    text = text.replace(OBJECTIVE, "trainer.compute_losses(model, inputs)")
    before, behind = r"^|(?<=\bset )|(?<=\bleave )|(?<= and )", " is |: |=| and | are | out,"
    return re.sub(rf"(?:{before})({_ZO})(?={behind})", r"zo_\1", text)


def _check_options(given: Mapping[str, Any]) -> None:
    """Raise ConfigError for options of `zofo.optim.MeZO` that are wrong for any model."""
    options = {name: value for name, value in given.items() if name not in ("lr", "weight_decay", "seed")}
    step = options_of_step(**{name: options.pop(name) for name in inspect.signature(options_of_step).parameters})
    rates = {name: given[name] for name in ("lr", "weight_decay") if given.get(name)}
    parse_model(ZerothOrderConfig, {**step, **options, "rule": {**step["rule"], **rates}}, "method")


def options_of(args: Any, model: nn.Module | None = None) -> dict[str, Any]:
    """The options of `zofo.optim.MeZO` from trainer arguments.

    Args:
        model: the model; decides the evaluator if the arguments do not.
    """
    named = {one.name for one in fields(ZerothOrderArguments) if one.name.startswith("zo_")}
    options = {name.removeprefix("zo_"): getattr(args, name) for name in sorted(named)}
    if options["evaluator"] is None:
        options["evaluator"] = "in-place" if model is None else _usual_evaluator(model, args.zo_trainable)
    where = as_group(options["evaluator"])
    known = part_options(EVALUATORS[where["name"]])
    if "flush_every" in known and args.world_size == 1:  # updates wait until the trainer evaluates, saves or ends
        options["evaluator"] = {"flush_every": known["flush_every"][1], **where}
    rate = {} if args.learning_rate is None else {"lr": args.learning_rate}
    return {**options, **rate, "weight_decay": args.weight_decay, "seed": args.seed}


def _usual_evaluator(model: nn.Module, trainable: Sequence[str] | None) -> str:
    """The default evaluator: in place; or from a copy, with a note, if half-precision weights move.

    In place, half precision would lose small steps.
    """
    moving, _ = movable(model, [trainable] if isinstance(trainable, str) else trainable, "zo_trainable")
    half = sum(tensor.nbytes for tensor in moving.values() if tensor.dtype.itemsize == 2)
    if not half:
        return "in-place"
    LOG.warning(
        f"half precision moves from a copy, of {half / 2**30:.2f} GiB, as with zo_evaluator='from-copy'; 'in-forward' "
        "keeps none"
    )
    return "from-copy"
