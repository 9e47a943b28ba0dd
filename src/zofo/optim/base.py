"""The base class of the optimizers: zofo's zeroth-order step behind `torch.optim.Optimizer`."""

from __future__ import annotations

import hashlib
import json
import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from typing import Any, ClassVar

import torch

from zofo.adapters import PeftAdapters, carries_adapters
from zofo.backbone import fingerprint
from zofo.config import as_group, options_of, parse_model
from zofo.errors import CheckpointError, ConfigError, EvaluatorError
from zofo.evaluators import EVALUATORS, Counts, unused_by
from zofo.methods import StepLog, ZerothOrder, ZerothOrderConfig
from zofo.noise import STREAM_VERSION
from zofo.optim.closures import Closure, ClosureObjective, check_modes
from zofo.optim.interrupts import Interrupts
from zofo.optim.parameters import Movable, given
from zofo.optim.words import as_option, own_words
from zofo.processes import joined
from zofo.state_dict import StateDict
from zofo.tasks import batches
from zofo.temporary import temporarily

LOG = logging.getLogger("zofo")
_OURS, _VERSION = "zofo", 1
_EXAMPLES = 1 << 15  # of a batch, if only the batch itself knows

Ask = tuple[ClosureObjective, Any]
"""A closure as an objective, and the batch it is given; None where it has its own."""

Part = str | Mapping[str, Any]
"""A part by its name, or its name and options: "gaussian", {"name": "low-rank", "rank": 2}."""


