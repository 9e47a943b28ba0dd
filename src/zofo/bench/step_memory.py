"""The peak memory of one way to make a step, in a process of its own."""

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
    """The model, with every tensor in memory of its own instead of a mapped file."""
    loaded = load_model(parse_model(ModelConfig, {"name": options.model, "dtype": options.dtype}))
    for parameter in loaded.model.parameters():
        parameter.data = parameter.data.clone()
    return loaded


def measure_peak(name: str, options: StepOptions) -> int:
    """Bytes at the peak of a few steps of one way, in a fresh process.

    On CUDA what torch's allocator gave out, elsewhere the resident memory of the process. All are measured alike: load
    the model, forget the peak of loading, make the first steps and then those that would be timed, read the peak.

    Raises:
        ModelError: the steps could not be made, or the process was ended, most likely for its memory.
    """
    return int(in_a_process(_CHILD, [name, asdict(options)], name)["peak_bytes"])


def in_a_process(code: str, given: Any, name: str) -> dict[str, Any]:
    """What a fresh process answers in its last line, as JSON.

    Args:
        code: what it runs.
        given: what it finds in `sys.argv[1]`, as JSON.
        name: of what it measures, for messages.

    Raises:
        ModelError: it could not, or was ended, most likely for its memory.
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
    """Inside that process: print the peak, or what went wrong, as one line of JSON."""
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
    """The most memory in use while `work` runs: as the kernel saw it where it can be asked, else sampled."""
    if device.type == "cuda" or not _forget_peak():
        watch = PeakMemory(device)
        with watch.watching():
            work()
        return watch.bytes
    work()
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _forget_peak() -> bool:
    """Whether the peak could be set back to the present resident memory, as Linux can."""
    try:
        _REFERENCES.write_text("5")
    except OSError:
        return False
    return True


def failure(error: BaseException) -> str:
    """What to note of a way that ran out of memory, or that this model does not allow; any other error is raised again.

    Args:
        error: a `ZofoError`, or anything else that may mean that there is no memory left.
    """
    if isinstance(error, ZofoError):
        return error.message
    text = (str(error).splitlines() or [""])[0]
    if out_of_memory(error):
        return f"out of memory: {text}".removesuffix(": ")
    raise error
