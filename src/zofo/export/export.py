"""Exports of a run: a transformers folder, a peft folder, or a patch; and uploads to the Hub."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from zofo.adapters import check_untrusted_adapter, merge_adapter
from zofo.adapters.checkpoint import adapter_content, check_can_take_up
from zofo.backbone import Update
from zofo.displacement import Displacement
from zofo.errors import ConfigError, RunError, ZofoError, first_line
from zofo.export.model_card import model_card
from zofo.export.patch import ADAPTER, check_trajectory_limits, packed
from zofo.export.run_metrics import metrics_of
from zofo.export.save_pretrained import (
    check_can_hold_model,
    check_complete,
    label_texts,
    portable_config,
    portable_name,
    save_adapter,
    save_model,
)
from zofo.export.vote_patch import MEMBERS, vote_parts
from zofo.filesystem import atomic_folder, check_file_not_taken, write_file
from zofo.methods.linear_probe import PROBE
from zofo.models import LoadedModel, head_of, load_tokenizer
from zofo.models.heads import Head
from zofo.noise import STREAM_VERSION
from zofo.objectives.generation import generation_settings
from zofo.training import RunFolder, environment
from zofo.training.data_module import scorer_of
from zofo.training.restore import check_run_adapter
from zofo.training.run_record import WEIGHTS
from zofo.trajectory import Trajectory
from zofo.trajectory.format import TERM, Stepped
from zofo.trajectory.replay import sum_of_updates

Kind = Literal["merged", "adapter", "patch"]


@dataclass(frozen=True)
class ExportResult:
    """A written export.

    Args:
        files: names of the files in the folder; empty for a patch.
    """

    kind: Kind
    path: Path
    files: tuple[str, ...]
    card: str

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum((self.path / name).stat().st_size for name in self.files) or self.path.stat().st_size


def parse_export_target(**places: Path | None) -> tuple[Kind, Path]:
    """The requested kind of export and its path; raises ConfigError for none, or several."""
    given = [(kind, place) for kind, place in places.items() if place is not None]
    if len(given) != 1:
        raise ConfigError(
            f"{len(given) or 'no'} forms were asked for, and one can be written at a time",
            "give one of --merged DIR, --adapter DIR and --patch FILE",
        )
    kind, place = given[0]
    return cast(Kind, kind), place


def export_run(
    path: Path | str,
    kind: Kind,
    out: Path,
    *,
    variant: str | None = None,
    best: bool = False,
    force: bool = False,
    summed: bool = False,
    model: str | None = None,
    remote_code: bool = False,
) -> ExportResult:
    """Write the trained model of a run for other libraries. The run is only read.

    * `merged`: a transformers folder, the backbone replayed and the adapter merged into it: `from_pretrained` loads it.
    * `adapter`: only the peft folder. The base model is compared with the run's if it is available.
    * `patch`: one file, from which `apply_patch` restores the model, given the base model.

    Args:
        out: the new folder, or file for a patch.
        variant: which model of the run; by default the main one.
        best: the model of the best evaluation instead of the last step.
        force: overwrite an existing target.
        summed: for a patch: contain the sum of the updates instead of each one.
        model: the base model's new location, if it has moved.

    Raises:
        RunError: the run has not ended or is damaged, or has no such model or form; or the target exists.
    """
    run = RunFolder.open(path)
    run.verify()
    adapter = run.adapter_of(variant, best)
    read = run.sources(model)
    if kind != "adapter":
        _check_can_be_whole(run, kind)
    if kind == "patch":
        check_file_not_taken(out, force, read)
        if model is not None:  # else it is compared where the patch is applied
            run.load_start_weights(run.load_base(model, remote_code))
        write_file(out, patch_of(run, variant, best, summed))
        return ExportResult(kind, out, (), model_card(run, kind, variant, best))
    check_can_hold_model(out, force, read)  # before the model is loaded
    head: Head
    if kind == "adapter":
        adapter, head = _checked_adapter(run, adapter, variant, model, remote_code)
        tokenizer: Callable[[], Any | None] = functools.partial(_tokenizer_of, run, model)
        save: Callable[[Path], object] = functools.partial(save_adapter, adapter, run.config.model)
    else:
        _check_no_earlier_adapter(run)
        loaded = run.load(variant, best, model, remote_code, attach=merge_adapter)
        head, tokenizer = loaded.head, lambda: loaded.tokenizer
        save = functools.partial(_save_merged, run, loaded)
    card = model_card(run, kind, variant, best, head, tokenizer)
    with atomic_folder(out, force, read) as folder:
        save(folder)
        (folder / "README.md").write_text(card, encoding="utf-8")
        files = tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()))
    return ExportResult(kind, out, files, card)


def _tokenizer_of(run: RunFolder, model: str | None) -> Any | None:
    """The tokenizer of the base model; None if it is not available, since an adapter does not need it."""
    config = run.config.model
    try:
        return load_tokenizer(config if model is None else config.model_copy(update={"name": model, "revision": None}))
    except ZofoError:
        return None


def _checked_adapter(
    run: RunFolder, adapter: Path | None, variant: str | None, model: str | None, remote_code: bool
) -> tuple[Path, Head]:
    """The folder of a checked adapter, and the head that it is for.

    Raises RunError if there is none, no run can have written it, or its base model is available and differs.
    """
    if adapter is None:
        _check_is_model(run)
        raise RunError(
            f"{str(run.path)!r} has no adapter for {variant or next(iter(run.summary['variants']))!r}",
            "write the whole model with --merged DIR",
        )
    check_run_adapter(adapter, run.config.method)
    if model is not None or Path(run.config.model.name).is_dir():
        run.load_start_weights(run.load_base(model, remote_code))
    head = _head_of(run, adapter, model)
    if head == "classification":
        check_complete(adapter, run.base_config(model), len(run.task.label_names) or None, remote_code)
    return adapter, head


def _save_merged(run: RunFolder, loaded: LoadedModel, folder: Path) -> None:
    """Save the model, with the generation settings of the run's free answers if it has any."""
    task, generation = run.only_task, None
    if task is not None and task.kind == "generation":
        generation = generation_settings(loaded.model, scorer_of(run.config, task, loaded).generation)
    save_model(loaded, folder, label_texts(task), generation)


