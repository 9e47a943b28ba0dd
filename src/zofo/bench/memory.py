"""The memory frontier: peak memory of each way to run or train a model, and the time of a step."""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.table import Table
from rich.text import Text

from zofo.bench.shapes import SHAPES, random_model
from zofo.bench.step import check_writable
from zofo.bench.step_memory import failure, in_a_process, peak_of
from zofo.bench.step_variants import StepOptions, random_examples, timed
from zofo.config import parse_model
from zofo.errors import ConfigError, RunError, UnknownNameError, ZofoError, first_line
from zofo.methods import METHODS, Method, TrainingContext
from zofo.models import LoadedModel, ModelConfig, load_model, plain_tensors, quantized_as
from zofo.models.quantization import release_memory
from zofo.objectives import classification_loss
from zofo.tasks import collate

FLOOR, ADAM, OF_ACTIVATIONS = "inference", "adam", "lora"
_CHILD = "from zofo.bench.memory import answer; answer()"
_ROOM = 1.1  # margin over the predicted memory, so that nothing else on the machine is killed


@dataclass(frozen=True)
class MemoryVariant:
    """A way to run or train a model.

    Args:
        model: keys of `model`, besides its name.
        method: keys of `method`; None for inference.
        halved: whether a step splits its examples over two forwards, so that each has as many rows as inference.
    """

    model: Mapping[str, str]
    method: Mapping[str, Any] | None
    halved: bool = False


_BF16, _NF4 = {"dtype": "bfloat16"}, {"quantization": "nf4"}
_IN_INPUTS = {"name": "subspace", "calibration_batches": 1}
_SUBSPACE = {"name": "mezo", "adapter": _IN_INPUTS}
_BILEVEL = {"name": "bilevel", "inner_steps": 1}
_LORA, _AGAIN = {"name": "first-order", "adapter": "lora"}, {"gradient_checkpointing": True}

WAYS: dict[str, MemoryVariant] = {
    FLOOR: MemoryVariant({}, None),
    "inference-bf16": MemoryVariant(_BF16, None),
    "inference-nf4": MemoryVariant(_NF4, None),
    "mezo": MemoryVariant({}, {"name": "mezo"}),
    "mezo-halved": MemoryVariant({}, {"name": "mezo"}, halved=True),
    "mezo-subspace": MemoryVariant({}, _SUBSPACE),
    "mezo-subspace-bf16": MemoryVariant(_BF16, _SUBSPACE),
    "mezo-subspace-nf4": MemoryVariant(_NF4, _SUBSPACE),
    "mezo-subspace-nf4-halved": MemoryVariant(_NF4, _SUBSPACE, halved=True),
    "svrg": MemoryVariant({}, {"name": "svrg"}),
    OF_ACTIVATIONS: MemoryVariant({}, _LORA),
    "lora-checkpointing": MemoryVariant({}, {**_LORA, **_AGAIN}),
    "qlora-nf4": MemoryVariant(_NF4, _LORA),
    "qlora-nf4-checkpointing": MemoryVariant(_NF4, {**_LORA, **_AGAIN}),
    "bilevel": MemoryVariant({}, _BILEVEL),
    "bilevel-checkpointing": MemoryVariant({}, {**_BILEVEL, **_AGAIN}),
    "bilevel-nf4-checkpointing": MemoryVariant(_NF4, {**_BILEVEL, **_AGAIN, "backbone_adapter": _IN_INPUTS}),
    ADAM: MemoryVariant({}, {"name": "first-order", "parameters": "all"}),
}
"""The ways by name, in the order of the table."""


@dataclass(frozen=True)
class MemoryOptions:
    """The model and the sizes of a memory benchmark.

    Args:
        model: an embedded model, a folder, a Hub id, or a shape of `SHAPES`, which is built with random weights.
        examples: batch size B.
        tokens: tokens of each example's prompt.
        steps: number of steps; the time is the median of those after the first, if there are any.
    """

    model: str = "smollm2-135m"
    examples: int = 8
    tokens: int = 256
    steps: int = 3


@dataclass(frozen=True)
class MemoryRow:
    """The result for one way.

    Args:
        way: name of the way.
        model: the given model.
        examples: batch size.
        tokens: tokens per example.
        steps: number of steps.
        parameters: number of parameters; packed ones of a quantised model count once per pack.
        weights_bytes: size of the loaded weights, including quantisation constants.
        peak_bytes: peak memory of the process from loading to the last step; None if it failed.
        seconds: time of a step.
        cpu_seconds: processor time of a step over all cores, for machines with other work.
        predicted: whether the peak was not measured but predicted: that of LoRA plus three more tensors per weight.
        device: the device.
        threads: torch's CPU threads.
        torch: version of torch.
        error: why it failed; None if nothing went wrong.
    """

    way: str
    model: str
    examples: int
    tokens: int
    steps: int = 3
    parameters: int | None = None
    weights_bytes: int | None = None
    peak_bytes: int | None = None
    seconds: float | None = None
    cpu_seconds: float | None = None
    predicted: bool = False
    device: str = "cpu"
    threads: int = 1
    torch: str = torch.__version__
    error: str | None = None


