"""The description of the steps in a trainer's model card, replacing transformers' text about a gradient-based
optimizer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from zofo.methods import ZerothOrderConfig
from zofo.methods.bilevel.config import BilevelConfig

_NOT_OURS = re.compile(r"^- (optimizer|learning_rate): .*\n", re.MULTILINE)
TAG = "zofo"


def tagged(tags: str | list[str] | None) -> list[str]:
    """The tags of a card, including zofo's."""
    given = [tags] if isinstance(tags, str) else list(tags or [])
    return given if TAG in given else [*given, TAG]


def options_of_card(config: ZerothOrderConfig) -> dict[str, Any]:
    """The options of a zeroth-order step, as listed in a card."""
    values = config.model_dump(mode="json")
    known = ("noise", "estimator", "rule", "evaluator", "num_directions", "directions", "trainable")
    return {name: _said(values[name]) for name in known if values.get(name) is not None}


def say_bilevel_steps(args: Any, config: BilevelConfig, moves_base: bool) -> None:
    """Describe the steps of a bilevel trainer.

    Args:
        args: arguments of the trainer.
        config: configuration of its method.
        moves_base: whether the model's own weights moved.
    """
    values = config.model_dump(mode="json")
    known = {"lr_adapter": "learning_rate", "lr_lower": "lower_learning_rate", "optimizer": "optimizer of the adapters"}
    known |= {"inner_steps": "inner_steps", "penalty": "penalty", "batch_size": "batch of each level"}
    known |= {"backbone_update": "backbone_update", "backbone_adapter": "backbone_adapter"}
    said = {name: values[key] for key, name in known.items() if values[key] is not None}
    below = "the model is as it was"
    if config.backbone_update == "zeroth-order":
        where = "the model, which is in `base_model`" if moves_base else "an adapter in the model's place"
        below = f"zeroth-order steps on {where}"
    own = {"method": config.name, **said, "seed": args.seed, **options_of_card(config)}
    say_steps(Path(args.output_dir), f"First-order steps on the adapter; {below}.", own)


def say_steps(folder: Path, what: str, values: Mapping[str, Any]) -> None:
    """Replace what the card in a folder says about the optimizer.

    Args:
        folder: folder of the README.md, if there is one.
        what: a sentence about the steps.
        values: options by name.
    """
    path = folder / "README.md"
    if not path.is_file():
        return
    text = _NOT_OURS.sub("", path.read_text(encoding="utf-8")).rstrip()
    lines = [f"- {name}: {value}" for name, value in values.items()]
    own = "\n".join(["## Steps", "", f"{what} Made by zofo {version('zofo')}.", "", *lines])
    path.write_text(f"{text}\n\n{own}\n", encoding="utf-8")


def _said(value: Any) -> str:
    """A part with its options in a line."""
    if not isinstance(value, Mapping):
        return str(value)
    options = ", ".join(f"{name}={_said(one)}" for name, one in value.items() if name != "name" and one is not None)
    return f"{value['name']} ({options})" if options else str(value["name"])
