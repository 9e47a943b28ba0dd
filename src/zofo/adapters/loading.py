"""Saved adapters, attached to their model again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zofo.adapters.base import carries_adapters, quiet_peft
from zofo.adapters.injection import inject
from zofo.backbone import load_tensors
from zofo.errors import RunError


def load_adapter(model: Any, folder: Path) -> Any:
    """Attach a saved adapter to the model, in place.

    Args:
        model: the transformers model that it was trained with, without adapters.
        folder: as `Adapters.save` or peft writes it, in safetensors.

    Returns:
        peft's model around it.

    Raises:
        RunError: the folder holds no adapter that fits the model, or the model carries one already.
    """
    import peft

    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():  # or peft would look for it on the Hub
            raise RunError(f"{str(folder)!r} is no adapter folder: it has no {name}")
    if carries_adapters(model):
        raise RunError("the model carries an adapter already", "load the model again")
    load_tensors(folder / "adapter_model.safetensors")  # refuses what peft would not say, or would take
    try:
        with quiet_peft():
            loaded: Any = peft.PeftModel.from_pretrained(model, str(folder))
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise RunError(f"{folder}: not an adapter of this model: {str(error).splitlines()[0]}") from error
    if loaded.active_peft_config.is_prompt_learning:
        model.prompt_encoder = loaded.prompt_encoder
        inject(model, loaded)
    model.eval()
    return loaded
