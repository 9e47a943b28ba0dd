"""The interface of adapters: named sets of small tensors on one model, of which one set is active at a time.

Adapters come from peft. Those beside layers are entirely peft's. For virtual tokens, peft holds the tensors and the
file format, and `zofo.adapters.virtual_token_hooks` inserts them into the model's forward.
"""

from __future__ import annotations

import copy
import json
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from zofo.adapters.stacked import as_one_adapter
from zofo.config import PartConfig, as_group
from zofo.errors import CheckpointError, ConfigError, RunError, ZofoError, raise_if_out_of_memory
from zofo.models import load_tensors, save_tensors
from zofo.models.heads import is_classifier
from zofo.registry import Registry
from zofo.state_dict import StateDict, load_tensors_state, tensors_to_state

Forward = tuple[Callable[[], object], torch.Tensor | None]
"""A forward of some training rows, to be called; and where they hold tokens, [rows, positions], None for everywhere."""


class Adapters(ABC):
    """Named adapters of one model, all with the same start.

    Attributes:
        names: names of the adapters; the first one is active at the start.
        calibration_batches: number of batches of training rows that `calibrate` needs before the first step.
    """

    names: tuple[str, ...]
    calibration_batches: int = 0

    @abstractmethod
    def parameters(self, adapter: str) -> list[nn.Parameter]:
        """The tensors of one adapter that steps move, in the model's order."""

    @property
    @abstractmethod
    def active(self) -> str:
        """The adapter that the model's forward currently uses."""

    @abstractmethod
    def use(self, adapter: str) -> None:
        """Make one adapter the active one; only its parameters require a gradient."""

    @abstractmethod
    def save(self, adapter: str, folder: Path) -> None:
        """Save one adapter to a folder."""

    def calibrate(self, forwards: Iterable[Forward]) -> None:  # noqa: B027  # most start from their seed alone
        """Initialise from the activations of a few forwards; `calibration_batches` says how many.

        Raises:
            ConfigError: there are too few rows.
        """

    def notes(self) -> list[str]:
        """Messages to the user before the first step, one sentence each."""
        return []

    def state_dict(self) -> StateDict:
        """The tensors that no step moves, such as the result of a calibration; the method saves the others."""
        return StateDict()

    def load_state_dict(self, state: StateDict) -> None:  # noqa: B027  # most keep nothing
        """Load the state that `state_dict` returned."""

    @contextmanager
    def using(self, adapter: str) -> Iterator[None]:
        """Context in which one adapter is active."""
        before = self.active
        self.use(adapter)
        try:
            yield
        finally:
            self.use(before)


