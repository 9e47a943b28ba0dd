"""The low-rank terms of the rows of one forward pass, computed as thin products beside the model's large ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from zofo.displacement import Displacement
from zofo.errors import EvaluatorError
from zofo.evaluators.base import Point, displacements
from zofo.evaluators.factor_cache import FactorCache

SharedInputGroups = dict[tuple[str, bool], tuple[tuple[str, bool], ...]]
"""(name, transposed) of a matrix -> those that the same x is multiplied by, itself first."""


class Block(NamedTuple):
    """Adjacent rows, `start` to `stop`, that have the same terms, and the terms of a single one of them."""

    start: int
    stop: int
    terms: LowRankTerms


NARROW = 32
"""Columns of factors up to which one product for all rows is cheaper than one for each block of rows."""


def coefficients_of(
    points: Sequence[Point],
    row_examples: torch.Tensor,
    cache: FactorCache,
    everywhere: Displacement,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The coefficient of each cached key for each row at each point: [points, rows, keys]."""
    examples = int(row_examples.max()) + 1
    table = torch.stack([_table([_row(each, cache) for each in displacements(point)], examples) for point in points])
    table += _table([_row(everywhere, cache)], examples)
    return table[:, row_examples].to(dtype)


def _row(displacement: Displacement, cache: FactorCache) -> list[float]:
    """The coefficient of each slot."""
    row = [0.0] * cache.used
    for key, coefficient in displacement.items():
        row[cache.slot(key)] = coefficient
    return row


def _table(rows: Sequence[Sequence[float]], examples: int) -> torch.Tensor:
    """Rows of coefficients: [examples, slots], or a single row for all examples."""
    return torch.tensor(rows, dtype=torch.float64).view(len(rows), -1).expand(examples, -1)


