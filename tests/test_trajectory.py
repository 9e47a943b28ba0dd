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
from zofo.trajectory import Trajectory, TrajectoryWriter
from zofo.trajectory.format import MAGIC, Flushed, Moved, Stepped

SEED = 2**64 - 1
HEADER = {"stream": 1, "noise": {"name": "gaussian"}, "trainable": None}


def made_up_records(count=12):
    """Records of all kinds: none to five terms, extreme coefficients, with and without shrink, rate and decay."""
    chosen = random.Random(0)
    numbers = [0.1, -1e-300, 5e-324, 1.7976931348623157e308, -1 / 3, 1e-8]
    records = []
    for step in range(count):
        keys = [Key(SEED, chosen.choice([step, 2**32 - 1]), i) for i in (0, 1, 7, 2**32 - 1)][: step % 5]
        terms = {key: chosen.choice(numbers) for key in keys}
        rate = 1e-3 if step % 4 == 1 else None
        back = (None, 0.0, 1e-3)[step % 3]
        records += [
            *([Moved(Displacement(terms))] if step % 2 else []),
            Update(Displacement(terms), 1e-7 if step % 3 == 0 else 0.0, lr=rate, displacement_decay=back),
            *([Flushed()] if step % 4 == 3 else []),
            Stepped(step),
        ]
    return records


def tell(writer, record):
    if isinstance(record, Update):
        writer.on_update(record)
    elif isinstance(record, Moved):
        writer.on_move(record.point)
    elif isinstance(record, Stepped):
        writer.stepped(record.number)
    else:
        writer.on_flush()


def write(path, records, header=HEADER):
    writer = TrajectoryWriter(path, SEED, header)
    for record in records:
        tell(writer, record)
    writer.close()
    return path.read_bytes()


@dataclass
class Written:
    path: object
    data: bytes
    records: list
    ends: list
    """Sizes of the file after the header and after each record."""


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "trajectory.bin"
    records = made_up_records()
    writer = TrajectoryWriter(path, SEED, HEADER)
    ends = [path.stat().st_size]
    for record in records:
        tell(writer, record)
        ends.append(path.stat().st_size)  # without closing: each record is on its way to disk
        assert writer.size == ends[-1]
    writer.close()
    return Written(path, path.read_bytes(), records, ends)


def test_what_is_written_is_read_back_exactly(written):
    read = Trajectory.read(written.path)
    assert read.header == {"seed": SEED, **HEADER}
    assert list(read.records) == written.records
    updates = [record for record in written.records if isinstance(record, Update)]
    assert [list(u.displacement.items()) for u in read.updates] == [list(u.displacement.items()) for u in updates]
    assert read.whole
    assert read.steps == 12


def test_the_first_steps_are_what_happened_until_the_last_of_them_ended(written):
    read = Trajectory.read(written.path)
    assert read.first(0) == ()
    for steps in range(1, 13):
        first = read.first(steps)
        assert first[-1] == Stepped(steps - 1)
        assert first == read.records[: len(first)]
    with pytest.raises(RunError, match="has 12 steps, not 13"):
        read.first(13)


def test_a_writer_goes_on_where_it_is_told_to(written):
    writer = TrajectoryWriter(written.path, SEED, {"not": "written again"}, keep=written.ends[5])
    for record in written.records[5:]:
        tell(writer, record)
    writer.close()
    assert written.path.read_bytes() == written.data


@pytest.mark.promise(17)
def test_a_step_of_one_term_takes_34_bytes(tmp_path):
    updates = [Update(Displacement({Key(SEED, step): 0.1 * (step + 1)})) for step in range(1000)]
    records = [record for step, update in enumerate(updates) for record in (update, Stepped(step))]
    empty, full = write(tmp_path / "empty", []), write(tmp_path / "full", records)
    assert len(full) - len(empty) == 34 * 1000


@pytest.mark.promise(17)
def test_a_step_in_place_takes_at_most_64_bytes_a_probe(tmp_path):
    point = Displacement({Key(SEED, 0): 1e-3})
    probes = [Moved(point), Moved(-point), Update(point), Stepped(0)]
    assert len(write(tmp_path / "full", probes)) - len(write(tmp_path / "empty", [])) <= 2 * 64


