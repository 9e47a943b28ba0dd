"""How much memory a MeZO step takes: in place by zofo, in the usual way, and beside inference on the same batch.

    python benchmarks/step_memory.py --model smollm2-135m --rows 16 --tokens 64 --repeats 3 --json FILE

Each measurement is a process of its own on the CPU, and all are measured alike: load the model, move every tensor from
the mapped file into memory of its own, note the resident memory as the baseline, forget the peak of loading, then do
the work twice and read the peak: VmHWM of /proc/self/status on Linux, the `ru_maxrss` of getrusage elsewhere (where
the peak of loading cannot be forgotten). The table shows medians.

The promise: a step in place needs at most 1.05 times the peak of inference, plus the largest tensor.

Leaves with 2 if the model is neither cached nor to be had.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from step_time import arguments, load, random_batch, two_forwards, usual_step, zofo_step
from zofo.backbone import Backbone
from zofo.noise import Gaussian

STATUS = Path("/proc/self/status")
WAYS = ("inference", "zofo gaussian", "usual")
MIB = 1 << 20


def status_bytes(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def forget_peak() -> bool:
    """Whether the peak could be set back to the present resident memory."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    """The largest resident memory of this process."""
    if STATUS.is_file():
        return status_bytes("VmHWM")
    kilo = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilo


def measure_here(way: str, model: str, rows: int, tokens: int) -> dict[str, int | bool]:
    """One measurement, in this process."""
    loaded = load(model)
    batch = random_batch(loaded, rows, tokens)
    sizes = []
    for parameter in loaded.model.parameters():
        parameter.data = parameter.data.clone()
        sizes.append(parameter.numel() * parameter.element_size())
    loading = peak_bytes()
    forgotten = forget_peak()
    baseline = status_bytes("VmRSS") if STATUS.is_file() else loading
    if way == "inference":
        work = functools.partial(two_forwards, loaded, batch)
    elif way == "usual":
        work = functools.partial(usual_step, loaded, batch, 0)
    else:
        work = functools.partial(zofo_step, loaded, batch, Backbone(loaded.model, Gaussian()), 0)
    for _ in range(2):
        work()
    return {
        "peak": peak_bytes(),
        "baseline": baseline,
        "loading_peak": loading,
        "loading_peak_forgotten": forgotten,
        "weights": sum(sizes),
        "largest_tensor": max(sizes),
    }


def measure(way: str, model: str, rows: int, tokens: int) -> dict[str, int | bool]:
    """One measurement, in a fresh process."""
    command = [sys.executable, __file__, "--way", way, "--model", model, "--rows", str(rows), "--tokens", str(tokens)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        print(done.stderr.strip(), file=sys.stderr)
        raise SystemExit(done.returncode)
    result: dict[str, int | bool] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = arguments(__doc__ or "", repeats=3)
    parser.add_argument("--way", choices=WAYS, help="measure this one in this process and print it as JSON")
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure_here(options.way, options.model, options.rows, options.tokens)))
        return
    found: dict[str, list[dict[str, int | bool]]] = {way: [] for way in WAYS}
    for _ in range(options.repeats):
        for way in WAYS:
            found[way].append(measure(way, options.model, options.rows, options.tokens))
    rows = {
        way: {field: statistics.median(int(one[field]) for one in runs) for field in ("baseline", "peak")}
        for way, runs in found.items()
    }
    first = found["inference"][0]
    floor, step, largest = rows["inference"]["peak"], rows["zofo gaussian"]["peak"], int(first["largest_tensor"])
    kept = step <= 1.05 * floor + largest
    print(
        f"{options.model}: {options.rows} rows x {options.tokens} tokens, cpu, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, median of {options.repeats} processes\n"
        f"weights {int(first['weights']) / MIB:.0f} MiB, largest tensor {largest / MIB:.0f} MiB"
    )
    if not all(run["loading_peak_forgotten"] for runs in found.values() for run in runs):
        print("the peak of loading could not be forgotten here: peaks include it")
    print(f"\n{'way':<18}{'baseline MiB':>14}{'peak MiB':>11}{'above baseline':>16}{'/ inference':>13}")
    for way, row in rows.items():
        above, ratio = row["peak"] - row["baseline"], row["peak"] / floor
        print(f"{way:<18}{row['baseline'] / MIB:>14.0f}{row['peak'] / MIB:>11.0f}{above / MIB:>16.0f}{ratio:>13.3f}")
    print(f"\nzofo <= 1.05 x inference + largest tensor: {'yes' if kept else 'NO'}")
    if options.json:
        report = {"model": options.model, "rows": options.rows, "tokens": options.tokens, "largest_tensor": largest}
        report |= {"weights": first["weights"], "ways": rows, "promise_kept": kept}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
