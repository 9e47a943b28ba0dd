"""A patch: what a run adds to its base model, in one file of kilobytes.

It is a safetensors file. Each part is a tensor of bytes (uint8) under its name. The metadata has `version`; `header`,
the header as JSON; and `sha256`, over the header and over names and contents of the parts. Versions 1 and 2 had a
format of their own, which can still be read.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from safetensors.torch import load

from zofo.adapters import check_untrusted_adapter
from zofo.adapters.untrusted import WEIGHTS, can_name_a_tensor
from zofo.config import Config, is_name, parse_model
from zofo.errors import ConfigError, PatchError, RunError, as_ascii, error_context, first_line, printable
from zofo.export.run_metrics import EVALUATED
from zofo.export.vote_patch import ASKED, MEMBERS, VotePart
from zofo.filesystem import check_not_special
from zofo.models import ModelConfig
from zofo.noise import STREAM_VERSION
from zofo.tasks import METRICS
from zofo.training.identity import Identity
from zofo.trajectory import Trajectory
from zofo.trajectory.replay import parts_of

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
LONGEST = 400  # characters of a text in the header
_MOST_RANK = 64  # of noise: a hostile patch could draw more numbers than fit into memory
_Sha256 = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
_PART = r"[^\s./:\\~^?*\[][^\s/:\\~^?*\[]*"
_REVISION = re.compile(rf"{_PART}(/{_PART})*")  # a name in git; it becomes a part of a path in the Hub's cache


class Base(Config):
    """The model that a patch belongs to."""

    name: str
    """An embedded name, a Hub id, or the last part of a folder's path."""
    revision: str | None = None
    """Branch, tag or commit, for a Hub id."""
    dtype: str
    """Dtype of the weights."""
    head: str | None = None
    """Head of the model, where it was configured."""
    head_seed: int = Field(0, ge=0, lt=1 << 64)
    """Seed of a head that the checkpoint does not bring."""
    labels: int | None = Field(None, ge=1, le=1 << 16)
    """Number of labels of a classification."""
    label_names: list[str] = Field([], max_length=1 << 16)
    """Names of the labels."""
    sha256: _Sha256
    """Hash of all weights."""
    identity: dict[str, Any] = {}
    """Hashes of everything else that decides its outputs, see `Identity`; empty in patches of version 1."""

    @property
    def known(self) -> Identity:
        """The identity of the model; raises RunError if the record is invalid."""
        return Identity.read({**self.identity, "model_hash": self.sha256}).of_model

    def config(self, name: str, revision: str | None = None) -> ModelConfig:
        """The configuration that loads the model from `name`; the recorded revision is that of its own name."""
        if revision is None and name == self.name:
            revision = self.revision
        given = {"name": name, "revision": revision, "dtype": self.dtype, "head": self.head}
        return parse_model(ModelConfig, {**given, "head_seed": self.head_seed}, "base")


class StageHeader(Config):
    """One run of a chain in which each run starts from the previous one."""

    steps: int = Field(ge=0, lt=1 << 32)
    """Number of steps."""
    exact: bool
    """Whether the trajectory holds every record of the run; else it holds the sum of its updates."""
    trajectory: str | None = None
    """Name of the part with the trajectory; None where the backbone does not move."""
    weights: str | None = None
    """Name of the part with weights that first-order steps trained."""


class Header(Config):
    """The header of a patch."""

    zofo: str
    """Version of zofo that wrote it."""
    stream: int
    """Version of the noise stream."""
    noise: dict[str, Any] | None = None
    """The distribution of directions, with its options."""
    base: Base
    """The model that it belongs to."""
    method: str
    """Method of the run."""
    task: str
    """Task of the run."""
    variant: str
    """Model of the run that the patch holds."""
    best: bool = False
    """Whether it holds the best evaluation instead of the last step."""
    metrics: dict[str, str | float | int | None]
    """Scores on validation, steps and queries."""
    stages: list[StageHeader] = Field(min_length=1, max_length=8)
    """The runs of the chain, in order."""
    adapter: bool = False
    """Whether it holds an adapter."""
    vote: int | None = Field(None, ge=2, le=1 << 12)
    """Number of members of a vote; None for what is one model."""
    backbone: _Sha256 | None = None
    """SHA-256 of the tensors that the last trajectory moves, as training left them."""


@dataclass(frozen=True)
class Stage:
    """The header of a stage with the content of its parts."""

    header: StageHeader
    trajectory: Trajectory | None
    weights: bytes | None


