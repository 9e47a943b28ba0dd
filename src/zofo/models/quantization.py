"""Quantised weights: packed during loading, or already packed in the checkpoint. They are read-only."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from zofo.errors import ModelError, first_line, raise_if_out_of_memory

Quantization = Literal["nf4", "int8", "int8-weight-only", "int4-weight-only"]
"""How weights are packed when they are loaded."""

EXTRA = "pip install 'zofo[quantized]'"
_PACKAGE = {name: "bitsandbytes" if name in ("nf4", "int8") else "torchao" for name in get_args(Quantization)}
_OF_CHECKPOINTS = {  # what transformers needs to read a checkpoint that is packed by a method, where it is one package
    "bitsandbytes": EXTRA,
    "torchao": EXTRA,
    "gptq": "pip install optimum gptqmodel",
    "awq": "pip install gptqmodel",
    "hqq": "pip install hqq",
    "compressed-tensors": "pip install compressed-tensors",
    "quanto": "pip install optimum-quanto",
    "aqlm": "pip install 'aqlm[cpu,gpu]'",
    "auto-round": "pip install auto-round",
    "vptq": "pip install vptq",
}
_TRIAL = 256  # inputs and outputs of the layer that is tried; a multiple of every group
_HOLES = 1 << 24  # weights of a model whose tensors, once freed, are worth giving back


def quantized_as(model: Any) -> str | None:
    """transformers' name for how a model's weights are quantised; None for plain weights."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        return None
    method = quantizer.quantization_config.quant_method
    return str(getattr(method, "value", method))


def is_packed(parameter: torch.Tensor) -> bool:
    """Whether a parameter holds packed values: integers, or a tensor subclass that unpacks itself."""
    return not parameter.is_floating_point() or _unpacks_itself(parameter)


def _unpacks_itself(tensor: torch.Tensor) -> bool:
    return bool(is_traceable_wrapper_subclass(tensor))


def plain_tensors(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """The plain tensors behind a parameter, with their names: usually the parameter itself."""
    if not _unpacks_itself(tensor):
        yield name, tensor
        return
    whole: Any = tensor
    for part in sorted(whole.__tensor_flatten__()[0]):
        yield from plain_tensors(f"{name}.{part}", getattr(tensor, part))


def quantization_options(
    wanted: Quantization | None,
    content: Mapping[str, Any],
    dtype: torch.dtype,
    device: Any,
    name: str,
    head_layers: Callable[[], list[str]],
) -> dict[str, Any]:
    """transformers' options to load a checkpoint whose weights are packed, or should be packed; otherwise empty.

    Args:
        dtype: dtype of products, and of tensors that are not packed.
        head_layers: returns the names of layers that are trained, and therefore not packed; if empty, transformers
            decides, and does not pack the output embedding.

    Raises:
        ModelError: the checkpoint is already quantised, or in an unknown format; a package is missing; or the device
            cannot run it.
    """
    own = content.get("quantization_config")
    if own is not None:
        _check_own(wanted, own, name)
    elif wanted is None:
        return {}
    else:
        package = _PACKAGE[wanted]
        if find_spec(package) is None:
            raise ModelError(f"model.quantization={wanted} needs {package}, which is not installed", EXTRA)
        _check_runs(wanted, dtype, device)
    options: dict[str, Any] = {"device_map": {"": device}}  # a packed model does not move
    if wanted is not None:
        options["quantization_config"] = _config(wanted, dtype, head_layers())
    return options


def missing_package_hint(content: Mapping[str, Any]) -> str:
    """What to type if a package is missing that a checkpoint needs, such as one that unpacks its weights."""
    own = content.get("quantization_config")
    if own is None:
        return "install what the message names, or choose another model"
    return _OF_CHECKPOINTS.get(_method(own), "install what the message names, or take a checkpoint that is not packed")


def check_packed(model: nn.Module, wanted: Quantization | None, name: str) -> None:
    """Refuse a model that should be quantised and has unpacked weights.

    Raises ModelError that names a layer, or says that no layer can be packed.
    """
    for layer, part in model.named_modules():
        if hasattr(part, "support_avx512bf16_for_cpu") and getattr(part.weight, "quant_state", None) is None:
            raise ModelError(
                f"the config.json of {name!r} says that its weights are quantised, but those of {layer!r} are not",
                "take out quantization_config of its config.json, or take both from one checkpoint",
            )
    if wanted is not None and not any(map(is_packed, model.parameters())):
        kinds = sorted({type(part).__name__ for part in model.modules() if hasattr(part, "weight")})
        raise ModelError(
            f"model.quantization={wanted} packs linear layers, of which {name!r} has none but its head: its layers are "
            f"{', '.join(kinds)}",
            "set model.quantization=nf4, which packs Conv1D, too, or leave it out",
        )


def let_go_of_file(model: nn.Module) -> None:
    """Copy what is not packed out of the checkpoint's memory-mapped file, so that the file leaves memory.

    Also returns the memory that packing has used to the system.
    """
    for parameter in model.parameters():
        if not is_packed(parameter):
            parameter.data = parameter.data.clone()
    release_memory()


def release_memory() -> None:
    """Return unused memory to the system, if the C library supports it."""
    gc.collect()
    _trim()


def trim_memory(model: nn.Module) -> None:
    """Return memory that the C library holds between live tensors after a forward of a large model.

    Does not collect garbage. A small model has no such gaps, and is ignored.
    """
    if sum(parameter.numel() for parameter in model.parameters()) >= _HOLES:
        _trim()


def _trim() -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library has no such function
            ctypes.CDLL(None).malloc_trim(0)


def packing_note(model: nn.Module) -> str:
    """A message that says how much of a quantised model is packed, and the bytes it takes."""
    packed = sum(map(is_packed, model.parameters()))
    tensors = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values() if torch.is_tensor(tensor)}
    parts = [part for tensor in tensors.values() for _, part in plain_tensors("", tensor)]
    size = sum(part.nbytes for part in parts)
    found = f"{packed} tensors are packed; " if packed else ""
    return f"quantised ({quantized_as(model)}): {found}the weights take {size / 2**30:.2f} GiB"