class PeftAdapters(Adapters):
    """Adapters whose tensors peft holds. The model is changed in place, and its own weights are frozen.

    A kind of adapter is a final class that is built from (model, names, seed) and its own options.

    Attributes:
        lr: default learning rate of first-order steps, for Adam.
        zo_lr: default learning rate of zeroth-order steps, for SGD.
        zo_epsilon: default epsilon of zeroth-order steps.
        projects_weights: whether its moving tensors are the model's weights projected on orthonormal rows. Then
            zeroth-order steps use the defaults of weights instead of these two, and its gradient is part of the
            weights' gradient.
        zo_in_forward: whether the evaluator `in-forward` can perturb its tensors.
        theta_in_forward: whether the evaluator `in-forward` can perturb the model's own weights beside it.
        starts_neutral: whether a new adapter does not change the model's outputs.
        adds_low_rank: whether it only adds low-rank terms to the outputs of layers, so that two adapters can be merged
            into one.
        decays: whether weight decay pulls its tensors towards the unchanged model.
        fills_cache: whether it is part of the cache of keys and values, so that a layer cannot be recomputed.
    """

    lr: ClassVar[float] = 1e-3
    zo_lr: ClassVar[float] = 5e-4
    zo_epsilon: ClassVar[float] = 1e-2
    projects_weights: ClassVar[bool] = False
    zo_in_forward: ClassVar[bool] = True
    theta_in_forward: ClassVar[bool] = True
    starts_neutral: ClassVar[bool] = False
    adds_low_rank: ClassVar[bool] = False
    decays: ClassVar[bool] = True
    fills_cache: ClassVar[bool] = False

    model: Any
    _peft: Any
    _active: str
    _tensors: dict[str, dict[str, nn.Parameter]]
    _below: PeftAdapters | None = None
    _learning: Sequence[nn.Parameter] = ()

    @classmethod
    def virtual_tokens(cls, options: Mapping[str, Any]) -> int:
        """The number of virtual tokens that an adapter with these options adds to each row."""
        return int(options.get("num_virtual_tokens", 0))

    def _attach(self, model: Any, names: Sequence[str], shape: Any, hint: str) -> None:
        """Let peft build one adapter with this configuration per name."""
        import peft  # takes seconds, so it is imported only when adapters are used

        below = self._below = _CARRYING.get(model)
        if below is None and carries_adapters(model):
            raise ConfigError("the model already has adapters", "load it again for another method")
        model.requires_grad_(False)
        with quiet_peft(), torch.random.fork_rng():  # peft's own start; what matters is overwritten
            try:
                if below is None:
                    self._peft = peft.get_peft_model(model, copy.deepcopy(shape), adapter_name=names[0])
                else:
                    self._peft = below._peft
                for name in names[1 if below is None else 0 :]:
                    self._peft.add_adapter(name, copy.deepcopy(shape))
            except Exception as error:  # peft raises many kinds of errors
                kind = str(getattr(shape.peft_type, "value", shape.peft_type)).replace("_", " ")
                raise cannot_be_attached(_SHORT.get(kind, kind.lower()), error, hint) from error
        if shape.is_prompt_learning:  # after all were added: peft freezes every module that it finds in the model
            model.prompt_encoder = self._peft.prompt_encoder
        self.model, self.names, self._active = model, tuple(names), ""
        self._tensors = {name: dict(_tensors_of(model, name)) for name in names}
        self.use(names[0])
        self._peft.eval()

    @contextmanager
    def carrying_others(self) -> Iterator[None]:
        """Context in which further adapters can be attached; this one stays active beside each of them."""
        _CARRYING[self.model] = self
        try:
            yield
        finally:
            del _CARRYING[self.model]

    def learn_beneath(self, parameters: Sequence[nn.Parameter]) -> None:
        """Let some of their tensors require a gradient, whichever adapter above them is active."""
        self._learning = parameters
        for parameter in parameters:
            parameter.requires_grad_(True)

    def is_trained(self, tensor: str) -> bool:
        """Whether steps move a tensor, by its name in `tensors`; the others keep their initial values."""
        return True

    def tensors(self, adapter: str) -> Mapping[str, nn.Parameter]:
        """The tensors of one adapter, under names that do not contain the adapter's name."""
        return self._tensors[adapter]

    def parameters(self, adapter: str) -> list[nn.Parameter]:
        """The tensors of one adapter that steps move, in the model's order."""
        return [parameter for name, parameter in self._tensors[adapter].items() if self.is_trained(name)]

    @property
    def active(self) -> str:
        """The adapter that the model's forward currently uses."""
        return self._active

    def use(self, adapter: str) -> None:
        """Make one adapter the active one; only its parameters require a gradient."""
        if adapter == self._active:
            return
        if self._below is None:
            self._peft.set_adapter(adapter)
        else:
            self._peft.base_model.set_adapter([self._below.active, adapter])
            for parameter in self._below.tensors(self._below.active).values():
                parameter.requires_grad_(False)
            for parameter in self._below._learning:
                parameter.requires_grad_(True)
        for name, tensors in self._tensors.items():
            for tensor, parameter in tensors.items():
                parameter.requires_grad_(name == adapter and self.is_trained(tensor))
        self._active = adapter

    def start_from(self, folder: Path) -> None:
        """Load the tensors of a saved adapter into all adapters.

        Raises:
            RunError: its tensors do not match.
        """
        import peft

        saved, first = load_tensors(folder / "adapter_model.safetensors"), self.names[0]
        own = peft.get_peft_model_state_dict(self._peft, adapter_name=first, save_embedding_layers=False)
        if {name: one.shape for name, one in own.items()} != {name: one.shape for name, one in saved.items()}:
            raise RunError(
                f"{str(folder)!r} is an adapter of other tensors than this one has, as of a task with more or fewer "
                "labels",
                f"merge it first: zofo export {folder.parent} --merged DIR, then train with model=DIR and without "
                "init_from",
            )
        for name in () if next(self.model.parameters()).is_meta else self.names:
            peft.set_peft_model_state_dict(self._peft, dict(saved), adapter_name=name)

    def state_dict(self) -> StateDict:
        """The tensors that no step moves, which are the same in all adapters, and those of the adapter below."""
        first = self._tensors[self.names[0]]
        own = StateDict({}, {name: p.detach() for name, p in first.items() if not self.is_trained(name)})
        return own if self._below is None else StateDict().put("below", self._below.state_dict()).put("above", own)

    def load_state_dict(self, state: StateDict) -> None:
        """Load the tensors that no step moves.

        Raises:
            CheckpointError: they belong to another adapter.
        """
        if self._below is not None:
            self._below.load_state_dict(state.part("below"))
            state = state.part("above")
        names = [name for name in self._tensors[self.names[0]] if not self.is_trained(name)]
        if set(names) != state.tensors.keys():
            raise CheckpointError("the checkpoint holds other tensors of the adapter than those that stay")
        for own in self._tensors.values():
            load_tensors_state([own[name] for name in names], tensors_to_state([state.tensors[name] for name in names]))

    def save(self, adapter: str, folder: Path) -> None:
        """Save one adapter, together with the one below, as a folder that `PeftModel.from_pretrained` loads."""
        import peft

        if self._below is None:
            state = peft.get_peft_model_state_dict(self._peft, adapter_name=adapter, save_embedding_layers=False)
            write_adapter(self._peft.peft_config[adapter], state, folder)
        else:
            write_adapter(*as_one_adapter(self._peft, (self._below.active, adapter)), folder)