@pytest.mark.promise(17)
def test_a_file_cut_at_any_byte_loads_up_to_its_last_whole_record(written, tmp_path, tries):
    cut = tmp_path / "cut.bin"
    for length in tries(range(len(written.data))):
        cut.write_bytes(written.data[:length])
        if length < written.ends[0]:
            with pytest.raises(RunError, match="cut.bin"):
                Trajectory.read(cut)
            continue
        read = Trajectory.read(cut)
        whole_records = sum(end <= length for end in written.ends[1:])
        assert list(read.records) == written.records[:whole_records]
        assert read.whole == (length in written.ends)


@pytest.mark.promise(17)
def test_a_flipped_bit_never_goes_unseen(written, tmp_path, tries):
    """It raises and names the file, or, where it makes a record look longer than the file, reads as cut before it."""
    flipped = tmp_path / "flipped.bin"
    chosen = random.Random(1)
    refused = []
    for place in tries(range(len(written.data))):
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
        assert list(read.records) == written.records[:before]
    assert all(str(flipped) in message for message in refused)
    assert len(refused) > 0.9 * len(written.data)


def test_a_flipped_byte_inside_a_record_names_file_and_place(written, tmp_path):
    flipped = tmp_path / "flipped.bin"
    for start, end in zip(written.ends, written.ends[1:], strict=False):
        for place in range(start + 9, end):
            damaged = bytearray(written.data)
            damaged[place] ^= 0xFF
            flipped.write_bytes(damaged)
            with pytest.raises(RunError, match=f"flipped.bin: the record at byte {start} is damaged"):
                Trajectory.read(flipped)


def framed(text: bytes, length=None) -> bytes:
    return MAGIC + struct.pack("<II", len(text) if length is None else length, zlib.crc32(text)) + text


@pytest.mark.promise(12)
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


@pytest.mark.promise(12)
def test_a_record_that_claims_billions_of_terms_costs_nothing(written):
    written.path.write_bytes(written.data + struct.pack("<BII", 1, 2**32 - 1, 0))
    read = Trajectory.read(written.path)
    assert list(read.records) == written.records
    assert not read.whole


@pytest.mark.parametrize("count", [9, 16, 4096])
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
        writer.on_update(Update(Displacement({Key(0, 0): 1.0})))
    writer.close()
    assert Trajectory.read(path).updates == ()


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RunError, match="none.bin"):
        Trajectory.read(tmp_path / "none.bin")


@pytest.mark.promise(12)
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_is_refused(tmp_path, number):
    path = tmp_path / "trajectory.bin"
    write(path, [Stepped(0), Update(Displacement({Key(SEED, 1): number}))])
    with pytest.raises(RunError, match="has a value that is not finite"):
        Trajectory.read(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"ZOFOTRJ1" + bytes(40), "of the format b'ZOFOTRJ1', and this version reads b'ZOFOTRJ2'"),
        (b"PK" * 30, "not a traj"),
    ],
)
def test_files_of_other_formats_are_told_from_those_that_are_no_trajectory(tmp_path, data, message):
    path = tmp_path / "trajectory.bin"
    path.write_bytes(data)
    with pytest.raises(RunError, match=message):
        Trajectory.read(path)


@pytest.mark.parametrize(
    ("updates", "back", "interval", "cheap"),
    [(21, 0.1, 1, True), (40, 0.1, 1, False), (40, 0.1, 20, True), (4000, None, 1, True)],
)
def test_a_replay_that_draws_each_direction_many_times_is_dear(updates, back, interval, cheap):
    """Its run is restored by the sum of its updates, which draws each once."""
    records = tuple(
        Update(Displacement({Key(0, step): 1.0}), displacement_decay=back and (back if step % interval == 0 else 0.0))
        for step in range(updates)
    )
    assert Trajectory({"seed": 0, "evaluator": {"name": "in-forward"}}, records, True).cheap is cheap
