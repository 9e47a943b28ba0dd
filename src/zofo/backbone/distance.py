"""How far updates have moved the backbone, without a copy of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from zofo.backbone.backbone import Backbone
from zofo.backbone.update import Update
from zofo.displacement import Displacement, Key
from zofo.noise import Noise, Shape
from zofo.state_dict import StateDict

_BLOCK = 1 << 20  # entries per block


class BackboneDistance:
    """|theta - theta_0| / |theta_0|, computed from the keys and coefficients of the updates alone.

    sqrt(sum over keys of c^2 |z(key)|^2) / |theta_0|, with c the sum of all coefficients of a key. This neglects the
    products z(j) . z(k) of different directions, a relative error of about the number of keys over the number d of
    entries. |z|^2 comes from `Noise.squared_length`: exact for low-rank noise, otherwise its mean. In half precision it
    is the distance before rounding.

    With weight decay, a tensor that decays is s theta_0 + sum of c z, where every update multiplies s and the earlier c
    by 1 - shrink. Its distance is the length of (1 - s) theta_0 + sum of c z. This also neglects the products of
    theta_0 with directions, a relative error of about sqrt(number of keys / d).

    Unknown (None) after an update that is not a displacement: one of a non-linear rule, or weight decay without
    `decays`.

    With `copy`, the exact distance, after rounding, for any update: meant for rules that keep buffers of theta's size
    anyway.

    Args:
        backbone: the backbone before its first update, with nothing pending.
        copy: keep a copy of theta_0, on the device and in the dtype of theta.
        decays: whether updates may shrink theta.

    Attributes:
        copied: size of the copy of theta_0 in bytes.
    """

    def __init__(self, backbone: Backbone, copy: bool = False, decays: bool = False) -> None:
        self._backbone = backbone
        decaying = backbone.decays if decays else frozenset()
        self._start = length_of(backbone.tensors)
        self._theta = length_of({name: tensor for name, tensor in backbone.tensors.items() if name in decaying})
        self._left = 1.0  # the share of theta_0 that weight decay has left, where it applies
        everything, noise, device = backbone.shapes, backbone.noise, backbone.device
        self._still = _Travelled(noise, {n: shape for n, shape in everything.items() if n not in decaying}, device)
        self._decaying = _Travelled(noise, {n: shape for n, shape in everything.items() if n in decaying}, device)
        self._decays, self._known = decays, self._start > 0
        self._copy = (
            {
                name: tensor.detach().clone(memory_format=torch.contiguous_format)
                for name, tensor in backbone.tensors.items()
            }
            if copy
            else {}
        )
        self.copied = sum(tensor.nbytes for tensor in self._copy.values())

    def add(self, update: Update) -> None:
        """Record an update. A key that one update omits must not come back in a later one."""
        if update.dense_update_fn is not None or (update.decay_factor and not self._decays):
            self._known = False
        if not self._known or self._copy:
            return
        kept = 1.0 - (update.displacement_decay or 0.0)
        self._still.add(update.displacement, kept)
        if self._decays:
            self._left *= 1.0 - update.decay_factor
            self._decaying.add(update.displacement, kept * (1.0 - update.decay_factor))

    @property
    def relative(self) -> float | None:
        """The distance as a share of theta's initial length; None if it is not known.

        With a copy of theta_0, no update may be pending.
        """
        if self._copy and self._start:
            return distance(self._copy, self._backbone.tensors) / self._start
        if not self._known:
            return None
        lost = (1.0 - self._left) * self._theta
        return math.sqrt(lost**2 + self._decaying.squared + self._still.squared) / self._start

    def state_dict(self) -> StateDict:
        """The state, to resume a run."""
        decaying = {"left": self._left, "decaying": self._decaying.state_dict()} if self._decays else {}
        return StateDict({**self._still.state_dict(), "known": self._known, **decaying})

    def load_state_dict(self, state: StateDict) -> None:
        """Load the state that `state_dict` returned."""
        values = state.values
        self._known = values["known"]
        self._still.load_state_dict(values)
        if self._decays:
            self._left = values["left"]
            self._decaying.load_state_dict(values["decaying"])


class _Travelled:
    """|sum of c z(key)|^2 over some tensors, without the products of different directions."""

    def __init__(self, noise: Noise, shapes: Mapping[str, Shape], device: torch.device) -> None:
        self._noise, self._shapes, self._device = noise, shapes, device
        self._settled = 0.0  # sum of c^2 |z|^2 over keys that no later update holds
        self._live: dict[Key, tuple[float, float]] = {}  # c and |z|^2 of those of the last one, as of a momentum

    def add(self, displacement: Displacement, keep: float) -> None:
        """Scale the sum so far by `keep`, then add a displacement."""
        if not self._shapes:
            return
        before, live = {key: (keep * c, length) for key, (c, length) in self._live.items()}, {}
        for key, coefficient in displacement.items():
            total, length = before.pop(key, (0.0, math.nan))
            if math.isnan(length):
                length = self._noise.squared_length(key, self._shapes, self._device)
            live[key] = (total + coefficient, length)
        self._settled = keep**2 * self._settled + _squared(before)
        self._live = live

    @property
    def squared(self) -> float:
        """The current value."""
        return self._settled + _squared(self._live)

    def state_dict(self) -> dict[str, Any]:
        """The state, JSON-serialisable."""
        return {"settled": self._settled, "live": [[*key, c, length] for key, (c, length) in self._live.items()]}

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Load the state that `state_dict` returned."""
        self._settled = values["settled"]
        self._live = {
            Key(int(seed), int(step), int(index)): (float(c), float(length))
            for seed, step, index, c, length in values["live"]
        }


def _squared(terms: Mapping[Key, tuple[float, float]]) -> float:
    return math.fsum(c**2 * length for c, length in terms.values())


def length_of(tensors: Mapping[str, torch.Tensor]) -> float:
    """The Euclidean length of all tensors as one vector."""
    norms = (torch.linalg.vector_norm(t, dtype=_sum_type(t)).item() for t in tensors.values() if t.numel())
    return math.hypot(*norms)


@torch.no_grad()
def distance(start: Mapping[str, torch.Tensor], now: Mapping[str, torch.Tensor]) -> float:
    """|now - start|, computed a block at a time."""
    parts = []
    for name, tensor in now.items():
        here, there, wide = tensor.reshape(-1), start[name].reshape(-1), _sum_type(tensor)
        for first in range(0, len(here), _BLOCK):
            some = slice(first, first + _BLOCK)
            parts.append(torch.linalg.vector_norm(here[some].to(wide) - there[some].to(wide)))
    return math.hypot(*torch.stack(parts).tolist()) if parts else 0.0


def _sum_type(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
