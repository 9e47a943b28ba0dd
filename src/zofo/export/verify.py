"""Rebuild the weights of any step of a run from its base model and its trajectory."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file

from zofo.backbone import Backbone
from zofo.errors import RunError, ZofoError
from zofo.evaluators import Counts
from zofo.export.export import folded_updates
from zofo.export.run_metrics import evaluations
from zofo.export.save_pretrained import check_can_hold_model, label_texts, save_model
from zofo.filesystem import atomic_folder
from zofo.models import LoadedModel, head_of
from zofo.tasks import load_examples
from zofo.training import RunFolder, scorer_of
from zofo.training.identity import split_identity
from zofo.training.predictor import check_rows
from zofo.training.run_record import SUMMARY, WEIGHTS
from zofo.trajectory import Trajectory, replay

Verdict = Literal["same bits", "other bits", "same loss", "other loss", "nothing to compare with"]
_LOSS = 1e-4  # relative difference of losses that are equal up to rounding


@dataclass(frozen=True)
class ReplayReport:
    """The result of a replay.

    Args:
        steps: number of steps that were replayed.
        of: number of steps of the run.
        seconds: time of the replay, without loading the model.
        summed: whether the sum of the updates was written at once, instead of record by record.
        fingerprint: SHA-256 of the tensors that the run moves.
        verdict: result of the comparison with what the run has left.
        adapters: whether the run also trained adapters, which are not part of these weights.
        cut: whether the trajectory ends inside a record, so that later steps are lost.
    """

    steps: int
    of: int
    seconds: float
    summed: bool
    fingerprint: str
    verdict: Verdict
    detail: str
    path: Path | None
    adapters: bool
    cut: bool

    @property
    def failed(self) -> bool:
        """Whether the comparison found a difference."""
        return self.verdict in ("other bits", "other loss")

    def lines(self) -> list[str]:
        """The result as lines of text."""
        how = "summed" if self.summed else "record by record"
        lines = [f"replayed {self.steps} of {self.of} steps in {self.seconds:.2f} s, {how}: {self.fingerprint}"]
        lines.append(f"{self.verdict} ({self.detail})")
        if self.cut:
            lines.append(f"the trajectory ends inside a record: what it holds after step {self.of} is lost")
        if self.adapters:
            lines.append(
                "these are the weights of the backbone; the run's adapters exist as of its last step and its best one: "
                "zofo export RUN --merged DIR"
            )
        return [*lines, *([f"wrote {self.path}"] if self.path is not None else [])]

    def as_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return {**asdict(self), "path": None if self.path is None else str(self.path)}


def replay_run(
    path: Path | str,
    step: int | None = None,
    out: Path | None = None,
    *,
    summed: bool = False,
    force: bool = False,
    model: str | None = None,
    remote_code: bool = False,
) -> ReplayReport:
    """Rebuild the backbone after some steps, and compare it with the run's results. The run is only read.

    By default record by record: everything that training wrote is written again, with the same bits on the same device.
    With `summed` the sum of the updates is written at once: faster, especially for in-place runs, and equal up to
    rounding.

    After the last step the weights are compared with their hash in `summary.json` (or with `weights.safetensors`);
    after any step with a logged loss on validation, with that loss, if the model has no adapter.

    Args:
        step: number of steps to replay; by default all, 0 for the base model.
        out: the new transformers folder of the backbone; by default nothing is written.
        summed: write the sum of the updates at once.
        force: write into a folder that is not empty.
        model: the base model's new location, if it has moved.

    Raises:
        RunError: the backbone of the run does not move, the run is damaged or has fewer steps, or the target exists.
    """
    run = RunFolder.open(path)
    trajectory = _trajectory(run)
    steps = trajectory.steps if step is None else step
    if not 0 <= steps <= trajectory.steps:
        raise RunError(
            f"{str(run.path)!r} has {trajectory.steps} steps, not {steps}", f"ask for 0 to {trajectory.steps}"
        )
    read = run.sources(model)
    if out is not None:
        check_can_hold_model(out, force, read)
    if summed:
        folded_updates(run, trajectory, steps)  # refuses
    loaded = run.load_base(model, remote_code)
    run.load_start_weights(loaded)
    start = time.perf_counter()
    whole = steps == trajectory.steps
    backbone = replay(loaded.model, trajectory, None if whole else steps, summed=summed)
    seconds = time.perf_counter() - start
    fingerprint = backbone.fingerprint()
    summary = run.summary if (run.path / SUMMARY).is_file() else {}  # of a run that has ended
    adapters = any((run.path / variant).is_dir() for variant in summary.get("variants", {}))
    found = _compared_bits(run, backbone, fingerprint, summary.get("backbone")) if whole and not summed else None
    verdict, detail = found or _compared_loss(run, loaded, steps, adapters)
    if out is not None:
        with atomic_folder(out, force, read) as folder:
            save_model(loaded, folder, label_texts(run.only_task))
    return ReplayReport(
        steps, trajectory.steps, seconds, summed, fingerprint, verdict, detail, out, adapters, not trajectory.whole
    )


def _trajectory(run: RunFolder) -> Trajectory:
    trajectory = run.backbone_trajectory
    if trajectory is None and run.trajectory.is_file():
        raise RunError(
            f"the trajectory of {str(run.path)!r} moves an adapter, which the run keeps as it was in the end",
            f"take that: zofo export {run.path} --adapter DIR",
        )
    if trajectory is None:
        raise RunError(
            f"{str(run.path)!r} has no trajectory: its backbone did not move",
            f"its adapter or weights are all there is: zofo export {run.path} --merged DIR",
        )
    return trajectory


def _compared_bits(
    run: RunFolder, backbone: Backbone, fingerprint: str, hashed: str | None
) -> tuple[Verdict, str] | None:
    """Compare the weights with those after training, by the hash in the summary, or with the file of weights."""
    weights = run.path / WEIGHTS
    if hashed is not None:
        return ("same bits" if fingerprint == hashed else "other bits"), "the hash of training's weights"
    if not weights.is_file():
        return None
    saved = load_file(weights)
    own = {name: tensor.cpu() for name, tensor in backbone.tensors.items()}
    same = saved.keys() == own.keys() and all(saved[name].equal(tensor) for name, tensor in own.items())
    return ("same bits" if same else "other bits"), weights.name


def _compared_loss(run: RunFolder, loaded: LoadedModel, steps: int, adapters: bool) -> tuple[Verdict, str]:
    """Compare the loss on validation with the one that the run logged after this number of steps."""
    logged = None if adapters else next((line["loss"] for line in evaluations(run) if line["steps"] == steps), None)
    if logged is None:
        return "nothing to compare with", "the run logged no loss of these weights alone"
    task, head = run.task, head_of(run.config.model) == "classification"
    try:
        examples = load_examples(task, run.config.task, ("validation",), head)
        check_rows(run, split_identity(examples))
        scorer = run.scorer(scorer_of(run.config, task, loaded))
        loss = scorer.evaluate(loaded.model, scorer.encode(examples["validation"]), Counts()).loss
    except ZofoError as error:
        return "nothing to compare with", f"the validation rows cannot be read: {error.message}"
    same = abs(loss - logged) <= _LOSS * max(1.0, abs(logged))
    return ("same loss" if same else "other loss"), f"on validation {loss:.6f}, in the run {logged:.6f}"
