"""A MeZO step on a base that stays in its files, where memory is smaller than the base; and what two processes share.

    python benchmarks/offload.py [--model llama-1b] [--rows 8] [--tokens 64] [--limit 0.6] [--repeats 3]

A process is put into a control group of Linux whose memory is `--limit` times the weights' bytes (as root; 0 for no
limit). In it, with `model.offload=disk`, one forward of 2 B rows and one step of MeZO on B rows (`adapter=subspace`,
two points in one forward) take turns; a ratio is of one round. `read` is what either fetched from the disk, over the
bytes of the weights: 1 is each weight once. Then two processes without a limit load the base and run a forward:
`shared` is the share of the weights' pages in memory that both have in common. Prints JSON. The goals are a ratio of
1.15 and a share of 0.8.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from zofo.bench.shapes import SHAPES, random_model
from zofo.bench.step_variants import StepOptions, random_examples
from zofo.config import parse_model
from zofo.methods import MeZO, MeZOConfig, TrainingContext
from zofo.models import LoadedModel, ModelConfig, load_model
from zofo.objectives import classification_loss
from zofo.tasks import collate

GROUPS = Path("/sys/fs/cgroup")
NAME = "zofo-offload"


def base(asked: argparse.Namespace) -> LoadedModel:
    given = {"name": asked.folder, "offload": "disk", "device": "cpu"}
    return load_model(parse_model(ModelConfig, given))


def size_of(model: torch.nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())


def fetched() -> int:
    """Bytes that this process has fetched from the disk so far."""
    return int(re.search(r"^read_bytes: (\d+)", Path("/proc/self/io").read_text(), re.MULTILINE)[1])


def ways(asked: argparse.Namespace, loaded: LoadedModel) -> dict[str, Callable[[], Any]]:
    rows = random_examples(len(loaded.tokenizer), StepOptions(examples=2 * asked.rows, tokens=asked.tokens))
    context = TrainingContext(loaded.model, classification_loss, rows, lambda some: collate(some, 0, loaded.device))
    options = {"batch_size": asked.rows, "adapter": {"name": "subspace", "calibration_batches": 1}}
    method = MeZO(parse_model(MeZOConfig, options), context)
    method.check()
    batch, numbers = context.collate(rows), iter(range(1 << 31))

    layers = [layer for layer in loaded.model.modules() if isinstance(layer, BaseTunerLayer)]

    @torch.no_grad()
    def inference() -> None:  # of the base alone
        for layer in layers:
            layer.enable_adapters(False)
        classification_loss(loaded.model, batch)
        for layer in layers:
            layer.enable_adapters(True)

    return {"inference": inference, "mezo": lambda: method.step(next(numbers))}


def measured(asked: argparse.Namespace) -> dict[str, Any]:
    """In the control group: seconds and fetched bytes of both, in rounds."""
    loaded = base(asked)
    size, seconds, read = size_of(loaded.model), {}, {}
    both = ways(asked, loaded)
    for name in [*both] * (asked.repeats + 1):
        before, start = fetched(), time.perf_counter()
        both[name]()
        seconds.setdefault(name, []).append(time.perf_counter() - start)
        read.setdefault(name, []).append((fetched() - before) / size)
    ratios = [step / floor for floor, step in zip(seconds["inference"][1:], seconds["mezo"][1:], strict=True)]
    found = {"weights_bytes": size, "limit_bytes": int(asked.limit * size) or None, "threads": torch.get_num_threads()}
    for name in both:
        found[name] = {"seconds": statistics.median(seconds[name][1:]), "read": statistics.median(read[name][1:])}
    return found | {"ratio": statistics.median(ratios), "least": min(ratios), "largest": max(ratios)}


def held(asked: argparse.Namespace) -> None:
    """Hold the base after a forward, until the input ends; print the KiB of its pages that are here, and shared."""
    loaded = base(asked)
    rows = random_examples(len(loaded.tokenizer), StepOptions(examples=1, tokens=8))
    with torch.no_grad():
        classification_loss(loaded.model, collate(rows, 0, loaded.device))
    print("held", flush=True)
    sys.stdin.readline()
    here, shared, own = 0, 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            own = bool(rest) and rest[-1].endswith(".safetensors")
        elif own and first in ("Rss:", "Shared_Clean:"):
            here, shared = here + int(rest[0]) * (first == "Rss:"), shared + int(rest[0]) * (first != "Rss:")
    print(json.dumps({"here": here, "shared": shared}), flush=True)
    sys.stdin.readline()


def forget_pages(folder: Path) -> None:
    """Take the files out of the system's cache: a page counts for the group that read it first."""
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def group(limit: int) -> Path:
    """A control group with so much memory; of version 1 or 2."""
    first = (GROUPS / "memory").is_dir()
    folder = (GROUPS / "memory" if first else GROUPS) / NAME
    folder.mkdir(exist_ok=True)
    (folder / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(limit))
    return folder


def child(asked: argparse.Namespace, part: str, **options: Any) -> subprocess.Popen[str]:
    sizes = ["--rows", str(asked.rows), "--tokens", str(asked.tokens), "--repeats", str(asked.repeats)]
    command = [sys.executable, __file__, *sizes, "--limit", str(asked.limit), "--folder", asked.folder, "--part", part]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-1b", choices=list(SHAPES), help="a shape of random weights")
    parser.add_argument("--rows", type=int, default=8, help="examples of a step")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each example's prompt")
    parser.add_argument("--limit", type=float, default=0.6, help="memory of the process over the weights' bytes")
    parser.add_argument("--repeats", type=int, default=3, help="rounds that count, after one that does not")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.part:
        print(json.dumps(measured(asked))) if asked.part == "measured" else held(asked)
        return
    with tempfile.TemporaryDirectory(prefix="zofo-offload-") as folder:
        asked.folder = str(random_model(asked.model, Path(folder) / asked.model, torch.float32))
        size = sum(file.stat().st_size for file in Path(asked.folder).glob("*.safetensors"))
        forget_pages(Path(asked.folder))
        where = group(int(asked.limit * size)) if asked.limit else None

        def join() -> None:
            if where is not None:
                (where / "cgroup.procs").write_text(str(os.getpid()))

        try:
            out, _ = child(asked, "measured", preexec_fn=join).communicate()
        finally:
            if where is not None:
                where.rmdir()
        found = json.loads(out.splitlines()[-1])
        pair = [child(asked, "held") for _ in range(2)]
        for one in pair:
            one.stdout.readline()  # both hold it
        shares = []
        for one in pair:
            one.stdin.write("\n")
            one.stdin.flush()
            told = json.loads(one.stdout.readline())
            shares.append(told["shared"] / told["here"])
        for one in pair:
            one.communicate("\n")
    print(
        json.dumps({"model": asked.model, "rows": asked.rows, "tokens": asked.tokens, **found, "shared": min(shares)})
    )


if __name__ == "__main__":
    main()
