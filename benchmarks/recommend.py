"""What `zofo recommend` proposes for six sets of rows, run as it is, beside zofo's plain defaults for as long.

    python benchmarks/recommend.py run --data FOLDER [--time 2m]     stopped, it goes on where it was
    python benchmarks/recommend.py show

FOLDER holds the tasks' rows, as `docs/tasks.md` describes them: `sst2`, `boolq`, and `demo/sms_spam`, `demo/snips`.
The plain defaults are `zofo train` with nothing but rows, model and metric: its default method, stopped at the step
that the clock of the recommended run has reached. Run it on an idle machine: what is compared is time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROWS = Path(__file__).parent / "results" / "recommend.jsonl"
MODEL = "smollm2-135m"


def sets_of(data: Path, scratch: Path) -> dict[str, list[str]]:
    """The arguments that name each set of rows."""
    return {
        "sst2, 2,000 rows": ["task=sst2", f"task.data_dir={data / 'sst2'}"],
        "snips, 2,000 rows of 7 labels": ["--data", str(data / "demo" / "snips"), "--label", "label_text"],
        "a chat": ["--data", str(_chat(data, scratch))],
        "50 rows, one label in eight": ["--data", str(_some(data, scratch, 50)), "--text", "sms"],
        "100,000 rows": ["--data", str(_some(data, scratch, 100_000)), "--text", "sms"],
        "long rows": ["task=boolq", f"task.data_dir={data / 'boolq'}"],
    }


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _written(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def _some(data: Path, scratch: Path, number: int) -> Path:
    """As many messages; where there are not so many, each again with a number that makes it another text. Of 50, six
    have the second label."""
    rows = _lines(data / "demo" / "sms_spam" / "train.jsonl")
    if number == 50:
        rows = [row for row in rows if not row["label"]][:44] + [row for row in rows if row["label"]][:6]
    made = [{**row, "sms": f"{row['sms']} ({again})" if again else row["sms"]} for again in range(100) for row in rows]
    return _written(scratch / f"messages-{number}.jsonl", made[:number])


def _chat(data: Path, scratch: Path) -> Path:
    """Commands, answered by what is wanted."""
    rows = _lines(data / "demo" / "snips" / "train.jsonl")[::5]
    turns = [
        [{"role": "user", "content": row["text"]}, {"role": "assistant", "content": f"You want {row['label_text']}."}]
        for row in rows
    ]
    return _written(scratch / "chat.jsonl", [{"messages": both} for both in turns])


def zofo(*arguments: str) -> str:
    """Run the command line; its output."""
    done = subprocess.run([sys.executable, "-m", "zofo", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"zofo {' '.join(arguments)}\n{done.stdout}{done.stderr}")
    return done.stdout


def _outcome(run: Path) -> dict[str, Any]:
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    metric = summary["metric"]
    kept = {key: summary[key] for key in ("majority", "loss", "seconds", "queries", "steps", "peak_bytes")}
    return {"metric": metric, "score": summary[metric], **kept}


def measure(name: str, given: list[str], limit: str, folder: Path) -> dict[str, Any]:
    """One set of rows: what is proposed, how long it takes, and what the defaults learn in that time."""
    file, best, plain = folder / "proposed.yaml", folder / "proposed", folder / "plain"
    expected = json.loads(zofo("recommend", *given, "--model", MODEL, "--time", limit, "--write", str(file), "--json"))
    start = time.perf_counter()
    zofo("train", str(file), f"output_dir={best}")
    whole, found = time.perf_counter() - start, _outcome(best)
    metric = f"task.metric={found['metric']}"
    model = f"model={MODEL}"
    trial = folder / "trial"
    few = "task.split_sizes.validation=8"  # steps alone are timed
    other: dict[str, Any] | None = None
    try:
        zofo("train", *given, model, metric, few, "training.steps=3", f"output_dir={trial}")
        steps = max(1, round(found["seconds"] / (_outcome(trial)["seconds"] / 3)))
        zofo("train", *given, model, metric, f"training.steps={steps}", f"output_dir={plain}")
        other = _outcome(plain)
    except SystemExit as refused:  # the defaults ask for more rows than there are
        print(f"the plain defaults: {refused}", flush=True)
    ratio = whole / expected["seconds"] if expected["seconds"] else None
    return {
        "rows": name,
        "expected_seconds": expected["seconds"],
        "whole_seconds": round(whole, 1),
        "ratio": ratio,
        "proposed": found,
        "plain": other,
    }


def known() -> dict[str, dict[str, Any]]:
    """The sets that were measured."""
    lines = ROWS.read_text(encoding="utf-8").splitlines() if ROWS.exists() else []
    return {row["rows"]: row for row in map(json.loads, filter(None, lines))}


def show() -> None:
    print("| rows | expected s | took s | ratio | proposed | plain | majority |")
    print("|---|---|---|---|---|---|---|")
    better, timely = 0, 0
    for name, row in known().items():
        one, other = row["proposed"], row["plain"]
        better += other is None or one["score"] > other["score"]
        timely += row["ratio"] is not None and abs(row["ratio"] - 1) <= 0.3
        scores = ["refused" if each is None else f"{each['score']:.3f}" for each in (one, other)]
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
        cells = [name, f"{row['expected_seconds'] or 0:.0f}", f"{row['whole_seconds']:.0f}", ratio]
        print("| " + " | ".join([*cells, f"{one['metric']} {scores[0]}", scores[1], f"{one['majority']:.3f}"]) + " |")
    print(f"\nbetter than the plain defaults: {better} of {len(known())}; within 30 % of its time: {timely}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "show"))
    parser.add_argument("--data", type=Path, help="a folder of tasks' rows")
    parser.add_argument("--time", default="2m", help="that each run may take")
    given = parser.parse_args()
    if given.what == "show":
        show()
        return
    if given.data is None or not given.data.is_dir():
        parser.error("run needs --data FOLDER, with the rows of sst2, boolq, demo/sms_spam and demo/snips")
    with tempfile.TemporaryDirectory(prefix="zofo-recommend-") as scratch:
        for name, arguments in sets_of(given.data.absolute(), Path(scratch)).items():
            if name in known():
                continue
            print(name, flush=True)
            with tempfile.TemporaryDirectory(prefix="zofo-recommend-") as folder:
                row = measure(name, arguments, given.time, Path(folder))
            with ROWS.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
