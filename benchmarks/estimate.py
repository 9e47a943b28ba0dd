"""What `zofo estimate` predicts beside what is measured: 3 models x 3 batches x 6 methods, NF4 among them.

    python benchmarks/estimate.py run [--threads 1]     measures, a process a row; stopped, it goes on where it was
    python benchmarks/estimate.py compare [--csv FILE]  predicts the same rows, and shows both

Memory may be measured beside other work. Time is that of the processor (`cpu_seconds`), which is the time of the clock
on an idle machine with one thread; `--clock` compares that of the clock. Constants are those of `zofo bench calibrate`
where it was called, else the packaged ones.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import tempfile
from dataclasses import asdict
from pathlib import Path

ROWS = Path(__file__).parent / "results" / "estimate.jsonl"
MODELS = ("smollm2-135m", "opt-125m", "llama-300m")
BATCHES = ((4, 64), (8, 64), (8, 128))
PLACE = ("model", "examples", "tokens", "way")
WAYS = ("inference", "mezo", "mezo-subspace-nf4", "lora", "lora-checkpointing", "qlora-nf4", "bilevel")


def model_of(name: str, folder: Path) -> str:
    """A model by the name of the table: an embedded one, or one of random weights, which is written once."""
    from zofo.bench.shapes import SHAPES, random_model

    target = folder / name
    if name in SHAPES:
        return str(target if target.exists() else random_model(name, target))
    if name != "opt-125m":
        return name
    if not target.exists():
        import torch
        import transformers

        from zofo.embedded import EMBEDDED_MODELS

        tokenizer = transformers.AutoTokenizer.from_pretrained(str(EMBEDDED_MODELS["smollm2-135m"]()))
        special = {"pad_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
        config = transformers.OPTConfig(vocab_size=len(tokenizer), **special)
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(target)
        tokenizer.save_pretrained(target)
    return str(target)


def known() -> dict[tuple[str, int, int, str], dict[str, object]]:
    """The rows that were measured, by model, batch and way."""
    lines = ROWS.read_text(encoding="utf-8").splitlines() if ROWS.exists() else []
    rows = map(json.loads, filter(None, lines))
    return {(row["model"], row["examples"], row["tokens"], row["way"]): row for row in rows}


def measure(folder: Path, steps: int) -> None:
    from zofo.bench import MemoryOptions, bench_memory

    for examples, tokens in BATCHES:
        for name in MODELS:
            for way in WAYS:
                if (name, examples, tokens, way) in known():
                    continue
                print(f"{name}, {examples} x {tokens}, {way}", flush=True)
                (row,) = bench_memory(MemoryOptions(model_of(name, folder), examples, tokens, steps), [way])
                with ROWS.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps({**asdict(row), "model": name}) + "\n")


def compare(folder: Path, clock: bool, table: Path | None) -> None:
    from zofo.bench.memory import WAYS as KEYS
    from zofo.estimate import RowSource, known_machine
    from zofo.estimate.report import estimate_config, way_of
    from zofo.training import read_config

    machine, key = known_machine(), "seconds" if clock else "cpu_seconds"
    print(f"constants of {machine.measured}\n")
    print("| model | batch | way | GiB | estimated / measured | seconds | estimated / measured |")
    print("|---|---|---|---|---|---|---|")
    memory, time, rows = [], [], []
    for (name, examples, tokens, way), row in sorted(known().items()):
        if row["error"] is not None or way not in KEYS:
            continue
        given = {"name": model_of(name, folder)}
        config = read_config(model=given, method={"name": "mezo", "batch_size": examples})
        asked, method = way_of(config, way)
        source = RowSource(config, tokens)
        source.training = 3 * examples  # as they are measured
        found = estimate_config(asked, source, machine, "cpu", method)
        memory.append(found.peak_bytes / row["peak_bytes"])
        cells = [name, f"{examples} x {tokens}", way, f"{row['peak_bytes'] / 2**30:.2f}", f"{memory[-1]:.2f}"]
        if row.get(key) and found.seconds is not None:
            time.append(found.seconds / row[key])
            cells += [f"{row[key]:.2f}", f"{time[-1]:.2f}"]
        print("| " + " | ".join(cells) + " |", flush=True)
        estimated = {"estimated_peak_bytes": found.peak_bytes, f"estimated_{key}": found.seconds}
        rows.append({one: row[one] for one in (*PLACE, "peak_bytes", key)} | estimated)
    if table is not None:
        with table.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    for what, ratios, limit in (("memory", memory, 0.10), ("time", time, 0.25)):
        within = sum(abs(ratio - 1) <= limit for ratio in ratios)
        middle = f"median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}"
        print(f"\n{what}: {within} of {len(ratios)} within {limit:.0%}; {middle}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "compare"))
    parser.add_argument("--threads", default="1", help="of torch, in each process")
    parser.add_argument("--steps", type=int, default=3, help="of each way; the first is not timed")
    parser.add_argument("--models", type=Path, help="where models of random weights are kept")
    parser.add_argument("--clock", action="store_true", help="compare the time of the clock")
    parser.add_argument("--csv", type=Path, help="where what was compared is written, a row a way")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = given.threads
    with tempfile.TemporaryDirectory(prefix="zofo-estimate-") as scratch:
        folder = given.models or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        measure(folder, given.steps) if given.what == "run" else compare(folder, given.clock, given.csv)


if __name__ == "__main__":
    main()
