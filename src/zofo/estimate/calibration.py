"""The constants of this machine, fitted to timed passes of small models; and the memory of a process."""

from __future__ import annotations

import datetime
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
from torch import nn

from zofo.bench.step_memory import in_a_process
from zofo.displacement import Key
from zofo.estimate.ledger import Work, trace
from zofo.estimate.machine import PACKAGED, Machine, keep
from zofo.models import quiet_transformers
from zofo.models.quantization import release_memory
from zofo.noise import Gaussian
from zofo.training import environment

_CHILD = "from zofo.estimate.calibration import answer; answer()"
_LEAST = 2.0  # seconds per measured constant


def calibrate(on_progress: Callable[[str], None] = lambda text: None) -> tuple[Machine, Path]:
    """Measure this machine's processor, which should be otherwise idle, and save the constants.

    Each time is the minimum of many short runs. Shares of freed memory are those of the packaged constants.

    Returns:
        The constants, and the file with them.

    Raises:
        RunError: the file cannot be written.
    """
    on_progress("the memory of a process, and how long it takes to start")
    begun = time.perf_counter()
    memory = in_a_process(_CHILD, None, "a process with a small model")
    start = time.perf_counter() - begun
    on_progress("passes of small models in float32")
    flop, byte, operation = _fitted([_timed(trial) for trial in _TRIALS])
    rates = {"float32": flop}
    for dtype in ("bfloat16", "float16"):
        on_progress(f"a forward in {dtype}")
        rates[dtype] = _flop_in(getattr(torch, dtype), byte, operation)
    unpacked = PACKAGED.seconds_per_unpacked
    if find_spec("bitsandbytes") is not None:
        on_progress("unpacking of 4-bit weights")
        unpacked = _unpacking()
    machine = replace(
        PACKAGED,
        measured=f"this machine ({_processor()}), {datetime.date.today().isoformat()}",
        threads=torch.get_num_threads(),
        **memory,
        seconds_per_flop=rates,
        seconds_per_byte=byte,
        seconds_per_operation=operation,
        seconds_per_unpacked=unpacked,
        seconds_per_drawn=_drawing(),
        start_seconds=start,
    )
    return machine, keep(machine, environment())


def _processor() -> str:
    return f"{platform.machine()}, {psutil.cpu_count()} cores, torch {torch.__version__}"


def _least(work: Callable[[], object]) -> float:
    """Seconds of the fastest of many calls; processor time for one thread, so that other work matters less."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    work()
    taken = list[float]()
    end = time.perf_counter() + _LEAST
    while time.perf_counter() < end or len(taken) < 3:
        start = clock()
        work()
        taken.append(clock() - start)
    return min(taken)


@dataclass(frozen=True)
class _Trial:
    """A timed pass of a small model: `rows` of `tokens`, forward or with a backward to all weights."""

    hidden: int
    rows: int
    tokens: int
    gradient: bool = False


_TRIALS = (  # two of many activations, two of products, and one of nothing but operations
    _Trial(256, 16, 256),
    _Trial(256, 8, 256, True),
    _Trial(1024, 4, 64),
    _Trial(768, 8, 64, True),
    _Trial(64, 1, 8),
)
_LAYERS = 2


def _timed(trial: _Trial, dtype: torch.dtype = torch.float32) -> tuple[Work, float]:
    """Work and time of a trial."""
    work = _passed(trial, dtype, "meta")
    assert isinstance(work, Work)
    run = _passed(trial, dtype, "cpu")
    assert callable(run)
    return work, _least(run)


def _passed(trial: _Trial, dtype: torch.dtype, device: str) -> Work | Callable[[], object]:
    model = _model(trial.hidden, 4 * trial.hidden, _LAYERS, 4096).to(device, dtype)
    ids = torch.ones(trial.rows, trial.tokens, dtype=torch.long, device=device)
    parameters = list(model.requires_grad_(trial.gradient).parameters()) if trial.gradient else []

    def loss() -> torch.Tensor:
        out: torch.Tensor = model(input_ids=ids, logits_to_keep=1, use_cache=False).logits
        return out

    def run() -> None:
        with torch.set_grad_enabled(trial.gradient):
            found = loss()
        if parameters:
            torch.autograd.grad(found.mean(), parameters)

    return trace(loss, parameters).work if device == "meta" else run


def _fitted(measured: Sequence[tuple[Work, float]]) -> tuple[float, float, float]:
    """Seconds per flop, byte and operation, none negative, by least squares of relative errors."""
    import numpy as np
    from scipy.optimize import nnls

    table = np.array([[part / seconds for part in work.numbers[:3]] for work, seconds in measured])
    scale = table.max(0)
    flop, byte, operation = (nnls(table / scale, np.ones(len(table)))[0] / scale).tolist()
    return flop, byte, operation


def _flop_in(dtype: torch.dtype, byte: float, operation: float) -> float:
    """Seconds per flop in half precision: from the time of a forward beyond its memory traffic and operations."""
    work, seconds = _timed(_TRIALS[2], dtype)
    rest = seconds - byte * work.moved_bytes - operation * work.operations
    return max(rest, 0.1 * seconds) / work.flops


@torch.no_grad()
def _unpacking() -> float:
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(torch.ones(512, 2048), quant_type="nf4", compress_statistics=True)
    return _least(lambda: functional.dequantize_4bit(packed, state)) / (512 * 2048)


def _drawing() -> float:
    size = 1 << 19
    numbers = iter(range(1 << 31))
    return _least(lambda: Gaussian().whole(Key(0, next(numbers)), "calibrate", (size,))) / size


def _model(hidden: int, inner: int, layers: int, vocabulary: int) -> Any:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64),
        tie_word_embeddings=True,
    )
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        model: nn.Module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval().requires_grad_(False)


def answer() -> None:
    """In a separate process: its memory with a small model, and what peft adds, as a line of JSON."""
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from zofo.models import load_model

    process = psutil.Process()
    words = {"<pad>": 0, "<unk>": 1, **{f"w{n}": n for n in range(2, 64)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with TemporaryDirectory(prefix="zofo-calibrate-") as folder:
        _model(32, 64, 2, 64).save_pretrained(folder)
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
        fast.save_pretrained(folder)
        load_model(folder)
    release_memory()
    bare = process.memory_info().rss
    from zofo.adapters import AdapterConfig

    AdapterConfig.model_validate({}).build(_model(32, 64, 2, 64), ("adapter",), 0)
    release_memory()
    found = {"process_bytes": bare, "adapter_bytes": max(0, process.memory_info().rss - bare)}
    print(json.dumps(found))