def bench_memory(
    options: MemoryOptions,
    ways: Sequence[str] = (),
    file: Path | None = None,
    on_progress: Callable[[str], None] = lambda text: None,
) -> list[MemoryRow]:
    """Measure each way, one after the other, each in its own process.

    The process loads the model, resets the peak memory, builds the method, with its adapter and calibration, and makes
    the steps on a batch of random tokens. Inference is one forward of the batch. A step of MeZO evaluates two points in
    one forward of twice as many rows, or with `-halved` in two forwards.

    Full fine-tuning with Adam is predicted if there is not enough memory to measure it.

    Args:
        options: what to measure.
        ways: which ways; by default all.
        file: a file to which a row of JSON is added for each way; rows that it already has for the same sizes, torch
            and number of threads are reused.
        on_progress: called with a line about what is being done.

    Raises:
        ConfigError: a number below 1, before anything is measured.
        UnknownNameError: no such way.
        RunError: the file cannot be read or written.
    """
    for name in ("examples", "tokens", "steps"):
        if getattr(options, name) < 1:
            flag = {"examples": "--rows"}.get(name, f"--{name}")
            raise ConfigError(f"{flag} is {getattr(options, name)}, but must be 1 or more", f"set {flag}=1 or more")
    for name in ways:
        if name not in WAYS:
            raise UnknownNameError("way", name, WAYS)
    known = {row.way: row for row in _rows_of(file) if _is_of(row, options) and row.error is None}
    if file is not None:
        check_writable(file)
    with _at_hand(options, on_progress) as model:
        for name in [name for name in WAYS if not ways or name in ways]:
            if name in known:
                continue
            on_progress(f"{name}: measured in a process of its own")
            known[name] = _predicted(name, options, known) or _measured(name, model, options)
            if file is not None:
                _add(file, known[name])
    return [known[name] for name in WAYS if name in known and (not ways or name in ways)]


def frontier_table(rows: Sequence[MemoryRow]) -> Table:
    """The rows as a terminal table; ratios are relative to inference in float32."""
    first = next((row for row in rows if not row.error), rows[0])
    title = f"{first.model}, {first.examples} x {first.tokens} tokens, {first.device}, {first.threads} threads"
    table = Table(title=Text(title), box=None, pad_edge=False)
    table.add_column("\nway", no_wrap=True)
    for heading in ("\nweights", "peak\nmemory", "peak /\ninference", "\nseconds", "time /\ninference"):
        table.add_column(heading, justify="right")
    floor = next((row for row in rows if row.way == FLOOR), None)
    for row in rows:
        table.add_row(*cells_of(row, floor))
    notes = [f"{row.way}: {row.error}" for row in rows if row.error]
    notes += [f"{row.way}: predicted, not measured" for row in rows if row.predicted]
    table.caption = Text("\n".join(notes)) if notes else None
    return table


def cells_of(row: MemoryRow, floor: MemoryRow | None) -> list[str]:
    """The cells of a table row: its way, weights and peak in GiB, seconds, and both relative to inference."""

    def gibibytes(size: int | None) -> str:
        return "" if size is None else f"{size / 2**30:.2f} GiB"

    def over(own: float | None, other: float | None) -> str:
        return "" if own is None or not other else f"{own / other:.2f}"

    below = floor or MemoryRow("", "", 0, 0)
    seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
    peaks = [gibibytes(row.weights_bytes), gibibytes(row.peak_bytes), over(row.peak_bytes, below.peak_bytes)]
    return [row.way, *peaks, seconds, over(row.seconds, below.seconds)]


def _measured(name: str, model: str, options: MemoryOptions) -> MemoryRow:
    """The row of a way, measured in its own process."""
    try:
        found = in_a_process(_CHILD, [name, {**asdict(options), "model": model}], name)
    except ZofoError as error:
        found = {"error": error.message}
    return MemoryRow(**{"way": name, **asdict(options), **found})


def answer() -> None:
    """In that process: print the result of the way, or its error, as one line of JSON."""
    name, given = json.loads(sys.argv[1])
    try:
        print(json.dumps(_take(WAYS[name], MemoryOptions(**given))))
    except (ZofoError, RuntimeError, MemoryError) as error:
        print(json.dumps({"error": failure(error)}))


