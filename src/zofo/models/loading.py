"""Loading a model and its tokenizer: embedded, from a folder, or from the Hub."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from zofo.config import Config
from zofo.embedded import EMBEDDED_MODELS
from zofo.errors import (
    ConfigError,
    ModelError,
    RunError,
    UnknownNameError,
    ZofoError,
    first_line,
    raise_if_out_of_memory,
)
from zofo.hub import asking_cache, near_path, unreachable
from zofo.models.folder_checks import check_checkpoint_tensors, check_model_folder, check_no_adapter
from zofo.models.heads import (
    Head,
    complete_head,
    default_head,
    head_class,
    head_layers,
    head_options,
    output_names,
    pool_last,
)
from zofo.models.offload import Offload, check_can_be_offloaded, checkpoint_dtype, leave_in_files, mark_offloaded
from zofo.models.packed_shapes import pack_shapes
from zofo.models.padding_check import check_fit_for_scoring
from zofo.models.quantization import (
    Quantization,
    check_packed,
    let_go_of_file,
    missing_package_hint,
    packed_as,
    quantization_options,
    quantized_as,
    settle_packed_layers,
)
from zofo.models.tokenizer_loading import complete_padding, embeddings_of, read_tokenizer


class ModelConfig(Config):
    """The model, and how it is loaded."""

    name: str = "smollm2-135m"
    """An embedded model (`zofo list models`), a folder with a transformers model, or a Hub id (`facebook/opt-125m`)."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """Dtype of the weights; of a quantised model, the dtype of products and of tensors that are not packed. `auto`
    takes the one in the checkpoint's config.json, and the run records that."""
    quantization: Quantization | None = None
    """Quantise the weights during loading, to train an adapter on them in less memory: `nf4` or `int8` with
    bitsandbytes, `int8-weight-only` or `int4-weight-only` with torchao. By default as in the checkpoint."""
    revision: str | None = None
    """Branch, tag or commit, for a Hub id."""
    device: str | None = None
    """Device of the weights, such as `cpu`, `cuda` or `mps`; by default the one that accelerate finds."""
    offload: Offload | None = None
    """`disk` leaves the weights in the checkpoint's files, from which each forward reads them: for a model larger than
    memory, on the CPU, with a method that moves an adapter. By default weights are loaded into memory."""
    head: Head | None = None
    """The kind of the model's outputs; by default that of its checkpoint."""
    head_seed: int = Field(0, ge=0, lt=1 << 64)
    """Seed of a new head that the checkpoint does not have."""

    @model_validator(mode="before")
    @classmethod
    def _with_dtype_of_the_checkpoint(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("dtype") != "auto":
            return given
        plain = cls(**{key: given[key] for key in ("name", "revision") if key in given})
        with _opened(plain) as (_, content):
            own = checkpoint_dtype(content)
        known = [name for name in get_args(cls.model_fields["dtype"].annotation) if name != "auto"]
        if own not in known:
            what = "names no dtype of its weights" if own is None else f"names {own}, which is not trained here"
            raise ConfigError(
                f"model.dtype=auto: config.json of {plain.name!r} {what}",
                f"set model.dtype to one of {', '.join(known)}",
            )
        return {**given, "dtype": own}


@dataclass(frozen=True)
class LoadedModel:
    """A loaded model: in evaluation mode, on its device.

    Args:
        model: a transformers model with a head.
        tokenizer: its fast tokenizer, with a padding token.
        name: the name it was loaded by.
        head: the kind of the model's outputs.
        outputs: names of the outputs of the checkpoint's own classification head; empty if it has none.
        checkpoint_dtype: dtype of the checkpoint's weights according to its config.json; None if that does not say.
    """

    model: Any
    tokenizer: Any
    name: str
    head: Head = "causal-lm"
    outputs: tuple[str, ...] = ()
    checkpoint_dtype: str | None = None

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return torch.device(next(self.model.parameters()).device)


def head_of(config: ModelConfig | str) -> Head:
    """The head that a model would be loaded with, from the checkpoint's config.json alone.

    Raises:
        UnknownNameError: a bare name that is neither embedded nor a folder.
        ModelError: nothing readable there.
    """
    config = ModelConfig(name=config) if isinstance(config, str) else config
    if config.head is not None:
        return config.head
    with _opened(config) as (_, content):
        return default_head(content)


def load_model(config: ModelConfig | str, remote_code: bool = False, labels: int | None = None) -> LoadedModel:
    """Load the model that `config` names, in evaluation mode, on the device that accelerate chooses.

    A classification head that the checkpoint lacks is initialised from `config.head_seed`, with the same bits
    everywhere. No global generator is used.

    Args:
        config: which model, or just its name.
        remote_code: allow the model's repository to run its own code; only ever set by a command-line flag.
        labels: number of labels of the task, for a classification head; None for those of the checkpoint's own.

    Raises:
        UnknownNameError: a bare name that is neither embedded nor a folder.
        ModelError: there is nothing to load; the Hub cannot be reached and its cache does not have the model; the model
            does not work with its head; the checkpoint contains an adapter, or another model's tensors; or its weights
            cannot be quantised as configured.
    """
    config = ModelConfig(name=config) if isinstance(config, str) else config
    from accelerate import PartialState  # takes seconds, so mistakes found before a model is loaded do not wait for it

    options = {"revision": config.revision, "trust_remote_code": remote_code}
    device, dtype = config.device or PartialState().device, getattr(torch, config.dtype)
    with _opened(config) as (source, content):
        if config.offload is not None:
            check_can_be_offloaded(content, config.quantization, config.dtype, device)
        head = config.head or default_head(content)
        tokenizer = read_tokenizer(source, config.name, **options)
        options |= head_options(head, content, config.name, labels)
        layers = functools.partial(head_layers, head, source, **options)
        options |= quantization_options(config.quantization, content, dtype, device, config.name, layers)
        with torch.random.fork_rng(devices=[]):  # transformers draws new heads, which are overwritten below
            model, found = head_class(head).from_pretrained(
                source,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # which are refused below, by name
                **options,
            )
        _settle(model, config, dtype)
        check_checkpoint_tensors(model, found, config.name)
        complete_head(model, found["missing_keys"], head, config.name, config.head_seed)
        complete_padding(tokenizer, embeddings_of(model), config.name)
    model.config.use_cache = False
    if head == "classification":
        pool_last(model, tokenizer.pad_token_id)
    if all(parameter.requires_grad for parameter in model.parameters()):
        model.requires_grad_(False)  # else it says which tensors are to stay, such as a table of positions
    _put(model.eval(), device, config.device)
    if head == "causal-lm":
        with quiet_transformers():
            check_fit_for_scoring(model, tokenizer.pad_token_id, config.name)
    outputs = output_names(model, content) if head == "classification" else ()
    return LoadedModel(model, tokenizer, config.name, head, outputs, checkpoint_dtype(content))


def load_on_meta(
    config: ModelConfig, remote_code: bool = False, labels: int | None = None, with_tokenizer: bool = True
) -> LoadedModel:
    """The model that `load_model` would load, on the meta device, from its config.json and, if requested, its
    tokenizer.

    Args:
        labels: number of labels of the task, for a classification head.
        with_tokenizer: whether to read its tokenizer, which takes longer than everything else.

    Raises:
        UnknownNameError: a bare name that is neither embedded nor a folder.
        ModelError: there is nothing to read, or the weights are packed in a format of unknown size.
    """
    import transformers

    options = {"revision": config.revision, "trust_remote_code": remote_code}
    dtype = getattr(torch, config.dtype)
    with _opened(config) as (source, content):
        if config.offload is not None:
            check_can_be_offloaded(content, config.quantization, config.dtype, config.device or "cpu")
        head = config.head or default_head(content)
        found = head_options(head, content, config.name, labels)
        shape = transformers.AutoConfig.from_pretrained(source, **options, **found)
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            model = head_class(head).from_config(shape, dtype=dtype, trust_remote_code=remote_code)
        by = packed_as(config.quantization, content, config.name)
        if by is not None:
            pack_shapes(model, by, dtype, head_layers(head, source, **options, **found))
        tokenizer = read_tokenizer(source, config.name, **options) if with_tokenizer else None
        if tokenizer is not None:
            complete_padding(tokenizer, embeddings_of(model), config.name)
    if config.offload is not None:
        mark_offloaded(model)
    model.config.use_cache = False
    return LoadedModel(model.eval().requires_grad_(False), tokenizer, config.name, head)


def _settle(model: Any, config: ModelConfig, dtype: torch.dtype) -> None:
    """Check the weights that should be packed or offloaded, and finish their set-up."""
    check_packed(model, config.quantization, config.name)
    settle_packed_layers(model, dtype)
    if config.offload is not None:
        leave_in_files(model, config.name)
    if config.quantization is not None:
        let_go_of_file(model)


def _put(model: Any, device: Any, asked: str | None) -> None:
    """Move a model to a device; a quantised one is already there, and must not be moved."""
    if quantized_as(model) is not None:
        return
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise_if_out_of_memory(error)
        raise ModelError(f"cannot put the model on {asked!r}: {first_line(error)}", "set model.device=cpu") from error


def load_tokenizer(config: ModelConfig) -> Any:
    """The tokenizer of a model that is not loaded; of the model, only the vocabulary size is read.

    Raises:
        UnknownNameError: a bare name that is neither embedded nor a folder.
        ModelError: nothing loadable there.
    """
    options = {"revision": config.revision, "trust_remote_code": False}
    with _opened(config) as (source, content):
        tokenizer = read_tokenizer(source, config.name, **options)
        size = content.get("vocab_size") or content.get("text_config", {}).get("vocab_size") or len(tokenizer)
        complete_padding(tokenizer, size, config.name)
    return tokenizer


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, by name.

    Raises:
        RunError: it cannot be read, or contains a non-finite value.
    """
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise_if_out_of_memory(error)
        raise RunError(f"cannot read {str(path)!r}: {str(error)[:200]}") from error
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise RunError(f"{str(path)!r}: {name!r} has a value that is not finite")
    return tensors


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write tensors to a safetensors file."""
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path, metadata={"format": "pt"})