def _head_of(run: RunFolder, adapter: Path, model: str | None) -> Head:
    """The head of an adapter's model; the base model is read only if the adapter does not name it."""
    kinds: dict[str, Head] = {"SEQ_CLS": "classification", "CAUSAL_LM": "causal-lm"}
    said = kinds.get(str(adapter_content(adapter).get("task_type")))
    return run.config.model.head or said or head_of(run.base_config(model))


def _check_can_be_whole(run: RunFolder, kind: Kind) -> None:
    """Raise RunError for anything that cannot be merged into a model.

    That is a probe, a vote (except as a patch), and anything on quantised weights.
    """
    if kind != "patch" or not run.is_vote:
        _check_is_model(run)
    own = (run.identity.model_config or {}).get("quantization_config")
    check_can_take_up(run.config.model.quantization or (own.get("quant_method") if isinstance(own, dict) else None))


def _check_is_model(run: RunFolder) -> None:
    """Raise RunError for a vote or a probe, with what to send instead of a model."""
    if run.is_vote:
        raise RunError(
            f"{str(run.path)!r} is a vote of several models and no one set of weights",
            "write its members with --patch FILE, of which zofo apply makes a run folder that zofo predict asks",
        )
    if (run.path / PROBE).is_file():
        size = sum(file.stat().st_size for file in run.path.rglob("*") if file.is_file())
        raise RunError(
            f"{str(run.path)!r} trained a probe beside the model, which no folder of weights and no patch can hold",
            f"send the run's folder itself, {size:,} bytes, and ask it where the base model is: zofo predict "
            f"{shlex.quote(str(run.path))} TEXT --model BASE",
        )


