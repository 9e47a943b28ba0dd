"""The tensors that training moves, each under a stable name, and the one loop that adds a displacement to them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from zofo.backbone.selection import movable
from zofo.backbone.update import DIRECT, Change, Update, write_block
from zofo.displacement import Displacement, Key
from zofo.errors import ModelError
from zofo.models import plain_tensors
from zofo.noise import DirectionSampler, Mask, Noise, Shape, masked
from zofo.threads import run_jobs

Rounding = Literal["stochastic", "nearest"]
"""How an update of half-precision weights is rounded: to one of the two neighbours, the nearer the likelier, so that
its mean is exact; or to the nearest, as in other code."""

_CPU_BLOCK, _DEVICE_BLOCK = 1 << 19, 1 << 24  # entries: about a core's cache; few launches
_GATHERED = 64  # keys per sweep


class Backbone:
    """theta: the selected tensors of a module, and the only code that writes a direction into them.

    Tied tensors count as one tensor, under the first name that the module lists. Names are taken when the object is
    built, so build it before adapters wrap the module: a direction depends on the name of its tensor.

    Args:
        module: any torch module.
        noise: the distribution that gives a key its direction.
        select: glob patterns of parameter names, for example `["*.layers.29.*"]`; `!pattern` excludes. None selects
            every parameter. A parameter with `requires_grad=False` is selected only if a pattern other than `*` names
            it, or if no parameter of the module requires a gradient.
        block: number of entries drawn at a time. It does not change the result.
        mask: which part of every direction is kept, decided from the current values of the tensors; None keeps all of
            it.
        rounding: how updates of half-precision tensors are rounded.

    Attributes:
        parameters: the selected parameters by name.
        noise: the given noise, with the mask applied.
        frozen: names of the parameters left out because they do not require a gradient.
        decays: the names that weight decay applies to (no biases, no norms; by the type of their module).
        sweeps: how often the whole selection has been written since the object was built.
        is_corrupt: whether a sweep was interrupted, which leaves some tensors moved and others not.

    Raises:
        ConfigError: a pattern matches nothing, or `noise` cannot be drawn for the shape of a tensor.
        ModelError: a selected tensor is not floating point (such as a quantised weight), has no values, or shares
            memory with another tensor of another shape.
    """

    def __init__(
        self,
        module: nn.Module,
        noise: Noise,
        select: Sequence[str] | None = None,
        block: int | None = None,
        mask: Mask | None = None,
        rounding: Rounding = "stochastic",
    ) -> None:
        self.sweeps = 0
        self._stochastic = rounding == "stochastic"
        self._block = block
        self._gathered: list[tuple[Update, Key | None]] | None = None
        self.is_corrupt = False
        self.parameters, frozen = movable(module, select)
        self.frozen = tuple(frozen)
        for name, tensor in self.tensors.items():
            noise.draw(Key(0, 0), name, tuple(tensor.shape), (0, 0), tensor.device)  # refuses before anything moves
        self.noise: Noise = noise if mask is None else masked(noise, mask, self.tensors)
        self.decays = frozenset(self.parameters) - without_decay(module).keys()

    def leave_out(self, names: Collection[str]) -> None:
        """Remove tensors from theta before anything has moved. The directions of the other tensors do not change."""
        self.parameters = {name: parameter for name, parameter in self.parameters.items() if name not in names}
        self.decays -= frozenset(names)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The selected tensors by name. Always current: parameters may have been moved to another device."""
        return {name: parameter.data for name, parameter in self.parameters.items()}

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shapes of the selected tensors by name."""
        return {name: tuple(parameter.shape) for name, parameter in self.parameters.items()}

    @property
    def device(self) -> torch.device:
        """The device of the first selected tensor."""
        return next(iter(self.parameters.values())).device

    @property
    def size(self) -> int:
        """d: the number of entries of theta."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def dtypes(self) -> frozenset[torch.dtype]:
        """The dtypes of the selected tensors."""
        return frozenset(parameter.dtype for parameter in self.parameters.values())

    def is_active(self, key: Key, name: str) -> bool:
        """Whether z(key) can be non-zero in a tensor. The answer is the same for all keys of a step."""
        return self.noise.is_active(key, name)

    @torch.no_grad()
    def apply_(
        self,
        update: Update | Displacement,
        leaving: Displacement | None = None,
        directions: DirectionSampler | None = None,
    ) -> None:
        """Apply an update in one sweep: `theta <- (1 - decay_factor) (theta - leaving) + displacement`.

        If the noise keeps data for each key and there are very many keys, they are split over several sweeps.

        Half-precision tensors are rounded stochastically, with bits drawn from the newest key of the `Update`, so that
        steps too small to change a value still add up in expectation. A plain displacement is rounded to nearest, and
        so is every update with `rounding="nearest"`.

        Args:
            update: the update, or a plain displacement to add.
            leaving: the tensors' current offset from theta. It is removed in the same sweep, so that returning to theta
                and updating it cost one sweep instead of two.
            directions: the directions of all keys of `update` and `leaving`, if the caller has already drawn them.

        Raises:
            NonFiniteError: a coefficient is not finite in float32. Nothing was written.
            ModelError: an earlier sweep was interrupted in the middle.
        """
        if self.is_corrupt:
            raise ModelError("the weights were left in the middle of a sweep", "load the model again")
        stochastic = self._stochastic and isinstance(update, Update)
        update = update if isinstance(update, Update) else Update(update)
        update.check_finite()
        home = -leaving if leaving is not None else Displacement()
        nothing = not len(home) and not len(update.displacement) and not update.decay_factor
        if nothing and update.dense_update_fn is None:  # an elementwise rule also moves by its state
            return
        divisible = leaving is None and update.dense_update_fn is None
        parts = _parts(update, self.noise.keys_at_once) if divisible else [update]
        writes = [(part, part.rounding_key if stochastic else None) for part in parts]
        if self._gathered is not None:
            if divisible and directions is None:
                self._gather(writes)
                return
            self._write_gathered()  # in their order
        for part, rounding in writes:
            keys = dict.fromkeys([*home, *part.displacement])
            self._sweep([(part, rounding)], home, self.directions(keys) if directions is None else directions)

    @contextmanager
    def deferred_writes(self) -> Iterator[None]:
        """Context in which updates are collected and written together at the end.

        Use it where nothing reads the weights in between. The result is bit-identical, but each tensor is read from
        memory once for many updates.
        """
        self._gathered = []
        try:
            yield
            self._write_gathered()
        finally:
            self._gathered = None

    def _gather(self, writes: Iterable[tuple[Update, Key | None]]) -> None:
        assert self._gathered is not None
        for write in writes:
            waiting = sum(len(update.displacement) for update, _ in self._gathered)
            if waiting + len(write[0].displacement) > (self.noise.keys_at_once or _GATHERED):
                self._write_gathered()
            self._gathered.append(write)

    def _write_gathered(self) -> None:
        if self._gathered:
            keys = dict.fromkeys(key for update, _ in self._gathered for key in update.displacement)
            writes, self._gathered = self._gathered, []
            self._sweep(writes, Displacement(), self.directions(keys))

    def _sweep(
        self, writes: Sequence[tuple[Update, Key | None]], home: Displacement, directions: DirectionSampler
    ) -> None:
        """Write `home` and then the updates into every tensor, each with the key that rounds it."""
        self.is_corrupt = True  # until everything is written: an interrupt cannot be undone exactly
        tensors = self.tensors.items()
        jobs = [job for name, tensor in tensors for job in self._jobs(name, tensor, writes, home, directions)]
        by_rule = any(update.dense_update_fn is not None for update, _ in writes)  # it has state, so blocks go in order
        if self.device.type != "cpu" or by_rule or (directions.whole and self.dtypes <= {*DIRECT}):
            for job in jobs:
                job()
        else:
            run_jobs(jobs)
        self.sweeps += 1
        self.is_corrupt = False

    def _jobs(
        self,
        name: str,
        tensor: torch.Tensor,
        writes: Sequence[tuple[Update, Key | None]],
        home: Displacement,
        directions: DirectionSampler,
    ) -> list[Callable[[], None]]:
        """The jobs that write `home` and then the updates into one tensor: one job per block.

        Blocks are whole rows where possible. A tensor that is added to in place, without a copy, is one block.
        """
        changes = [Change(update, rounding, *self._terms(name, update, home)) for update, rounding in writes]
        changes = [change for change in changes if change.is_active]
        by_rule = any(update.dense_update_fn is not None for update, _ in writes)
        size = self._block or (_CPU_BLOCK if tensor.device.type == "cpu" else _DEVICE_BLOCK)
        if self._block is None and tensor.dim() > 1 and tensor.numel():
            columns = tensor.numel() // tensor.shape[0]
            at_once = directions.whole and not by_rule and tensor.dtype in DIRECT
            size = tensor.numel() if at_once else max(1, size // columns) * columns
        starts = range(0, tensor.numel(), size) if changes else ()
        blocks = [(start, min(start + size, tensor.numel())) for start in starts]
        if tensor.is_contiguous():
            flat = tensor.view(-1)
            return [functools.partial(write_block, name, flat, block, changes, directions) for block in blocks]

        def all_of_them() -> None:
            copied = tensor.reshape(-1)
            for block in blocks:
                write_block(name, copied, block, changes, directions)
            tensor.copy_(copied.view(tensor.shape))

        return [all_of_them] if blocks else []

    def _terms(self, name: str, update: Update, home: Displacement) -> tuple[float, list[tuple[Key, float]]]:
        """The decay that an update applies to a tensor, and the terms it adds along directions.

        There is one term per key: a direction in both `leaving` and the update is drawn once.
        """
        keep = 1.0 - update.decay_factor if name in self.decays else 1.0
        add = home * keep + update.displacement if update.dense_update_fn is None else home * keep
        terms = [(key, coefficient) for key, coefficient in add.items() if self.is_active(key, name)]
        return 0.0 if keep == 1.0 else update.decay_factor, terms

    def directions(self, keys: Iterable[Key]) -> DirectionSampler:
        """The directions of some keys for the selected tensors, in the form that `apply_` adds them."""
        return self.noise.directions(keys, self.shapes, self.device)

    @torch.no_grad()
    def swap_(self, stored: Mapping[str, torch.Tensor]) -> None:
        """Exchange the values of the selected tensors with a stored copy, block by block, on any device.

        Args:
            stored: a contiguous tensor of the same dtype and shape for each name.

        Raises:
            ModelError: an earlier sweep was interrupted in the middle.
        """
        if self.is_corrupt:
            raise ModelError("the weights were left in the middle of a sweep", "load the model again")
        self.is_corrupt = True
        for name, tensor in self.tensors.items():
            kept = stored[name].view(-1)
            flat = tensor.view(-1) if tensor.is_contiguous() else tensor.reshape(-1)
            for start in range(0, flat.numel(), _DEVICE_BLOCK):
                here, there = flat[start : start + _DEVICE_BLOCK], kept[start : start + _DEVICE_BLOCK]
                before = here.clone()
                here.copy_(there)
                there.copy_(before)
            if not tensor.is_contiguous():
                tensor.copy_(flat.view(tensor.shape))
        self.is_corrupt = False

    @torch.no_grad()
    def keep(self, stored: dict[str, torch.Tensor]) -> None:
        """Copy the selected tensors into `stored`, which is allocated on first use."""
        for name, tensor in self.tensors.items():
            if name not in stored or stored[name].device != tensor.device:
                stored[name] = torch.empty_like(tensor)
            stored[name].copy_(tensor)

    @torch.no_grad()
    def restore_(self, stored: Mapping[str, torch.Tensor]) -> None:
        """Restore the bits that `keep` stored, even after an interrupted sweep."""
        self.is_corrupt = True
        for name, tensor in self.tensors.items():
            tensor.copy_(stored[name])
        self.is_corrupt = False

    def fingerprint(self) -> str:
        """The `fingerprint` of the selected tensors."""
        return fingerprint(self.tensors)

    def values(self, displacement: Displacement) -> Mapping[str, torch.Tensor]:
        """The displacement written out as a float32 tensor per name. For tests and small problems only."""
        written, directions = {}, self.directions(displacement)
        for name, tensor in self.tensors.items():
            total = torch.zeros(tensor.numel(), dtype=torch.float32, device=tensor.device)
            directions.add_to(total, displacement.items(), name, (0, tensor.numel()))
            written[name] = total.view(tensor.shape)
        return written


def _parts(update: Update, keys: int | None) -> list[Update]:
    """Split an update into several with fewer keys, to be written in order; the first one has the decay."""
    terms = list(update.displacement.items())
    if keys is None or len(terms) <= keys:
        return [update]
    pieces = [Displacement(dict(terms[start : start + keys])) for start in range(0, len(terms), keys)]
    return [Update(piece, 0.0 if number else update.decay_factor) for number, piece in enumerate(pieces)]


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the names, dtypes, shapes and bits of tensors, as `sha256:...`; for a packed tensor, of its parts."""
    digest = hashlib.sha256()
    for whole in sorted(tensors):  # one at a time: a mapping may read them from a file
        for name, tensor in plain_tensors(whole, tensors[whole]):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()}"


def without_decay(module: nn.Module) -> dict[str, nn.Parameter]:
    """Names of the parameters that weight decay does not apply to: biases, normalisation layers (by module type), and
    DoRA magnitudes, which start at the norms of the weights."""
    found: dict[str, nn.Parameter] = {}
    for prefix, part in module.named_modules():
        kind = type(part).__name__.lower()
        kept = "norm" in kind or kind.lstrip("_").startswith("dora")
        for name, parameter in part.named_parameters(recurse=False):
            if kept or "bias" in name.split("_"):  # bias, in_proj_bias, bias_ih_l0
                found[f"{prefix}.{name}" if prefix else name] = parameter
    return found
