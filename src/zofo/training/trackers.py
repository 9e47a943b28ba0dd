"""Send the numbers of `metrics.jsonl` to trackers: TensorBoard, trackio, MLflow, W&B, and others that accelerate
supports."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from zofo.config import read_json_object
from zofo.errors import ConfigError, UnknownNameError, first_line
from zofo.filesystem import atomic_write_text, real
from zofo.training.callbacks import Callback, MetricsLogger
from zofo.training.config import RunConfig
from zofo.training.run_record import TRACKING
from zofo.trees import flatten

_PROJECT, _IDS = "zofo", "runs.json"


class _Place(NamedTuple):
    """Where a run is tracked.

    Args:
        name: unique name of the run.
        known: the tracker's id of a resumed run; None for a new one.
        steps: number of steps already made.
    """

    folder: Path
    name: str
    known: str | None
    steps: int


class _Kind(NamedTuple):
    """How to make accelerate's class for a tracker continue an existing run.

    Args:
        options: options of the class, besides the project name.
        id_of: returns the id of the tracker's run, to continue it.
        package: package that must be installed.
        project: project of its runs; for TensorBoard, the folder.
    """

    options: Callable[[_Place], dict[str, Any]]
    id_of: Callable[[Any], str | None]
    package: str
    project: str = _PROJECT


def _tensorboard(place: _Place) -> dict[str, Any]:
    purged = {} if place.known is None else {"purge_step": place.steps + 1 if place.steps else 0}
    return {"logging_dir": str(place.folder), **purged}


_KINDS: dict[str, _Kind] = {
    "tensorboard": _Kind(_tensorboard, lambda writer: str(writer.log_dir), "tensorboard", "tensorboard"),
    "trackio": _Kind(
        lambda place: {"name": place.name, "resume": "never" if place.known is None else "allow", "embed": False},
        lambda run: str(run.name),
        "trackio",
    ),
    "wandb": _Kind(
        lambda place: {"name": place.name, "id": place.known, "resume": "allow", "dir": str(place.folder)},
        lambda run: str(run.id),
        "wandb",
    ),
    "mlflow": _Kind(
        lambda place: {"run_name": place.name, "run_id": place.known}, lambda run: str(run.info.run_id), "mlflow"
    ),
    "aim": _Kind(
        lambda place: {"logging_dir": str(place.folder), "run_hash": place.known}, lambda run: run.hash, "aim"
    ),
}
_OTHERS = {"comet_ml": "comet_ml", "clearml": "clearml", "dvclive": "dvclive", "swanlab": "swanlab"}
_KINDS |= {name: _Kind(lambda _: {}, lambda _: None, package) for name, package in _OTHERS.items()}


def check_trackers(names: Sequence[str]) -> None:
    """Raise ConfigError for an unknown tracker, or one whose package is not installed."""
    for name in names:
        if name not in _KINDS:
            raise UnknownNameError("tracker in training.report_to", name, _KINDS)
        package = _KINDS[name].package
        if find_spec(package) is None:
            raise ConfigError(
                f"training.report_to names {name!r}, whose package is not installed",
                f"pip install {package.replace('_', '-')}, or leave it out: metrics.jsonl has the same numbers",
            )


class Trackers(Callback):
    """Sends the numbers of each line of `metrics.jsonl` to trackers, at the current number of steps.

    Numbers of a step have the names of the log. Those of other lines are prefixed with their event, as in
    `evaluation/accuracy`, and with the model for further models of a run, as in `evaluation/lower_adapter/accuracy`. A
    tracker that fails is disabled, with one warning.
    """

    def __init__(self, folder: Path, config: RunConfig, main: str, warn: Callable[[str], None]) -> None:
        self._folder, self._config, self._main, self._warn = folder, config, main, warn
        self._open: dict[str, Any] = {}

    def begin(self, metrics: MetricsLogger, steps: int) -> Trackers:
        """Open the trackers for a run with this number of steps, and subscribe to its log."""
        names = self._config.training.report_to
        if not names:
            return self
        place, ids = self._folder / TRACKING, self._folder / TRACKING / _IDS
        place.mkdir(exist_ok=True)
        known = read_json_object(ids) if ids.is_file() else {}
        digest = hashlib.sha256(str(real(self._folder)).encode()).hexdigest()[:6]
        name = str(known.get("name", f"{self._folder.name}-{digest}"))
        for kind in names:
            found = self._safely(kind, self._opened, kind, _Place(place, name, known.get(kind), steps))
            if found is not None:
                self._open[kind] = found
                known[kind] = _KINDS[kind].id_of(found.tracker)
        atomic_write_text(ids, json.dumps({"name": name, **known}, indent=2) + "\n")
        metrics.listeners.append(self.log)
        return self

    def _opened(self, kind: str, place: _Place) -> Any:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        tracker = LOGGER_TYPE_TO_CLASS[kind](_KINDS[kind].project, **_KINDS[kind].options(place))
        tracker.start()
        if place.known is None:
            given = flatten(self._config.model_dump(mode="json"))  # lists as text
            plain = {k: v if isinstance(v, bool | int | float | str) else json.dumps(v) for k, v in given}
            tracker.store_init_configuration(plain)
        return tracker

    def log(self, line: Mapping[str, Any]) -> None:
        """Send the numbers of a line."""
        made = line["step"] + 1 if "step" in line else line.get("steps")
        if made is None:
            return
        variant = line.get("variant", self._main)
        parts = [] if line["event"] == "step" else [line["event"], *([variant] if variant != self._main else [])]
        numbers = {
            "/".join([*parts, key]): value
            for key, value in line.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and key not in ("step", "steps")
        }
        for kind, tracker in list(self._open.items()):
            self._safely(kind, tracker.log, numbers, made)

    def after_run(self, error: BaseException | None) -> None:
        for kind, tracker in list(self._open.items()):
            self._safely(kind, tracker.finish)
        self._open = {}

    def _safely(self, kind: str, act: Callable[..., Any], *given: Any) -> Any:
        """The result of a tracker's call; None if it fails, and then it is disabled."""
        try:
            with redirect_stdout(sys.stderr):  # output of trackers is not output of the command
                return act(*given)
        except Exception as error:  # noqa: BLE001  # of a library or a network: no step is lost for it
            self._open.pop(kind, None)
            self._warn(f"{kind} fails and gets nothing more: {first_line(error)}; metrics.jsonl goes on")
            return None