def _take(way: MemoryVariant, options: MemoryOptions) -> dict[str, Any]:
    """Measure one way."""
    loaded = load_model(parse_model(ModelConfig, {"name": options.model, **way.model}))
    if quantized_as(loaded.model) is None:  # packed weights have their own memory
        for parameter in loaded.model.parameters():
            parameter.data = parameter.data.clone()
    tensors = {id(tensor): tensor for tensor in loaded.model.state_dict(keep_vars=True).values()}
    parts = [part for tensor in tensors.values() for _, part in plain_tensors("", tensor)]
    weights = sum(part.nbytes for part in parts)
    seconds, worked = list[float](), list[float]()
    release_memory()

    def work() -> None:
        step = _steps(way, loaded, options)
        for _ in range(options.steps):
            before = time.process_time()
            seconds.append(timed(step, loaded.device))
            worked.append(time.process_time() - before)

    peak = peak_of(work, loaded.device)
    return {
        "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
        "weights_bytes": weights,
        "peak_bytes": peak,
        "seconds": statistics.median(seconds[1:] or seconds),
        "cpu_seconds": statistics.median(worked[1:] or worked),
        "device": loaded.device.type,
        "threads": torch.get_num_threads(),
    }


def _steps(way: MemoryVariant, loaded: LoadedModel, options: MemoryOptions) -> Callable[[], object]:
    """The step function of a way, after checking the model."""
    size, model = options.examples, loaded.model
    # bilevel takes a third of the rows for D_f
    rows = random_examples(len(loaded.tokenizer), StepOptions(examples=3 * size, tokens=options.tokens))
    context = TrainingContext(model, classification_loss, rows, lambda chosen: collate(chosen, 0, loaded.device))
    if way.method is None:
        batch = context.collate(rows[:size])

        @torch.no_grad()
        def forward() -> None:
            classification_loss(model, batch)

        return forward
    options_of = {"batch_size": size, **way.method}
    if way.halved:
        options_of["evaluator"] = {"name": "in-forward", "micro_batch": max(1, size // 2)}
    kind = METHODS[str(way.method["name"])]
    method: Method = kind(parse_model(kind.Config, options_of), context)
    method.check()
    numbers = iter(range(1 << 31))

    def step() -> None:
        method.step(next(numbers))

    return step


def _predicted(name: str, options: MemoryOptions, known: Mapping[str, MemoryRow]) -> MemoryRow | None:
    """Full fine-tuning with Adam, if there is not enough memory for it: LoRA's peak, plus gradient and two moments per
    weight.

    None for any other way.
    """
    lora = known.get(OF_ACTIVATIONS)
    if name != ADAM or lora is None or lora.peak_bytes is None or lora.weights_bytes is None:
        return None
    peak = lora.peak_bytes + 3 * lora.weights_bytes
    if lora.device != "cpu" or peak * _ROOM < psutil.virtual_memory().available:
        return None
    kept = {field.name: getattr(lora, field.name) for field in fields(MemoryRow)}
    return MemoryRow(
        **{**kept, "way": name, "peak_bytes": peak, "seconds": None, "cpu_seconds": None, "predicted": True}
    )


@contextlib.contextmanager
def _at_hand(options: MemoryOptions, on_progress: Callable[[str], None]) -> Iterator[str]:
    """Context that yields the name to load the model by; a model of random weights is in a temporary folder."""
    if options.model not in SHAPES:
        yield options.model
        return
    with tempfile.TemporaryDirectory(prefix="zofo-shape-") as folder:
        on_progress(f"{options.model}: random weights are written into {folder}")
        yield str(random_model(options.model, Path(folder) / options.model))


def _is_of(row: MemoryRow, options: MemoryOptions) -> bool:
    """Whether a row is comparable with those that are measured now."""
    now = asdict(options) | {"threads": torch.get_num_threads(), "torch": torch.__version__}
    return all(getattr(row, name) == value for name, value in now.items())


def _rows_of(file: Path | None) -> list[MemoryRow]:
    """The rows of a file; empty if it does not exist."""
    if file is None or not file.exists():
        return []
    try:
        return [MemoryRow(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, ValueError, TypeError) as error:
        raise RunError(
            f"cannot read {str(file)!r}: {first_line(error)}", "choose another file with --json, or remove this one"
        ) from error


def _add(file: Path, row: MemoryRow) -> None:
    try:
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(row)) + "\n")
    except OSError as error:
        raise RunError(f"cannot write {str(file)!r}: {error.strerror}", "choose another file with --json") from error
