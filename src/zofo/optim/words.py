"""What errors call the options of an optimizer, which are keys of a configuration elsewhere."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager

from zofo.errors import reworded
from zofo.processes import GOES_ON

_IN_ITS_PLACE = {
    GOES_ON: "see what it said; all processes need as many batches",
    "model.dtype=float32": "dtype=torch.float32",
    "the objective gave": "the closure gave",
    "objective(model, batch)": "the closure",
}


def own_words() -> AbstractContextManager[None]:
    """While it is open, errors name the options of an optimizer, and not the keys of a configuration."""
    return reworded(_as_option)


def _as_option(text: str) -> str:
    for ours, theirs in _IN_ITS_PLACE.items():
        text = text.replace(ours, theirs)
    text = re.sub(r"\bmethod\.(rule|estimator)\.(?=(lr|weight_decay|epsilon)\b)", "", text)
    return re.sub(r"\bmethod\.(?=[a-z])", "", text)