class ZerothOrderOptimizer(torch.optim.Optimizer):
    """An optimizer whose step calls a closure for losses, and needs no gradient.

    A subclass adds its options and `_make_step`.

    Args:
        movable: a module or parameters.
        options: options of the zeroth-order step, as under `method` in a configuration.
        lr: learning rate of the rule; None for the default.
        weight_decay: weight decay of the rule.
        seed: seed of the directions.

    Attributes:
        Config, config: the configuration class, and the configuration with all options of a step.
        steps: number of steps so far.
        last_step: the log of the last step: its loss, projected gradients and counts.
        notes: tensors that do not move although a user may expect it; known after the first step, which logs them.
        say: called with each note, in the words of a configuration.
    """

    Config: ClassVar[type[ZerothOrderConfig]] = ZerothOrderConfig
    _zo: ZerothOrder

    def __init__(
        self, movable: Movable, options: Mapping[str, Any], lr: float | None, weight_decay: float, seed: int
    ) -> None:
        found, self._processes = given(movable), joined()
        self._model, self._decaying, self._seed = found.module, found.decaying, seed
        self._interrupts, self._modes = Interrupts(), b""
        self.say: Callable[[str], None] = lambda note: LOG.warning(as_option(note))
        self.last_step: StepLog | None = None
        self._ahead: torch.Tensor | None = None  # the loss of a step that was made ahead
        self.steps = 0
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 64:
            raise ConfigError(f"seed is {seed!r}, but must be a whole number from 0 below 2**64", "set seed=0")
        decay = weight_decay if found.weight_decay is None else found.weight_decay
        rate = found.lr if found.lr is not None else lr
        with own_words():
            self.config = _config_of(self.Config, self._model, options, rate, decay)
            self._build(frozenset())
        self._decay = decay
        default = float(self.config.rule.options.get("lr", 0.0))
        groups = found.groups or [{"params": list(self._zo.backbone.parameters.values())}]
        self._built = False
        super().__init__(groups, {"lr": default, "weight_decay": decay})
        self._built, self._stepping = True, False
        if self._zo.theta.flush_every > 1:
            _flush_before_use(self._model, self)

    def _build(self, unused: frozenset[str]) -> None:
        """Build the parts of the step, leaving out tensors that no forward uses."""
        among = None
        if carries_adapters(self._model) and self.config.trainable is None:
            among = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        zo = ZerothOrder(
            self.config, self._model, self._seed, _EXAMPLES, among, unused, self._processes, own_examples=True
        )
        if zo.theta.flush_every > 1 and not self._processes.alone:
            raise ConfigError(
                "flush_every lets updates wait until somebody looks at the model, which not all processes do alike",
                "leave flush_every out",
            )
        if zo.theta.flush_every > 1 and self._decaying is not None:
            raise ConfigError(
                "flush_every lets updates wait until the model is looked at, but only its parameters were given",
                "give the module, MeZO(model), or leave flush_every out",
            )
        if self._decaying is not None:
            zo.backbone.decays = self._decaying
        self._zo = zo

    @property
    def repeats_batch(self) -> bool:
        """Whether all points share a forward, so that closures get the batch."""
        return self._zo.evaluator.repeats_batch

    @property
    def counts(self) -> Counts:
        """Forwards and queries so far; if a closure returns the mean of a batch, a query is one such mean."""
        return self._zo.evaluator.counts

    @property
    def exchanged_bytes(self) -> int:
        """Bytes of losses that all processes together have exchanged so far; 0 for one process."""
        return self._processes.bytes

    @property
    def notes(self) -> list[str]:
        """Tensors that do not move although a user may expect it; known after the first step."""
        return [as_option(note) for note in self._zo.notes]

    def __getstate__(self) -> dict[str, Any]:
        """Raise: an optimizer cannot be copied or pickled, since it refers to its model's parameters."""
        raise ConfigError(
            "an optimizer of zofo cannot be copied or pickled", "keep its state_dict(), and build another"
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Raise once the optimizer is built: a direction spans all parameters, so these are fixed."""
        if getattr(self, "_built", False):
            raise ConfigError("an optimizer of zofo takes no more parameters later", "build a new one")
        super().add_param_group(param_group)

    def step(self, closure: Closure | None = None, batch: Any = None) -> torch.Tensor:  # type: ignore[override]
        """Call the closure for losses at the points of a step, and update the parameters.

        Args:
            closure: returns the losses of one batch, always the same one: a float32 tensor with one loss per example,
                or their mean. It must not call `backward`, and is called several times, without gradients.
            batch: passed to the closure unless it is None. `evaluator="in-forward"` needs it: tensors whose first axis
                is the examples (or tuples, lists or dicts of these), for which the closure returns one loss each.

        Returns:
            The mean of all losses, close to the loss before the step.

        Raises:
            EvaluatorError: the closure or the model cannot be evaluated at two points; the message says why.
                NonFiniteError: a loss is not finite. Nothing was updated.
        """
        if closure is None and self._ahead is not None:
            loss, self._ahead = self._ahead, None
            return loss
        if closure is None:
            raise ConfigError(
                f"{type(self).__name__} needs losses at several points, and no gradients",
                "call loss = optimizer.step(closure), with a closure that returns the loss; leave out loss.backward()",
            )
        return self.step_on([self.ask(closure, batch)])

    def ask(self, closure: Closure, batch: Any = None) -> Ask:
        """A closure as an objective of this optimizer, with its batch.

        Raises:
            EvaluatorError: the batch is needed, and is missing.
        """
        if not callable(closure):
            raise ConfigError(
                f"the closure is {type(closure).__name__}, and no function",
                "give one that computes the loss anew: optimizer.step(lambda: loss_of(model(inputs), labels))",
            )
        if batch is None and self.repeats_batch:
            raise EvaluatorError(
                "all points share one forward, so that the closure has to be given the batch",
                "call optimizer.step(closure, batch), with a closure that takes the batch; or set evaluator=in-place",
            )
        least = 2 if self.config.normalize_by_std and self.config.num_directions == 1 else 1
        return ClosureObjective(closure, batch is not None, not self.repeats_batch, least, self._interrupts), batch

    def step_ahead(self, asks: Sequence[Ask]) -> torch.Tensor:
        """As `step_on`, for a loop that calls `step()` afterwards, where gradients would be applied; that call does
        nothing."""
        self._ahead = None
        self._ahead = self.step_on(asks)
        return self._ahead

    def step_on(self, asks: Sequence[Ask]) -> torch.Tensor:
        """As `step`, for objectives with their own batches, whose losses count as those of one batch."""
        with own_words(), self._writing():
            self._check(asks)
            before = self.counts.copy()
            loss, coefficients = self._make_step(asks, self._rate())
            self.steps += 1
            self.last_step = StepLog(loss, self.counts - before, coefficients)
        return torch.tensor(loss)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Context in which weights are written: without gradients, and Ctrl-C does not interrupt a sweep."""
        with temporarily(self, _stepping=True), self._interrupts.held(), torch.inference_mode(False), torch.no_grad():
            yield

    def flush(self) -> None:
        """Write pending updates, if `flush_every` of the evaluator allows any.

        This happens automatically before the model is called, and in `state_dict` of the model and the optimizer. Call
        it before reading parameters in another way.
        """
        if not self._stepping:
            with self._writing():
                self._zo.theta.flush()

    @abstractmethod
    def _make_step(self, asks: Sequence[Ask], rate: float) -> tuple[float, dict[str, float]]:
        """Make a step; returns its loss and its log."""

    def _rate(self) -> float:
        """The learning rate; raises ConfigError if groups have different rates, or weight decay has changed."""
        rates = {float(group["lr"]) for group in self.param_groups}
        if len(rates) > 1:
            raise ConfigError(
                f"the groups of parameters have the learning rates {sorted(rates)}, but a zeroth-order step moves all "
                "tensors along one direction",
                "give all groups the same",
            )
        if {float(group["weight_decay"]) for group in self.param_groups} - {0.0, self._decay}:
            raise ConfigError("weight_decay was changed after the optimizer was built", "build a new one")
        return rates.pop()

    def _check(self, asks: Sequence[Ask]) -> None:
        """Check the model before the first step, and after modules have changed their mode."""
        modes = bytes(part.training for part in self._model.modules())
        if modes == self._modes:
            return
        check_modes(self._model)
        with self._processes.alike() if not self._modes else nullcontext():
            if not self._modes:
                self._leave_out_unused(asks)
            self._zo.evaluator.check(asks)
        if not self._modes:
            self._check_same()
            for note in self._zo.notes if self._processes.is_first else ():
                self.say(note)
        self._modes = modes

    def _check_same(self) -> None:
        """Raise ConfigError if processes have different settings or weights, so that their steps would diverge."""
        if self._processes.alone:
            return
        rates = [[group["lr"], group["weight_decay"]] for group in self.param_groups]
        own = {**self._settings(), "lr and weight_decay": rates, "steps made": self.steps, "torch": torch.__version__}
        own |= {"tensors that move": list(self._zo.backbone.tensors), "zofo": version("zofo")}
        own["weights"] = fingerprint(dict(self._model.named_parameters()))
        self._processes.check_same(own, "build the model and the optimizer in the same way in all processes")

    def _leave_out_unused(self, asks: Sequence[Ask]) -> None:
        """Rebuild the step without the tensors that no forward uses. Errors of the closure pass through."""
        objective, batch = asks[0]
        unused = unused_by(self._model, lambda: objective(self._model, batch))
        if objective.failure is not None:
            raise objective.failure
        if unused & self._zo.backbone.parameters.keys():
            state = self._state()
            self._build(unused)
            self._load_state(state)

    def _settings(self) -> dict[str, Any]:
        """Everything that determines the bits of a step, except the learning rate."""
        options = self.config.model_dump(mode="json")
        del options["rule"]["lr"]
        shapes = {name: list(parameter.shape) for name, parameter in self._model.named_parameters()}
        digest = hashlib.sha256(json.dumps(shapes).encode()).hexdigest()
        return {"seed": self._seed, "stream": STREAM_VERSION, "parameters": digest, **options}

    def _state(self) -> StateDict:
        """The state beside the weights."""
        return StateDict().put("zo", self._zo.state_dict(weights=False))

    def _load_state(self, state: StateDict) -> None:
        self.counts.include(Counts() - self.counts)
        self._zo.load_state_dict(state.part("zo"))

    def state_dict(self) -> dict[str, Any]:
        """The state: the groups' rates, the number of steps, and the state of the rule. The model's weights are not
        included.

        It is a few numbers; only dense rules keep tensors.
        """
        self.flush()
        state = self._state()
        own = {
            "version": _VERSION,
            "steps": self.steps,
            "settings": self._settings(),
            "values": state.values,
            "tensors": state.tensors,
        }
        whole = super().state_dict()
        return {**whole, "state": {_OURS: own}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state, to continue with the same bits. The caller loads the model's weights.

        Raises:
            CheckpointError: the state belongs to another optimizer, model or setting; the message says which.
        """
        own = state_dict.get("state", {}).get(_OURS)
        if not isinstance(own, dict) or own.get("version") != _VERSION:
            raise CheckpointError(
                f"this is no state of a {type(self).__name__}", "load what its state_dict() gave, with this version"
            )
        now = json.loads(json.dumps(self._settings()))
        for key, value in json.loads(json.dumps(own["settings"])).items():
            if now.get(key) != value:
                raise CheckpointError(
                    f"the state was made with {key}={value!r}, and this optimizer has {now.get(key)!r}",
                    "build the optimizer as it was built then",
                )
        super().load_state_dict({**state_dict, "state": {}})
        self._load_state(StateDict(dict(own["values"]), dict(own["tensors"])))
        self.steps = int(own["steps"])


def examples_of(asks: Sequence[Ask]) -> int | None:
    """The number of examples in the batches, if closures get them."""
    if any(batch is None for _, batch in asks):
        return None
    return sum(batches.size(batch) for _, batch in asks)


def options_of_step(
    epsilon: float | None,
    momentum: float,
    noise: Part,
    estimator: Part,
    rule: Part,
    evaluator: Part,
    trainable: Sequence[str] | None,
) -> dict[str, Any]:
    """The options that both optimizers share, as under `method` in a configuration."""
    asked, moved, where = as_group(estimator), as_group(rule), {"name": "from-copy", **as_group(evaluator)}
    if "flush_every" in options_of(EVALUATORS[where["name"]]):
        where = {"flush_every": 1, **where}  # whoever looks at the weights between two steps finds theta
    if not 0 <= momentum < 1:
        raise ConfigError(f"momentum is {momentum!r}, but must be 0 or more and below 1", "set momentum=0.9")
    if momentum and not as_group("sgd").items() <= moved.items():
        raise ConfigError("momentum and rule are both given", "leave momentum out, or give it as an option of the rule")
    if momentum:
        moved = {**moved, "name": "momentum", "beta": momentum}
    return {
        "noise": as_group(noise),
        "estimator": {**asked, **({} if epsilon is None else {"epsilon": epsilon})},
        "rule": moved,
        "evaluator": where,
        "trainable": [trainable] if isinstance(trainable, str) else None if trainable is None else list(trainable),
    }


def _config_of(
    kind: type[ZerothOrderConfig],
    model: torch.nn.Module,
    options: Mapping[str, Any],
    lr: float | None,
    decay: float,
) -> ZerothOrderConfig:
    """The configuration of the step, with defaults for the model."""
    tree = {key: value for key, value in options.items() if value is not None}
    if carries_adapters(model) and options.get("trainable") is None:
        tree["rule"] = {"lr": PeftAdapters.zo_lr, **tree["rule"]}
        tree["estimator"] = {"epsilon": PeftAdapters.zo_epsilon, **tree["estimator"]}
    given = {"lr": lr, "weight_decay": decay or None}
    tree["rule"] = {**tree["rule"], **{key: value for key, value in given.items() if value is not None}}
    halves = [str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.dtype.itemsize == 2]
    return parse_model(kind, tree, "method", {"dtype": halves[0] if halves else None})


def _flush_before_use(model: torch.nn.Module, optimizer: ZerothOrderOptimizer) -> None:
    """Write pending updates before a model is called or saved, as long as the model lives."""

    def flush(*_: Any) -> None:  # a function, which a copy of the model shares
        optimizer.flush()

    model.register_forward_pre_hook(flush)
    model.register_state_dict_pre_hook(flush)  # type: ignore[no-untyped-call]
    # else what waits would be written onto what was loaded
    model.register_load_state_dict_pre_hook(flush)  # type: ignore[no-untyped-call]
