"""Where the rows of a batch are in the tensors used with selected ones: learned by a check, verified from then on.

A first axis that is a multiple of the number of rows may hold the rows, or a table of positions that all rows share and
that happens to be as long. How it grows tells: with the number of rows, or not at all.
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
    """A tensor has rows in a form that no check has seen.

    Attributes:
        owner: name of the module that has the tensor, or got it as an input.
    """

    owner: str = ""


class RowsElsewhere(EvaluatorError):
    """Rows are not where they should be.

    Attributes:
        place: name of the module that was running.
    """

    place: str | None = None


@dataclass(frozen=True)
class Use:
    """A tensor that was used with a selected one during a check.

    Args:
        name: name of the selected tensor.
        rows: number of rows in the batch.
        shape: shape of the tensor.
        numbers: a checksum of each row, [rows, 2]: a weighted sum of its entries, so that their order matters, and
            their length; None if the first axis does not hold the rows. Not a tensor, which would fragment memory
            between large freed ones.
        coarse: whether it is multiplied in half precision.
        whole: whether it has no rows; its checksum is that of the whole tensor.
        place: name of the module that was running.
        of_module: whether it is an input or output of a module. Such a tensor may occur in one forward only, as an
            empty mask does.
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
    """Where the rows of a batch are in each tensor, by the tensor's name and number of axes.

    Attributes:
        uses: what a check has recorded; None outside a check.
        alone: during a check, what a forward of fewer rows recorded: a tensor of the same shape there has no rows.
        place: during a check, returns the name of the running module.
    """

    def __init__(self) -> None:
        self.look_away()
        self.forget()

    def look_away(self) -> None:
        """End a check."""
        self.uses: list[Use] | None = None
        self.alone: Sequence[Use] = ()
        self.place: Callable[[], str | None] = lambda: None

    def forget(self) -> None:
        """Forget where rows are."""
        self._known: dict[tuple[str, int], dict[Kind, int]] = {}  # with the group of those that have as many positions
        self._groups: dict[tuple[int, int], int] = {}
        self._positions: dict[int, int] = {}  # of a group, in this call of the model

    def new_call(self, *_: object) -> None:
        """The model is about to be called again, possibly with rows of another length."""
        self._positions.clear()

    def with_rows(self, x: torch.Tensor, name: str, rows: int) -> torch.Tensor:
        """`x` with the rows of the batch along its first axis. Tensors that all rows share, such as positions, are
        expanded.

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
        """Where the rows are in x.

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
        """Record a tensor during a check."""
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
        """Check that rows are in the same places, with the same values, in a forward of many rows and in one of a few.

        Args:
            together: records of the forward of many rows.
            alone: records of the forward of a few rows.
            rows: the rows of the first that the second consists of.
            tolerance: relative to the length of a row.

        Raises:
            EvaluatorError: they differ; the message names the tensor.
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
                continue  # so far from theta a narrow dtype may overflow
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
        """Remember what a successful forward of several rows recorded.

        Raises:
            EvaluatorError: a tensor is used with and without rows.
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
    """The records without inputs and outputs of modules that occur in one forward only."""
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
    """Whether the first axis grows with the number of rows, or is one for all of them, and nothing else changes."""
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
    """The message for a tensor whose first axis does not hold the rows."""
    return _elsewhere(place, *_about_rows(name, shape, rows))


def _elsewhere(place: str | None, message: str, hint: str = "set method.evaluator=in-place") -> EvaluatorError:
    error = RowsElsewhere(message, hint)
    error.place = place
    return error
