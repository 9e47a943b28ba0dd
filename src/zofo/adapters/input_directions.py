"""The directions in which the inputs of layers are largest, from a stream of batches, without a covariance matrix.

peft's EVA (`initialize_lora_eva_weights`) is not used: it finds principal components of centred inputs, while the
gradient of a layer is a sum over the inputs themselves; it repeats its data until the components converge, however many
forwards that takes; and it treats padding and packed rows as text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from zofo.displacement import Key
from zofo.errors import ConfigError
from zofo.noise import Gaussian

_ITERATIONS = 2  # number of subspace iterations; the spectrum of inputs decays fast
_AT_ONCE = 4096  # positions that are buffered
_NOTHING = 1e-12  # relative to the largest eigenvalue: rounding in float32


class InputDirections:
    """The top eigenvectors of the second moment sum x x^T of the inputs of some layers.

    For each distinct input it keeps a sketch S [k, inputs] with S^T S close to the moment: a batch X updates S to the
    top k right singular vectors of [S; X], each times its singular value, by a randomised singular value decomposition.
    Layers with the same input tensor, such as query, key and value, share a sketch.

    Args:
        layers: the modules by name; only their inputs are used.
        rank: number of directions; 2 rank + 8 are kept internally.

    Source: Halko, Martinsson and Tropp (2011), "Finding Structure with Randomness", algorithm 4.4; the stream as in
    Levy and Lindenbaum (2000), sequential Karhunen-Loeve, without the mean.
    """

    def __init__(self, layers: Mapping[str, nn.Module], rank: int, seed: int) -> None:
        self._layers, self._rank, self._seed = layers, rank, seed
        self._of: dict[str, _Sketch] = {}
        self._last: tuple[torch.Tensor, int | None, _Sketch] | None = None
        self._mask: torch.Tensor | None = None

    @contextmanager
    def watching(self, mask: torch.Tensor | None) -> Iterator[None]:
        """Context in which the layers' inputs are recorded.

        Args:
            mask: [rows, positions], true for tokens; other inputs are excluded if the shape shows which they are. None
                takes all.
        """
        self._mask = None if mask is None else mask.bool()
        with ExitStack() as hooks:
            for name, layer in self._layers.items():
                hooks.enter_context(layer.register_forward_pre_hook(self._take_in(name)))
            yield
            self._last = self._mask = None

    def _take_in(self, name: str) -> Any:
        def hook(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            x = given[0].detach()
            version = None if x.is_inference() else x._version
            last = self._last
            same = last is not None and version is not None and last[0].is_set_to(x) and last[1] == version
            if same and last is not None and self._of.setdefault(name, last[2]) is last[2]:
                return
            sketch = self._of.setdefault(name, _Sketch(x.shape[-1], 2 * self._rank + 8, self._seed))
            kept = _positions(x, self._mask)
            if not kept.isfinite().all():
                raise ConfigError(
                    f"the inputs of {name!r} in training rows are not finite numbers, so that they have no directions",
                    "set method.adapter.init=random, or model.dtype=float32",
                )
            sketch.add(kept)
            self._last = x, version, sketch

        return hook

    def directions(self, name: str) -> torch.Tensor:
        """The directions of a layer: float32, [rank, inputs], orthonormal rows, the largest first.

        If the inputs span fewer directions, such as after a norm that removes the mean, the remaining rows are
        arbitrary.

        Raises:
            ConfigError: the layer saw fewer inputs than that.
        """
        sketch = self._of.get(name)
        positions = 0 if sketch is None else sketch.positions
        if sketch is None or positions < self._rank:
            raise ConfigError(
                f"method.adapter.rank={self._rank} directions cannot be told from {positions} inputs, which is what "
                f"{name!r} got in the calibration",
                "raise method.adapter.calibration_batches or method.batch_size, set a lower method.adapter.rank, or "
                "leave the layer out with method.adapter.target_modules",
            )
        return orthonormal_rows(sketch.rows[: self._rank])

    def found(self, name: str) -> int:
        """The number of directions that a layer's inputs span, up to rounding."""
        return min(self._of[name].directions, self._rank)


class _Sketch:
    """The sketch S of one input.

    Attributes:
        rows: S, the largest first.
        positions: number of inputs it has seen.
    """

    def __init__(self, inputs: int, kept: int, seed: int) -> None:
        self._inputs, self._kept, self._seed = inputs, min(kept, inputs), seed
        self.rows = torch.empty(0, inputs)
        self.positions = 0

    def add(self, x: torch.Tensor) -> None:
        """Add inputs, [positions, inputs]."""
        for first in range(0, len(x), _AT_ONCE):
            self._add(x[first : first + _AT_ONCE].to(torch.promote_types(x.dtype, torch.float32)))
        self.positions += len(x)

    def _add(self, x: torch.Tensor) -> None:
        rows, basis = self.rows.to(x), self._first_basis.to(x)
        with _exact_products(x.device):
            for _ in range(_ITERATIONS if self._kept < self._inputs else 0):
                basis = torch.linalg.qr(rows.T @ (rows @ basis) + x.T @ (x @ basis))[0]
            thin = torch.cat([rows @ basis, x @ basis])
            squares, turn = torch.linalg.eigh((thin.T @ thin).double().cpu())
            order = squares.argsort(descending=True)
            turned = basis @ turn[:, order].to(x)
        self.rows = turned.T * squares[order].clamp(min=0).sqrt().to(x).unsqueeze(1)

    @property
    def _first_basis(self) -> torch.Tensor:
        if self._kept == self._inputs:
            return torch.eye(self._inputs)
        return Gaussian().whole(Key(self._seed, 0), "subspace/sketch", (self._inputs, self._kept))

    @property
    def directions(self) -> int:
        """The number of directions that the inputs span, up to rounding; limited by the number kept."""
        squares = self.rows.double().square().sum(1)
        return int((squares > _NOTHING * squares.amax()).sum()) if len(squares) else 0


def orthonormal_rows(rows: torch.Tensor) -> torch.Tensor:
    """Orthonormal rows with the same span, in order; the largest entry of each is positive: float32."""
    wide = rows.detach().cpu().double()
    wide = wide / wide.norm(dim=1, keepdim=True).clamp(min=torch.finfo(wide.dtype).tiny)
    basis = torch.linalg.qr(wide.T)[0].T
    largest = basis.gather(1, basis.abs().argmax(dim=1, keepdim=True))
    rows_found: torch.Tensor = (basis * largest.sign()).float()
    return rows_found


def _positions(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The inputs, [positions, inputs], without padding if the shape shows which they are."""
    flat = x.reshape(-1, x.shape[-1])
    if mask is None or mask.numel() != len(flat):
        return flat
    return flat[mask.reshape(-1).to(flat.device)]


def _exact_products(device: torch.device) -> Any:
    """Context without autocast, which would multiply in half precision."""
    return torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()
