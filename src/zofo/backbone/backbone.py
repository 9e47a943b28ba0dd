"""The tensors that move: each once, under a stable name, with the one loop that adds a displacement to them."""

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
_GATHERED = 64  # keys of updates that are written in one sweep


class Backbone:
    """theta: the selected tensors of a module, and the only code that writes a direction into them.

    Tied tensors are one tensor, under the name where the module shows them first. Names are taken when the object is
    built, so build it before adapters wrap the module: the names, and with them the directions, stay what they were.

    Args:
        module: any torch module.
        noise: the distribution that gives a key its direction.
        select: glob patterns of parameter names, for example `["*.layers.29.*"]`, and `!pattern` for what is left out;
            None selects every parameter. One with `requires_grad=False` moves only where a pattern other than `*` names
            it, or where none of the module's requires a gradient.
        block: entries drawn at a time; the bits do not depend on it.
        mask: the part of every direction that is kept, decided on the tensors as they are now; None keeps all of it.
        rounding: of updates of half-precision tensors.

    Attributes:
        parameters: that move, by name.
        noise: as given, masked.
        frozen: the names of those that stay because they do not require a gradient.
        decays: the names that weight decay applies to (no biases, no norms; by the type of their module).
        sweeps: how many times the whole selection has been written since the object was built.
        is_corrupt: whether a sweep was interrupted, so that some tensors have moved and others have not.

    Raises:
        ConfigError: a pattern that matches nothing, or a tensor that `noise` cannot be drawn for.
        ModelError: a selected tensor that is not floating point, such as a quantised weight; that has no numbers; or
            that shares memory with another under another shape.
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
        """Take tensors out of theta, before anything moves; the directions of the others stay what they are."""
        self.parameters = {name: parameter for name, parameter in self.parameters.items() if name not in names}
        self.decays -= frozenset(names)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The selected tensors by name, as they are now: a parameter may have been moved to another device."""
        return {name: parameter.data for name, parameter in self.parameters.items()}

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shapes of the selected tensors by name."""
        return {name: tuple(parameter.shape) for name, parameter in self.parameters.items()}

    @property
    def device(self) -> torch.device:
        """Where the first selected tensor is."""
        return next(iter(self.parameters.values())).device

    @property
    def size(self) -> int:
        """d: the number of entries of theta."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def dtypes(self) -> frozenset[torch.dtype]:
        """The number types among the selected tensors."""
        return frozenset(parameter.dtype for parameter in self.parameters.values())

    def is_active(self, key: Key, name: str) -> bool:
        """Whether z(key) may be other than zero in a tensor; the same for all keys of a step."""
        return self.noise.is_active(key, name)

    @torch.no_grad()
    def apply_(
        self,
        update: Update | Displacement,
        leaving: Displacement | None = None,
        directions: DirectionSampler | None = None,
    ) -> None:
        """Apply an update in one sweep: `theta <- (1 - decay_factor) (theta - leaving) + displacement`.

        Where the noise holds something for each key and the keys are very many, it takes a sweep for some of them at a
        time.

        An `Update` of half-precision tensors is rounded stochastically, by bits that its newest key names: what one
        step is too small to change arrives in expectation over many. A plain displacement is rounded to nearest, as is
        an update with `rounding="nearest"`.

        Args:
            update: the update, or a plain displacement to add.
            leaving: where the tensors stand now relative to theta; taken off in the same sweep, so that going home and
                updating cost one sweep, not two.
            directions: of all keys of the update and of `leaving`, for a caller that has drawn them already.

        Raises:
            NonFiniteError: a coefficient that is not finite in float32; nothing was written.
            ModelError: an earlier sweep was interrupted in the middle.
        """
        if self.is_corrupt:
            raise ModelError("the weights were left in the middle of a sweep", "load the model again")
        stochastic = self._stochastic and isinstance(update, Update)
        update = update if isinstance(update, Update) else Update(update)
        update.check_finite()
        home = -leaving if leaving is not None else Displacement()
        nothing = not len(home) and not len(update.displacement) and not update.decay_factor
        if nothing and update.dense_update_fn is None:  # an elementwise rule moves by what it remembers, too
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
        """While it is open, updates wait for one another, for a caller that does not look at the weights meanwhile.

        They are written one after the other as ever, with the same bits, but tensor by tensor: each is fetched from
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
        """Write `home` and updates, one after the other, into every tensor; each with the key that rounds it."""
        self.is_corrupt = True  # until all is written: an interrupt in between cannot be undone exactly
        tensors = self.tensors.items()
        jobs = [job for name, tensor in tensors for job in self._jobs(name, tensor, writes, home, directions)]
        by_rule = any(update.dense_update_fn is not None for update, _ in writes)  # which remembers, and in order
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
        """What writes `home` and updates into one tensor, one after the other: a job for each block.

        Blocks are whole rows where they can be. A tensor that needs no copy and is added to at once is one block.
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
        """The share that an update takes off a tensor, and what is added to it along directions.

        There is one term for each key: a direction that is both left and updated along is drawn once.
        """
        keep = 1.0 - update.decay_factor if name in self.decays else 1.0
        add = home * keep + update.displacement if update.dense_update_fn is None else home * keep
        terms = [(key, coefficient) for key, coefficient in add.items() if self.is_active(key, name)]
        return 0.0 if keep == 1.0 else update.decay_factor, terms

    def directions(self, keys: Iterable[Key]) -> DirectionSampler:
        """The directions of some keys for the selected tensors, in the form that `apply_` adds."""
        return self.noise.directions(keys, self.shapes, self.device)

    @torch.no_grad()
    def swap_(self, stored: Mapping[str, torch.Tensor]) -> None:
        """Swap the values of the selected tensors with those of a stored copy, block by block, wherever it is.

        Args:
            stored: a tensor of the same type and shape for each name, contiguous.

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
        """Copy the selected tensors into `stored`, where memory for them is made the first time."""
        for name, tensor in self.tensors.items():
            if name not in stored or stored[name].device != tensor.device:
                stored[name] = torch.empty_like(tensor)
            stored[name].copy_(tensor)

    @torch.no_grad()
    def restore_(self, stored: Mapping[str, torch.Tensor]) -> None:
        """Give the selected tensors the bits that `keep` stored, also after a sweep that was interrupted."""
        self.is_corrupt = True
        for name, tensor in self.tensors.items():
            tensor.copy_(stored[name])
        self.is_corrupt = False

    def fingerprint(self) -> str:
        """See the function `fingerprint`, of the selected tensors."""
        return fingerprint(self.tensors)

    def values(self, displacement: Displacement) -> Mapping[str, torch.Tensor]:
        """The displacement written out, a float32 tensor for each name: for tests and small problems only."""
        written, directions = {}, self.directions(displacement)
        for name, tensor in self.tensors.items():
            total = torch.zeros(tensor.numel(), dtype=torch.float32, device=tensor.device)
            directions.add_to(total, displacement.items(), name, (0, tensor.numel()))
            written[name] = total.view(tensor.shape)
        return written


def _parts(update: Update, keys: int | None) -> list[Update]:
    """The update as several with at most so many keys, to be written one after the other; the first one shrinks."""
    terms = list(update.displacement.items())
    if keys is None or len(terms) <= keys:
        return [update]
    pieces = [Displacement(dict(terms[start : start + keys])) for start in range(0, len(terms), keys)]
    return [Update(piece, 0.0 if number else update.decay_factor) for number, piece in enumerate(pieces)]


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over the names, types, shapes and bits of tensors, as `sha256:...`; a packed one gives its parts."""
    digest = hashlib.sha256()
    for whole in sorted(tensors):  # one at a time: a mapping may read them from a file
        for name, tensor in plain_tensors(whole, tensors[whole]):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()}"


def without_decay(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that weight decay leaves alone: biases and, by the module's type, all of a normalisation, and the
    magnitudes of DoRA, which start at the norms of weights."""
    found: dict[str, nn.Parameter] = {}
    for prefix, part in module.named_modules():
        kind = type(part).__name__.lower()
        kept = "norm" in kind or kind.lstrip("_").startswith("dora")
        for name, parameter in part.named_parameters(recurse=False):
            if kept or "bias" in name.split("_"):  # bias, in_proj_bias, bias_ih_l0
                found[f"{prefix}.{name}" if prefix else name] = parameter
    return found