def settle_packed_layers(model: nn.Module, dtype: torch.dtype) -> None:
    """Make packed layers compute alike with and without a gradient, in one dtype, each row independently.

    For a forward without a gradient on a CPU with AVX-512, bitsandbytes would repack 4-bit weights for bfloat16
    products that have no gradient. And it would choose the columns that 8-bit layers keep in half precision from all
    rows of a batch, so that the scores of a row would depend on the others.
    """
    for part in model.modules():
        layer: Any = part
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu, layer.compute_dtype, layer.compute_type_is_set = False, dtype, True
        if hasattr(getattr(layer, "state", None), "threshold"):
            layer.state.threshold = 0.0
            # a warning at each product that inputs are rounded to half precision
            logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def _check_own(wanted: Quantization | None, own: Any, name: str) -> None:
    """Refuse a checkpoint whose packed weights transformers would ignore, or that would be packed twice."""
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    method = _method(own)
    if wanted is not None:
        raise ModelError(
            f"{name!r} is quantised already ({method or 'by an unnamed method'}), and model.quantization={wanted} "
            "packs plain weights",
            "leave out model.quantization, or name the checkpoint that it was made from",
        )
    known = {known.partition("_4bit")[0].partition("_8bit")[0] for known in AUTO_QUANTIZER_MAPPING}
    if method not in known:
        raise ModelError(
            f"the config.json of {name!r} says that its weights are quantised by {str(method)[:40]!r}, which "
            "transformers does not know",
            f"known are {', '.join(sorted(known))}",
        )


def packed_as(wanted: Quantization | None, content: Mapping[str, Any], name: str) -> Quantization | None:
    """How the weights of a model are packed, as a value of `model.quantization`; None for plain ones.

    Raises ModelError if the checkpoint is packed in a format of unknown size, or would be packed twice.
    """
    own = content.get("quantization_config")
    if own is None:
        return wanted
    _check_own(wanted, own, name)
    bits = 4 if own.get("load_in_4bit") else 8 if own.get("load_in_8bit") else own.get("bits") or own.get("nbits")
    found: dict[Any, Quantization] = {4: "nf4", 8: "int8"}
    if bits not in found:
        raise ModelError(
            f"the config.json of {name!r} does not say in how many bits its weights are packed "
            f"({_method(own) or 'by an unnamed method'}), so that their memory is not known",
            "estimate the checkpoint that it was made from, with model.quantization=nf4 or int8",
        )
    return found[bits]


