"""The trajectory: every update of the backbone, in 16 bytes a term. With the base model it is the trained model.

File format, little-endian: the magic `ZOFOTRJ1`; a frame of the header's length (uint32) and CRC-32 (uint32); the
header as JSON; then for each update a frame of the number of terms (uint32, highest bit set when a shrink follows, the
next one when a learning rate does) and the CRC-32 (uint32) over that number and the payload, and the payload: the
shrink (float64, if any), the learning rate (float64, if any), and for each term step (uint32), index (uint32) and
coefficient (float64). The seed of all keys stands in the header. A one-term update
takes 24 bytes.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from zofo.backbone import Update
from zofo.displacement import Displacement, Key
from zofo.errors import RunError

MAGIC = b"ZOFOTRJ1"
_FRAME, _TERM, _NUMBER, _COUNT = (struct.Struct(form) for form in ("<II", "<IId", "<d", "<I"))
_HAS_SHRINK, _HAS_LR = 1 << 31, 1 << 30
_MAX_HEADER = 1 << 20


class TrajectoryWriter:
    """Appends updates to a new trajectory file; each is on its way to disk when `append` returns.

    Args:
        path: of the new file.
        seed: that all keys share.
        header: anything JSON that a reader needs to replay: noise, rule, selection, hash of the base weights.
    """

    def __init__(self, path: Path, seed: int, header: Mapping[str, Any]) -> None:
        self._seed = seed
        self._file: IO[bytes] = path.open("xb")
        text = json.dumps({"seed": seed, **header}, sort_keys=True).encode()
        self._file.write(MAGIC + _FRAME.pack(len(text), zlib.crc32(text)) + text)
        self._file.flush()

    def append(self, update: Update) -> None:
        """Write one update. For a rule that is not linear, its displacement is the gradient the rule was given."""
        flags = (_HAS_SHRINK if update.shrink else 0) | (_HAS_LR if update.lr is not None else 0)
        payload = _NUMBER.pack(update.shrink) if update.shrink else b""
        payload += _NUMBER.pack(update.lr) if update.lr is not None else b""
        for key, coefficient in update.displacement.items():
            if key.seed != self._seed:
                raise ValueError(f"{key} does not have the trajectory's seed {self._seed}")
            payload += _TERM.pack(key.step, key.index, coefficient)
        count = len(update.displacement) | flags
        self._file.write(_FRAME.pack(count, _checksum(count, payload)) + payload)
        self._file.flush()

    def close(self) -> None:
        """Close the file; a closed trajectory takes no more updates."""
        self._file.close()


@dataclass(frozen=True)
class Trajectory:
    """A trajectory file, read.

    Args:
        header: as it was given to the writer, with the seed.
        updates: one for each step that moved the backbone, in order.
        whole: False when the file ends inside a record; `updates` then holds all before it.
    """

    header: Mapping[str, Any]
    updates: tuple[Update, ...]
    whole: bool

    @classmethod
    def read(cls, path: Path) -> Trajectory:
        """Read a trajectory file, up to the last whole record.

        Raises:
            RunError: not a trajectory, or a header or record whose checksum is wrong.
        """
        try:
            data = path.read_bytes()
        except OSError as error:
            raise RunError(f"cannot read {str(path)!r}: {error.strerror}") from error
        start = len(MAGIC) + _FRAME.size
        if not data.startswith(MAGIC) or len(data) < start:
            raise RunError(f"{path}: not a trajectory of this version of zofo")
        length, checksum = _FRAME.unpack_from(data, len(MAGIC))
        text = data[start : start + length]
        try:
            if length > _MAX_HEADER or len(text) < length or zlib.crc32(text) != checksum:
                raise ValueError("cut, or a wrong checksum")
            header = json.loads(text)
            seed = int(header["seed"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise RunError(f"{path}: the header of the trajectory is damaged") from error
        records = _Records(path, data, start + length, seed)
        updates = tuple(records)
        return cls(header, updates, records.whole)


def _checksum(count: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(_COUNT.pack(count)))


class _Records:
    def __init__(self, path: Path, data: bytes, start: int, seed: int) -> None:
        self._path, self._data, self._at, self._seed = path, data, start, seed
        self.whole = True

    def __iter__(self) -> Iterator[Update]:
        data = self._data
        while self._at < len(data):
            body = self._at + _FRAME.size
            if body > len(data):
                self.whole = False
                return
            count, checksum = _FRAME.unpack_from(data, self._at)
            numbers = [flag for flag in (_HAS_SHRINK, _HAS_LR) if count & flag]
            end = body + _NUMBER.size * len(numbers) + _TERM.size * (count & ~(_HAS_SHRINK | _HAS_LR))
            if end > len(data):
                self.whole = False
                return
            payload = data[body:end]
            if _checksum(count, payload) != checksum:
                raise RunError(f"{self._path}: the record at byte {self._at} is damaged (its checksum is wrong)")
            yield self._update(payload, numbers)
            self._at = end

    def _update(self, payload: bytes, numbers: list[int]) -> Update:
        given = {flag: _NUMBER.unpack_from(payload, _NUMBER.size * i)[0] for i, flag in enumerate(numbers)}
        terms = _TERM.iter_unpack(payload[_NUMBER.size * len(numbers) :])
        displacement = Displacement({Key(self._seed, step, index): c for step, index, c in terms})
        return Update(displacement, given.get(_HAS_SHRINK, 0.0), lr=given.get(_HAS_LR))
