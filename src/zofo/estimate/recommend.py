"""One configuration for some rows and a machine, with the reasons for each of its parts.

The reasons are the measured tables of docs/choosing.md and docs/classify.md: where a gradient of an adapter fits into
memory, first-order LoRA learned more from as many queries than any other method, and so it is what comes first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

from zofo.errors import ConfigError, DataError, RunError
from zofo.estimate.fit import Fit, fitting
from zofo.estimate.machine import Machine, known_machine
from zofo.estimate.report import RowSource, device_of
from zofo.tasks import Task, load_examples, resolve_task
from zofo.training import RunConfig, read_config
from zofo.trees import parse_yaml, set_by_path

FEW = 16
"""Training rows below which examples in the prompt are what is left: nothing was measured to learn from fewer."""
QUERIES, MOST_QUERIES, EPOCHS = 1920, 9600, 20
"""What first-order LoRA was measured with, the most that is proposed without a time, and the most passes over rows."""
OF_MEZO = 4
"""Times as many queries that MeZO gets: it needs thousands (docs/choosing.md)."""
_UNEQUAL = 0.7  # share of the most frequent label above which accuracy hides the others
_ROOM = 0.85  # of the memory that is free, so that what is not zofo's is left alone
_LOOKED_AT = 512  # rows that are read as tokens
_EVALUATED, _GENERATED = 500, 50  # validation rows that are scored, and of those that are generated
_SCORED, _OF_TIME = 4, 0.3  # evaluations of a run; one alone, where they would take more of the time than this


@dataclass(frozen=True)
class Facts:
    """What was seen of the rows.

    Args:
        kind: of the task, as `zofo validate` calls it.
        majority: share of the most frequent answer among the training rows; None where there are no labels.
        longest: tokens of the longest row that was looked at.
        usual: of the one in the middle.
        cut: whether rows are longer than the model reads.
        new_tokens: the most that are generated for a row; 0 where nothing is.
    """

    kind: str
    rows: Mapping[str, int]
    majority: float | None
    labels: int
    longest: int
    usual: int
    cut: bool
    new_tokens: int = 0


@dataclass(frozen=True)
class Recommendation:
    """A configuration, and why.

    Args:
        tree: what differs from the defaults, as a YAML file has it.
        seconds: expected time of the run, with its start and its evaluations; None where time is not known.
        machine: whose constants say so.
        enough: whether it fits into the memory.
    """

    tree: Mapping[str, Any]
    reasons: Sequence[str]
    facts: Facts
    peak_bytes: int
    seconds: float | None
    machine: str
    enough: bool = True

    def to_yaml(self) -> str:
        """The configuration as a file that `zofo train` runs, with the reasons as comments."""
        lines = [f"# {reason}" for reason in self.reasons]
        return "\n".join(lines) + "\n" + yaml.safe_dump(dict(self.tree), sort_keys=False, allow_unicode=True)

    def write(self, file: Path) -> None:
        """Write it as a new file.

        Raises:
            ConfigError: it is no name of a YAML file, or there is one already.
            RunError: it cannot be written.
        """
        check_new(file)
        try:
            with file.open("x", encoding="utf-8") as stream:
                stream.write(self.to_yaml())
        except OSError as error:
            raise RunError(f"cannot write {str(file)!r}: {error.strerror}") from error


def check_new(file: Path) -> None:
    """Raises ConfigError for a file that a configuration cannot be written to: there is one, or it is no YAML."""
    if file.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{str(file)!r} is no name of a configuration", f"write {file.with_suffix('.yaml')}")
    if file.exists():
        raise ConfigError(f"{str(file)!r} exists", "choose another name, or remove it")


@dataclass
class _Draft:
    """A configuration that grows, with its reasons."""

    tree: dict[str, Any]
    reasons: list[str] = field(default_factory=list)

    def set(self, reason: str, **keys: Any) -> None:
        """Set some keys, whose dots are written as `__`, for a reason."""
        for key, value in keys.items():
            set_by_path(self.tree, key.split("__"), value)
        if reason:
            self.reasons.append(reason)

    @property
    def config(self) -> RunConfig:
        """The whole configuration."""
        return read_config(**self.tree)


def recommend(
    tree: Mapping[str, Any],
    max_memory: int | None = None,
    seconds: float | None = None,
    remote_code: bool = False,
    on_progress: Callable[[str], None] = lambda text: None,
) -> Recommendation:
    """One configuration that suits some rows, a model and a machine.

    Args:
        tree: what is given: the rows (`task`) and perhaps the model, as a YAML file has them.
        max_memory: in bytes; by default most of what is free.
        seconds: that the run may take; by default as many as its steps need. Not used on CUDA: a reason says so.

    Raises:
        ZofoError: what is wrong with the rows or the model.
    """
    draft = _Draft({key: dict(value) if isinstance(value, Mapping) else value for key, value in tree.items()})
    config, machine = read_config(**draft.tree), known_machine()
    if "method" in draft.tree:  # its options go with it, where another one is chosen
        draft.set("", method__name=config.method.name)
    on_progress("the rows")
    task = resolve_task(config.task)
    facts, source = _looked(task, draft, remote_code)
    device = device_of(draft.config, None)
    limit = max_memory or int(_ROOM * _free(device))
    if facts.rows["train"] < FEW and task.kind != "generation":
        return _in_context(draft, facts, machine)
    _score(draft, facts)
    batch = max(1, min(8, facts.rows["train"] // 2))
    asked = _with(draft.config, batch)
    fit = fitting(asked, source, machine, device, limit, first=True, on_progress=on_progress)[0]
    _method(draft, fit, limit)
    each = fit.estimate
    length = _length(draft, facts, fit, seconds, machine.start_seconds)
    whole = None
    if each.seconds is not None and each.evaluation is not None:
        scored = draft.config.training.num_evals or 1
        whole = machine.start_seconds + length * each.seconds + scored * _evaluation(facts, each.evaluation)
    return Recommendation(draft.tree, draft.reasons, facts, each.peak_bytes, whole, machine.described, fit.fits)


def _free(device: str) -> int:
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0]) if torch.cuda.is_available() else 8 << 30
    return int(psutil.virtual_memory().available)


def _with(config: RunConfig, batch: int) -> RunConfig:
    return config.model_copy(update={"method": config.method.model_copy(update={"batch_size": batch})})


def _looked(task: Task, draft: _Draft, remote_code: bool) -> tuple[Facts, RowSource]:
    """Count the rows, and look at the tokens of some of them; rows that are too long are to be cut."""
    config = draft.config
    examples = load_examples(task, config.task, ("train", "validation"))
    train = examples["train"]
    golds = Counter(one.golds[0] for one in train if one.golds) if task.kind != "generation" else Counter()
    few = config.model_copy(update={"task": config.task.model_copy(update={"max_rows": _LOOKED_AT})})
    cut = False
    try:
        source = RowSource(few, remote_code=remote_code)
    except DataError as error:
        if config.task.truncate == "left" or "token" not in error.message:
            raise
        cut = True
        draft.set("some rows are too long for the model: the first tokens of their prompts go", task__truncate="left")
        shorter = few.task.model_copy(update={"truncate": "left"})
        source = RowSource(few.model_copy(update={"task": shorter}), remote_code=remote_code)
    source.training = len(train)
    rows: dict[str, int] = {split: len(found) for split, found in examples.items()}
    majority = max(golds.values()) / sum(golds.values()) if golds else None
    lengths = source.lengths
    usual, new = lengths[len(lengths) // 2], task.max_new_tokens if task.kind == "generation" else 0
    return Facts(task.kind, rows, majority, len(golds), lengths[-1], usual, cut, new), source


def _in_context(draft: _Draft, facts: Facts, machine: Machine) -> Recommendation:
    shown = min(4, facts.rows["train"])
    draft.set(
        f"{facts.rows['train']} training rows are a handful: {shown} of them stand before each prompt, and nothing is "
        "trained",
        method="in-context",
        task__num_fewshot=shown,
    )
    return Recommendation(draft.tree, draft.reasons, facts, 0, None, machine.described)


def _score(draft: _Draft, facts: Facts) -> None:
    """The metric, and how many validation rows are scored."""
    if facts.kind == "classification" and facts.majority is not None and facts.majority > _UNEQUAL:
        share = f"{100 * facts.majority:.0f} %"
        draft.set(
            f"one label has {share} of the training rows, so that accuracy would hide the others: macro-F1",
            task__metric="macro-f1",
        )
    most = _GENERATED if facts.kind == "generation" else _EVALUATED
    if facts.rows["validation"] > most:
        why = "answers are generated token by token" if facts.kind == "generation" else "more would take time"
        draft.set(f"{most} validation rows are scored: {why}", task__split_sizes={"validation": most})


def _method(draft: _Draft, fit: Fit, limit: int) -> None:
    """Method, adapter, quantisation and batch, in the words of the tables."""
    for key in fit.keys:
        path, _, value = key.partition("=")
        set_by_path(draft.tree, path.split("."), parse_yaml(value))
    size, room = fit.estimate.peak_bytes / 2**30, limit / 2**30
    method = fit.config.method
    where = f"{size:.2f} GiB of {room:.2f}"
    if not fit.fits:
        draft.reasons.append(f"nothing fits: the smallest takes {size:.2f} GiB, and there are {room:.2f}")
    elif any(one.gradient for one in method.passes(1)):
        draft.reasons.append(
            f"a gradient of LoRA fits ({where}): first order learned more from as many queries than any other method "
            "in all comparisons (89.2 % against 66.9 % of MeZO on movie-reviews)"
        )
    else:
        draft.reasons.append(
            f"no gradient of an adapter fits into {room:.2f} GiB, and forward passes do ({where}): MeZO, which needs "
            "more queries and learns less from each"
        )
    if fit.config.model.quantization is not None:
        draft.reasons.append("the base is packed in 4 bits: plain weights do not fit beside what training takes")
    if fit.needs is not None:
        draft.reasons.append(f"needs: {fit.needs}")


def _length(draft: _Draft, facts: Facts, fit: Fit, seconds: float | None, start: float) -> int:
    """Steps of the run, by queries, passes over the rows and time, of which its start takes some."""
    gradient = any(one.gradient for one in fit.config.method.passes(1))
    rows, each = facts.rows["train"], fit.estimate
    parts = getattr(fit.config.method, "gradient_accumulation_steps", 1)
    batch = fit.config.method.batch_size * parts
    points = 1 if gradient else 2
    wanted = max(QUERIES, min(MOST_QUERIES, 3 * rows)) * (1 if gradient else OF_MEZO)
    most = EPOCHS * rows * points * (1 if gradient else OF_MEZO)
    queries = min(wanted, most)
    steps = max(1, queries // (batch * points))
    why = f"{queries:,} queries: {QUERIES:,} were enough in the measured tables, three passes over the rows are better"
    if queries == most:
        why = f"{EPOCHS} passes over {rows} training rows: more would learn them by heart"
    scored = _SCORED
    if seconds is not None and each.seconds:
        one = _evaluation(facts, each.evaluation or 0.0)
        scored = _SCORED if _SCORED * one < _OF_TIME * seconds else 1
        left = seconds - start - scored * one
        paid = max(1, int(left / each.seconds))
        if paid < steps:
            steps, why = paid, f"as many steps as {seconds:.0f} seconds pay for; {queries:,} queries would be better"
    elif seconds is not None:
        draft.reasons.append("time is not known on CUDA: --time was not used")
    draft.set(f"{steps} steps ({why})", training__steps=steps, training__num_evals=min(scored, steps))
    if steps >= 20:
        draft.set("", training__lr_scheduler_type="linear")
    return steps


def _evaluation(facts: Facts, each: float) -> float:
    """Seconds that an evaluation takes, of which each row takes so many; a generated answer takes a forward for its
    loss, one for its prompt, and an eighth for each new token."""
    rows = min(facts.rows["validation"], _GENERATED if facts.new_tokens else _EVALUATED)
    return rows * each * (2 + facts.new_tokens / 8 if facts.new_tokens else 1)
