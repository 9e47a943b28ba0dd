"""The peak memory of one way to make a step, in its own process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from zofo.bench.step_variants import WAYS, StepOptions
from zofo.config import parse_model
from zofo.errors import ModelError, ZofoError, out_of_memory
from zofo.interpreters import python_command
from zofo.models import LoadedModel, ModelConfig, load_model
from zofo.training import PeakMemory

_STATUS, _REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_CHILD = "from zofo.bench.step_memory import answer; answer()"


def load_own(options: StepOptions) -> LoadedModel:
    """The model, with every tensor in its own memory instead of a mapped file."""
    loaded = load_model(parse_model(ModelConfig, {"name": options.model, "dtype": options.dtype}))
    for parameter in loaded.model.parameters():
        parameter.data = parameter.data.clone()
    return loaded


def measure_peak(name: str, options: StepOptions) -> int:
    """Peak memory in bytes of a few steps of one way, in a new process.

    On CUDA the memory of torch's allocator, otherwise the resident memory of the process. All are measured alike: load
    the model, reset the peak, make the first steps and then those that would be timed, read the peak.

    Raises:
        ModelError: the steps failed, or the process was killed, most likely because memory ran out.
    """
    return int(in_a_process(_CHILD, [name, asdict(options)], name)["peak_bytes"])


def in_a_process(code: str, given: Any, name: str) -> dict[str, Any]:
    """The last output line of a new process, parsed as JSON.

    Args:
        code: code to run.
        given: its `sys.argv[1]`, as JSON.
        name: name of what it measures, for messages.

    Raises:
        ModelError: it failed, or was killed, most likely because memory ran out.
    """
    command = python_command(code, json.dumps(given))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        ended = f"was ended by signal {-done.returncode}" if done.returncode < 0 else f"failed: {last}"
        raise ModelError(f"the process that measures the memory of {name!r} {ended}")
    answered: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "error" in answered:
        raise ModelError(answered["error"])
    return answered


def answer() -> None:
    """In that process: print the peak, or the error, as one line of JSON."""
    name, given = json.loads(sys.argv[1])
    options = StepOptions(**given)
    loaded = load_own(options)

    def work() -> None:
        way = WAYS[name](loaded.model, options)
        way.prepare()
        way.seconds()

    try:
        print(json.dumps({"peak_bytes": peak_of(work, loaded.device)}))
    except (ZofoError, RuntimeError, MemoryError) as error:
        print(json.dumps({"error": failure(error)}))


def peak_of(work: Callable[[], object], device: torch.device) -> int:
    """The peak memory while `work` runs: from the kernel if available, otherwise sampled."""
    if device.type == "cuda" or not _forget_peak():
        watch = PeakMemory(device)
        with watch.watching():
            work()
        return watch.bytes
    work()
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _forget_peak() -> bool:
    """Whether the peak could be reset to the current resident memory, as on Linux."""
    try:
        _REFERENCES.write_text("5")
    except OSError:
        return False
    return True


def failure(error: BaseException) -> str:
    """The error to record for a way that ran out of memory, or that this model does not support; other errors are
    raised again.

    Args:
        error: a `ZofoError`, or any error that may mean that memory ran out.
    """
    if isinstance(error, ZofoError):
        return error.message
    text = (str(error).splitlines() or [""])[0]
    if out_of_memory(error):
        return f"out of memory: {text}".removesuffix(": ")
    raise error
