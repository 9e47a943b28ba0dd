"""The trajectory: everything that was written into the backbone. With the base model it gives the trained model.

File format, little-endian: the magic `ZOFOTRJ2`; the header's length (uint32) and CRC-32 (uint32); the header as JSON;
then records, in the order in which things happened. A record is its kind (uint8), a number (uint32), the CRC-32
(uint32) of these two and the payload, and the payload:

| kind | number | payload | |---|---|---| | 1, update | terms | a float64 for each of the bits 16 (shrink), 32 (learning
rate) and 64 (displacement decay) of the kind, then terms | | 2, move: the weights go to theta + point | terms | terms
of the point | | 3, settle: pending updates are written | 0 | | | 4, step: a step has ended | the step | |

A term is step (uint32), index (uint32) and coefficient (float64); the seed of all keys is in the header. An update with
one term takes 25 bytes, and 34 including its step.
"""

from __future__ import annotations

import io
import json
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from zofo.backbone import Update, UpdateLog
from zofo.displacement import Displacement, Key
from zofo.errors import DamagedRunError, RunError
from zofo.evaluators import EVALUATORS
from zofo.filesystem import check_not_special
from zofo.retired_keys import method_as_now

MAGIC = b"ZOFOTRJ2"
_ANY_MAGIC = b"ZOFOTRJ"
TERM = struct.Struct("<IId")
"""A direction and its coefficient in a file whose seed is known: step, index, coefficient."""
_LENGTH, _FRAME, _KIND, _NUMBER = (struct.Struct(form) for form in ("<II", "<BII", "<BI", "<d"))
_UPDATE, _MOVE, _SETTLE, _STEP = 1, 2, 3, 4
_FLAGS = _HAS_SHRINK, _HAS_LR, _HAS_DISPLACEMENT_DECAY = 16, 32, 64
_UPDATES = {_UPDATE | shrink | lr | back for shrink in (0, 16) for lr in (0, 32) for back in (0, 64)}
_MAX_HEADER = 1 << 20
_FEW = 10  # how often a replay may draw each direction, besides writing it


@dataclass(frozen=True)
class Moved:
    """The weights moved to theta + point."""

    point: Displacement


@dataclass(frozen=True)
class Flushed:
    """Pending updates were written."""


@dataclass(frozen=True)
class Stepped:
    """A step ended; steps are counted from 0."""

    number: int


Record = Update | Moved | Flushed | Stepped


class TrajectoryWriter(UpdateLog):
    """Appends to a trajectory file; each record has been handed to the system when a call returns.

    Args:
        path: path of a new file, or of one to continue; or a new file that is already open.
        seed: the seed of all keys.
        header: JSON that a replay needs: noise, rule, evaluator, selection, hash of the base weights.
        keep: bytes of an existing file to keep; the rest is cut off.
    """

    def __init__(self, path: Path | IO[bytes], seed: int, header: Mapping[str, Any], keep: int | None = None) -> None:
        self._seed, self._size = seed, 0
        self._file: IO[bytes] = path.open("xb" if keep is None else "r+b") if isinstance(path, Path) else path
        if keep is not None:
            self._file.truncate(keep)
            self._file.seek(keep)
            return
        text = json.dumps({"seed": seed, **header}, sort_keys=True).encode()
        self._file.write(MAGIC + _LENGTH.pack(len(text), zlib.crc32(text)) + text)
        self._file.flush()

    @property
    def size(self) -> int:
        """Size of the file in bytes, also after it is closed."""
        return self._size if self._file.closed else self._file.tell()

    def on_update(self, update: Update) -> None:
        """Append an update. For a rule that is not linear, the displacement is the gradient that the rule was given."""
        given = (update.decay_factor or None, update.lr, update.displacement_decay)
        kind = _UPDATE | sum(flag for flag, number in zip(_FLAGS, given, strict=True) if number is not None)
        numbers = b"".join(_NUMBER.pack(number) for number in given if number is not None)
        self._append(kind, len(update.displacement), numbers + self._terms(update.displacement))

    def on_move(self, point: Displacement) -> None:
        self._append(_MOVE, len(point), self._terms(point))

    def on_flush(self) -> None:
        self._append(_SETTLE, 0)

    def stepped(self, number: int) -> None:
        """Step `number`, counted from 0, has ended."""
        self._append(_STEP, number)

    def append(self, record: Record) -> None:
        """Append a record from a trajectory with the same seed."""
        if isinstance(record, Moved):
            self.on_move(record.point)
        elif isinstance(record, Flushed):
            self.on_flush()
        elif isinstance(record, Stepped):
            self.stepped(record.number)
        else:
            self.on_update(record)

    def _terms(self, displacement: Displacement) -> bytes:
        for key in displacement:
            if key.seed != self._seed:
                raise ValueError(f"{key} does not have the trajectory's seed {self._seed}")
        return b"".join(TERM.pack(key.step, key.index, coefficient) for key, coefficient in displacement.items())

    def _append(self, kind: int, number: int, payload: bytes = b"") -> None:
        self._file.write(_FRAME.pack(kind, number, _checksum(kind, number, payload)) + payload)
        self._file.flush()

    def close(self) -> None:
        """Close the file; it then accepts no more records."""
        self._size = self.size
        self._file.close()


