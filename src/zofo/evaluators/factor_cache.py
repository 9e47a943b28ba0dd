"""Factors of a few directions, kept where a forward pass can use them at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch

from zofo.displacement import Key
from zofo.noise import FactorBatch, FactorLayout


class FactorCache:
    """The drawn factors of some keys, each in a slot of one buffer: what was drawn for a probe serves its update.

    Args:
        layout: of the numbers in a slot.
    """

    def __init__(self, layout: FactorLayout) -> None:
        self.layout = layout
        self._buffer = torch.empty(0, layout.size, device=layout.device)
        self._used = 0
        self._slots: dict[Key, int] = {}
        self._thin: dict[tuple[str, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def hold(self, keys: Iterable[Key]) -> None:
        """Keep these keys and no others; only those that are not here yet are drawn."""
        wanted = dict.fromkeys(keys)
        self._slots = {key: slot for key, slot in self._slots.items() if key in wanted}
        missing = [key for key in wanted if key not in self._slots]
        taken = set(self._slots.values())
        slots = [slot for slot in range(len(wanted)) if slot not in taken][: len(missing)]
        self._make_room(max([*slots, *taken], default=-1) + 1)
        self._draw(dict(zip(missing, slots, strict=True)))

    def _draw(self, slots: Mapping[Key, int]) -> None:
        """Draw keys into slots that are free."""
        if self.layout.device.type == "cpu":  # one key's numbers stay in a core's cache
            for key, slot in slots.items():
                self._buffer[slot] = self.layout.draw([key])[0]
        elif slots:
            self._buffer[list(slots.values())] = self.layout.draw(list(slots))
        self._slots.update(slots)
        self._used = max(self._slots.values(), default=-1) + 1

    @property
    def slots(self) -> dict[Key, int]:
        """Which keys are in which slots: sums over slots have the same bits only in the same order."""
        return dict(self._slots)

    def restore(self, slots: Mapping[Key, int]) -> None:
        """Hold these keys in these slots, and no others."""
        self._slots = {}
        self._make_room(max(slots.values(), default=-1) + 1)
        self._draw(slots)

    def _make_room(self, slots: int) -> None:
        if slots > len(self._buffer):
            grown = torch.zeros(slots, self.layout.size, device=self.layout.device)
            grown[: len(self._buffer)] = self._buffer
            self._buffer = grown
            self._thin.clear()

    def __iter__(self) -> Iterator[Key]:
        return iter(self._slots)

    def __contains__(self, key: object) -> bool:
        return key in self._slots

    def slot(self, key: Key) -> int:
        """Which row of `numbers` holds a key."""
        return self._slots[key]

    @property
    def numbers(self) -> torch.Tensor:
        """All slots, as `FactorLayout` reads them: float32, [slots, layout.size]; some may belong to no key."""
        return self._buffer[: self._used]

    def matrix(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """left [slots, rows, rank] and right [slots, columns, rank] of a matrix."""
        return self.layout.matrix(self.numbers, name)

    def flat_matrix(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The same as matrices [rows, slots * rank] and [columns, slots * rank], all slots side by side."""
        key = name, len(self.numbers)
        if key in self._thin:
            return self._thin[key]
        left, right = (factor.transpose(0, 1).flatten(1) for factor in self.matrix(name))
        if self.layout.noise.rank == 1:  # they are views of the buffer, and stay right whatever is drawn into it
            self._thin[key] = left, right
        return left, right

    def directions(self, keys: Iterable[Key]) -> FactorBatch:
        """The factors of some of the keys held."""
        chosen = tuple(keys)
        return FactorBatch(self.layout, chosen, self._buffer[[self._slots[key] for key in chosen]])
