"""The trajectory file: exact, small, and honest about damage."""

from __future__ import annotations

import json
import random
import struct
import zlib
from dataclasses import dataclass

import pytest

from zofo.backbone import Update
from zofo.displacement import Displacement, Key
from zofo.errors import RunError
from zofo.training import Trajectory, TrajectoryWriter
from zofo.training.trajectory import MAGIC

SEED = 2**64 - 1
HEADER = {"stream": 1, "noise": {"name": "gaussian"}, "select": None}


def made_up_updates(count=12):
    """Updates with none to five terms, extreme coefficients, with and without a shrink."""
    chosen = random.Random(0)
    numbers = [0.1, -1e-300, 5e-324, 1.7976931348623157e308, -1 / 3, 1e-8]
    updates = []
    for step in range(count):
        keys = [Key(SEED, chosen.choice([step, 2**32 - 1]), i) for i in (0, 1, 7, 2**32 - 1)][: step % 5]
        terms = {key: chosen.choice(numbers) for key in keys}
        updates.append(Update(Displacement(terms), 1e-7 if step % 3 == 0 else 0.0))
    return updates


def write(path, updates, header=HEADER):
    writer = TrajectoryWriter(path, SEED, header)
    for update in updates:
        writer.append(update)
    writer.close()
    return path.read_bytes()


@dataclass
class Written:
    path: object
    data: bytes
    updates: list
    ends: list
    """Sizes of the file after the header and after each record."""


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "trajectory.bin"
    updates = made_up_updates()
    writer = TrajectoryWriter(path, SEED, HEADER)
    ends = [path.stat().st_size]
    for update in updates:
        writer.append(update)
        ends.append(path.stat().st_size)  # without closing: each append is on its way to disk
    writer.close()
    return Written(path, path.read_bytes(), updates, ends)


def test_what_is_written_is_read_back_exactly(written):
    read = Trajectory.read(written.path)
    assert read.header == {"seed": SEED, **HEADER}
    assert list(read.updates) == written.updates
    assert [list(u.displacement.items()) for u in read.updates] == [
        list(u.displacement.items()) for u in written.updates
    ]
    assert read.whole


def test_an_update_of_one_term_takes_24_bytes(tmp_path):
    updates = [Update(Displacement({Key(SEED, step): 0.1 * (step + 1)})) for step in range(1000)]
    empty, full = write(tmp_path / "empty", []), write(tmp_path / "full", updates)
    assert len(full) - len(empty) == 24 * 1000


def test_no_term_takes_more_than_24_bytes(written):
    for update, start, end in zip(written.updates, written.ends, written.ends[1:], strict=False):
        terms = len(update.displacement)
        assert end - start <= (24 * terms if terms else 8) + 8 * bool(update.shrink)


def test_a_file_cut_at_any_byte_loads_up_to_its_last_whole_record(written, tmp_path):
    cut = tmp_path / "cut.bin"
    for length in range(len(written.data)):
        cut.write_bytes(written.data[:length])
        if length < written.ends[0]:
            with pytest.raises(RunError, match="cut.bin"):
                Trajectory.read(cut)
            continue
        read = Trajectory.read(cut)
        whole_records = sum(end <= length for end in written.ends[1:])
        assert list(read.updates) == written.updates[:whole_records]
        assert read.whole == (length in written.ends)


def test_a_flipped_bit_never_goes_unseen(written, tmp_path):
    """It raises and names the file, or, where it makes a record look longer than the file, reads as cut before it."""
    flipped = tmp_path / "flipped.bin"
    chosen = random.Random(1)
    refused = []
    for place in range(len(written.data)):
        damaged = bytearray(written.data)
        damaged[place] ^= 1 << chosen.randrange(8)
        flipped.write_bytes(damaged)
        try:
            read = Trajectory.read(flipped)
        except RunError as error:
            refused.append(error.message)
            continue
        assert not read.whole
        before = sum(end <= place for end in written.ends[1:])
        assert list(read.updates) == written.updates[:before]
    assert all(str(flipped) in message for message in refused)
    assert len(refused) > 0.9 * len(written.data)


def test_a_flipped_byte_inside_a_record_names_file_and_place(written, tmp_path):
    flipped = tmp_path / "flipped.bin"
    for start, end in zip(written.ends, written.ends[1:], strict=False):
        for place in range(start + 8, end):
            damaged = bytearray(written.data)
            damaged[place] ^= 0xFF
            flipped.write_bytes(damaged)
            with pytest.raises(RunError, match=f"flipped.bin: the record at byte {start} is damaged"):
                Trajectory.read(flipped)


def framed(text: bytes, length=None) -> bytes:
    return MAGIC + struct.pack("<II", len(text) if length is None else length, zlib.crc32(text)) + text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"ZOFO",
        b"PK\x03\x04" * 10,
        MAGIC,
        framed(b'{"seed": 0}', length=2**32 - 1),
        framed(b'{"seed": 0}', length=2**20 + 1) + b" " * 2**21,
        framed(b'{"seed": 0}', length=12),
        framed(b"not json"),
        framed(b"\xff\xff"),
        framed(b"[1, 2]"),
        framed(b'{"stream": 1}'),
        framed(b'{"seed": "many"}'),
        framed(b'{"seed": null}'),
        framed(b"[" * 200_000),
        MAGIC + struct.pack("<II", 11, 0) + b'{"seed": 0}',
    ],
)
def test_hostile_files_are_refused(tmp_path, data):
    path = tmp_path / "trajectory.bin"
    path.write_bytes(data)
    with pytest.raises(RunError, match="trajectory.bin"):
        Trajectory.read(path)


def test_the_smallest_whole_file_is_empty(tmp_path):
    path = tmp_path / "trajectory.bin"
    path.write_bytes(framed(json.dumps({"seed": 3}).encode()))
    assert Trajectory.read(path) == Trajectory({"seed": 3}, (), True)


def test_a_record_that_claims_billions_of_terms_costs_nothing(written):
    written.path.write_bytes(written.data + struct.pack("<II", 2**31 - 1, 0))
    read = Trajectory.read(written.path)
    assert list(read.updates) == written.updates
    assert not read.whole


@pytest.mark.parametrize("count", [8, 16, 4096])
def test_zeros_at_the_end_are_damage_not_empty_updates(written, count):
    """A file system may leave a file longer than what was written to it."""
    written.path.write_bytes(written.data + bytes(count))
    with pytest.raises(RunError, match=f"the record at byte {len(written.data)} is damaged"):
        Trajectory.read(written.path)


def test_a_writer_never_overwrites(written):
    with pytest.raises(FileExistsError):
        TrajectoryWriter(written.path, SEED, HEADER)
    assert written.path.read_bytes() == written.data


def test_a_key_of_another_seed_is_a_bug_not_a_record(tmp_path):
    path = tmp_path / "trajectory.bin"
    writer = TrajectoryWriter(path, SEED, HEADER)
    with pytest.raises(ValueError, match="seed"):
        writer.append(Update(Displacement({Key(0, 0): 1.0})))
    writer.close()
    assert Trajectory.read(path).updates == ()


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RunError, match="none.bin"):
        Trajectory.read(tmp_path / "none.bin")
