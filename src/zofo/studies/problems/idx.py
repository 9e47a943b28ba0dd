"""The files in which MNIST is given out: a magic number, the sizes, then one byte a number."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from zofo.errors import DataError

_BYTES = 0x08  # the code of unsigned bytes in the magic number
_MOST_COMPRESSED = 1032  # bytes that gzip can make of one
_AGAIN = "copy the file again: it is damaged or not complete"


def read_idx(folder: Path, name: str, axes: int) -> npt.NDArray[np.uint8]:
    """The numbers of one file: uint8, with as many axes as asked for.

    Args:
        folder: that holds the file.
        name: of the file, such as `train-images-idx3-ubyte`; it may end in `.gz`, or be written with `.idx3`.
        axes: how many sizes its header must give.

    Raises:
        DataError: no such file, another magic number, or fewer or more bytes than its sizes say.

    Source: the description of the format that LeCun's page on MNIST gives.
    """
    path = _found(folder, name)
    header = struct.Struct(f">{1 + axes}I")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            start = file.read(header.size)
            if len(start) < header.size:
                raise DataError(f"{path}: {len(start)} bytes, shorter than the header of an idx file", _AGAIN)
            magic, *shape = header.unpack(start)
            wanted = _BYTES << 8 | axes
            if magic != wanted:
                raise DataError(
                    f"{path}: its magic number is {magic}, but that of bytes with {axes} axes is {wanted}",
                    "a file that is compressed must be named .gz; one of images must not be named one of labels",
                )
            expected = int(np.prod(shape, dtype=object))
            possible = path.stat().st_size * _MOST_COMPRESSED  # memory for what the header says may not even exist
            content = file.read(min(expected, possible) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}", _AGAIN) from error
    if len(content) != expected:
        more = "more" if len(content) > expected else f"{len(content)}"
        raise DataError(f"{path}: its header says {' x '.join(map(str, shape))} bytes, but it holds {more}", _AGAIN)
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _found(folder: Path, name: str) -> Path:
    written = [name, name.replace("-idx", ".idx")]
    tried = [folder / f"{one}{ending}" for one in written for ending in ("", ".gz")]
    for path in tried:
        if path.is_file():
            return path
    raise DataError(
        f"{folder}: no file {name!r} in it, nor {name + '.gz'!r}",
        "problem.folder must hold the four files of MNIST: train-images-idx3-ubyte, train-labels-idx1-ubyte, "
        "t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte",
    )