@dataclass(frozen=True)
class Patch:
    """A checked patch: its header, its chain of runs, its adapter's files by name, and the members of a vote."""

    header: Header
    stages: tuple[Stage, ...]
    adapter: Mapping[str, bytes]
    vote: VotePart | None = None

    @classmethod
    def read(cls, path: Path) -> Patch:
        """Read a patch. Raises PatchError if it is damaged, newer than this zofo, or no run can have written it."""
        content, parts = unpacked(path)
        with error_context(repr(str(path)), RunError):
            try:
                header = parse_model(Header, content)
            except ConfigError as error:
                raise PatchError(f"the header is not one of a patch: {error.message}") from error
            _check(header)
            left = dict(parts)
            stages = tuple(_stage(stage, left) for stage in header.stages)
            adapter = {name: _taken(left, name) for name in ADAPTER} if header.adapter else {}
            vote = None if header.vote is None else _vote(header, stages, left)
            if left:
                raise PatchError(f"nothing says what the part {next(iter(left))!r} is for")
        return cls(header, stages, adapter, vote)

    def inspect(self, folder: Path) -> None:
        """Raise RunError for a part that zofo cannot have written: everything is checked except what needs the model.

        The adapter is written to a new folder.
        """
        for stage in self.stages:
            if stage.trajectory is not None:
                try:
                    parts_of(stage.trajectory.header)
                except ConfigError as error:  # an unknown noise, rule, mask or evaluator, or an option it does not have
                    hint = None if error.hint is None else printable(error.hint)
                    raise PatchError(f"the header of the trajectory: {printable(error.message)}", hint) from error
            if stage.weights is not None:
                _check_weights(f"the part {stage.header.weights!r}", stage.weights)
        if self.adapter:
            self.write_adapter(folder)
            check_untrusted_adapter(folder)

    def write_adapter(self, folder: Path) -> None:
        """Write the adapter as a peft folder."""
        folder.mkdir(parents=True)
        for name, content in self.adapter.items():
            (folder / name).write_bytes(content)


def _check_weights(part: str, content: bytes) -> None:
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError, OverflowError) as error:
        raise PatchError(f"{part} holds no tensors: {as_ascii(str(error))}") from error
    if not tensors:
        raise PatchError(f"{part} holds no tensors: it is empty")
    for name, tensor in tensors.items():
        if not can_name_a_tensor(name):
            raise PatchError(f"{part}: {as_ascii(name)} cannot be the name of a tensor")
        if tensor.dtype not in WEIGHTS or not tensor.numel():
            raise PatchError(f"{part}: {as_ascii(name)} is {list(tensor.shape)} of {tensor.dtype}, no weights")
        if not tensor.isfinite().all():
            raise PatchError(f"{part}: {as_ascii(name)} has values that are not finite")


def _check(header: Header) -> None:
    for text in _texts(header.model_dump(exclude={"base": {"label_names"}})):  # names of labels are not shown
        if len(text) > LONGEST or not text.isprintable():  # a terminal would obey some of what it is shown
            raise PatchError(f"its header holds a text that cannot be shown: {text[:40]!r}")
    if header.stream != STREAM_VERSION:
        raise PatchError(
            f"it was made with version {header.stream} of the noise stream, and this zofo draws {STREAM_VERSION}",
            f"install zofo=={header.zofo[:20]}",
        )
    names = header.base.label_names
    if names and (len(names) != header.base.labels or len(set(names)) < len(names)):
        raise PatchError(f"its {len(names)} names of labels are not those of {header.base.labels} labels")
    _ = header.base.known  # refuses
    _check_revision(header.base.revision, "the revision of a model")


def _check_revision(revision: str | None, what: str) -> None:
    if revision is not None and (".." in revision or not _REVISION.fullmatch(revision)):
        raise PatchError(f"{printable(revision, 80)!r} cannot be {what}")


