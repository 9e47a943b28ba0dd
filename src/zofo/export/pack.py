"""Building the patch of a run."""

from __future__ import annotations

import io
from typing import Any

from zofo.adapters import check_untrusted_adapter
from zofo.backbone import Update
from zofo.displacement import Displacement
from zofo.errors import RunError
from zofo.export.patch import ADAPTER, check_trajectory_limits, packed
from zofo.export.run_metrics import metrics_of
from zofo.export.save_pretrained import label_texts, portable_config, portable_name
from zofo.noise import STREAM_VERSION
from zofo.training import RunFolder, environment
from zofo.training.run_record import WEIGHTS
from zofo.trajectory import Trajectory, TrajectoryWriter
from zofo.trajectory.format import Stepped
from zofo.trajectory.replay import sum_of_updates


def patch_of(run: RunFolder, variant: str | None = None, best: bool = False, summed: bool = False) -> bytes:
    """The content of a run's patch; with `summed` it holds the sum of the updates, 16 bytes for each direction.

    Raises RunError where the run is damaged, trained nothing, or holds something that a patch cannot.
    """
    runs = run.chain()
    for one in runs:
        one.verify()
    summary, adapter = run.summary, run.adapter_of(variant, best)
    parts: dict[str, bytes] = {}
    stages = []
    for number, one in enumerate(runs):
        if one is not run and one.adapter_of() is not None:
            raise RunError(
                f"the run started from {str(one.path)!r}, whose adapter a patch has no place for",
                "write the whole model with --merged DIR",
            )
        stages.append(_stage_of(one, number, parts, best and one is run, summed if one is run else None))
    if adapter is not None:
        check_untrusted_adapter(adapter)
        tensors = (adapter / ADAPTER[1]).read_bytes()
        parts |= {ADAPTER[0]: portable_config(adapter, run.config.model), ADAPTER[1]: tensors}
    if not parts:
        raise RunError(f"{str(run.path)!r} left nothing that a patch could hold: its model is the base model")
    noise = Trajectory.read(run.trajectory).header.get("noise") if run.trajectory.is_file() else None
    header = {
        "zofo": environment()["zofo"],
        "stream": STREAM_VERSION,
        "noise": noise if isinstance(noise, dict) else None,
        "base": _base(runs[0]),
        "method": summary["method"],
        "task": summary["task"],
        "variant": variant or next(iter(summary["variants"])),
        "best": best,
        "metrics": metrics_of(run, variant, best),
        "stages": stages,
        "adapter": adapter is not None,
        "backbone": summary.get("backbone") if stages[-1]["trajectory"] and stages[-1]["exact"] and not best else None,
    }
    return packed(header, parts)


def _stage_of(run: RunFolder, number: int, parts: dict[str, bytes], best: bool, summed: bool | None) -> dict[str, Any]:
    """The header of a run's stage, whose parts are added to `parts`. With `summed` None, it is as a run is restored."""
    (folder, steps), trajectory = run.artifact_folder(best), run.backbone_trajectory
    stage: dict[str, Any] = {"steps": steps, "exact": True, "trajectory": None, "weights": None}
    if trajectory is not None:
        summed = not (trajectory.cheap or run.config.model.dtype != "float32") if summed is None else summed
        check_trajectory_limits(trajectory)
        stage |= {"exact": not summed, "trajectory": f"trajectory_{number}.bin"}
        parts[stage["trajectory"]] = _bytes_of(run, trajectory, steps, summed)
        return stage if steps is not None else stage | {"steps": trajectory.steps}
    weights = folder / WEIGHTS
    if weights.is_file():
        stage["weights"] = f"weights_{number}.safetensors"
        parts[stage["weights"]] = weights.read_bytes()
    return stage if steps is not None else stage | {"steps": int(run.summary["steps"])}


def _bytes_of(run: RunFolder, trajectory: Trajectory, steps: int | None, summed: bool) -> bytes:
    """A trajectory file of the first so many steps, record by record or summed."""
    file = io.BytesIO()
    header = {name: value for name, value in trajectory.header.items() if name != "seed"}
    writer = TrajectoryWriter(file, trajectory.header["seed"], header)
    records = trajectory.records if steps is None else trajectory.first(steps)
    if summed:
        ended = [record for record in records if isinstance(record, Stepped)]
        records = (Update(folded_updates(run, trajectory, steps)), *ended[-1:])
    for record in records:
        writer.append(record)
    return file.getvalue()


def folded_updates(run: RunFolder, trajectory: Trajectory, steps: int | None = None) -> Displacement:
    """The sum of the first updates of a run; raises RunError where they do not add up."""
    if run.config.model.dtype != "float32":
        raise RunError("half-precision updates are rounded one by one, so they do not add up", "leave out --summed")
    return sum_of_updates(trajectory, steps)


def _base(run: RunFolder) -> dict[str, Any]:
    model, names = run.config.model, label_texts(run.task)
    known = run.identity.of_model.as_dict()
    return {
        "name": portable_name(model.name),
        "revision": model.revision,
        "dtype": model.dtype,
        "head": model.head,
        "head_seed": model.head_seed,
        "labels": len(names) or None,
        "label_names": names,
        "sha256": run.base_hash,
        "identity": {name: value for name, value in known.items() if name != "model_hash"},
    }
