"""A vote in a patch: its members, 16 bytes each, and everything else that a run folder needs to answer again."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from zofo.config import Config, parse_model
from zofo.displacement import Displacement, Key
from zofo.errors import ConfigError, PatchError, RunError, first_line, printable
from zofo.methods.vote import VOTE, read_members, save_members
from zofo.models import ModelConfig
from zofo.retired_keys import task_as_now
from zofo.tasks import Task, parse_task
from zofo.training import RunConfig, RunFolder
from zofo.training.config import ENVIRONMENT, as_recorded
from zofo.training.identity import Identity, task_hash, task_text
from zofo.training.predictor import CHAT
from zofo.training.run_record import CONFIG, TASK
from zofo.trajectory import Trajectory
from zofo.trajectory.format import TERM
from zofo.trees import parse_yaml

MEMBERS, ASKED = "members.bin", "run.json"
_ELSEWHERE = ("model", "init_from", "output_dir")  # keys of a configuration that no patch holds
_PLACES = ("data", "data_dir", "metaicl_setting", "tasks", "held_out_tasks")  # of its task: paths of a user's own rows
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_IDENTITY = ("task", "rows", "tokens", "objective", "stream")


class Asked(Config):
    """The part `run.json`: how rows are asked, without local paths."""

    config: dict[str, Any]
    """The configuration of the run, without its model, its folder and its rows."""
    task: str
    """Its task file, in YAML."""
    identity: dict[str, Any]
    """Hashes of its task and of its rows, see `Identity`."""
    chat: dict[str, Any] | None = None
    """The form of the chats that it was trained on."""


def vote_parts(run: RunFolder, best: bool) -> dict[str, bytes]:
    """The parts of a vote's patch besides its trajectory; raises RunError for a run that one file cannot represent."""
    file, seed = run.artifact_folder(best)[0] / VOTE, Trajectory.read(run.trajectory).header["seed"]
    if not file.is_file():
        raise RunError("the best evaluation was of the model before it was a vote", "leave out --best")
    task, whole = run.config.task, "send the run's folder itself, with what it needs beside it"
    if run.start is not None:
        hint = f"export that run with --merged DIR and train the vote with model=DIR; or {whole}"
        raise RunError(
            f"the run started from {str(run.start.path)!r}, which the patch of a vote has no place for", hint
        )
    own = any(getattr(task, key) for key in _PLACES)
    if task.several or (task.num_fewshot and own):
        what = "several tasks" if task.several else "prompts with solved rows of your own"
        raise RunError(f"the vote is asked with {what}, and a patch holds no rows", whole)
    terms = [term for member in read_members(file) for term in member.items()]
    config = run.config.model_dump(mode="json", exclude={**dict.fromkeys(_ELSEWHERE, True), "task": {*_PLACES}})
    if not _is_packaged(task.name):
        config["task"]["name"] = None
    known = run.identity.as_dict()
    asked = {
        "config": config,
        "task": task_text(run.task),
        "identity": {name: known[name] for name in _IDENTITY if name in known},
        "chat": run.environment.get(CHAT),
    }
    assert all(key.seed == seed for key, _ in terms)
    return {
        MEMBERS: b"".join(TERM.pack(key.step, key.index, coefficient) for key, coefficient in terms),
        ASKED: json.dumps(asked, sort_keys=True).encode(),
    }


def _is_packaged(name: str | None) -> bool:
    """Whether it is the name of a packaged task, and not a file."""
    return name is not None and not name.endswith((".yaml", ".yml"))


