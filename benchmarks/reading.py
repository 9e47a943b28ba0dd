"""What a model knows before it is trained: zero-shot, calibrated, and in-context scores of tasks that have data here.

    python benchmarks/reading.py run --data FOLDER --out FILE.jsonl [--model smollm2-135m] [--rows 200] [--threads 1]
    python benchmarks/reading.py report FILE.jsonl [--markdown FILE.md]

FOLDER holds a folder for each task, with its rows as train.jsonl and validation.jsonl. A task is scored on the first
rows of its test split, which is drawn from the data set's official validation rows. `run` goes on where FILE ends.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from zofo.errors import ZofoError
from zofo.training import evaluate_zero_shot, read_config

SEEDS = (0, 1, 2)
DEMONSTRATIONS = 4
FOLDERS = {"wsc": "wsc_fixed"}  # where a task's folder is not called as the task
LONG = {"rte": 100, "mnli": 100, "boolq": 100, "squad": 100}  # rows of tasks whose texts are long
TASKS = ("sst2", "cola", "copa", "wsc", "cb", "rte", "mnli", "boolq", "record", "squad")


def ways() -> list[tuple[str, int, list[str]]]:
    """What is scored: a name, a seed, and overrides."""
    found: list[tuple[str, int, list[str]]] = [
        ("zero-shot", 0, []),
        ("calibrated", 0, ["task.scoring=calibrated"]),
    ]
    shown = f"{DEMONSTRATIONS} demonstrations"
    return found + [(shown, seed, [f"task.num_fewshot={DEMONSTRATIONS}", f"task.split_seed={seed}"]) for seed in SEEDS]


def run(data: Path, out: Path, model: str, rows: int) -> None:
    done = {_key(line) for line in _lines(out)}
    for way, seed, overrides in ways():  # every task in one way before any in the next, so that a table fills evenly
        for task in TASKS:
            folder = data / FOLDERS.get(task, task)
            if not folder.is_dir():
                print(f"{task}: skipped, there is no {folder}")
            elif (task, way, seed, model) not in done:
                most = min(rows, LONG.get(task, rows))
                given = [f"model={model}", f"task={task}", f"task.data_dir={folder}", f"task.max_rows={most}"]
                _score(out, task, way, seed, model, [*given, "task.truncate=left", *overrides])


def _score(out: Path, task: str, way: str, seed: int, model: str, overrides: list[str]) -> None:
    start = time.perf_counter()
    try:
        score = evaluate_zero_shot(read_config(None, overrides), "test")
    except ZofoError as error:
        print(f"{task}, {way}: {error}")
        return
    line = {"task": task, "way": way, "seed": seed, "model": model, "rows": len(score.predictions)}
    line |= {"metric": score.metric, "score": score.score, "majority": score.majority, "also": dict(score.also)}
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**line, "seconds": round(time.perf_counter() - start, 1)}) + "\n")
    print(f"{task}, {way}, seed {seed}: {score.metric} {score.score:.3f}, majority {score.majority:.3f}", flush=True)


def report(path: Path) -> str:
    """A table: a row for each task, with 95 % intervals."""
    lines = _lines(path)
    columns = ["zero-shot", "calibrated", f"{DEMONSTRATIONS} demonstrations"]
    shown = ["| task | metric | rows | majority | " + " | ".join(columns) + " |", "|---" * (4 + len(columns)) + "|"]
    for task in dict.fromkeys(line["task"] for line in lines):
        own = [line for line in lines if line["task"] == task]
        first = own[0]
        cells = [_cell([line for line in own if line["way"] == way]) for way in columns]
        head = f"| {task} | {first['metric']} | {first['rows']} | {100 * first['majority']:.1f} "
        shown.append(head + "".join(f"| {cell} " for cell in cells) + "|")
    return "\n".join(shown)


def _cell(lines: list[dict[str, Any]]) -> str:
    """The mean over seeds, with an interval over them, or of a share of so many rows for fewer than three seeds."""
    from scipy.stats import t

    if not lines:
        return "-"
    scores = torch.tensor([line["score"] for line in lines], dtype=torch.float64)
    if len(scores) < 3:
        share = scores.mean().item()
        half = 1.96 * (share * (1 - share) / lines[0]["rows"]) ** 0.5
        return f"{100 * share:.1f} ± {100 * half:.1f}"
    half = float(t.ppf(0.975, len(scores) - 1)) * scores.std().item() / len(scores) ** 0.5
    return f"{100 * scores.mean().item():.1f} ± {100 * half:.1f}"


def _key(line: dict[str, Any]) -> tuple[str, str, int, str]:
    return line["task"], line["way"], line["seed"], line["model"]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("run")
    verb.add_argument("--data", type=Path, required=True)
    verb.add_argument("--out", type=Path, required=True)
    verb.add_argument("--model", default="smollm2-135m")
    verb.add_argument("--rows", type=int, default=200)
    verb.add_argument("--threads", type=int)
    verb = verbs.add_parser("report")
    verb.add_argument("file", type=Path)
    verb.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    if given.verb == "run":
        if given.threads:
            torch.set_num_threads(given.threads)
        run(given.data, given.out, given.model, given.rows)
        return
    table = report(given.file)
    print(table)
    if given.markdown:
        given.markdown.write_text(table + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
