"""The speed of a machine as a few constants, measured by `zofo bench calibrate` or packaged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from zofo.embedded import cache_dir
from zofo.errors import RunError, first_line
from zofo.estimate.ledger import Work

FILE = "machine.json"


@dataclass(frozen=True)
class Machine:
    """The constants of a processor, and of a process on it.

    The shares of freed memory that the C library keeps were fitted to measured peaks with glibc
    (`benchmarks/estimate.py`). They are larger for a packed model, since the weights that it unpacks for each product
    are allocated between long-lived tensors.

    Args:
        measured: where and when, in words.
        process_bytes: memory of Python with torch and transformers, after loading a model.
        adapter_bytes: memory that peft adds.
        seconds_per_flop: time per flop of products, by dtype.
        seconds_per_byte: time per byte that an operation reads or writes.
        seconds_per_operation: time per operation, whatever its size.
        seconds_per_unpacked: time per unpacked 4-bit weight.
        seconds_per_drawn: time per normal number.
        start_seconds: from the command to the first row: Python, its libraries, a model, its checks.
        forward_kept: share of the tensors of a forward.
        gradient_kept: share of the tensors of a forward with a gradient.
        check_kept: share of the copies in the check before the first step.
        packed_forward_kept, packed_gradient_kept: these two for packed weights.
    """

    measured: str
    threads: int
    process_bytes: int
    adapter_bytes: int
    seconds_per_flop: Mapping[str, float]
    seconds_per_byte: float
    seconds_per_operation: float
    seconds_per_unpacked: float
    seconds_per_drawn: float
    start_seconds: float = 10.0
    forward_kept: float = 1.0
    gradient_kept: float = 0.2
    check_kept: float = 0.35
    packed_forward_kept: float = 2.0
    packed_gradient_kept: float = 0.25

    @property
    def described(self) -> str:
        """Where and when they were measured, and with how many threads if torch now uses another number."""
        now = torch.get_num_threads()
        if now == self.threads:
            return self.measured
        again = "calibrate" if self.measured == PACKAGED.measured else "calibrate again"
        return f"{self.measured}, with {self.threads} thread{'s'[: self.threads != 1]}, now {now}: {again}"

    def seconds(self, work: Work, dtype: str) -> float:
        """The time of some work, for products of a dtype."""
        each = (
            self.seconds_per_flop[dtype],
            self.seconds_per_byte,
            self.seconds_per_operation,
            self.seconds_per_unpacked,
            self.seconds_per_drawn,
        )
        return sum(number * seconds for number, seconds in zip(work.numbers, each, strict=True))


PACKAGED = Machine(
    measured="one core of an x86-64 server with AVX-512, torch 2.13, in processor seconds beside other work",
    threads=1,
    process_bytes=440 << 20,
    adapter_bytes=44 << 20,
    seconds_per_flop={"float32": 1.2e-11, "bfloat16": 9.5e-12, "float16": 4.5e-11},
    seconds_per_byte=6.5e-11,
    seconds_per_operation=7.2e-6,
    seconds_per_unpacked=1.6e-10,
    seconds_per_drawn=1.6e-9,
)
"""Constants for who has not calibrated."""


def machine_file() -> Path:
    """The file with the constants of this machine."""
    return cache_dir() / FILE


def known_machine() -> Machine:
    """The constants of this machine if it was calibrated, otherwise the packaged ones.

    Raises:
        RunError: the file cannot be read.
    """
    file = machine_file()
    if not file.is_file():
        return PACKAGED
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        names = {field.name for field in fields(Machine)}
        return Machine(**{name: value for name, value in found.items() if name in names})
    except (OSError, ValueError, TypeError) as error:
        raise RunError(
            f"cannot read {str(file)!r}: {first_line(error)}", "measure again: zofo bench calibrate"
        ) from error


def keep(machine: Machine, versions: Mapping[str, str]) -> Path:
    """Save the constants of this machine, with the versions they were measured with.

    Raises:
        RunError: they cannot be written.
    """
    file = machine_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({**asdict(machine), "versions": dict(versions)}, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise RunError(
            f"cannot write {str(file)!r}: {error.strerror}", "choose another cache with ZOFO_CACHE"
        ) from error
    return file