def check_known_model(name: str) -> None:
    """Check that a name can refer to a model. Nothing is fetched, and a Hub id is assumed to exist.

    Raises:
        UnknownNameError: a bare name that is neither embedded nor a folder.
        ModelError: a folder without a model, or an ambiguous one.
    """
    if name in EMBEDDED_MODELS:
        return
    if Path(name).is_dir():
        check_model_folder(Path(name), name)
        if not (Path(name) / "config.json").is_file():
            raise ModelError(f"the folder {name!r} holds no config.json", "name a folder written by save_pretrained")
    elif "/" not in name or name.startswith(("/", ".", "~")):
        raise UnknownNameError(
            "model",
            name,
            EMBEDDED_MODELS,
            f"embedded models: {', '.join(EMBEDDED_MODELS)}; or a folder, or a Hub id such as facebook/opt-125m",
        )
    elif (near := near_path(name)) is not None:
        raise ModelError(f"there is no folder {name!r}. Did you mean {near!r}?", "name a folder, or a Hub id")


def _source(config: ModelConfig) -> str:
    from transformers.utils import cached_file, find_adapter_config_file

    check_known_model(config.name)
    if config.name in EMBEDDED_MODELS:
        return str(EMBEDDED_MODELS[config.name]())
    found = None if Path(config.name).is_dir() else find_adapter_config_file(config.name, revision=config.revision)
    if found is not None:
        own = cached_file(
            config.name, "config.json", revision=config.revision, _raise_exceptions_for_missing_entries=False
        )
        check_no_adapter(Path(found), config.name, alone=own is None)
    return config.name