def _method(own: Any) -> str:
    if not isinstance(own, Mapping):
        return ""
    packed = own.get("load_in_4bit") or own.get("load_in_8bit")
    return "bitsandbytes" if packed else str(own.get("quant_method") or "")


def _check_runs(wanted: Quantization, dtype: torch.dtype, device: Any) -> None:
    """Pack and run a small layer before a large model is loaded. Raise ModelError if that fails."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            layer = nn.Linear(_TRIAL, _TRIAL, bias=False, dtype=dtype)
            trial = _packed_layer(wanted, layer, dtype, torch.device(device))
            trial(torch.ones(1, _TRIAL, dtype=dtype, device=device))
    except Exception as error:  # a missing kernel can raise anything
        raise_if_out_of_memory(error)
        shown = str(dtype).removeprefix("torch.")
        raise ModelError(
            f"model.quantization={wanted} cannot be run on {str(device)!r} in {shown}: {first_line(error)}",
            "set model.quantization=nf4 or int8-weight-only, or another model.device or model.dtype",
        ) from error


def _packed_layer(wanted: Quantization, layer: nn.Linear, dtype: torch.dtype, device: torch.device) -> nn.Module:
    if wanted in _TORCHAO:
        stack = nn.Sequential(layer.to(device))
        import_module("torchao.quantization").quantize_(stack, _torchao_config(wanted))
        return stack
    layers = import_module("bitsandbytes.nn")
    size = layer.in_features, layer.out_features
    packed: nn.Module
    if wanted == "nf4":
        packed = layers.Linear4bit(*size, bias=False, compute_dtype=dtype, quant_type="nf4")
    else:
        packed = layers.Linear8bitLt(*size, bias=False, has_fp16_weights=False)
    packed.load_state_dict(layer.state_dict())
    packed = packed.to(device).eval()
    settle_packed_layers(packed, dtype)
    return packed


def _torchao_config(wanted: Quantization) -> Any:
    """torchao's own configuration, which would otherwise change the precision of all float32 products."""
    name, options = _TORCHAO[wanted]
    return getattr(import_module("torchao.quantization"), name)(**options)


def _config(wanted: Quantization, dtype: torch.dtype, kept: list[str]) -> Any:
    """transformers' quantisation configuration; layers of the names `kept` are not packed."""
    import transformers

    if wanted in _TORCHAO:
        return transformers.TorchAoConfig(_torchao_config(wanted), modules_to_not_convert=kept or None)
    return transformers.BitsAndBytesConfig(**_bitsandbytes_options(wanted, str(dtype).removeprefix("torch."), kept))


_TORCHAO: dict[str, tuple[str, dict[str, Any]]] = {
    "int8-weight-only": ("Int8WeightOnlyConfig", {"set_inductor_config": False}),
    "int4-weight-only": (
        "Int4WeightOnlyConfig",
        {"group_size": 64, "int4_packing_format": "tile_packed_to_4d", "set_inductor_config": False},
    ),
}


def _bitsandbytes_options(wanted: Quantization, dtype: str, kept: list[str]) -> dict[str, Any]:
    skipped = {"llm_int8_skip_modules": kept} if kept else {}
    if wanted == "int8":
        return {"load_in_8bit": True, "llm_int8_threshold": 0.0, **skipped}
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": dtype,
        **skipped,
    }


def source_of(wanted: Quantization, dtype: str, recorded: Mapping[str, Any]) -> tuple[str, str]:
    """Source code that packs weights in the same way with transformers alone: the import lines and the expression.

    Args:
        recorded: the quantisation in the model's configuration.
    """

    def call(name: str, options: Mapping[str, Any], *first: str) -> str:
        return f"{name}({', '.join([*first, *(f'{key}={value!r}' for key, value in options.items())])})"

    kept = recorded.get("llm_int8_skip_modules") or recorded.get("modules_to_not_convert") or []
    if wanted in _TORCHAO:
        name, options = _TORCHAO[wanted]
        made = call("TorchAoConfig", {"modules_to_not_convert": kept} if kept else {}, call(name, options))
        return f"from torchao.quantization import {name}\nfrom transformers import TorchAoConfig", made
    packed = call("BitsAndBytesConfig", _bitsandbytes_options(wanted, dtype, kept))
    return "from transformers import BitsAndBytesConfig", packed
