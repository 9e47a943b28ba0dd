"""Where the rows of a batch stand in the tensors that meet selected ones: found out by a check, asserted ever after.

A first axis that is a multiple of the rows may hold them, or the positions of a table that all rows share, in as many
positions as there happen to be rows. What tells is how it grows: with as many rows, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

from zofo.backbone import leaving_out
from zofo.errors import EvaluatorError

Kind = Literal["whole", "shared", "rows", "flat"]
"""A tensor without rows, the same for all; or its first axis: one entry for all rows; one for each; or several for
each, those of a row side by side."""

_COARSE = (torch.float16, torch.bfloat16)


class NotSeen(EvaluatorError):
    """A tensor meets rows in a form that no check has seen.

    Attributes:
        owner: the name of the module that has the tensor, or was given it.
    """

    owner: str = ""


class RowsElsewhere(EvaluatorError):
    """Rows do not stand where they should.

    Attributes:
        place: the name of the module that was running.
    """

    place: str | None = None


@dataclass(frozen=True)
class Use:
    """A tensor that met a selected one, while a check looks on.

    Args:
        name: of the selected tensor.
        rows: of the batch.
        shape: of what it met.
        numbers: of each row: a sum of its entries, weighted so that their order matters, and their length,
            [rows, 2]; None where the first axis does not hold the rows. No tensor, which would stay between large ones
            that are freed, so that their memory could not be used again.
        coarse: whether it is multiplied in half precision.
        whole: whether it has no rows; its numbers are those of all of it.
        place: the name of the module that was running.
        of_module: whether a module was given it, or gave it, and may be so in one forward only, as an empty mask is.
    """

    name: str
    rows: int
    shape: tuple[int, ...]
    numbers: list[list[float]] | None
    coarse: bool
    whole: bool = False
    place: str | None = None
    of_module: bool = False


class Layout:
    """Where the rows of a batch stand in what each tensor meets, by its name and number of axes.

    Attributes:
        uses: while a check looks on, what it sees; else None.
        alone: what a forward of fewer rows saw, while a check looks on: what is of the same shape there has no rows.
        place: while a check looks on, says which module is running.
    """

    def __init__(self) -> None:
        self.look_away()
        self.forget()

    def look_away(self) -> None:
        """No check looks on."""
        self.uses: list[Use] | None = None
        self.alone: Sequence[Use] = ()
        self.place: Callable[[], str | None] = lambda: None

    def forget(self) -> None:
        """Know nothing of where rows stand."""
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
        kind = self.kind(x, name, rows)
        if not x.dim() or (x.dim() == 1 and kind != "whole"):
            raise no_rows(name, x.shape, rows)
        if kind == "whole":
            return x.expand(rows, *x.shape)
        return x.expand(rows, *x.shape[1:]) if kind == "shared" else x

    def kind(self, x: torch.Tensor, name: str, rows: int, of_module: bool = False) -> Kind:
        """Where the rows stand in x.

        Raises:
            EvaluatorError: the first axis does not hold the rows.
            NotSeen: nor does any check know that it does.
        """
        if torch._C._functorch.is_functorch_wrapped_tensor(x):  # of vmap, jvp, grad: has no rows of its own
            raise no_rows(name, x.shape, rows)
        kind = self._kind(x, name, rows)
        if self.uses is not None:
            self.see(x, name, rows, kind == "whole", of_module)
        elif kind != "whole":
            self._assert(x, name, rows, kind)
        return kind

    def see(self, x: torch.Tensor, name: str, rows: int, whole: bool = False, of_module: bool = False) -> None:
        """Note what a tensor is, if a check looks on."""
        if self.uses is not None:
            self.uses.append(_use(x, name, rows, whole, self.place(), of_module))

    def _kind(self, x: torch.Tensor, name: str, rows: int) -> Kind:
        if self.uses is None and "whole" in self._known.get((name, x.dim()), {}):
            return "whole"
        if self.uses is not None and self.alone and tuple(x.shape[:1]) != (1,):
            number = sum(use.name == name for use in self.uses)
            same = [use for use in self.alone if use.name == name][number : number + 1]
            if same and same[0].rows < rows and same[0].shape == tuple(x.shape):
                return "whole"
        if not x.dim() or not x.shape[0] or (x.shape[0] != 1 and x.shape[0] % rows):
            raise no_rows(name, x.shape, rows)
        return "shared" if x.shape[0] == 1 else "rows" if x.shape[0] == rows else "flat"

    def _assert(self, x: torch.Tensor, name: str, rows: int, kind: Kind) -> None:
        if not self._known:  # no check was asked for
            return
        known = self._known.get((name, x.dim()), {})
        if kind == "rows" and kind not in known:
            kind = "flat"  # of one position
        if kind not in known:
            raise _not_seen(name, x.shape, rows)
        if kind == "flat" and len(known) == 1:
            positions = x.shape[0] // rows
            if self._positions.setdefault(known[kind], positions) != positions:  # tokens that were sorted out
                raise _not_seen(name, x.shape, rows)

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
        together, alone = _in_both(together, alone), _in_both(alone, together)
        for many, few in zip(together, alone, strict=False):
            if many.name != few.name:
                break
            if not (many.shape == few.shape if many.whole else _grows(many, few)):
                raise no_rows(many.name, many.shape, many.rows, many.place)
            if many.shape[:1] == (1,) or many.numbers is None or few.numbers is None:
                continue
            here, there = (torch.tensor(use.numbers, dtype=torch.float64) for use in (many, few))
            if many.whole:  # its length tells
                here, there = (numbers[:, 1:].norm(dim=0, keepdim=True).expand(1, 2) for numbers in (here, there))
            else:
                here = here[list(rows)]
            if not (here.isfinite().all() and there.isfinite().all()):
                continue  # so far from theta a narrow number type may overflow
            if ((here - there).abs().amax(1) > tolerance * there[:, 1]).any():
                raise _elsewhere(
                    many.place,
                    "the model's losses depend on which rows share a batch, or in which order they stand: what "
                    f"{many.name!r} meets is another for a row among others than for that row alone",
                )
        differing = [use for use, other in zip(together, alone, strict=False) if use.name != other.name]
        if differing or len(together) != len(alone):
            raise _elsewhere(
                (differing or [*together, *alone][min(len(together), len(alone)) :])[0].place,
                "the model uses other tensors for a row among others than for that row alone, as routers of experts do",
            )

    def learn(self, uses: Sequence[Use]) -> None:
        """Know what a forward of several rows saw, and that it is right.

        Raises:
            EvaluatorError: a tensor meets what has rows and what has none.
        """
        positions: dict[tuple[str, int], set[int]] = {}
        for use in uses:
            if use.rows == 1:
                continue
            key = use.name, len(use.shape)
            each = 0 if use.whole else use.shape[0] // use.rows
            kind: Kind = "whole" if use.whole else "shared" if use.shape[0] == 1 else "rows" if each == 1 else "flat"
            kinds = self._known.setdefault(key, {})
            kinds.setdefault(kind, 0)
            if "whole" in kinds and kinds.keys() & {"rows", "flat"}:
                raise no_rows(use.name, use.shape, use.rows, use.place)
            if kind == "flat":
                positions.setdefault(key, set()).add(each)
        for number, (key, each_of) in enumerate(positions.items()):
            size = each_of.pop() if len(each_of) == 1 else -1 - number  # several lengths in one forward: its own group
            group = self._known[key]["flat"], size
            self._known[key]["flat"] = self._groups.setdefault(group, len(self._groups) + 1)


def _in_both(uses: Sequence[Use], others: Sequence[Use]) -> list[Use]:
    """Without what modules were given in one forward only."""
    names = {use.name for use in others}
    return [use for use in uses if not use.of_module or use.name in names]


def _use(x: torch.Tensor, name: str, rows: int, whole: bool, place: str | None, of_module: bool) -> Use:
    numbers, of = None, 1 if whole else rows
    if x.numel() and (whole or (x.dim() and not x.shape[0] % of)):
        flat = (torch.view_as_real(x.detach()) if x.is_complex() else x.detach()).reshape(of, -1)
        flat = flat if flat.dtype in (torch.float32, torch.float64) else flat.to(torch.float64)
        weights = _weights(flat.shape[1], flat.dtype, flat.device)
        numbers = torch.stack([flat @ weights, flat.norm(dim=1)], 1).to("cpu", torch.float64).tolist()
    autocast = torch.is_autocast_enabled(x.device.type)
    coarse = x.dtype in _COARSE or (autocast and torch.get_autocast_dtype(x.device.type) in _COARSE)
    return Use(name, rows, tuple(x.shape), numbers, coarse, whole, place, of_module)


@lru_cache(maxsize=4)
def _weights(size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.arange(size, dtype=torch.float64, device=device).mul_(2.399963).add_(1).cos_().to(dtype)


def _grows(many: Use, few: Use) -> bool:
    """Whether the first axis grows with the rows, or is one for all of them, and nothing else does."""
    if many.shape[1:] != few.shape[1:] or not many.shape:
        return False
    return many.shape[0] == few.shape[0] == 1 or many.shape[0] * few.rows == few.shape[0] * many.rows


def _not_seen(name: str, shape: Sequence[int], rows: int) -> NotSeen:
    error = NotSeen(*_about_rows(name, shape, rows))
    module = name.rpartition("(")[0]
    error.owner = "" if module == "the model" else module or name.rpartition(".")[0]
    return error


def _about_rows(name: str, shape: Sequence[int], rows: int) -> tuple[str, str]:
    return (
        f"{name!r} meets a tensor of shape {list(shape)}, whose first axis does not hold the {rows} rows of the batch, "
        "so that a direction cannot be added for each",
        ("" if name.endswith(")") else f"{leaving_out(name)}, or ") + "set method.evaluator=in-place",
    )


def no_rows(name: str, shape: Sequence[int], rows: int, place: str | None = None) -> EvaluatorError:
    """What to say of a tensor whose first axis does not hold the rows."""
    return _elsewhere(place, *_about_rows(name, shape, rows))


def _elsewhere(place: str | None, message: str, hint: str = "set method.evaluator=in-place") -> EvaluatorError:
    error = RowsElsewhere(message, hint)
    error.place = place
    return error
