"""How far updates have taken the backbone, without a copy of it."""

from __future__ import annotations

import math

import torch

from zofo.backbone import Backbone, Update
from zofo.displacement import Key
from zofo.noise import LowRank, MaskedLowRank
from zofo.noise.dense import DenseNoise
from zofo.remembered import Remembered

_BLOCK = 1 << 20  # entries drawn at a time


class Moved:
    """|theta - theta_0| / |theta_0|, from the keys and coefficients of the updates alone.

    sqrt(sum over keys of c^2 |z(key)|^2) / |theta_0|, with c the sum of all coefficients that a key has had. What that
    leaves out are the products z(j) . z(k) of different directions: as a share, about the number of keys over the
    number d of entries. |z|^2 is exact for low-rank noise, and for noise with independent entries its mean, d, from
    which it differs by a share of sqrt(2 / d), since drawing z again would cost as much as a sweep.

    Unknown (None) once an update was no displacement: weight decay, or a rule that is not linear. In half precision
    it is the distance before rounding.

    Args:
        backbone: as it is before the first update, with none pending.
    """

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        norms = [
            torch.linalg.vector_norm(tensor, dtype=_sum_type(tensor)).item()
            for tensor in backbone.tensors.values()
            if tensor.numel()
        ]
        self._start = math.hypot(*norms)
        self._settled = 0.0  # sum of c^2 |z|^2 over keys that no later update holds
        self._live: dict[Key, tuple[float, float]] = {}  # c and |z|^2 of those of the last one, as of a momentum
        self._known = self._start > 0

    def add(self, update: Update) -> None:
        """An update was made. A key that one update leaves out must not come back in a later one."""
        if update.elementwise is not None or update.shrink:
            self._known = False
        if not self._known:
            return
        live = {}
        for key, coefficient in update.displacement.items():
            total, length = self._live.pop(key, (0.0, math.nan))
            live[key] = (total + coefficient, self._squared_length(key) if math.isnan(length) else length)
        self._settled += math.fsum(total**2 * length for total, length in self._live.values())
        self._live = live

    @property
    def relative(self) -> float | None:
        """The distance as a share of theta's length at the start; None where it is not known."""
        if not self._known:
            return None
        return math.sqrt(self._settled + math.fsum(c**2 * length for c, length in self._live.values())) / self._start

    def remember(self) -> Remembered:
        """What it knows, for a run that goes on later."""
        live = [[*key, c, length] for key, (c, length) in self._live.items()]
        return Remembered({"settled": self._settled, "live": live, "known": self._known})

    def recall(self, remembered: Remembered) -> None:
        """Take back what `remember` gave."""
        values = remembered.values
        self._settled, self._known = values["settled"], values["known"]
        self._live = {Key(*term[:3]): (term[3], term[4]) for term in values["live"]}

    @torch.no_grad()
    def _squared_length(self, key: Key) -> float:
        """|z(key)|^2."""
        backbone = self._backbone
        noise, shapes = backbone.noise, backbone.shapes
        if isinstance(noise, LowRank | MaskedLowRank):
            return _of_factors(noise, key, backbone)
        if isinstance(noise, DenseNoise):
            return float(backbone.size)
        squares = []
        for name, tensor in backbone.tensors.items():
            for start in range(0, tensor.numel(), _BLOCK):
                block = start, min(start + _BLOCK, tensor.numel())
                squares.append(noise.draw(key, name, shapes[name], block, tensor.device).square().sum())
        return float(torch.stack([square.cpu() for square in squares]).sum()) if squares else 0.0


def _of_factors(noise: LowRank | MaskedLowRank, key: Key, backbone: Backbone) -> float:
    """|z|^2 of low-rank noise: sum over a, b of (left_a . left_b) (right_a . right_b) / rank, and |z|^2 of vectors."""
    layout = noise.layout(backbone.shapes, backbone.device)
    numbers = layout.draw([key])
    total = torch.zeros((), device=numbers.device)
    for name, shape in backbone.shapes.items():
        if len(shape) < 2:
            total += layout.vector(numbers, name).square().sum()
        else:
            left, right = (factor[0] for factor in layout.matrix(numbers, name))
            total += ((left.T @ left) * (right.T @ right)).sum() / noise.rank
    return float(total)


def _sum_type(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
