"""The file format of a patch: one safetensors file with a JSON header in its metadata, and a hash over all of it.

Each part is a tensor of bytes (uint8) under its name. The metadata hold `version`; `header`, the header as JSON; and
`sha256`, over the header and over names and contents of the parts. Versions 1 and 2 had a form of their own, which is
still read.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from zofo.errors import PatchError, first_line
from zofo.filesystem import check_not_special

VERSION = 3
_OLD_MAGIC, _OLD_FRAME = b"ZOFOPTCH", struct.Struct("<8sII32s")
_MAX_HEADER = 1 << 20


def packed(header: Mapping[str, Any], parts: Mapping[str, bytes]) -> bytes:
    """The content of a patch file; raises PatchError for a header that is too long for `unpacked`."""
    text = json.dumps(header, sort_keys=True, allow_nan=False)
    if len(text) > _MAX_HEADER:
        raise PatchError(
            f"a patch has a header of at most {_MAX_HEADER:,} bytes, and this one would have {len(text):,}",
            "write the whole model with --merged DIR, or give the task fewer or shorter labels",
        )
    tensors = {name: np.frombuffer(part, np.uint8) for name, part in parts.items()}
    return bytes(save(tensors, {"version": str(VERSION), "header": text, "sha256": _hash_of(text, parts)}))


def unpacked(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Header and blobs of a patch file; it allocates no more than the file holds.

    Raises:
        PatchError: not a patch, of a newer version, cut short, or changed.
    """
    try:
        check_not_special(path)
        with path.open("rb") as file:
            is_old = file.read(len(_OLD_MAGIC)) == _OLD_MAGIC
        return _unpacked_old(path.read_bytes()) if is_old else _unpacked(path)
    except OSError as error:
        raise PatchError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError, struct.error) as error:
        raise PatchError(
            f"{str(path)!r} is not a patch, or it was cut short or changed: {first_line(error)}",
            "fetch the file again, from a source that you trust; patches are written by `zofo export RUN --patch`",
        ) from error


def _unpacked(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    with safe_open(path, framework="numpy") as file:
        said: dict[str, str] = file.metadata() or {}
        version = int(said["version"])
        if version > VERSION:
            raise PatchError(
                f"{str(path)!r} is a patch of version {version}, and this zofo reads up to version {VERSION}",
                "upgrade with: pip install --upgrade zofo",
            )
        parts = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
    if version != VERSION or said["sha256"] != _hash_of(said["header"], parts):
        raise ValueError("its SHA-256 is another one")
    return _parsed(said["header"]), parts


def _unpacked_old(data: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Versions 1 and 2: the magic, the version, length and SHA-256 of the header, the header, which lists name, length
    and SHA-256 of each part, and the parts."""
    _, version, length, digest = _OLD_FRAME.unpack_from(data)
    place = _OLD_FRAME.size + length
    text = data[_OLD_FRAME.size : place]
    if version not in (1, 2) or hashlib.sha256(text).digest() != digest:
        raise ValueError("the SHA-256 of its header is another one")
    header, parts = _parsed(text), {}
    for listed in header.pop("parts"):
        part = data[place : place + listed["bytes"]]
        if hashlib.sha256(part).hexdigest() != listed["sha256"]:
            raise ValueError(f"the SHA-256 of the part {str(listed['name'])[:80]!r} is another one")
        parts[listed["name"]], place = part, place + len(part)
    if place != len(data):
        raise ValueError(f"{len(data) - place} bytes follow the last part")
    return header, parts


def _hash_of(header: str, parts: Mapping[str, bytes]) -> str:
    hashes = {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()}
    return hashlib.sha256(json.dumps([header, hashes], sort_keys=True).encode()).hexdigest()


def _parsed(text: str | bytes) -> dict[str, Any]:
    header = json.loads(text, parse_constant=_number, parse_float=_number, parse_int=_number)
    if len(text) > _MAX_HEADER or not isinstance(header, dict):
        raise ValueError("its header is too long, or no JSON object")
    return header


def _number(digits: str) -> float:
    """A number of JSON; ValueError for one that no float can hold."""
    if not math.isfinite(float(digits)):
        raise ValueError(f"it holds the number {digits[:20]}")
    return int(digits) if digits.lstrip("-").isdecimal() else float(digits)
