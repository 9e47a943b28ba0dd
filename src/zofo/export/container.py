"""The file format of a patch: a JSON header and blobs, with a hash over every byte.

Little-endian: the magic `ZOFOPTCH`; the version (uint32); the header's length (uint32) and SHA-256 (32 bytes); the
header as JSON; then the blobs, one after the other. The header's `parts` lists them in this order, each with its name,
its number of bytes and its SHA-256; nothing follows the last one.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from zofo.errors import PatchError
from zofo.filesystem import refuse_special

MAGIC, VERSION = b"ZOFOPTCH", 2
_FRAME = struct.Struct("<8sII32s")
_MAX_HEADER, _MAX_PARTS = 1 << 20, 64
_NAME = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)?")


def packed(header: Mapping[str, Any], parts: Mapping[str, bytes]) -> bytes:
    """The content of a patch file.

    Args:
        header: JSON values with finite numbers.
        parts: the blobs by name.

    Raises:
        PatchError: the header is too long for `unpacked`.
    """
    listed = [{"name": n, "bytes": len(b), "sha256": hashlib.sha256(b).hexdigest()} for n, b in parts.items()]
    text = json.dumps({**header, "parts": listed}, sort_keys=True, allow_nan=False).encode()
    if len(text) > _MAX_HEADER:
        raise PatchError(
            f"a patch has a header of at most {_MAX_HEADER:,} bytes, and this one would have {len(text):,}",
            "write the whole model with --merged DIR, or give the task fewer or shorter labels",
        )
    frame = _FRAME.pack(MAGIC, VERSION, len(text), hashlib.sha256(text).digest())
    return b"".join([frame, text, *parts.values()])


def unpacked(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Header and blobs of a patch file; it allocates no more than the file holds.

    Raises:
        PatchError: not a patch, of a newer version, cut short, changed, or with names or sizes that no patch has.
    """
    try:
        refuse_special(path)
        with path.open("rb") as file:
            frame = file.read(_FRAME.size)
            if not frame.startswith(MAGIC[: len(frame)]) or len(frame) < len(MAGIC):
                raise PatchError(f"{str(path)!r} is not a patch", "patches are written by `zofo export RUN --patch`")
            if len(frame) < _FRAME.size:
                _cut(path)
            _, version, length, digest = _FRAME.unpack(frame)
            if version > VERSION:
                raise PatchError(
                    f"{str(path)!r} is a patch of version {version}, and this zofo reads up to version {VERSION}",
                    "upgrade with: pip install --upgrade zofo",
                )
            if length > _MAX_HEADER:
                raise PatchError(f"{str(path)!r}: a header of {length} bytes, which no patch has", _SOURCE)
            text = file.read(length)
            if len(text) < length:
                _cut(path)
            if hashlib.sha256(text).digest() != digest or version < 1:
                raise PatchError(f"{str(path)!r}: the header was changed: its SHA-256 is another one", _SOURCE)
            header = _header(path, text)
            sizes = _sizes(path, header)
            rest, wanted = path.stat().st_size - file.tell(), sum(sizes.values())
            if rest < wanted:
                _cut(path)
            if rest > wanted:
                raise PatchError(f"{str(path)!r}: {rest - wanted} bytes follow the last part", _SOURCE)
            parts = {name: file.read(size) for name, size in sizes.items()}
    except OSError as error:
        raise PatchError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    for listed in header.pop("parts"):
        if hashlib.sha256(parts[listed["name"]]).hexdigest() != listed["sha256"]:
            raise PatchError(
                f"{str(path)!r}: the part {listed['name']!r} was changed: its SHA-256 is another one", _SOURCE
            )
    return header, parts


_SOURCE = "fetch the file again, from a source that you trust"


def _header(path: Path, text: bytes) -> dict[str, Any]:
    def refuse(name: str) -> NoReturn:
        raise ValueError(f"it holds the number {name}")

    def finite(digits: str) -> float:
        number = float(digits)
        return number if math.isfinite(number) else refuse(digits[:40])

    def as_float_can_be(digits: str) -> int:
        return int(digits) if len(digits) <= 100 else refuse(f"{digits[:20]}...")

    try:
        header = json.loads(text, parse_constant=refuse, parse_float=finite, parse_int=as_float_can_be)
        if not isinstance(header, dict):
            raise ValueError("it is no object")
    except (ValueError, RecursionError) as error:
        raise PatchError(f"{str(path)!r}: the header is not one of a patch: {error}", _SOURCE) from error
    return header


def _sizes(path: Path, header: Mapping[str, Any]) -> dict[str, int]:
    """Bytes of each part, in the order of the file."""
    parts = header.get("parts")
    if not isinstance(parts, list) or len(parts) > _MAX_PARTS:
        raise PatchError(f"{str(path)!r}: the header lists no parts, or too many", _SOURCE)
    sizes: dict[str, int] = {}
    for part in parts:
        if not isinstance(part, dict) or set(part) != {"name", "bytes", "sha256"}:
            raise PatchError(f"{str(path)!r}: the header lists a part without name, bytes and sha256", _SOURCE)
        name, size = part["name"], part["bytes"]
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in sizes:
            raise PatchError(f"{str(path)!r}: {str(name)[:80]!r} cannot be the name of a part", _SOURCE)
        if type(size) is not int or not 0 <= size < 1 << 48:
            raise PatchError(f"{str(path)!r}: the part {name!r} cannot have {str(size)[:40]} bytes", _SOURCE)
        sizes[name] = size
    return sizes


def _cut(path: Path) -> NoReturn:
    raise PatchError(f"{str(path)!r} is cut short: it ends before its last part does", _SOURCE)
