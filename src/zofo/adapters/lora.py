"""LoRA adapters through peft: the only place where peft is used."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import nn

from zofo.adapters.base import Adapters
from zofo.backbone import save_tensors
from zofo.config import Config
from zofo.displacement import Key
from zofo.errors import ConfigError, RunError
from zofo.noise import words


class LoraConfig(Config):
    """The LoRA adapter."""

    rank: int = Field(8, ge=1)
    """Rank of each adapter matrix."""
    alpha: float = Field(16.0, gt=0)
    """Scale: the adapter's output is multiplied by alpha / rank."""
    target_modules: list[str] | None = None
    """Names of the linear layers that get one; by default the query and value projections of the architecture."""


class LoraAdapters(Adapters):
    """Named LoRA adapters of one model, of which one is active at a time.

    All start equal: A from one seeded uniform draw, B zero, so that each leaves the model's function as it was. Dropout
    is off. The model's own weights are frozen.

    Args:
        model: a transformers model; the adapters are attached to it in place, and its parameters keep their identity.
        names: of the adapters; the first is active.
        config: the shape of each.
        seed: of the run.

    Raises:
        ConfigError: the architecture has no default target modules, or none of the given names match.
    """

    def __init__(self, model: Any, names: Sequence[str], config: LoraConfig, seed: int) -> None:
        import peft  # takes seconds, so only those who use adapters wait for it

        if any("lora_" in name for name, _ in model.named_parameters()):
            raise ConfigError("the model carries LoRA adapters already", "load it again for another method")
        shape = peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=0.0,
            target_modules=config.target_modules,
            task_type="CAUSAL_LM",
        )
        with _quiet_peft(), torch.random.fork_rng():  # peft draws its own start, which is overwritten below
            try:
                self._peft = peft.get_peft_model(model, shape, adapter_name=names[0])
                for name in names[1:]:
                    self._peft.add_adapter(name, shape)
            except ValueError as error:
                raise ConfigError(
                    f"LoRA cannot be attached: {str(error).splitlines()[0]}",
                    "name the linear layers for example method.lora.target_modules=[q_proj,v_proj]",
                ) from error
        self.names = tuple(names)
        self._active = ""
        self._parameters = {name: self._collect(name) for name in names}
        for name in names:
            self._initialise(name, seed)
        self.use(names[0])
        self._peft.eval()

    def _collect(self, adapter: str) -> dict[str, nn.Parameter]:
        """The adapter's parameters by names that do not depend on what the adapter is called."""
        mark = f".{adapter}."
        return {
            name.replace(mark, "."): parameter
            for name, parameter in self._peft.named_parameters()
            if "lora_" in name and mark in name
        }

    @torch.no_grad()
    def _initialise(self, adapter: str, seed: int) -> None:
        for name, parameter in self._parameters[adapter].items():
            if "lora_A" not in name:
                parameter.zero_()
                continue
            bound = 1 / math.sqrt(parameter[0].numel())  # Kaiming-uniform with a = sqrt(5), as LoRA's authors
            uniform = words(Key(seed, 0), f"lora/{name}", 0, parameter.numel(), torch.device("cpu")).double()
            parameter.copy_((uniform * (bound / 2**63)).view_as(parameter))

    def parameters(self, adapter: str) -> list[nn.Parameter]:
        """The tensors of one adapter, in the model's order."""
        return list(self._parameters[adapter].values())

    @property
    def active(self) -> str:
        """The adapter that the model's forward uses now."""
        return self._active

    def use(self, adapter: str) -> None:
        """Make one adapter the active one; only its parameters require a gradient."""
        if adapter != self._active:
            self._peft.set_adapter(adapter)
            self._active = adapter

    def save(self, adapter: str, folder: Path) -> None:
        """Write one adapter as a folder that `PeftModel.from_pretrained` loads."""
        folder.mkdir(parents=True, exist_ok=True)
        import peft

        state = peft.get_peft_model_state_dict(self._peft, adapter_name=adapter, save_embedding_layers=False)
        save_tensors(state, folder / "adapter_model.safetensors")
        self._peft.peft_config[adapter].save_pretrained(str(folder))


def load_adapter(model: Any, folder: Path) -> None:
    """Attach a saved adapter to the model, in place.

    Raises:
        RunError: the folder holds no adapter that fits the model.
    """
    import peft

    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():  # or peft would look for it on the Hub
            raise RunError(f"{str(folder)!r} is no adapter folder: it has no {name}")
    try:
        with _quiet_peft():
            peft.PeftModel.from_pretrained(model, str(folder))
    except (OSError, ValueError, RuntimeError) as error:
        raise RunError(f"{folder}: not an adapter of this model: {str(error).splitlines()[0]}") from error
    model.eval()


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """Without the notes that transformers addresses to peft, and peft's on layers it sets right by itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "fan_in_fan_out is set", UserWarning)
        yield