class LowRankTerms:
    """The terms of the rows of one forward pass.

    If there are many keys and each row has only a few of them, the rows of a point are split into blocks, each
    multiplied by the factors of its own keys. Otherwise all rows are one block.

    Args:
        cache: the factors of K keys.
        coefficients: coefficients of these keys for each row, float32 or float64, [P, R, K]; the batch has P R rows,
            point by point.
        siblings: which matrices the model multiplies by the same x; learned during the first forward.
        wary: keep a copy of x, to notice if the model changes it in a way that torch's version counter does not see.

    Attributes:
        rows: number of rows; 1 if all rows have the same terms, so that their order does not matter.
    """

    def __init__(
        self, cache: FactorCache, coefficients: torch.Tensor, siblings: SharedInputGroups, wary: bool = False
    ) -> None:
        points, rows, _ = coefficients.shape
        uniform = bool((coefficients == coefficients[:, :1]).all())  # the rows of a point have the same terms
        self._all_rows, self._uniform, self._coefficients = points * rows, uniform, coefficients
        if uniform and points == 1:
            coefficients, rows = coefficients[:, :1], 1
        self.rows = points * rows
        self._cache, self._siblings = cache, siblings
        device = cache.layout.device
        self._of_vectors = (coefficients[:, 0] if uniform else coefficients.flatten(0, 1)).to(device)
        # a coefficient may be too small for float16: they are taken relative to the largest, which multiplies last
        self._largest = float(coefficients.abs().amax()) if coefficients.numel() else 0.0
        relative = coefficients * (cache.layout.noise.scale / (self._largest or 1))
        block = rows if uniform else _rows_of_a_block(coefficients != 0, cache.layout.noise.rank)
        self._blocks = 1 if block == rows else self.rows // block
        self._index: torch.Tensor | None = None  # which keys a block has, int64, [blocks, keys]
        if self._blocks > 1:
            relative = relative.view(self._blocks, block, -1)
            held = (relative != 0).any(1)
            order = held.to(torch.int8).argsort(dim=1, descending=True, stable=True)
            chosen = order[:, : int(held.sum(1).amax())]  # the keys of a block come first
            relative = relative.gather(2, chosen.unsqueeze(1).expand(-1, block, -1))
            self._index = chosen.to(device)
        columns = relative.repeat_interleave(cache.layout.noise.rank, -1)
        self._relative = columns.reshape(self.rows, 1, 1, -1).to(device)
        self._absolute = self._relative * self._largest  # the factor of other dtypes, in one product
        self._x: tuple[torch.Tensor, int | None] | None = None  # the last multiplied tensor, and its version
        self._wary = wary
        self._parts: list[Block] = []
        self._copy: torch.Tensor | None = None  # of x
        self._run: list[tuple[str, bool]] = []  # by what
        self._ahead: dict[tuple[str, bool], torch.Tensor] = {}  # products of the same x

    def blocks(self) -> list[Block]:
        """The rows of the batch in blocks with the same terms: the rows of a point, if they share them. Cached."""
        if not self._parts:
            points, rows, _ = self._coefficients.shape
            flat = self._coefficients.flatten(0, 1)
            starts = [*range(0, self._all_rows, rows)]
            if not self._uniform:
                starts = [row for row in range(self._all_rows) if row in starts or (flat[row] != flat[row - 1]).any()]
            for start, stop in zip(starts, [*starts[1:], self._all_rows], strict=True):
                terms = LowRankTerms(self._cache, flat[start].view(1, 1, -1), self._siblings, self._wary)
                self._parts.append(Block(start, stop, terms))
        return self._parts

    def of_rows(self, rows: Sequence[int]) -> LowRankTerms:
        """The terms of some rows of the batch, in their order."""
        coefficients = self._coefficients.flatten(0, 1)[list(rows)].unsqueeze(0)
        return LowRankTerms(self._cache, coefficients, self._siblings, self._wary)

    def displacement(self) -> Displacement:
        """The displacement of all rows, if they have the same terms."""
        row = self._coefficients[0, 0].tolist()
        return Displacement({key: row[slot] for key, slot in self._cache.slots.items() if row[slot]})

    def moved(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """`tensor + Delta`, if all rows have the same terms: a copy, in the tensor's dtype."""
        if self.rows != 1:
            raise ValueError(f"{name!r} is moved for rows that carry different terms")
        relative = self._relative.view(-1, self._cache.layout.noise.rank)
        chosen = relative.any(1)
        if not chosen.any():
            return tensor.detach()
        left, right = (factor[chosen].to(tensor.dtype) for factor in self._cache.matrix(name))
        thin = (left * relative[chosen].unsqueeze(1).to(tensor.dtype)).transpose(0, 1).flatten(1)
        wide = right.transpose(0, 1).flatten(1).T
        flat = tensor.detach().reshape(len(left[0]), -1)
        return torch.addmm(flat, thin, wide, alpha=self._largest).view(tensor.shape)

    def matmul(self, x: torch.Tensor, weight: torch.Tensor, name: str, transposed: bool) -> torch.Tensor:
        """`x @ (W + Delta).T`, or `x @ (W + Delta)` if `transposed`, with each row's Delta: [T, outputs].

        The first thin product is computed once for all matrices that multiply the same x, while x is in the cache. It
        comes before the model's own product, which can then accumulate onto it without another pass. If x itself is
        thin, everything is one product.

        Args:
            x: [..., inputs], with the rows of the batch first; T positions in all.
            weight: W, in the dtype of x.
            name: name of the matrix.
            transposed: whether the model multiplies by W instead of W.T.
        """
        thin, side = self._thin(x, name, transposed), 1 if transposed else 0
        flat, plain = x.reshape(-1, x.shape[-1]), weight if transposed else weight.T
        if self._joins(flat, plain):
            return torch.mm(*self._side_by_side(flat, plain, thin, name, side))
        return self._up_project(thin, name, side).addmm_(flat, plain)

    def add_matmul_(
        self, out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, name: str, transposed: bool, alpha: float
    ) -> torch.Tensor:
        """`out += alpha * matmul(x, ...)`, without a temporary of that size.

        Args:
            out: [T, outputs], contiguous.
            x: [T, inputs].
            weight: W, in the dtype of both.
            name: name of the matrix.
            transposed: whether the model multiplies by W instead of W.T.
            alpha: factor of the product.
        """
        thin, side = self._thin(x, name, transposed), 1 if transposed else 0
        plain = weight if transposed else weight.T
        if self._joins(x, plain):
            return out.addmm_(*self._side_by_side(x, plain, thin, name, side), alpha=alpha)
        onto = self._factor(name, side, thin.dtype)
        onto = onto.expand(self._blocks, *onto.shape[-2:])
        largest = self._largest if thin.dtype is torch.float16 else 1.0
        blocks = out.view(self._blocks, -1, out.shape[1])
        blocks.baddbmm_(thin.view(self._blocks, -1, thin.shape[1]), onto, alpha=alpha * largest)
        return out.addmm_(x, plain, alpha=alpha)

    def _joins(self, x: torch.Tensor, plain: torch.Tensor) -> bool:
        """Whether x is so thin compared with the outputs that one product for W and its terms is faster."""
        thin = x.shape[1] <= min(NARROW, plain.shape[1] // 4)
        return thin and self._index is None and x.dtype is not torch.float16

    def _side_by_side(
        self, x: torch.Tensor, plain: torch.Tensor, thin: torch.Tensor, name: str, side: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The two factors of that product: [T, inputs + columns] and [inputs + columns, outputs]."""
        return torch.cat([x, thin], 1), torch.cat([plain, self._factor(name, side, x.dtype)])

    def _thin(self, x: torch.Tensor, name: str, transposed: bool) -> torch.Tensor:
        """x times the first factor of a matrix, times the coefficients of each row: [T, columns]."""
        matrix = name, transposed
        version = None if x.is_inference() else x._version  # an inference tensor has no version counter
        again = self._x is not None and self._x[0] is x and self._x[1] == version is not None
        if self._wary:
            self._check_unchanged(x, name, again)
        if not again or matrix not in self._ahead:
            self._run = [*self._run, matrix] if again else [matrix]
            if self._run[0] not in self._siblings or len(self._run) > len(self._siblings[self._run[0]]):
                self._siblings[self._run[0]] = tuple(self._run)
            together = (matrix,) if again or version is None else self._siblings[matrix]
            made = self._down_project(x.reshape(-1, x.shape[-1]), together)
            self._x, self._ahead = (x, version), {**self._ahead, **made} if again else made
        return self._ahead[matrix]

    def _check_unchanged(self, x: torch.Tensor, name: str, again: bool) -> None:
        if again and self._copy is not None and not _same(self._copy, x):
            raise EvaluatorError(
                f"the model changes what {self._run[-1][0]!r} was multiplied by before {name!r} is multiplied by it, "
                "in a way that torch does not count, such as x.data.mul_()",
                "write x.mul_() in the model, or set method.evaluator=in-place",
            )
        self._copy = self._copy if again else x.detach().clone()

    def delta_embedding(self, ids: torch.Tensor, name: str, dtype: torch.dtype) -> torch.Tensor:
        """`Delta[ids]` with the Delta of each row: [T, columns]; ids [T], with the rows of the batch first."""
        left = self._cache.matrix(name)[0]
        if self._index is None:
            thin = left[:, ids].transpose(0, 1).flatten(1).to(dtype)
        else:
            thin = left[self._index.unsqueeze(2), ids.view(self._blocks, 1, -1)].to(dtype)  # [blocks, keys, T, rank]
            thin = thin.transpose(1, 2).flatten(2).flatten(0, 1)
        return self._up_project(self._weighted_(thin), name, 1)

    @torch.no_grad()
    def vectors(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Each selected tensor with fewer than two axes at each point, [P, entries], or each row; in the coefficients'
        dtype."""
        numbers, places = self._cache.layout.vectors(self._cache.numbers)
        numbers = numbers.to(self._of_vectors.dtype)
        order = sorted(tensors, key=lambda name: places[name].start)
        starts = [places[name].start for name in order]
        sizes = [end - start for start, end in zip(starts, [*starts[1:], numbers.shape[1]], strict=True)]
        numbers = numbers[:, starts[0] :]
        base = torch.zeros(numbers.shape[1], dtype=numbers.dtype, device=numbers.device)
        flat = [tensors[name].flatten() for name in order]
        parts = zip(torch.split(base, sizes), flat, strict=True)
        torch._foreach_copy_([part[: len(tensor)] for part, tensor in parts], flat)
        values = torch.split(torch.addmm(base.unsqueeze(0), self._of_vectors, numbers), sizes, 1)
        return {name: each[:, : tensors[name].numel()] for name, each in zip(order, values, strict=True)}

    def _down_project(
        self, x: torch.Tensor, matrices: Sequence[tuple[str, bool]]
    ) -> dict[tuple[str, bool], torch.Tensor]:
        """x times the first factor of each matrix, times its coefficients: [T, columns]; x [T, inputs]."""
        factors = [self._factor(name, 0 if transposed else 1, x.dtype) for name, transposed in matrices]
        into = factors[0] if len(factors) == 1 else torch.cat(factors, -2)
        thin = x @ into.mT if self._index is None else (x.view(self._blocks, -1, x.shape[1]) @ into.mT).flatten(0, 1)
        parts = self._weighted_(thin, len(matrices)).chunk(len(matrices), 1)
        return dict(zip(matrices, parts, strict=True))

    def _weighted_(self, thin: torch.Tensor, times: int = 1) -> torch.Tensor:
        """Multiply each row's columns by its coefficients, in place; `times` copies side by side."""
        coefficients = self._relative if thin.dtype is torch.float16 else self._absolute
        thin.view(self.rows, -1, times, coefficients.shape[-1]).mul_(coefficients)
        return thin

    def _up_project(self, thin: torch.Tensor, name: str, side: int) -> torch.Tensor:
        """`thin` times the second factor: [T, outputs]."""
        onto = self._factor(name, side, thin.dtype)
        if self._index is None and thin.dtype is not torch.float16:
            return thin @ onto
        thin = thin.view(self._blocks, -1, thin.shape[1])
        onto = onto.expand(self._blocks, *onto.shape[-2:])
        out = thin.new_empty(*thin.shape[:2], onto.shape[2])
        alpha = self._largest if thin.dtype is torch.float16 else 1.0
        return torch.baddbmm(out, thin, onto, beta=0, alpha=alpha, out=out).flatten(0, 1)

    def _factor(self, name: str, side: int, dtype: torch.dtype) -> torch.Tensor:
        """left (side 0) or right (1) of a matrix as `FactorCache.factor` returns it; one per block if there are
        several."""
        if self._index is None:
            return self._cache.factor(name, side, dtype)
        factor = self._cache.matrix(name)[side]
        chosen = factor.index_select(0, self._index.flatten()).to(dtype)
        return chosen.view(*self._index.shape, *factor.shape[1:]).transpose(2, 3).flatten(1, 2)


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether tensors hold the same values; nan equals nan."""
    return torch.equal(first, second) or torch.equal(first.nan_to_num(), second.nan_to_num())


def _rows_of_a_block(held: torch.Tensor, rank: int) -> int:
    """The number of rows per block.

    Args:
        held: which keys each row has, [P, R, K].
        rank: columns per key.
    """
    rows = held.shape[1]
    sizes = [size for size in range(rows, 0, -1) if rows % size == 0]
    columns = [int(held.view(len(held), -1, size, held.shape[2]).any(2).sum(2).amax()) * rank for size in sizes]
    enough = max(NARROW, min(columns))
    return next(size for size, count in zip(sizes, columns, strict=True) if count <= enough)
