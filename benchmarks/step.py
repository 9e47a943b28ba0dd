"""What a training step costs at five sizes, in every way side by side: the table of docs/measured-details.md.

    python benchmarks/step.py --model smollm2-135m --repeats 5 --json FILE

Runs `zofo bench step` at each size (examples x tokens of the prompt), prints all tables together at the end, and writes
FILE after each size: `{"sizes": [...]}`, each as `zofo bench step --json` writes it. What is measured and how is said
at `zofo.studies.bench_step`. The promise that the memory of `in-place` is held to: at most 1.05 times
the peak of inference, plus the largest tensor.

Leaves with 2 if the model is neither cached nor to be had, or FILE cannot be written.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from zofo.bench import StepOptions, StepReport, bench_step
from zofo.bench.step import check_writable
from zofo.errors import ZofoError

SIZES = ((16, 64), (8, 64), (16, 32), (8, 32), (1, 32))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="an embedded model, a folder or a Hub id")
    parser.add_argument("--rank", type=int, default=1, help="of the low-rank noise")
    parser.add_argument("--repeats", type=int, default=5, help="rounds in which every way is timed")
    parser.add_argument("--dtype", default="float32", help="dtype of the weights")
    parser.add_argument("--no-memory", action="store_true", help="time only")
    parser.add_argument("--json", type=Path, help="write the figures there")
    return parser.parse_args()


def measure_all(options: argparse.Namespace, progress: Console) -> list[StepReport]:
    if options.json:
        check_writable(options.json)
    reports: list[StepReport] = []
    for examples, tokens in SIZES:
        size = f"{examples} x {tokens}"
        chosen = StepOptions(options.model, examples, tokens, options.rank, options.repeats, options.dtype)
        told = lambda text, size=size: progress.print(f"{size}: {text}", highlight=False)  # noqa: E731
        reports.append(bench_step(chosen, not options.no_memory, on_progress=told))
        if options.json:
            figures = {"sizes": [report.as_dict() for report in reports]}
            options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return reports


def main() -> None:
    try:
        reports = measure_all(arguments(), Console(stderr=True))
    except ZofoError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from error
    for report in reports:
        Console().print(report.table())


if __name__ == "__main__":
    main()