def _brought(start: RunFolder | None, run: RunFolder) -> bool:
    """Whether beneath a run's own training there is the adapter of the run that it started from."""
    return start is not None and start.adapter_of() is not None and start.adapter_for(run.config.method) is None


def _check_no_earlier_adapter(run: RunFolder) -> None:
    start = run.start
    if start is not None and _brought(start, run):
        raise RunError(
            f"the run started from {str(start.path)!r} and its adapter, which this version cannot merge",
            "export that run with --merged DIR, and train again with model=DIR",
        )


def patch_of(run: RunFolder, variant: str | None = None, best: bool = False, summed: bool = False) -> bytes:
    """The content of a run's patch; with `summed` it has the sum of the updates, 16 bytes per direction.

    Raises RunError if the run is damaged, trained nothing, or has something that a patch cannot contain.
    """
    runs = run.chain()
    for one in runs:
        one.verify()
    summary, adapter = run.summary, run.adapter_of(variant, best)
    parts: dict[str, bytes] = {}
    stages = []
    for number, one in enumerate(runs):
        if one is not run and _brought(one, runs[number + 1]):
            raise RunError(
                f"the run started from {str(one.path)!r}, whose adapter a patch has no place for",
                "write the whole model with --merged DIR",
            )
        stages.append(_stage_of(one, number, parts, best and one is run, summed if one is run else None))
    if adapter is not None:
        check_untrusted_adapter(adapter)
        tensors = (adapter / ADAPTER[1]).read_bytes()
        parts |= {ADAPTER[0]: portable_config(adapter, run.config.model), ADAPTER[1]: tensors}
    if run.is_vote:
        parts |= vote_parts(run, best)
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
        **({"vote": len(parts[MEMBERS]) // TERM.size} if run.is_vote else {}),
        "backbone": summary.get("backbone") if stages[-1]["trajectory"] and stages[-1]["exact"] and not best else None,
    }
    return packed(header, parts)


def _stage_of(run: RunFolder, number: int, parts: dict[str, bytes], best: bool, summed: bool | None) -> dict[str, Any]:
    """The header of a run's stage, whose parts are added to `parts`. With `summed` None, as a run would be restored."""
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
    """A trajectory file of the first steps, record by record or summed."""
    records = trajectory.records if steps is None else trajectory.first(steps)
    ended = [record for record in records if isinstance(record, Stepped)]
    if run.is_vote:  # it moved nothing
        records = tuple(ended[-1:])
    elif summed:
        records = (Update(folded_updates(run, trajectory, steps)), *ended[-1:])
    return replace(trajectory, records=records).to_bytes()


def folded_updates(run: RunFolder, trajectory: Trajectory, steps: int | None = None) -> Displacement:
    """The sum of the first updates of a run; raises RunError if they cannot be added up."""
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


def push(exported: ExportResult, repo: str, private: bool = True, api: Any = None) -> str:
    """Upload an export with its model card, as one commit.

    Args:
        repo: id of the repository, `owner/name`; created if it does not exist.
        api: the client; by default `huggingface_hub.HfApi()`, which uses the token of `hf auth login`.

    Returns:
        The address of the repository.

    Raises:
        RunError: the id is invalid, or the Hub refuses or cannot be reached. The export itself is kept.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    api = HfApi() if api is None else api
    files: dict[str, str | bytes] = {"model.zofo": str(exported.path)}
    if exported.kind != "patch":
        files = {name: str(exported.path / name) for name in exported.files}  # not other files in the folder
    files["README.md"] = exported.card.replace("REPO", repo).encode()
    try:
        made = api.create_repo(repo, private=private, exist_ok=True)
        additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=file) for name, file in files.items()]
        api.create_commit(made.repo_id, additions, commit_message=f"{exported.kind} by zofo")
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError, ValueError) as error:
        raise RunError(
            f"cannot upload to {repo!r}: {first_line(error)}",
            f"log in with: hf auth login; what was exported is in {str(exported.path)!r}",
        ) from error
    return str(made)