@dataclass(frozen=True)
class VotePart:
    """A vote of a patch, read and checked: it contains only text and numbers, none of which is executed.

    Args:
        members: the displacement of each, the best one first.
        trajectory: trajectory of its stage, which says how the members are evaluated.
    """

    members: tuple[Displacement, ...]
    trajectory: Trajectory
    asked: Asked

    @classmethod
    def read(cls, count: int, trajectory: Trajectory, members: bytes, content: Mapping[str, Any]) -> VotePart:
        """Parse the parts; raises PatchError for what zofo cannot have written. `content` is that of `run.json`."""
        if len(members) != count * TERM.size:
            raise PatchError(
                f"the part {MEMBERS!r} has {len(members)} bytes, and {count} members take {TERM.size} each"
            )
        seed = trajectory.header["seed"]
        found = [(Key(seed, step, index), coefficient) for step, index, coefficient in TERM.iter_unpack(members)]
        if not all(coefficient and math.isfinite(coefficient) for _, coefficient in found):
            raise PatchError(f"the part {MEMBERS!r} holds a member that is nowhere: its coefficient is 0 or not finite")
        try:
            made = cls(
                tuple(Displacement({key: coefficient}) for key, coefficient in found),
                trajectory,
                parse_model(Asked, dict(content), ASKED),
            )
            made._check()
        except (ConfigError, ValueError, yaml.YAMLError) as error:  # the last two of a text that is no YAML
            hint = getattr(error, "hint", None)
            what = printable(first_line(error))
            raise PatchError(f"the part {ASKED!r}: {what}", hint and printable(hint)) from error
        return made

    def _check(self) -> None:
        """Raise PatchError or ConfigError for a configuration, task or identity that no run of one task has."""
        content, task = as_recorded(self.asked.config), self.task  # of which older names are refused, too
        asked = content.get("task")
        named = [key for key in _ELSEWHERE if key in content]
        named += [f"task.{key}" for key in _PLACES if isinstance(asked, dict) and key in asked]
        if named:
            raise PatchError(f"the part {ASKED!r} holds {named[0]!r}, which is of the machine that it came from")
        name = asked.get("name") if isinstance(asked, dict) else None
        if name is not None and not (isinstance(name, str) and _is_packaged(name)):
            raise PatchError(f"the part {ASKED!r} names a task file")
        self.config(ModelConfig(), Path(TASK))
        if self.identity.task not in (None, task_hash(task)):
            raise PatchError(f"the task in the part {ASKED!r} is not the one that the run was trained on")
        for split in task.splits.values():
            if Path(split.origin).name != split.origin or "\\" in split.origin:
                raise PatchError(f"{printable(split.origin, 40)!r} cannot be the split of a data set")
        hub = None if task.source is None else task.source.hub
        if hub is not None and not _HUB_ID.fullmatch(hub):
            raise PatchError(f"{printable(hub, 40)!r} cannot be a data set of the Hub")

    @property
    def task(self) -> Task:
        """The task from the text in the patch."""
        return parse_task(task_as_now(parse_yaml(self.asked.task)), TASK)

    @property
    def identity(self) -> Identity:
        """What determines its answers, besides its model and its configuration."""
        return Identity.read({name: self.asked.identity.get(name) for name in _IDENTITY})

    def config(self, model: ModelConfig, task_file: Path) -> RunConfig:
        """Its configuration with a base model; `task_file` is its task if that is not a packaged one."""
        content = as_recorded(self.asked.config)
        task = content.get("task")
        if isinstance(task, dict) and task.get("name") is None:
            content = {**content, "task": {**task, "name": str(task_file)}}
        return parse_model(RunConfig, {**content, "model": model.model_dump(mode="json")}).with_absolute_paths()

    def write(self, folder: Path, place: Path, model: ModelConfig, identity: Identity, summary: dict[str, Any]) -> None:
        """Write a run folder that answers as the run does.

        Args:
            folder: folder to write to.
            place: final path of that folder.
            model: the base model and its location; `identity` determines its outputs.
            summary: the known outcome of the run.
        """
        config = self.config(model, place.absolute() / TASK)
        own = {name: value for name, value in self.identity.as_dict().items() if name in _IDENTITY}
        known = {**identity.as_dict(), **own, "configuration": config.model_dump(mode="json", exclude={"output_dir"})}
        begun = {**known, **({} if self.asked.chat is None else {CHAT: self.asked.chat})}
        run = RunFolder(folder)
        run.trajectory.write_bytes(self.trajectory.to_bytes())
        save_members(self.members, folder)
        run.task_file.write_text(task_text(self.task), encoding="utf-8")
        (folder / ENVIRONMENT).write_text(json.dumps(begun, indent=2) + "\n", encoding="utf-8")
        (folder / CONFIG).write_text(config.to_yaml(), encoding="utf-8")
        run.write_outcome(summary)
