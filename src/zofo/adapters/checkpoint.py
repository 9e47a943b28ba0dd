"""Load saved adapters: attach them to their model, or merge them into its weights."""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zofo.adapters.base import carries_adapters, quiet_peft
from zofo.adapters.virtual_token_hooks import inject
from zofo.config import read_json_object
from zofo.errors import RunError, as_ascii, first_line, printable, raise_if_out_of_memory
from zofo.models import load_tensors, quantized_as

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def load_adapter(model: Any, folder: Path) -> Any:
    """Attach a saved adapter to a model, in place.

    Args:
        model: the transformers model that it was trained with, without adapters.

    Returns:
        peft's model around it.

    Raises:
        RunError: the folder has no adapter that fits the model, or the model already has one.
    """
    import peft

    for name in (CONFIG, TENSORS):
        if not (folder / name).is_file():  # or peft would look for it on the Hub
            raise RunError(f"{str(folder)!r} is no adapter folder: it has no {name}")
    if carries_adapters(model):
        raise RunError("the model already has an adapter", "load the model again")
    check_known_options(read_json_object(folder / CONFIG), f"the adapter in {str(folder)!r}")
    load_tensors(folder / TENSORS)  # refuses what peft would ignore or accept
    try:
        with quiet_peft(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Unexpected keyword arguments", UserWarning)  # empty values
            warnings.filterwarnings("error", "Found missing adapter keys", UserWarning)  # which stay random
            loaded: Any = peft.PeftModel.from_pretrained(model, str(folder))
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, UserWarning) as error:
        raise_if_out_of_memory(error)
        raise RunError(f"{folder}: not an adapter of this model: {printable(first_line(error))}") from error
    if loaded.active_peft_config.is_prompt_learning:
        model.prompt_encoder = loaded.prompt_encoder
        inject(model, loaded)
    model.eval()
    return loaded


def check_known_options(content: Mapping[str, Any], adapter: str = "the adapter") -> None:
    """Refuse the configuration of an adapter with options that this version of peft does not have.

    peft ignores them, and would load another adapter than the saved one. Empty values (null, false, 0) have no effect,
    and are allowed.

    Raises:
        RunError: there is one; the message names the option, or the kind of adapter, and the version of peft.
    """
    import peft

    kind = content.get("peft_type")
    known = peft.PEFT_TYPE_TO_CONFIG_MAPPING
    if not isinstance(kind, str) or kind not in known:
        raise RunError(
            f"{adapter} is of the kind {as_ascii(kind)}, which peft {peft.__version__} does not know", _UPGRADE
        )
    options = inspect.signature(known[kind]).parameters
    for name, value in content.items():
        if name not in options and value:
            raise RunError(
                f"{adapter} sets {as_ascii(name)} to {as_ascii(value)}, which is no option in peft {peft.__version__}",
                _UPGRADE,
            )


_UPGRADE = "upgrade with: pip install --upgrade peft"


_VIRTUAL = ("PREFIX_TUNING", "PROMPT_TUNING")


def can_merge(folder: Path) -> bool:
    """Whether a saved adapter can be merged into its model's weights; virtual tokens cannot."""
    return adapter_content(folder).get("peft_type") not in _VIRTUAL


def merge_adapter(model: Any, folder: Path) -> None:
    """Merge a saved adapter into the weights of the model, which keeps its original class.

    For LoRA, W <- W + (alpha / rank) B A in the dtype of W, so outputs agree up to its rounding.

    Raises:
        RunError: it does not fit the model; or it cannot be merged, since it has virtual tokens or is on weights that
            the model uses in a second place.
    """
    if not can_merge(folder):
        kind = str(adapter_content(folder).get("peft_type")).replace("_", " ").lower()
        raise RunError(
            f"an adapter of {kind} puts tokens before each row and changes no weight, so it cannot be merged",
            "write the adapter itself with --adapter DIR",
        )
    merge_attached(model, load_adapter(model, folder))


def merge_attached(model: Any, peft_model: Any) -> None:
    """Merge an adapter that is already attached.

    Raises:
        RunError: as `merge_adapter`.
    """
    check_can_take_up(quantized_as(model))
    uses = Counter(p.data_ptr() for _, p in model.named_parameters(remove_duplicate=False))
    for name, part in peft_model.named_modules():
        layer: Any = part
        if not hasattr(layer, "lora_A") and not hasattr(layer, "ia3_l"):
            continue
        if uses[layer.get_base_layer().weight.data_ptr()] > 1:
            raise RunError(
                f"the adapter sits on {name.removeprefix('base_model.model.')!r}, whose weights the model uses in a "
                "second place, so it cannot be merged",
                "write the adapter itself with --adapter DIR",
            )
    with quiet_peft(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        peft_model.merge_and_unload()
    for left in ("peft_config", "_hf_peft_config_loaded"):
        vars(model).pop(left, None)
    model.requires_grad_(False).eval()


def check_can_take_up(method: str | None) -> None:
    """Raise RunError if the weights of a base model are quantised, so that nothing can be merged into them.

    Quantising them again would round the merged values away.
    """
    if method is not None:
        raise RunError(
            f"the weights of the base model are quantised ({method}), and what was trained cannot be written into them",
            "write the adapter itself with --adapter DIR, which stands beside the quantised model",
        )


def adapter_content(folder: Path) -> Mapping[str, Any]:
    """The configuration of a saved adapter.

    Raises:
        RunError: it cannot be read.
    """
    return read_json_object(folder / "adapter_config.json")