def _texts(content: Any) -> Iterator[str]:
    """Every text in JSON values, including keys."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict):
        yield from content
        for value in content.values():
            yield from _texts(value)
    elif isinstance(content, list):
        for value in content:
            yield from _texts(value)


def _taken(parts: dict[str, bytes], name: str) -> bytes:
    if name not in parts:
        raise PatchError(f"the part {name[:80]!r} is missing")
    return parts.pop(name)


def _stage(header: StageHeader, parts: dict[str, bytes]) -> Stage:
    trajectory = None
    if header.trajectory is not None:
        trajectory = Trajectory.parse(_taken(parts, header.trajectory), header.trajectory)
        if not trajectory.whole:
            raise PatchError(f"the part {header.trajectory!r} ends inside a record")
        if trajectory.steps != header.steps:
            raise PatchError(f"the trajectory has {trajectory.steps} steps, but the header says {header.steps}")
        check_trajectory_limits(trajectory)
    weights = None if header.weights is None else _taken(parts, header.weights)
    return Stage(header, trajectory, weights)


def _vote(header: Header, stages: tuple[Stage, ...], parts: dict[str, bytes]) -> VotePart:
    trajectory = stages[0].trajectory
    if trajectory is None or trajectory.updates or len(stages) > 1 or header.adapter or stages[0].weights is not None:
        raise PatchError("it is a vote and holds something else, too, which no run has left")
    members, asked = _taken(parts, MEMBERS), _taken(parts, ASKED)
    try:
        content = _parsed(asked)
    except (ValueError, RecursionError) as error:
        raise PatchError(f"the part {ASKED!r} cannot be read: {as_ascii(first_line(error))}") from error
    assert header.vote is not None
    vote = VotePart.read(header.vote, trajectory, members, content)
    _check_vote(header, vote)
    return vote


def _check_vote(header: Header, vote: VotePart) -> None:
    """Raise PatchError for a header of another run, and for an impossible summary."""
    method = vote.config(ModelConfig(), Path()).method.name
    if header.method != method:
        raise PatchError(f"its header says that the method was {header.method!r}, and the part {ASKED!r} {method!r}")
    if not is_name(header.variant):
        raise PatchError(f"{header.variant[:40]!r} cannot be the name of a model")
    kinds: dict[str, Any] = dict.fromkeys((*METRICS, "loss", "majority"), float | int)
    kinds |= {"metric": str, "steps": int, "queries": int, EVALUATED: int}
    metric = header.metrics.get("metric")
    for name, value in {**header.metrics, "metric": metric}.items():
        known = name in kinds and (value is None or isinstance(value, kinds[name]))
        if not known or (name == "metric" and metric not in METRICS):
            raise PatchError(f"its header says {printable(f'{name}={value!r}', 80)}, which no evaluation has found")
    source = vote.task.source
    if source is not None:
        _check_revision(source.revision, "the revision of a data set")
        _check_revision(source.config, "the configuration of a data set")


def check_trajectory_limits(trajectory: Trajectory) -> None:
    """Raise PatchError for a trajectory that no run can have written, or that needs too much memory."""
    noise = trajectory.header.get("noise")
    rank = noise.get("rank", 1) if isinstance(noise, dict) else 1
    if type(rank) is not int or not 1 <= rank <= _MOST_RANK:
        raise PatchError(f"its noise has rank {str(rank)[:40]}, and a patch may have at most {_MOST_RANK}")
    for update in trajectory.updates:
        if not 0 <= update.decay_factor < 1:
            raise PatchError(f"an update shrinks the weights by {update.decay_factor:g}, which is no share of them")
        if not 0 <= (update.displacement_decay or 0.0) < 1:
            raise PatchError(
                f"an update takes back {update.displacement_decay:g} of what theta has moved, which is no share of it"
            )


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
    """Header and blobs of a patch file; allocates no more than the size of the file.

    Raises:
        PatchError: not a patch, from a newer version, truncated, or modified.
    """
    try:
        check_not_special(path)
        with path.open("rb") as file:
            is_old = file.read(len(_OLD_MAGIC)) == _OLD_MAGIC
        return _unpacked_old(path.read_bytes()) if is_old else _unpacked(path)
    except OSError as error:
        run = shlex.quote(str(path)) if path.is_dir() else "RUN"
        hint = f"name a file that a run was written to: zofo export {run} --patch FILE"
        raise PatchError(f"cannot read {str(path)!r}: {error.strerror or error}", hint) from error
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
    """Read versions 1 and 2: magic, version, header with its length and SHA-256, then the parts it lists.

    They have the magic, the version, length and SHA-256 of the header, the header, which lists name, length and SHA-256
    of each part, and the parts.
    """
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
    """A JSON number; ValueError for one that does not fit into a float."""
    if not math.isfinite(float(digits)):
        raise ValueError(f"it holds the number {digits[:20]}")
    return int(digits) if digits.lstrip("-").isdecimal() else float(digits)