@dataclass(frozen=True)
class Trajectory:
    """A trajectory file, read.

    Args:
        header: the header passed to the writer, with the seed.
        records: the records in order.
        whole: False if the file ends inside a record; `records` then has all before it.
    """

    header: Mapping[str, Any]
    records: tuple[Record, ...]
    whole: bool

    @property
    def updates(self) -> tuple[Update, ...]:
        """The updates only."""
        return tuple(record for record in self.records if isinstance(record, Update))

    @property
    def updates_by_step(self) -> dict[int, list[Update]]:
        """The updates of each step that has ended, by its number."""
        found: dict[int, list[Update]] = {}
        waiting: list[Update] = []
        for record in self.records:
            if isinstance(record, Update):
                waiting.append(record)
            elif isinstance(record, Stepped):
                found[record.number], waiting = waiting, []
        return found

    @property
    def steps(self) -> int:
        """The number of steps."""
        return 1 + max((record.number for record in self.records if isinstance(record, Stepped)), default=-1)

    @property
    def of_adapter(self) -> bool:
        """Whether it moves the tensors of an adapter instead of the backbone."""
        return "adapter" in self.header

    @property
    def cheap(self) -> bool:
        """Whether an exact replay costs little.

        That is, probes wrote nothing (`in-forward`), and no displacement decay draws all directions again and again.
        """
        terms = again = 0
        for record in self.records:
            if isinstance(record, Update):
                again += terms if record.displacement_decay else 0
                terms += len(record.displacement)
        if again > _FEW * terms:
            return False
        evaluator = self.header.get("evaluator")
        name = evaluator.get("name") if isinstance(evaluator, dict) else None
        return isinstance(name, str) and name in EVALUATORS and not EVALUATORS[name].writes_points

    def first(self, steps: int) -> tuple[Record, ...]:
        """The records of the first `steps` steps; raises RunError if there are fewer."""
        if steps > self.steps:
            raise RunError(f"the trajectory has {self.steps} steps, not {steps}", f"ask for {self.steps} or fewer")
        last = 0
        for place, record in enumerate(self.records, start=1):
            if isinstance(record, Stepped) and record.number < steps:
                last = place
        return self.records[:last]

    def to_bytes(self) -> bytes:
        """The content of its file."""
        file = io.BytesIO()
        header = {name: value for name, value in self.header.items() if name != "seed"}
        writer = TrajectoryWriter(file, self.header["seed"], header)
        for record in self.records:
            writer.append(record)
        return file.getvalue()

    @classmethod
    def read(cls, path: Path, size: int | None = None) -> Trajectory:
        """Read a trajectory file, up to the last whole record.

        Args:
            path: path of the file.
            size: how many bytes to read; all by default.

        Raises:
            RunError: not a trajectory, a wrong checksum of the header or a record, or a non-finite number.
        """
        try:
            check_not_special(path)
            data = path.read_bytes()[:size]
        except OSError as error:
            raise RunError(f"cannot read {str(path)!r}: {error.strerror}") from error
        return cls.parse(data, path)

    @classmethod
    def parse(cls, data: bytes, path: Path | str) -> Trajectory:
        """Parse the content of a file that comes from `path`."""
        start = len(MAGIC) + _LENGTH.size
        if data.startswith(_ANY_MAGIC) and not data.startswith(MAGIC):
            raise RunError(
                f"{path}: a trajectory of the format {data[: len(MAGIC)]!r}, and this version reads {MAGIC!r}",
                "use the version of zofo that wrote it",
            )
        if not data.startswith(MAGIC) or len(data) < start:
            raise DamagedRunError(f"{path}: not a trajectory")
        length, checksum = _LENGTH.unpack_from(data, len(MAGIC))
        text = data[start : start + length]
        try:
            if length > _MAX_HEADER or len(text) < length or zlib.crc32(text) != checksum:
                raise ValueError("cut, or a wrong checksum")
            header = method_as_now(json.loads(text))
            seed = header["seed"]
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise DamagedRunError(f"{path}: the header of the trajectory is damaged") from error
        if type(seed) is not int or not 0 <= seed < 1 << 64:
            raise DamagedRunError(
                f"{path}: the header of the trajectory is damaged: it has no seed that a run can have"
            )
        records, whole = _read_records(path, data, start + length, seed)
        return cls(header, tuple(records), whole)


