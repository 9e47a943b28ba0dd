"""Factors of a few directions, stored so that a forward pass can use all of them at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch

from zofo.displacement import Key
from zofo.noise import FactorBatch, FactorLayout

_STRETCH = 1 << 15  # numbers of a slot that are cast at once: several layers of a small model


class FactorCache:
    """The drawn factors of some keys, each in a slot of one buffer, so that an update reuses what its probe drew.

    Attributes:
        used: number of slots that are read; some may belong to no key.
    """

    def __init__(self, layout: FactorLayout) -> None:
        self.layout = layout
        self._buffer = torch.empty(0, layout.size, device=layout.device)
        self.used = 0
        self._slots: dict[Key, int] = {}
        self._views: dict[tuple[str, int, int], torch.Tensor] = {}
        self._cast: tuple[int, torch.Tensor] | None = None  # numbers of all slots in another dtype, from where

    def hold(self, keys: Iterable[Key]) -> None:
        """Keep exactly these keys; only those not yet in the cache are drawn."""
        wanted = dict.fromkeys(keys)
        self._slots = {key: slot for key, slot in self._slots.items() if key in wanted}
        missing = [key for key in wanted if key not in self._slots]
        taken = set(self._slots.values())
        slots = [slot for slot in range(len(wanted)) if slot not in taken][: len(missing)]
        self._make_room(max([*slots, *taken], default=-1) + 1)
        self._draw(dict(zip(missing, slots, strict=True)))

    def _draw(self, slots: Mapping[Key, int]) -> None:
        """Draw keys into free slots."""
        if self.layout.device.type == "cpu":  # one key's numbers stay in a core's cache
            for key, slot in slots.items():
                self._buffer[slot] = self.layout.draw([key])[0]
        elif slots:
            self._buffer[list(slots.values())] = self.layout.draw(list(slots))
        self._slots.update(slots)
        self.used = max(self._slots.values(), default=-1) + 1
        self._cast = None

    @property
    def slots(self) -> dict[Key, int]:
        """The slot of each key. Sums over slots have the same bits only in the same order."""
        return dict(self._slots)

    def restore(self, slots: Mapping[Key, int]) -> None:
        """Hold exactly these keys in these slots."""
        self._slots = {}
        self._make_room(max(slots.values(), default=-1) + 1)
        self._draw(slots)

    def _make_room(self, slots: int) -> None:
        if slots > len(self._buffer):
            grown = torch.zeros(slots, self.layout.size, device=self.layout.device)
            grown[: len(self._buffer)] = self._buffer
            self._buffer = grown
            self._views.clear()

    def __iter__(self) -> Iterator[Key]:
        return iter(self._slots)

    def __contains__(self, key: object) -> bool:
        return key in self._slots

    def slot(self, key: Key) -> int:
        """The row of `numbers` that holds a key."""
        return self._slots[key]

    @property
    def numbers(self) -> torch.Tensor:
        """All slots, in the layout of `FactorLayout`: float32, [slots, layout.size]. Some may belong to no key."""
        return self._buffer[: self.used]

    def matrix(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """left [slots, rows, rank] and right [slots, columns, rank] of a matrix."""
        return self.layout.matrix(self.numbers, name)

    def factor(self, name: str, side: int, dtype: torch.dtype) -> torch.Tensor:
        """left (side 0) or right (1) of a matrix, with the rows of all slots stacked.

        Returns:
            [slots * rank, rows] or [slots * rank, columns]; valid until the next call.
        """
        if dtype != self._buffer.dtype:
            return self._as_rows(self._cast_at(self.layout.place(name, side), dtype))
        key = name, side, self.used
        if key not in self._views:
            rows = self._as_rows(self._buffer[: self.used, self.layout.place(name, side)])
            if self.layout.noise.rank > 1:
                return rows
            self._views[key] = rows  # a view of the buffer, which stays right whatever is drawn into it
        return self._views[key]

    def _as_rows(self, numbers: torch.Tensor) -> torch.Tensor:
        rank = self.layout.noise.rank
        return numbers if rank == 1 else numbers.view(len(numbers), -1, rank).transpose(1, 2).flatten(0, 1)

    def _cast_at(self, place: slice, dtype: torch.dtype) -> torch.Tensor:
        """The numbers of all slots at a place. Casts a longer stretch at once, since a forward reads them in order."""
        first = place.start - place.start % _STRETCH
        start, held = self._cast or (-1, self._buffer)
        if start != first or held.dtype != dtype or first + held.shape[1] < place.stop:
            held = self._buffer[: self.used, first : max(first + _STRETCH, place.stop)].to(dtype)
            self._cast = first, held
        return held[:, place.start - first : place.stop - first]

    def directions(self, keys: Iterable[Key]) -> FactorBatch:
        """The factors of some of the cached keys."""
        chosen = tuple(keys)
        return FactorBatch(self.layout, chosen, self._buffer[[self._slots[key] for key in chosen]])
