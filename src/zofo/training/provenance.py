"""That a run's own files and its base model are still those that it began with."""

from __future__ import annotations

import shlex
from pathlib import Path

from zofo.config import parse_model, read_json_object
from zofo.errors import RunError, error_context
from zofo.models import LoadedModel
from zofo.tasks import Task, load_task
from zofo.training.config import RunConfig, as_recorded, naming_lost_plugins
from zofo.training.identity import Identity, differences, model_identity, refuse_changes, task_hash
from zofo.yaml_loader import read_yaml


def read_identity(file: Path) -> Identity:
    """What environment.json says of what a run was made from.

    Raises:
        RunError: it is damaged or missing, or does not know the weights, which every version has written down.
    """
    try:
        found = Identity.read(read_json_object(file))
        if found.model_hash is None:
            raise RunError("it lacks 'model_hash': the run is damaged")
        return found
    except RunError as error:
        if repr(str(file)) not in error.message:
            error.message = f"{str(file)!r}: {error.message}"
        raise


def config_as_begun(file: Path, identity: Identity) -> RunConfig:
    """The configuration in the config.yaml of a run.

    Args:
        file: its path.
        identity: of the run.

    Raises:
        RunError: it was changed since the run began; names the first key.
    """
    content = read_yaml(file)
    if not content:
        raise RunError(f"{str(file)!r} is empty: the run is damaged")
    with error_context(str(file)), naming_lost_plugins(file.parent):
        found = parse_model(RunConfig, as_recorded(content))
    if identity.configuration is not None:
        known = parse_model(RunConfig, as_recorded(dict(identity.configuration)))  # with what later versions added
        now, was = (one.model_dump(mode="json", exclude={"run"}) for one in (found, known))
        for key, (new, old) in differences(now, was):
            raise RunError(
                f"{str(file)!r} was changed since the run began: {key} was {old!r}, and is {new!r}",
                f"set {key} back there; to use it otherwise type zofo eval {shlex.quote(str(file.parent))} {key}=..., "
                "or train a new run with run=",
            )
    return found


def task_as_begun(file: Path, identity: Identity) -> Task:
    """The task in the task.yaml of a run.

    Args:
        file: its path.
        identity: of the run.

    Raises:
        RunError: it was changed since the run began.
    """
    with naming_lost_plugins(file.parent):
        found = load_task(str(file))
    if identity.task not in (None, task_hash(found)):
        raise RunError(
            f"{str(file)!r} was changed since the run began: it is not the task that was trained on",
            f"put it back; to score another task type zofo eval {shlex.quote(str(file.parent))} task=FILE",
        )
    return found


def refuse_other_model(identity: Identity, loaded: LoadedModel, run: Path) -> None:
    """Refuse a base model that is not the run's, in its weights, its config.json or its tokenizer.

    Args:
        identity: of the run.
        loaded: the model, where the run began with it.
        run: the folder.

    Raises:
        RunError: names each part that differs, and its keys.
    """
    hint = "name that model, with its files as they were: by --model DIR, of zofo train and zofo eval by model.name=DIR"
    name = loaded.name
    refuse_changes(identity, model_identity(loaded), repr(str(run)), {"": hint}, model=name, verb="was trained from")