def _checksum(kind: int, number: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(_KIND.pack(kind, number)))


def _read_records(path: Path | str, data: bytes, at: int, seed: int) -> tuple[list[Record], bool]:
    """The records from an offset on, and whether the last one is complete."""
    records: list[Record] = []
    steps = 0  # the first that can end: a sum of updates ends with the last step alone
    while at < len(data):
        body, place = at + _FRAME.size, f"{path}: the record at byte {at}"
        if body > len(data):
            return records, False
        kind, number, checksum = _FRAME.unpack_from(data, at)
        flags = [flag for flag in _FLAGS if kind & flag]
        terms = body + _NUMBER.size * len(flags)
        end = terms + (TERM.size * number if kind in {*_UPDATES, _MOVE} else 0)
        if end > len(data):
            return records, False
        if kind not in {*_UPDATES, _MOVE, _SETTLE, _STEP} or _checksum(kind, number, data[body:end]) != checksum:
            raise DamagedRunError(f"{place} is damaged (its checksum is wrong)")
        if kind == _SETTLE:
            records.append(Flushed())
        elif kind == _STEP:
            if number < steps:
                raise DamagedRunError(f"{place} ends step {number}, which has ended")
            steps = number + 1
            records.append(Stepped(number))
        else:
            given = {flag: _NUMBER.unpack_from(data, body + _NUMBER.size * i)[0] for i, flag in enumerate(flags)}
            coefficients = {Key(seed, step, i): c for step, i, c in TERM.iter_unpack(data[terms:end])}
            if not all(map(math.isfinite, (*given.values(), *coefficients.values()))):
                raise DamagedRunError(f"{place} has a value that is not finite")
            point = Displacement(coefficients)
            decay, back = given.get(_HAS_SHRINK, 0.0), given.get(_HAS_DISPLACEMENT_DECAY)
            update = Update(point, decay, lr=given.get(_HAS_LR), displacement_decay=back)
            records.append(Moved(point) if kind == _MOVE else update)
        at = end
    return records, True
