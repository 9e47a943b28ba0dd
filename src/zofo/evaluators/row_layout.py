"""Where the rows of a batch stand in the tensors that meet selected ones: found out by a check, asserted ever after.

A first axis that is a multiple of the rows may hold them, or the positions of a table that all rows share, in as many
positions as there happen to be rows. What tells is how it grows: with as many rows, or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

from zofo.backbone import leaving_out
from zofo.errors import EvaluatorError

Kind = Literal["shared", "rows", "flat"]
"""The first axis: one entry for all rows; one for each; or several for each, those of a row side by side."""

_COARSE = (torch.float16, torch.bfloat16)


class NotSeen(EvaluatorError):
    """A tensor meets rows in a form that no check has seen."""


@dataclass(frozen=True)
class Use:
    """A tensor that met a selected one, while a check looks on.

    Args:
        name: of the selected tensor.
        rows: of the batch.
        shape: of what it met.
        numbers: of each row: a sum of its entries, weighted so that their order matters, and their length; float64,
            [rows, 2]; None where the first axis does not hold the rows.
        coarse: whether it is multiplied in half precision.
    """

    name: str
    rows: int
    shape: tuple[int, ...]
    numbers: torch.Tensor | None
    coarse: bool


class Layout:
    """Where the rows of a batch stand in what each tensor meets, by its name and number of axes.

    Attributes:
        uses: while a check looks on, what it sees; else None.
    """

    def __init__(self) -> None:
        self.uses: list[Use] | None = None
        self._known: dict[tuple[str, int], dict[Kind, int]] = {}  # with the group of those that have as many positions
        self._groups: dict[tuple[int, int], int] = {}
        self._positions: dict[int, int] = {}  # of a group, in this call of the model

    def new_call(self, *_: object) -> None:
        """The model is called again, and rows may have another length."""
        self._positions.clear()

    def with_rows(self, x: torch.Tensor, name: str, rows: int) -> torch.Tensor:
        """`x` with the rows of the batch along its first axis; what all rows share, such as positions, is expanded.

        Raises:
            EvaluatorError: the first axis does not hold the rows.
            NotSeen: nor does any check know that it does.
        """
        if torch._C._functorch.is_functorch_wrapped_tensor(x):  # of vmap, jvp, grad: has no rows of its own
            raise _no_rows(name, x.shape, rows)
        if self.uses is not None:
            self.uses.append(_use(x, name, rows))
        if rows == 1:  # whatever stands where, all of it is of this row
            return x
        if x.dim() < 2 or not x.shape[0] or (x.shape[0] != 1 and x.shape[0] % rows):
            raise _no_rows(name, x.shape, rows)
        kind: Kind = "shared" if x.shape[0] == 1 else "rows" if x.shape[0] == rows else "flat"
        if self.uses is None:
            self._assert(x, name, rows, kind)
        return x.expand(rows, *x.shape[1:]) if kind == "shared" else x

    def _assert(self, x: torch.Tensor, name: str, rows: int, kind: Kind) -> None:
        if not self._known:  # no check was asked for
            return
        known = self._known.get((name, x.dim()), {})
        if kind == "rows" and kind not in known:
            kind = "flat"  # of one position
        if kind not in known:
            raise NotSeen(*_about_rows(name, x.shape, rows))
        if kind == "flat" and len(known) == 1:
            positions = x.shape[0] // rows
            if self._positions.setdefault(known[kind], positions) != positions:  # tokens that were sorted out
                raise NotSeen(*_about_rows(name, x.shape, rows))

    def compare(self, together: Sequence[Use], alone: Sequence[Use], rows: Sequence[int], tolerance: float) -> None:
        """Find out whether rows stand in the same places, and hold the same, in a forward of many as in one of a few.

        Args:
            together: what the one of many saw.
            alone: what the other saw.
            rows: of the first, which are those of the second.
            tolerance: relative to the length of a row.

        Raises:
            EvaluatorError: they do not; names the tensor.
        """
        for many, few in zip(together, alone, strict=False):
            if many.name != few.name:
                break
            if not _grows(many, few):
                raise _no_rows(many.name, many.shape, many.rows)
            if many.shape[0] == 1 or many.numbers is None or few.numbers is None:
                continue
            here, there = many.numbers[list(rows)], few.numbers
            if not (here.isfinite().all() and there.isfinite().all()):
                continue  # so far from theta a narrow number type may overflow
            if ((here - there).abs().amax(1) > tolerance * there[:, 1]).any():
                raise EvaluatorError(
                    "the model's losses depend on which rows share a batch, or in which order they stand: what "
                    f"{many.name!r} meets is another for a row among others than for that row alone",
                    "set method.evaluator=in-place",
                )
        if [use.name for use in together] != [use.name for use in alone]:
            raise EvaluatorError(
                "the model uses other tensors for a row among others than for that row alone, as routers of experts do",
                "set method.evaluator=in-place",
            )

    def learn(self, uses: Sequence[Use]) -> None:
        """Know what a forward of several rows saw, and that it is right."""
        positions: dict[tuple[str, int], set[int]] = {}
        for use in uses:
            if use.rows == 1:
                continue
            each = use.shape[0] // use.rows
            kind: Kind = "shared" if use.shape[0] == 1 else "rows" if each == 1 else "flat"
            key = use.name, len(use.shape)
            self._known.setdefault(key, {}).setdefault(kind, 0)
            if kind == "flat":
                positions.setdefault(key, set()).add(each)
        for number, (key, each_of) in enumerate(positions.items()):
            size = each_of.pop() if len(each_of) == 1 else -1 - number  # several lengths in one forward: its own group
            group = self._known[key]["flat"], size
            self._known[key]["flat"] = self._groups.setdefault(group, len(self._groups) + 1)


def _use(x: torch.Tensor, name: str, rows: int) -> Use:
    numbers = None
    if x.dim() and x.shape[0] and not x.shape[0] % rows:
        flat = x.detach().reshape(rows, -1)
        flat = flat if flat.dtype in (torch.float32, torch.float64) else flat.to(torch.float64)
        weights = _weights(flat.shape[1], flat.dtype, flat.device)
        numbers = torch.stack([flat @ weights, flat.norm(dim=1)], 1).to("cpu", torch.float64)
    autocast = torch.is_autocast_enabled(x.device.type)
    coarse = x.dtype in _COARSE or (autocast and torch.get_autocast_dtype(x.device.type) in _COARSE)
    return Use(name, rows, tuple(x.shape), numbers, coarse)


@lru_cache(maxsize=4)
def _weights(size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.arange(size, dtype=torch.float64, device=device).mul_(2.399963).add_(1).cos_().to(dtype)


def _grows(many: Use, few: Use) -> bool:
    """Whether the first axis grows with the rows, or is one for all of them, and nothing else does."""
    if many.shape[1:] != few.shape[1:] or not many.shape:
        return False
    return many.shape[0] == few.shape[0] == 1 or many.shape[0] * few.rows == few.shape[0] * many.rows


def _about_rows(name: str, shape: Sequence[int], rows: int) -> tuple[str, str]:
    return (
        f"{name!r} meets a tensor of shape {list(shape)}, whose first axis does not hold the {rows} rows of the batch, "
        "so that a direction cannot be added for each",
        f"{leaving_out(name)}, or set method.evaluator=in-place",
    )


def _no_rows(name: str, shape: Sequence[int], rows: int) -> EvaluatorError:
    return EvaluatorError(*_about_rows(name, shape, rows))