@contextmanager
def _opened(config: ModelConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """The place of a model and the content of its config.json, without running its code or needing its class.

    Any error inside the context is reported as one of the model. If the Hub cannot be reached, its cache is used.
    """
    import transformers

    name = config.name
    local = name in EMBEDDED_MODELS or Path(name).is_dir() or "/" not in name
    lost = None if local else unreachable()
    content: dict[str, Any] = {}
    try:
        with quiet_transformers(), nullcontext() if lost is None else asking_cache():
            source = _source(config)
            content |= transformers.PretrainedConfig.get_config_dict(source, revision=config.revision)[0]
            yield source, content
    except ZofoError:
        raise
    except ImportError as error:
        raise ModelError(
            f"cannot load the model {name!r}: {first_line(error)}", missing_package_hint(content)
        ) from error
    except Exception as error:  # a damaged folder can raise anything
        raise_if_out_of_memory(error)
        why = first_line(error) if lost is None else f"the Hub cannot be reached, nor is it in its cache ({lost})"
        raise ModelError(
            f"cannot load the model {name!r}: {why}",
            "without a Hub, use model=smollm2-135m or a folder written by save_pretrained",
        ) from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Context without progress bars and notes of transformers."""
    import transformers

    log = transformers.utils.logging
    notes, bars = log.get_logger(), log.is_progress_bar_enabled()
    passes_on, levels = notes.propagate, [(handler, handler.level) for handler in notes.handlers]
    notes.propagate = False  # and not another level of the logger, for which Python goes through all loggers there are
    silent = logging.NullHandler()  # without any handler, Python would print warnings itself
    notes.addHandler(silent)
    for handler, _ in levels:
        handler.setLevel(logging.ERROR)
    log.disable_progress_bar()
    try:
        yield
    finally:
        notes.propagate = passes_on
        notes.removeHandler(silent)
        for handler, level in levels:
            handler.setLevel(level)
        if bars:
            log.enable_progress_bar()
