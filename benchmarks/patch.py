"""What shipping a run costs: bytes of its patch, time of a replay beside training, and whether the logits are the same.

    python benchmarks/patch.py [--model smollm2-135m] [--steps 1000] [--task movie-reviews] [--out DIR] [--json FILE]

Trains LoRA-Bilevel, writes its patch and its merged folder, applies the patch to the base model, and replays the
trajectory record by record and summed. Promised for 1,000 steps of SmolLM2: a patch of at most 64 KiB beside its
adapter, and a replay 50 times as fast as training. Time of training is without evaluation, of a replay without loading;
ratios are of the clock and of processor time, which other processes change less.
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
from zofo.export import Patch, apply_patch, export_run
from zofo.trajectory import Trajectory, replay

ROWS, TOKENS = 4, 32  # of the random rows whose logits are compared


def rows_of(vocabulary: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(10, vocabulary, (ROWS, TOKENS), generator=generator)


@torch.no_grad()
def logits_of(model: Any) -> torch.Tensor:
    ids = rows_of(model.config.vocab_size).to(next(model.parameters()).device)
    found: torch.Tensor = model(input_ids=ids, use_cache=False).logits.float().cpu()
    return found


class Watch:
    """Seconds since it was made, by the clock and of this process on a processor."""

    def __init__(self) -> None:
        self._clock, self._processor = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Both, so far."""
        return time.perf_counter() - self._clock, time.process_time() - self._processor


def replay_seconds(run: RunFolder, summed: bool) -> tuple[tuple[float, float], bool]:
    """Seconds of a replay, by the clock and of the processor, and whether it gave the bits of training."""
    loaded = run.load_base()
    trajectory = Trajectory.read(run.trajectory)
    watch = Watch()
    backbone = replay(loaded.model, trajectory, summed=summed)
    return watch.read(), backbone.fingerprint() == run.summary["backbone"]


def trained(given: argparse.Namespace, folder: Path) -> tuple[RunFolder, float | None]:
    """The run, and the processor's seconds of its steps; None where it was there already."""
    if (folder / "run").exists() and RunFolder(folder / "run").ended:
        return RunFolder(folder / "run"), None
    settings = [f"model={given.model}", f"task={given.task}", "method=bilevel", f"training.steps={given.steps}"]
    settings += ["task.split_sizes.validation=16", f"output_dir={folder / 'run'}", *given.settings]
    watch = Watch()
    run = train(read_config(None, settings), Console(stderr=True))
    clock, processor = watch.read()
    # without what came before the first step, evaluation, and what came after the last step
    return run, processor * run.summary["seconds"] / clock


def measured(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    run, processor = trained(given, folder)
    summary = run.summary
    patch, merged, applied = folder / "model.zofo", folder / "merged", folder / "applied"
    size = export_run(run.path, "patch", patch, force=True).size
    folded_size = export_run(run.path, "patch", folder / "folded.zofo", summed=True, force=True).size
    adapter = sum(map(len, Patch.read(patch).adapter.values()))
    export_run(run.path, "merged", merged, force=True)
    watch = Watch()
    same = apply_patch(patch, given.model, applied, force=True).same_bits
    apply_seconds, _ = watch.read()
    theirs = logits_of(run.load().model)
    apart = {at.name: (logits_of(load_model(str(at)).model) - theirs).abs().max().item() for at in (merged, applied)}
    (record, record_processor), same_after_replay = replay_seconds(run, summed=False)
    (folded, folded_processor), _ = replay_seconds(run, summed=True)
    return {
        "steps": summary["steps"],
        "patch_bytes": size,
        "patch_bytes_without_adapter": size - adapter,
        "folded_patch_bytes_without_adapter": folded_size - adapter,
        "adapter_bytes": adapter,
        "training_seconds": summary["seconds"],
        "training_processor_seconds": processor,
        "replay_seconds": record,
        "replay_processor_seconds": record_processor,
        "replay_has_the_bits_of_training": same_after_replay,
        "training_over_replay": summary["seconds"] / record,
        "training_over_replay_by_processor": processor and processor / record_processor,
        "folded_replay_seconds": folded,
        "folded_replay_processor_seconds": folded_processor,
        "training_over_folded_replay": summary["seconds"] / folded,
        "training_over_folded_replay_by_processor": processor and processor / folded_processor,
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
    parser.add_argument(
        "--out",
        type=Path,
        help="a folder to keep run, patch and models in; a run that has ended there is not made again",
    )
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
