"""Names of options in errors: those of an optimizer instead of the keys of a configuration."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from typing import Any

from zofo.config import options_of
from zofo.errors import reworded
from zofo.estimators import ESTIMATORS
from zofo.evaluators import EVALUATORS
from zofo.noise import NOISES
from zofo.processes import GOES_ON
from zofo.registry import Registry
from zofo.rules import RULES

_IN_ITS_PLACE = {
    GOES_ON: "see what it said; all processes need as many batches",
    "model.dtype=float32": "dtype=torch.float32",
    "the objective gave": "the closure gave",
    "objective(model, batch)": "the closure",
}


def own_words() -> AbstractContextManager[None]:
    """Context in which errors name the options of an optimizer instead of configuration keys."""
    return reworded(as_option)


def as_option(text: str) -> str:
    """A message of a step, with an optimizer's options instead of keys."""
    for ours, theirs in _IN_ITS_PLACE.items():
        text = text.replace(ours, theirs)
    text = re.sub(rf"\bmethod\.(rule|estimator)\.(?=({'|'.join(_OWN)})\b)", "", text)
    return re.sub(r"\bmethod\.(?=[a-z])", "", in_python(text))


_OWN = ("lr", "weight_decay", "epsilon")  # options that optimizers and trainers have themselves
_PARTS: dict[str, Registry[Any]] = {"evaluator": EVALUATORS, "noise": NOISES, "rule": RULES, "estimator": ESTIMATORS}
_VALUE = r"[^\s,;:()\[\]{}'\"]*[^\s,;:()\[\]{}'\".]"


def in_python(text: str, before: str = "") -> str:
    """Replace `method.evaluator=in-place` in a text by its Python form, `method.evaluator="in-place"`.

    An option of a part is written with a part that has it: `method.evaluator={"name": "in-place", "allow_half": True}`.

    Args:
        before: prefix of the keys of a part instead of `method.`, if that should be replaced.
    """

    def written(found: re.Match[str]) -> str:
        part, option, given = found.groups()
        value = _LITERALS.get(given, given if re.fullmatch(r"[-+.\d]+(e[-+]?\d+)?", given) else f'"{given}"')
        if option is None or part not in _PARTS:
            return f"{before or 'method.'}{part}={value}"
        names = [name for name in sorted(_PARTS[part]) if option in options_of(_PARTS[part][name])]
        if option in _OWN or not names:
            return found[0]
        return f'{before or "method."}{part}={{"name": "{names[0]}", "{option}": {value}}}'

    return re.sub(rf"\bmethod\.({'|'.join((*_PARTS, 'directions'))})(?:\.([a-z_]+))?=({_VALUE})", written, text)


_LITERALS = {"true": "True", "false": "False", "null": "None"}
