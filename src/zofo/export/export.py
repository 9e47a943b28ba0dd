"""Exports of a run: a transformers folder, a peft folder, or a patch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from zofo.adapters import merge_adapter
from zofo.adapters.checkpoint import adapter_content, check_can_take_up
from zofo.errors import ConfigError, RunError
from zofo.export.model_card import model_card
from zofo.export.pack import patch_of
from zofo.export.save_pretrained import check_complete, label_texts, save_adapter, save_model
from zofo.filesystem import atomic_folder, check_file_not_taken, check_not_taken, write_file
from zofo.methods.linear_probe import PROBE
from zofo.models import LoadedModel, head_of
from zofo.models.heads import Head
from zofo.objectives.generation import generation_settings
from zofo.training import RunFolder
from zofo.training.data_module import scorer_of
from zofo.training.restore import check_run_adapter

Kind = Literal["merged", "adapter", "patch"]


@dataclass(frozen=True)
class ExportResult:
    """A written export.

    Args:
        kind: merged, adapter or patch.
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
    """The one kind of export that was asked for, and its place; raises ConfigError for none, or several."""
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
    * `adapter`: the peft folder alone. The base model is compared with the run's where it is here; it need not be.
    * `patch`: one file, which `apply_patch` turns into the model again where the base model is, and compares then.

    Args:
        out: the new folder, or file for a patch.
        variant: which model of the run; by default the one reported first.
        best: as of the best evaluation instead of the last step.
        force: write over what is there.
        summed: for a patch: hold the sum of the updates instead of each one.
        model: where the base model is now, if it has moved.
        remote_code: allow the model's repository to run its own code.

    Raises:
        RunError: the run has not ended or is damaged, or has no such model or form; or the place is taken.
    """
    run = RunFolder.open(path)
    run.verify()
    adapter = run.adapter_of(variant, best)
    read = run.sources(model)
    if kind != "adapter":
        _check_can_be_whole(run)
    if kind == "patch":
        check_file_not_taken(out, force, read)
        if model is not None:  # else it is compared where the patch is applied
            run.load_start_weights(run.load_base(model, remote_code))
        write_file(out, patch_of(run, variant, best, summed))
        return ExportResult(kind, out, (), model_card(run, kind, variant, best))
    check_not_taken(out, force, read)  # before the model is loaded
    head: Head
    if kind == "adapter":
        adapter, head = _checked_adapter(run, adapter, variant, model, remote_code)
        save: Callable[[Path], object] = functools.partial(save_adapter, adapter, run.config.model)
    else:
        _check_no_earlier_adapter(run)
        loaded = run.load(variant, best, model, remote_code, attach=merge_adapter)
        head = loaded.head
        save = functools.partial(_save_merged, run, loaded)
    card = model_card(run, kind, variant, best, head)
    with atomic_folder(out, force, read) as folder:
        save(folder)
        (folder / "README.md").write_text(card, encoding="utf-8")
        files = tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()))
    return ExportResult(kind, out, files, card)


def _checked_adapter(
    run: RunFolder, adapter: Path | None, variant: str | None, model: str | None, remote_code: bool
) -> tuple[Path, Head]:
    """The folder of a checked adapter, and the head that it is for; raises RunError where there is none, no run can
    have written it, or its base model is here and differs."""
    if adapter is None:
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
    """Write the model, with the settings that the run's free answers were generated with, where it gave any."""
    task, generation = run.only_task, None
    if task is not None and task.kind == "generation":
        generation = generation_settings(loaded.model, scorer_of(run.config, task, loaded).generation)
    save_model(loaded, folder, label_texts(task), generation)


def _head_of(run: RunFolder, adapter: Path, model: str | None) -> Head:
    """The head of an adapter's model; the base model is read only where the adapter does not name it."""
    kinds: dict[str, Head] = {"SEQ_CLS": "classification", "CAUSAL_LM": "causal-lm"}
    said = kinds.get(str(adapter_content(adapter).get("task_type")))
    return run.config.model.head or said or head_of(run.base_config(model))


def _check_can_be_whole(run: RunFolder) -> None:
    """Raises RunError for what a model cannot take up: a probe, or anything where its weights are quantised."""
    if (run.path / PROBE).is_file():
        raise RunError(
            f"{str(run.path)!r} trained a probe beside the model, which no folder of weights and no patch can hold",
            f"use the run itself: zofo predict {run.path} TEXT",
        )
    own = (run.identity.model_config or {}).get("quantization_config")
    check_can_take_up(run.config.model.quantization or (own.get("quant_method") if isinstance(own, dict) else None))


def _check_no_earlier_adapter(run: RunFolder) -> None:
    start = run.start
    if start is not None and start.adapter_of() is not None:
        raise RunError(
            f"the run started from {str(start.path)!r} and its adapter, which this version cannot merge",
            "export that run with --merged DIR, and train again with model=DIR",
        )
