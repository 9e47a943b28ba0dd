"""Loading a causal language model and its tokenizer: embedded, from a folder, or from the Hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from zofo.config import Config
from zofo.embedded import EMBEDDED_MODELS
from zofo.errors import ModelError, UnknownNameError


class ModelConfig(Config):
    """Which model, and how it is loaded."""

    name: str = "smollm2-135m"
    """An embedded model (`zofo list models`), a folder with a transformers model, or a Hub id (`facebook/opt-125m`)."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number type of the weights."""
    revision: str | None = None
    """Branch, tag or commit, for a Hub id."""
    device: str | None = None
    """Where the weights go, such as `cpu`, `cuda` or `mps`; by default the device that accelerate finds."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be asked for losses: in evaluation mode, on its device.

    Args:
        model: a transformers causal language model.
        tokenizer: its fast tokenizer, with a padding token.
        name: as it was asked for.
    """

    model: Any
    tokenizer: Any
    name: str

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return torch.device(next(self.model.parameters()).device)


def load_model(config: ModelConfig | str, remote_code: bool = False) -> LoadedModel:
    """Load what `config` names, in evaluation mode, on the device accelerate chooses.

    Args:
        config: which model, or just its name.
        remote_code: allow the model's repository to run its own code; only ever set by a command-line flag.

    Raises:
        UnknownNameError: a bare name that is neither embedded nor a folder.
        ModelError: nothing loadable there, or the Hub cannot be reached and its cache does not hold it.
    """
    if isinstance(config, str):
        config = ModelConfig(name=config)
    import transformers  # takes seconds, so mistakes found before a model is loaded do not wait for it
    from accelerate import PartialState

    options = {"revision": config.revision, "trust_remote_code": remote_code}
    with _quiet_transformers():
        source = _source(config.name)
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                source, dtype=getattr(torch, config.dtype), **options
            )
        except Exception as error:  # noqa: BLE001  # a damaged folder fails in as many ways as it has readers
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelError(
                f"cannot load the model {config.name!r}: {first}",
                "without a Hub, use model=smollm2-135m or a folder written by save_pretrained",
            ) from error
    if not tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer of {config.name!r} gives no character offsets",
            "choose a model with a fast tokenizer",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    model.config.use_cache = False
    try:
        model.eval().requires_grad_(False).to(config.device or PartialState().device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"cannot put the model on {config.device!r}: {reason}", "set model.device=cpu") from error
    return LoadedModel(model, tokenizer, config.name)


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write tensors as one safetensors file."""
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path, metadata={"format": "pt"})


def _source(name: str) -> str:
    if name in EMBEDDED_MODELS:
        return str(EMBEDDED_MODELS[name]())
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise ModelError(f"the folder {name!r} holds no config.json", "name a folder written by save_pretrained")
        return name
    if "/" not in name or name.startswith(("/", ".", "~")):
        raise UnknownNameError(
            "model",
            name,
            EMBEDDED_MODELS,
            f"embedded models: {', '.join(EMBEDDED_MODELS)}; or a folder, or a Hub id such as facebook/opt-125m",
        )
    return name


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars and no notes while loading; the settings are put back."""
    import transformers

    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
