"""Handwritten digits by a small network, the second toy problem of the MeZO-SVRG paper."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from zofo.displacement import Key
from zofo.errors import ConfigError, DataError
from zofo.noise import Gaussian, permutation
from zofo.studies.problems.base import PROBLEMS, Count, Problem, Rows, Seed

CLASSES = 10
HIDDEN = (32, 16)


@PROBLEMS.register("digits")
class Digits(Problem):
    """Cross-entropy of a network with hidden layers of 32 and 16 units (ReLU) on images of the ten digits.

    Without a folder: scikit-learn's 1,797 images of 8 x 8, in a seeded order; the last `held_out` are the test split,
    those before them validation. With a folder: MNIST's 28 x 28, where validation is held out of the training files in
    the same way and the test split is MNIST's own. Numbers are scaled to [0, 1]. Weights start from N(0, 2 / inputs) of
    the run's seed, biases at 0.

    Args:
        folder: folder with MNIST's four idx files, compressed or not; None takes the images of scikit-learn.
        rows: number of training images to keep; None keeps all.
        held_out: number of validation images, and of test images if there is no test set.
        data_seed: seed of the order in which images are split.

    Raises:
        ConfigError: nothing is left to train on.
        DataError: files are missing or damaged, or images and labels do not match.

    Source: MeZO-SVRG (Gautam et al. 2024), section B.1, on MNIST, which does not name the activation. The images of
    scikit-learn are those of Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits.
    """

    metric = "accuracy"
    higher_is_better = True

    def __init__(
        self, folder: str | None = None, rows: Count | None = None, held_out: Count = 300, data_seed: Seed = 0
    ) -> None:
        given, test = (_mnist(Path(folder), "train"), _mnist(Path(folder), "t10k")) if folder else (_small(), None)
        order = permutation(Key(data_seed, 0), "digits/split", len(given.y))
        held = [held_out] if test else [held_out, held_out]
        left = len(order) - sum(held)
        if left < (rows or 1):
            raise ConfigError(
                f"problem.held_out is {held_out}, which is {sum(held)} images, and problem.rows is {rows or 1}, "
                f"but there are {len(order)} images in all",
                f"lower problem.held_out{' or problem.rows' if rows else ''}",
            )
        self.splits = {
            "train": _some(given, order[: rows or left]),
            "validation": _some(given, order[left : left + held_out]),
            "test": test or _some(given, order[left + held_out :]),
        }
        labels = self.splits["test"].y
        self.majority = labels.bincount().max().item() / len(labels)

    def model(self, seed: int) -> nn.Sequential:
        sizes = [self.splits["train"].x.shape[1], *HIDDEN, CLASSES]
        layers: list[nn.Module] = []
        for inputs, outputs in zip(sizes, sizes[1:], strict=False):
            layers += [nn.ReLU()] if layers else []
            layers.append(_linear(inputs, outputs, Key(seed, 0), f"digits/start/{len(layers)}"))
        return nn.Sequential(*layers)

    def losses(self, model: nn.Module, rows: Rows) -> torch.Tensor:
        """Cross-entropy of the right class."""
        return F.cross_entropy(model(rows.x), rows.y, reduction="none")

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        """Mean cross-entropy, and "accuracy"."""
        rows = self.rows(split)
        found = model(rows.x)
        losses = F.cross_entropy(found.double(), rows.y)
        return {"loss": losses.item(), "accuracy": (found.argmax(1) == rows.y).double().mean().item()}


def _linear(inputs: int, outputs: int, key: Key, name: str) -> nn.Linear:
    """A layer with weights from N(0, 2 / inputs) and biases 0 (He et al. 2015)."""
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")  # its own start draws globally
    with torch.no_grad():
        layer.weight.copy_(Gaussian().whole(key, name, (outputs, inputs)) * math.sqrt(2 / inputs))
        layer.bias.zero_()
    return layer


def _some(rows: Rows, order: Sequence[int]) -> Rows:
    index = torch.tensor(order)
    return Rows(rows.x[index], rows.y[index])


def _as_rows(images: npt.NDArray[np.generic], labels: npt.NDArray[np.generic], largest: float) -> Rows:
    x = torch.from_numpy(images.astype(np.float32)) / largest
    return Rows(x.flatten(1), torch.from_numpy(labels.astype(np.int64)))


def _small() -> Rows:
    """The images of scikit-learn, whose numbers are 0 to 16."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return _as_rows(images, labels, 16.0)


def _mnist(folder: Path, part: str) -> Rows:
    """The images of one part of MNIST, whose numbers are 0 to 255."""
    images = read_idx(folder, f"{part}-images-idx3-ubyte", 3)
    labels = read_idx(folder, f"{part}-labels-idx1-ubyte", 1)
    if len(images) != len(labels) or not len(labels):
        raise DataError(f"{folder}: {len(images)} images of {part!r}, but {len(labels)} labels")
    if labels.max() >= CLASSES:
        raise DataError(f"{folder}: a label of {part!r} is {labels.max()}, but digits are 0 to {CLASSES - 1}")
    return _as_rows(images, labels, 255.0)


_BYTES = 0x08  # the code of unsigned bytes in the magic number
_MOST_COMPRESSED = 1032  # bytes that gzip can make of one
_AGAIN = "copy the file again: it is damaged or not complete"


def read_idx(folder: Path, name: str, axes: int) -> npt.NDArray[np.uint8]:
    """The numbers in a file: uint8, with the given number of axes.

    Args:
        name: name of the file, such as `train-images-idx3-ubyte`; it may end in `.gz`, or be written with `.idx3`.
        axes: number of sizes in its header.

    Raises:
        DataError: there is no such file, it has another magic number, or fewer or more bytes than its sizes say.

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
