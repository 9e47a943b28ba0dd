"""Adapters of unknown origin: checked before peft reads them.

peft's configurations can name modules to import, files to read and sizes to allocate. Only options that zofo's own
adapters set may differ from their default, and every size must match a tensor in the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from zofo.adapters.base import quiet_peft
from zofo.adapters.checkpoint import adapter_content, check_known_options, load_adapter, merge_attached
from zofo.errors import RunError, as_ascii, printable


def _text(value: Any, longest: int = 255) -> bool:
    return value is None or (isinstance(value, str) and len(value) <= longest)


def _path(value: Any) -> bool:
    return _text(value, 4096)


def _names(value: Any) -> bool:
    def name(one: Any) -> bool:
        return isinstance(one, str) and all(part.isidentifier() or part.isdecimal() for part in one.split("."))

    return value is None or (isinstance(value, list) and all(map(name, value)))


def _targets(value: Any) -> bool:
    """Names of modules; or a pattern, but only one of peft's own, since others may never terminate."""
    from peft.utils import constants

    by_model = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    return _names(value) or (isinstance(value, str) and value in by_model.values())


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _size(value: Any) -> bool:
    return value is None or (type(value) is int and 0 < value < 1 << 20)


def _scale(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


_TENSOR = re.compile(r"\w+(\.\w+)*")
WEIGHTS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)  # dtypes that zofo writes
_LONGEST = 200  # maximum length of a tensor's name

_ALWAYS: dict[str, Callable[[Any], bool]] = {
    "peft_type": _text,
    "task_type": lambda value: value in (None, "CAUSAL_LM", "SEQ_CLS"),
    "base_model_name_or_path": _path,
    "inference_mode": _flag,
    "peft_version": _text,
    "revision": _text,
    "modules_to_save": _names,
}
_TARGETS = {"target_modules": _targets, "fan_in_fan_out": _flag}
_VIRTUAL = {
    f"num_{what}": _size for what in ("virtual_tokens", "transformer_submodules", "attention_heads", "layers")
} | {"token_dim": _size, "encoder_hidden_size": _size}
_KINDS = {
    "LORA": {**_TARGETS, "r": _size, "lora_alpha": _scale, "use_dora": _flag},
    "IA3": {**_TARGETS, "feedforward_modules": _names},
    "PREFIX_TUNING": _VIRTUAL,
    "PROMPT_TUNING": {**_VIRTUAL, "prompt_tuning_init": lambda value: value == "RANDOM"},
}


def load_strange_adapter(model: Any, folder: Path, merge: bool = False) -> None:
    """Attach or merge an adapter of unknown origin; anything that zofo never writes is refused.

    Raises:
        RunError: an option that zofo's adapters do not have, a size that does not match its tensors, a non-finite
            value, or a tensor that the model does not have.
    """
    import peft

    tensors = check_untrusted_adapter(folder)
    loaded = load_adapter(model, folder)
    with quiet_peft():
        own = peft.get_peft_model_state_dict(loaded, save_embedding_layers=False)
    for name in sorted(set(own) ^ set(tensors)):
        lacks = "the model has no place for" if name in tensors else "it lacks"
        raise RunError(f"the adapter does not fit the model: {lacks} the tensor {as_ascii(name)}")
    if merge:
        merge_attached(model, loaded)


def check_untrusted_adapter(folder: Path) -> Mapping[str, torch.Tensor]:
    """Read an adapter's tensors, if zofo could have written it.

    Raises:
        RunError: as `load_strange_adapter`, except for what depends on the model.
    """
    content = adapter_content(folder)
    _check_options(content)
    try:
        tensors: dict[str, torch.Tensor] = load_file(folder / "adapter_model.safetensors")
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise RunError(f"the adapter's tensors cannot be read: {printable(str(error))}") from error
    _check_tensors(content, tensors)
    return tensors


def can_name_a_tensor(name: str) -> bool:
    """Whether a model can have a tensor of that name, and it is short enough for a message."""
    return len(name) <= _LONGEST and _TENSOR.fullmatch(name) is not None


def _check_options(content: Mapping[str, Any]) -> None:
    import peft

    kind = content.get("peft_type")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise RunError(f"the adapter is of the kind {as_ascii(kind)}, which zofo does not make")
    check_known_options(content)
    checks = {**_ALWAYS, **_KINDS[kind]}
    usual = {
        "LORA": peft.LoraConfig,
        "IA3": peft.IA3Config,
        "PREFIX_TUNING": peft.PrefixTuningConfig,
        "PROMPT_TUNING": peft.PromptTuningConfig,
    }[kind]().to_dict()
    for name, value in content.items():
        right = checks[name](value) if name in checks else not value or (name in usual and value == usual[name])
        if not right:
            raise RunError(f"the adapter sets {as_ascii(name)} to {as_ascii(value)}, which zofo's adapters never do")


def _check_tensors(content: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Check that each size in the configuration matches a tensor, since peft allocates it before reading."""
    if not tensors:
        raise RunError("the adapter holds no tensors")
    for name, tensor in tensors.items():
        if not can_name_a_tensor(name):
            raise RunError(f"{as_ascii(name)} cannot be the name of an adapter's tensor")
        if not tensor.dim() or not tensor.numel():
            raise RunError(f"the adapter's tensor {as_ascii(name)} has the shape {as_ascii(tuple(tensor.shape))}")
        if tensor.dtype not in WEIGHTS or not tensor.isfinite().all():
            raise RunError(f"the adapter's tensor {as_ascii(name)} has values that are not finite, or no weights")
    if content["peft_type"] == "LORA":
        ranks = {len(tensor) for name, tensor in tensors.items() if ".lora_A." in name and tensor.dim()}
        if ranks != {content.get("r")}:
            raise RunError(f"the adapter's rank is {content.get('r')}, but its tensors have {as_ascii(sorted(ranks))}")
        for name, tensor in tensors.items():
            left = name.replace(".lora_B.", ".lora_A.")
            if left not in tensors:
                raise RunError(f"the adapter does not fit itself: it lacks the tensor {as_ascii(left)}")
            partner = name.replace(".lora_A.", ".lora_B.")
            width = len(tensor) if partner != name else None
            if width is not None and tuple(tensors.get(partner, tensor.new_empty(0)).shape)[1:] != (width,):
                raise RunError(
                    f"the adapter does not fit itself: it lacks the tensor {as_ascii(partner)} of rank {width}"
                )
    if content["peft_type"] in ("PREFIX_TUNING", "PROMPT_TUNING"):
        found = tensors.get("prompt_embeddings", torch.empty(0))
        width = content.get("token_dim") or 0
        if content["peft_type"] == "PREFIX_TUNING":
            width *= 2 * (content.get("num_layers") or 0)
        rows = (content.get("num_virtual_tokens") or 0) * (content.get("num_transformer_submodules") or 1)
        if tuple(found.shape) != (rows, width):
            found_shape = as_ascii(list(found.shape))
            raise RunError(f"the adapter's sizes are {rows} x {width}, but its tensor is {found_shape}")
