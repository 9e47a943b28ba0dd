"""Apply a patch to its base model, on any machine."""

from __future__ import annotations

import copy
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path

from zofo.adapters import can_merge, load_strange_adapter
from zofo.errors import ConfigError, EvaluatorError, ModelError, NonFiniteError, PatchError, RunError, error_context
from zofo.export.patch import Base, Patch
from zofo.export.run_metrics import EVALUATED, unscored
from zofo.export.save_pretrained import check_can_hold_model, check_finite, save_model
from zofo.export.vote_patch import VotePart
from zofo.filesystem import atomic_folder, check_not_taken
from zofo.models import LoadedModel, ModelConfig, load_model
from zofo.training.identity import check_unchanged, model_identity
from zofo.training.restore import restore_weights
from zofo.trajectory.replay import evaluator_of


@dataclass(frozen=True)
class PatchResult:
    """The result of applying a patch.

    Args:
        merged: whether it is one transformers folder; otherwise it has `model` and `adapter`.
        same_bits: whether the backbone has the same bits as after training; None if that cannot be compared.
    """

    patch: Patch
    path: Path
    merged: bool
    same_bits: bool | None

    def lines(self) -> list[str]:
        """The result as lines of text."""
        header = self.patch.header
        scores = ", ".join(
            f"{name} {value:.4g}"
            for name, value in header.metrics.items()
            if isinstance(value, float | int) and name != EVALUATED
        )
        note = unscored(header.metrics)
        bits = {
            True: "the backbone has the bits that training left",
            False: "the backbone has other bits than training left, as on another device: equal up to rounding",
        }
        return [
            f"{header.method} on {header.task}: {scores}",
            *([note] if note is not None else []),
            *([] if header.base.identity else [_OLDER]),
            *([bits[self.same_bits]] if self.same_bits is not None else []),
            f"wrote {self.path}, a run folder of {header.vote} models that vote: zofo predict "
            f"{shlex.quote(str(self.path))} TEXT"
            if header.vote is not None
            else f"wrote {self.path}"
            if self.merged
            else f"wrote {self.path / 'model'} and {self.path / 'adapter'}, an adapter that cannot be merged",
        ]


_OLDER = (
    "a patch of an older version, which knows its base model by the weights alone: config.json and tokenizer were not "
    "compared"
)


def apply_patch(
    file: Path,
    base: str,
    out: Path,
    force: bool = False,
    summed: bool = False,
    remote_code: bool = False,
    revision: str | None = None,
) -> PatchResult:
    """Write the trained model: its base model with a patch applied.

    `from_pretrained` loads the folder. An adapter that cannot be merged (prefix, prompt) gives `out/model` and
    `out/adapter` instead.

    Args:
        base: its base model: an embedded name, a folder or a Hub id.
        force: write into a folder that is not empty; for a vote, into one with an applied vote.
        summed: write the sum of the updates at once: faster, and equal up to rounding.
        revision: branch, tag or commit of a Hub id; by default that of the patch, if `base` is its name there.

    Raises:
        PatchError: the patch is damaged, newer, hostile, or belongs to another base model.
    """
    patch = Patch.read(file)
    read = [Path(base)] if Path(base).is_dir() else []
    (check_can_hold_model if patch.vote is None else check_not_taken)(out, force, read)
    with tempfile.TemporaryDirectory(prefix="zofo-patch-") as temporary:
        adapter = Path(temporary) / "adapter"
        with error_context(repr(str(file)), RunError):
            patch.inspect(adapter)
        loaded = _base(file, patch.header.base, base, revision, remote_code)
        try:
            same = _replay(loaded, patch, summed, Path(temporary))
            if patch.vote is not None:
                evaluator_of(loaded.model, patch.vote.trajectory.header)  # refuses what could not be asked
            merged = not patch.adapter or _attached(loaded, adapter)
            check_finite(loaded.model)
        except (ConfigError, EvaluatorError, ModelError, NonFiniteError) as error:
            raise PatchError(f"{str(file)!r} cannot be applied to {base!r}: {error.message}", error.hint) from error
    with atomic_folder(out, force, read) as folder:
        if patch.vote is not None:
            _write_vote(patch, patch.vote, folder, out, patch.header.base.config(base, revision))
            _check_nothing_stays(out, folder)
            return PatchResult(patch, out, False, same)
        save_model(loaded, folder if merged else folder / "model", patch.header.base.label_names)
        if not merged:
            patch.write_adapter(folder / "adapter")
    return PatchResult(patch, out, merged, same)


def _write_vote(patch: Patch, vote: VotePart, folder: Path, out: Path, model: ModelConfig) -> None:
    """Write a vote as a run folder, with its scores."""
    header, metrics = patch.header, dict(patch.header.metrics)
    made = {name: metrics.pop(name, None) for name in ("metric", "steps", "queries", EVALUATED) if name in metrics}
    summary = {"method": header.method, "task": header.task, "model": model.name, "split": "validation"}
    outcome = {"variants": {header.variant: metrics}, "best": {}, "backbone": header.backbone, "stopped": None}
    vote.write(folder, out, model, header.base.known, {**summary, **metrics, "queries": None, **made, **outcome})


def _check_nothing_stays(out: Path, folder: Path) -> None:
    """Raise RunError for files that would remain next to a written run, and be taken for a part of it."""
    stays = sorted(one.name for one in out.iterdir() if not (folder / one.name).exists()) if out.is_dir() else []
    if stays:
        raise RunError(
            f"{str(out)!r} holds {stays[0]!r}, which would be taken for a part of the run folder", "choose another one"
        )


def _base(file: Path, wanted: Base, base: str, revision: str | None, remote_code: bool) -> LoadedModel:
    """The base model. Raises PatchError if it is not the patch's."""
    config = wanted.config(base, revision)
    loaded = load_model(config, remote_code, wanted.labels)
    found, at = model_identity(loaded), f" --revision {shlex.quote(wanted.revision)}" if wanted.revision else ""
    hint = f"give that model with --base {shlex.quote(wanted.name)}{at}"
    if found.model_hash != wanted.sha256:
        raise PatchError(
            f"{str(file)!r} belongs to {_named(wanted.name, wanted.revision)} with the weights {wanted.sha256}, but "
            f"{_named(base, config.revision)} has {found.model_hash}",
            hint,
        )
    check_unchanged(wanted.known, found, repr(str(file)), {"": hint}, model=base, verb="belongs to", error=PatchError)
    return loaded


def _named(name: str, revision: str | None) -> str:
    return repr(name) if revision is None else f"{name!r} at the revision {revision!r}"


def _replay(loaded: LoadedModel, patch: Patch, summed: bool, folder: Path) -> bool | None:
    """Replay every stage on the base model; returns whether the bits are those of training, None if unknown."""
    same = None
    for number, stage in enumerate(patch.stages):
        weights, last = folder / f"weights-{number}.safetensors", stage is patch.stages[-1]
        if stage.weights is not None:
            weights.write_bytes(stage.weights)
        by_record = stage.header.exact and not (summed and last)
        backbone = restore_weights(loaded, stage.trajectory, weights, summed=not by_record)
        if backbone is not None and last and by_record and patch.header.backbone is not None:
            same = backbone.fingerprint() == patch.header.backbone
    return same


def _attached(loaded: LoadedModel, folder: Path) -> bool:
    """Merge the adapter if possible, otherwise only check it; returns whether it was merged."""
    merge = can_merge(folder)
    load_strange_adapter(loaded.model if merge else copy.deepcopy(loaded.model), folder, merge)
    return merge
