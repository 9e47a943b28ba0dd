"""What shipping a run costs: bytes of its patch, time of a replay beside training, and whether the logits are the same.

    python benchmarks/patch.py [--model smollm2-135m] [--steps 1000] [--task movie-reviews] [--out DIR] [--json FILE]

Trains LoRA-Bilevel, writes its patch and its merged folder, applies the patch to the base model, and replays the
trajectory record by record and added up. Promised for 1,000 steps of SmolLM2: a patch of at most 64 KiB beside its
adapter, and a replay 50 times as fast as training. Time of training is without evaluation, of a replay without loading.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from zofo import RunFolder, load_model, read_config, train
from zofo.shipping import Patch, apply_patch, export_run
from zofo.training import Trajectory, replay

ROWS, TOKENS = 4, 32  # of the random rows whose logits are compared


def rows_of(vocabulary: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(10, vocabulary, (ROWS, TOKENS), generator=generator)


@torch.no_grad()
def logits_of(model: Any) -> torch.Tensor:
    ids = rows_of(model.config.vocab_size).to(next(model.parameters()).device)
    found: torch.Tensor = model(input_ids=ids, use_cache=False).logits.float().cpu()
    return found


def replay_seconds(run: RunFolder, exact: bool) -> tuple[float, bool]:
    """Seconds of a replay, and whether it gave the bits of training."""
    loaded = run.load_base()
    trajectory = Trajectory.read(run.trajectory)
    start = time.perf_counter()
    backbone = replay(loaded.model, trajectory, exact=exact)
    seconds = time.perf_counter() - start
    return seconds, backbone.fingerprint() == run.summary["backbone"]


def measured(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    settings = [f"model={given.model}", f"task={given.task}", "method=bilevel", f"training.steps={given.steps}"]
    settings += ["task.sizes.validation=16", f"run={folder / 'run'}", *given.settings]
    run = train(read_config(None, settings), Console(stderr=True))
    summary = run.summary
    patch, merged, applied = folder / "model.zofo", folder / "merged", folder / "applied"
    size = export_run(run.path, "patch", patch).size
    folded = export_run(run.path, "patch", folder / "folded.zofo", fold=True).size
    adapter = sum(map(len, Patch.read(patch).adapter.values()))
    export_run(run.path, "merged", merged)
    start = time.perf_counter()
    same = apply_patch(patch, given.model, applied).same_bits
    apply_seconds = time.perf_counter() - start
    theirs = logits_of(run.load().model)
    apart = {at.name: (logits_of(load_model(str(at)).model) - theirs).abs().max().item() for at in (merged, applied)}
    exact, exact_bits = replay_seconds(run, exact=True)
    added, _ = replay_seconds(run, exact=False)
    return {
        "steps": summary["steps"],
        "patch_bytes": size,
        "patch_bytes_without_adapter": size - adapter,
        "folded_patch_bytes_without_adapter": folded - adapter,
        "adapter_bytes": adapter,
        "training_seconds": summary["seconds"],
        "replay_seconds": exact,
        "replay_has_the_bits_of_training": exact_bits,
        "training_over_replay": summary["seconds"] / exact,
        "folded_replay_seconds": added,
        "training_over_folded_replay": summary["seconds"] / added,
        "apply_seconds": apply_seconds,
        "applied_backbone_has_the_bits_of_training": same,
        "largest_logit": theirs.abs().max().item(),
        "largest_difference_after_export": apart["merged"],
        "largest_difference_after_apply": apart["applied"],
        "device": str(next(run.load_base().model.parameters()).device),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="an embedded model, a folder or a Hub id")
    parser.add_argument("--task", default="movie-reviews", help="a task of `zofo list tasks`, or a task file")
    parser.add_argument("--steps", type=int, default=1000, help="of training")
    parser.add_argument("--out", type=Path, help="an empty folder to keep run, patch and models in")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("settings", nargs="*", help="key=value of the run")
    given = parser.parse_args()
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        found = measured(given, given.out)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            found = measured(given, Path(temporary))
    for name, value in found.items():
        print(f"{name:44} {value:,.6g}" if isinstance(value, float) else f"{name:44} {value}")
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
