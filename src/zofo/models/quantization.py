"""Quantised weights: packed while a model is loaded, or packed in its checkpoint already; they are only ever read."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from zofo.errors import ModelError, first_line, raise_if_out_of_memory

Quantization = Literal["nf4", "int8", "int8-weight-only", "int4-weight-only"]
"""How weights are packed when they are loaded."""

EXTRA = "pip install 'zofo[quantized]'"
_PACKAGE = {name: "bitsandbytes" if name in ("nf4", "int8") else "torchao" for name in Quantization.__args__}  # type: ignore[attr-defined]
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


def quantized_as(model: Any) -> str | None:
    """The method by which the weights of a model are quantised, as transformers calls it; None for plain weights."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        return None
    method = quantizer.quantization_config.quant_method
    return str(getattr(method, "value", method))


def is_packed(parameter: torch.Tensor) -> bool:
    """Whether a parameter holds packed numbers: whole ones, or those of a class that unpacks itself."""
    return not parameter.is_floating_point() or is_traceable_wrapper_subclass(parameter)


def plain_tensors(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """The plain tensors that hold the numbers of one, with their names: itself, for most."""
    if not is_traceable_wrapper_subclass(tensor):
        yield name, tensor
        return
    parts, _ = tensor.__tensor_flatten__()
    for part in sorted(parts):
        yield from plain_tensors(f"{name}.{part}", getattr(tensor, part))


def quantization_options(
    wanted: Quantization | None, content: Mapping[str, Any], dtype: torch.dtype, device: Any, name: str
) -> dict[str, Any]:
    """What transformers is told to load a checkpoint with, where its weights are packed, or are to be; else nothing.

    Args:
        wanted: how plain weights are packed.
        content: of the checkpoint's config.json.
        dtype: number type of what is not packed, and of products.
        device: where the weights go; they are packed there.
        name: of the model, for messages.

    Raises:
        ModelError: the checkpoint is quantised already, or in a way that transformers does not know; a package is
            missing; or the device cannot run it.
    """
    own = content.get("quantization_config")
    if own is not None:
        _check_own(wanted, own, name)
    elif wanted is None:
        return {}
    else:
        _check_installed(wanted)
        _check_runs(wanted, dtype, device)
    options: dict[str, Any] = {"device_map": {"": device}}  # a packed model does not move
    return options if own is not None or wanted is None else {**options, "quantization_config": _config(wanted, dtype)}


def missing_package_hint(content: Mapping[str, Any]) -> str:
    """What to type where a package is missing that reads the packed weights of a checkpoint."""
    own = content.get("quantization_config")
    method = _method(own) if isinstance(own, Mapping) else ""
    return _OF_CHECKPOINTS.get(method, "install what the message names, or take a checkpoint that is not quantised")


def settle_packed_layers(model: nn.Module, dtype: torch.dtype) -> None:
    """Let packed layers compute alike with and without a gradient, in one number type, each row by itself.

    bitsandbytes would, for a forward without a gradient on a CPU with AVX-512, repack 4-bit weights for products in
    bfloat16 that have no gradient. And it would choose the columns that 8-bit layers keep in half precision by all rows
    of a batch, so that the scores of a row depended on the others.

    Args:
        model: as transformers loaded it.
        dtype: of products.
    """
    for part in model.modules():
        layer: Any = part
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu, layer.compute_dtype, layer.compute_type_is_set = False, dtype, True
        if hasattr(getattr(layer, "state", None), "threshold"):
            layer.state.threshold = 0.0
            # that it rounds inputs to half precision, it would say of each product
            logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def _check_own(wanted: Quantization | None, own: Any, name: str) -> None:
    """Refuse a checkpoint whose packed weights transformers would leave out, or that are to be packed once more."""
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


def _method(own: Any) -> str:
    if not isinstance(own, Mapping):
        return ""
    packed = own.get("load_in_4bit") or own.get("load_in_8bit")
    return "bitsandbytes" if packed else str(own.get("quant_method") or "")


def _check_installed(wanted: Quantization) -> None:
    package = _PACKAGE[wanted]
    if find_spec(package) is None:
        raise ModelError(f"model.quantization={wanted} needs {package}, which is not installed", EXTRA)


def _check_runs(wanted: Quantization, dtype: torch.dtype, device: Any) -> None:
    """Pack one small layer and run it, before a large model is loaded. Raises ModelError where that fails."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            layer = nn.Linear(_TRIAL, _TRIAL, bias=False, dtype=dtype)
            trial = _packed_layer(wanted, layer, dtype, torch.device(device))
            trial(torch.ones(1, _TRIAL, dtype=dtype, device=device))
    except Exception as error:  # a kernel that is not there says so in as many ways as there are kernels
        raise_if_out_of_memory(error)
        shown = str(dtype).removeprefix("torch.")
        raise ModelError(
            f"model.quantization={wanted} cannot be run on {str(device)!r} in {shown}: {first_line(error)}",
            "set model.quantization=nf4 or int8-weight-only, or another model.device or model.dtype",
        ) from error


def _packed_layer(wanted: Quantization, layer: nn.Linear, dtype: torch.dtype, device: torch.device) -> nn.Module:
    if wanted in _TORCHAO:
        from torchao.quantization import quantize_

        stack = nn.Sequential(layer.to(device))
        quantize_(stack, _torchao_config(wanted))
        return stack
    import bitsandbytes

    size = layer.in_features, layer.out_features
    packed: nn.Module
    if wanted == "nf4":
        packed = bitsandbytes.nn.Linear4bit(*size, bias=False, compute_dtype=dtype, quant_type="nf4")
    else:
        packed = bitsandbytes.nn.Linear8bitLt(*size, bias=False, has_fp16_weights=False)
    packed.load_state_dict(layer.state_dict())
    packed = packed.to(device).eval()
    settle_packed_layers(packed, dtype)
    return packed


def _torchao_config(wanted: Quantization) -> Any:
    """torchao's own configuration; it would change the precision of float32 products everywhere if it was let."""
    import torchao.quantization

    name, options = _TORCHAO[wanted]
    return getattr(torchao.quantization, name)(**options)


def _config(wanted: Quantization, dtype: torch.dtype) -> Any:
    """The configuration of transformers."""
    import transformers

    if wanted in _TORCHAO:
        return transformers.TorchAoConfig(_torchao_config(wanted))
    return transformers.BitsAndBytesConfig(**_bitsandbytes_options(wanted, str(dtype).removeprefix("torch.")))


_TORCHAO: dict[str, tuple[str, dict[str, Any]]] = {
    "int8-weight-only": ("Int8WeightOnlyConfig", {"set_inductor_config": False}),
    "int4-weight-only": (
        "Int4WeightOnlyConfig",
        {"group_size": 64, "int4_packing_format": "tile_packed_to_4d", "set_inductor_config": False},
    ),
}


def _bitsandbytes_options(wanted: Quantization, dtype: str) -> dict[str, Any]:
    if wanted == "int8":
        return {"load_in_8bit": True, "llm_int8_threshold": 0.0}
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": dtype,
    }


def source_of(wanted: Quantization, dtype: str) -> tuple[str, str]:
    """The line that imports what packs weights in the same way with transformers alone, and the expression that makes
    it."""

    def call(name: str, options: Mapping[str, Any]) -> str:
        return f"{name}({', '.join(f'{key}={value!r}' for key, value in options.items())})"

    if wanted in _TORCHAO:
        name, options = _TORCHAO[wanted]
        return (
            f"from torchao.quantization import {name}\nfrom transformers import TorchAoConfig",
            f"TorchAoConfig({call(name, options)})",
        )
    return (
        "from transformers import BitsAndBytesConfig",
        call("BitsAndBytesConfig", _bitsandbytes_options(wanted, dtype)),
    )
