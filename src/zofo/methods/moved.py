"""How far updates have taken the backbone, without a copy of it."""

from __future__ import annotations

import math

import torch

from zofo.backbone import Backbone, Update
from zofo.displacement import Key
from zofo.remembered import Remembered

_BLOCK = 1 << 20  # entries compared at a time


class Moved:
    """|theta - theta_0| / |theta_0|, from the keys and coefficients of the updates alone.

    sqrt(sum over keys of c^2 |z(key)|^2) / |theta_0|, with c the sum of all coefficients that a key has had. What that
    leaves out are the products z(j) . z(k) of different directions: as a share, about the number of keys over the
    number d of entries. |z|^2 is that of `Noise.squared_length`: exact for low-rank noise, else a mean. In half
    precision it is the distance before rounding.

    With weight decay, theta is s theta_0 + sum of c z: s, and each c after it was added, are multiplied by 1 - shrink
    at every update. So ((1 - s) |theta_0|)^2 of the tensors that decay is added. Left out are the products of theta_0
    with a direction, and that directions do not decay on biases and norms, a small share of their entries.

    Unknown (None) once an update was no displacement: a rule that is not linear.

    With `copy`, for rules that keep buffers of theta's size in any case, it is the distance itself, entry by entry,
    whatever the updates were, and after rounding.

    Args:
        backbone: as it is before the first update, with none pending.
        copy: keep theta_0, beside theta and in its number type.

    Attributes:
        copied: bytes of theta_0 that are kept.
    """

    def __init__(self, backbone: Backbone, copy: bool = False) -> None:
        self._backbone = backbone
        norms = {
            name: torch.linalg.vector_norm(tensor, dtype=_sum_type(tensor)).item()
            for name, tensor in backbone.tensors.items()
            if tensor.numel()
        }
        self._start = math.hypot(*norms.values())
        self._decaying = math.hypot(*(norm for name, norm in norms.items() if name in backbone.decays))
        self._left = 1.0  # what weight decay has left of theta_0
        self._settled = 0.0  # sum of c^2 |z|^2 over keys that no later update holds
        self._live: dict[Key, tuple[float, float]] = {}  # c and |z|^2 of those of the last one, as of a momentum
        self._known = self._start > 0
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
        """An update was made. A key that one update leaves out must not come back in a later one."""
        if update.elementwise is not None:
            self._known = False
        if not self._known or self._copy:
            return
        if update.shrink:
            keep = 1.0 - update.shrink
            self._left, self._settled = self._left * keep, self._settled * keep**2
            self._live = {key: (c * keep, length) for key, (c, length) in self._live.items()}
        noise, shapes, device = self._backbone.noise, self._backbone.shapes, self._backbone.device
        live = {}
        for key, coefficient in update.displacement.items():
            total, length = self._live.pop(key, (0.0, math.nan))
            if math.isnan(length):
                length = noise.squared_length(key, shapes, device)
            live[key] = (total + coefficient, length)
        self._settled += math.fsum(total**2 * length for total, length in self._live.values())
        self._live = live

    @property
    def relative(self) -> float | None:
        """The distance as a share of theta's length at the start; None where it is not known.

        With a copy of theta_0, theta must be written: no update may be pending.
        """
        if self._copy and self._start:
            return self._measured() / self._start
        if not self._known:
            return None
        live = math.fsum(c**2 * length for c, length in self._live.values())
        return math.hypot(math.sqrt(self._settled + live), (1 - self._left) * self._decaying) / self._start

    @torch.no_grad()
    def _measured(self) -> float:
        """|theta - theta_0|, some entries at a time."""
        parts = []
        for name, tensor in self._backbone.tensors.items():
            here, start, wide = tensor.reshape(-1), self._copy[name].view(-1), _sum_type(tensor)
            for first in range(0, len(here), _BLOCK):
                some = slice(first, first + _BLOCK)
                parts.append(torch.linalg.vector_norm(here[some].to(wide) - start[some].to(wide)))
        return math.hypot(*torch.stack(parts).tolist()) if parts else 0.0

    def remember(self) -> Remembered:
        """What it knows, for a run that goes on later."""
        live = [[*key, c, length] for key, (c, length) in self._live.items()]
        return Remembered({"settled": self._settled, "live": live, "left": self._left, "known": self._known})

    def recall(self, remembered: Remembered) -> None:
        """Take back what `remember` gave."""
        values = remembered.values
        self._settled, self._left, self._known = values["settled"], values["left"], values["known"]
        self._live = {
            Key(int(seed), int(step), int(index)): (float(c), float(length))
            for seed, step, index, c, length in values["live"]
        }


def _sum_type(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