ADAPTERS: Registry[type[PeftAdapters]] = Registry("adapter")


class AdapterConfig(PartConfig):
    """The adapter and its options."""

    registry = ADAPTERS
    default = "lora"

    @property
    def kind(self) -> type[PeftAdapters]:
        """The class of the adapter, which defines its defaults."""
        return ADAPTERS[self.name]


def write_adapter(config: Any, tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write an adapter as peft does, with the same bytes in every process.

    Args:
        tensors: the tensors by their names in peft's files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(tensors, folder / "adapter_model.safetensors")
    config.save_pretrained(str(folder))
    path = folder / "adapter_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    sets = {key: sorted(value) for key, value in content.items() if isinstance(getattr(config, key, None), set)}
    # the order of a set differs between processes
    path.write_text(json.dumps({**content, **sets}, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def cannot_be_attached(adapter: str, error: Exception, hint: str) -> Exception:
    """The error for an adapter that peft or the model does not support, or that does not fit into memory."""
    raise_if_out_of_memory(error)
    if isinstance(error, ZofoError):
        return error
    first = (str(error).strip() or "nothing more").splitlines()[0][:200]
    shown = first if isinstance(error, ValueError) else f"{type(error).__name__}: {first}"
    return ConfigError(f"{adapter} cannot be attached: {shown}", hint)


def carries_adapters(model: nn.Module) -> bool:
    """Whether a model already has adapters."""
    return any(_holder(name.split(".")) is not None for name, _ in model.named_parameters())


def own_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's floating-point parameters except those of adapters, under their current names."""
    named = model.named_parameters()
    return {name: p for name, p in named if p.is_floating_point() and _holder(name.split(".")) is None}


def own_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's state without adapters, under the names that it has without them."""
    kept: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        if _holder(parts) is None:
            kept[".".join(part for part in parts if part not in ("base_layer", "original_module"))] = tensor
    return kept


def task_type(model: Any) -> str | None:
    """peft's name for the model's task: with one, peft also trains and saves a classification head."""
    if is_classifier(model):
        return "SEQ_CLS"
    generates = getattr(model, "can_generate", lambda: False)()
    return "CAUSAL_LM" if generates and hasattr(model, "prepare_inputs_for_generation") else None


def kind_of(given: Any) -> type[PeftAdapters] | None:
    """The class of the adapter that a raw method configuration selects; None if there is none, or it is invalid.

    Args:
        given: the value of `adapter`: a name, or a mapping with or without a name.
    """
    name = as_group(given).get("name", AdapterConfig.default) if isinstance(given, str | dict) else None
    if not isinstance(name, str) or name not in ADAPTERS:
        return None
    return ADAPTERS[name]


_CARRYING: weakref.WeakKeyDictionary[nn.Module, PeftAdapters] = weakref.WeakKeyDictionary()
_SHORT = {"LORA": "LoRA", "IA3": "IA3"}
_HOLDERS = ("modules_to_save", "prompt_encoder")


def _holder(parts: Sequence[str]) -> int | None:
    """The part of a parameter's name that precedes the adapter's name; None for the model's own parameters."""
    for place, part in enumerate(parts):
        if part in _HOLDERS or part.startswith(("lora_", "ia3_")):
            return place
    return None


def _tensors_of(model: nn.Module, adapter: str) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        place = _holder(parts)
        if place is not None and parts[place + 1 : place + 2] == [adapter]:
            yield ".".join(parts[: place + 1] + parts[place + 2 :]), parameter


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Context without transformers' hints about peft, and peft's warnings about layers that it corrects itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "fan_in_fan_out is set", UserWarning)
        yield
