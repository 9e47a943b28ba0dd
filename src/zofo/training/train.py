"""From a configuration to a finished run folder."""

from __future__ import annotations

import functools
import math
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from zofo.errors import ConfigError, Interrupted
from zofo.evaluators import Counts
from zofo.filesystem import fsync, writing
from zofo.methods import METHODS, Method, TrainingContext
from zofo.objectives import REWARD, Rewards, as_rewards
from zofo.processes import Processes, joined
from zofo.signals import Signals
from zofo.tasks import METRICS, Split
from zofo.training.before_after import BeforeAfter
from zofo.training.callbacks import (
    Callback,
    EvaluationCallback,
    Measuring,
    MetricsLogger,
    ProgressBar,
    TrajectoryLogger,
)
from zofo.training.checkpoint import CheckpointCallback
from zofo.training.config import RunConfig
from zofo.training.data_module import (
    PreparedRun,
    check_every_split,
    prepare_run,
    reward_trial,
    training_context,
)
from zofo.training.divergence import DivergenceWarning, TiesWarning, default_rates
from zofo.training.early_stopping import check_early_stopping
from zofo.training.evaluation import Evaluation, majority_of
from zofo.training.peak_memory import PeakMemory
from zofo.training.progress import EvaluationProgress, log_console, say, working
from zofo.training.resume import (
    begun_header,
    begun_selection,
    check_provenance,
    create_run_folder,
    identity_of,
    objective_name,
    write_provenance,
)
from zofo.training.run_folder import RunFolder
from zofo.training.run_logs import metrics_lines, write_answers
from zofo.training.run_record import ANSWERS
from zofo.training.session import (
    LoopParts,
    Session,
    loop_parts,
    rewards_of,
    run_parts,
    say_all,
    say_notes,
    trajectory_header,
)
from zofo.training.together import SameState, accompany, begun_run, check_reward, check_same, check_shareable, resumed
from zofo.training.trackers import Trackers, check_trackers
from zofo.training.training_config import TrainingConfig, lr_schedule
from zofo.training.treatment import TreatmentLogger, check_treatment
from zofo.trajectory.format import Trajectory, TrajectoryWriter


def train(
    config: RunConfig, console: Console | None = None, remote_code: bool = False, reward: Any | None = None
) -> RunFolder:
    """Train what `config` describes and write its run folder; resume it if it was stopped.

    An unfinished run resumes from its newest complete checkpoint, and ends with the same bits as without a stop. On
    SIGTERM and Ctrl-C it finishes its step or evaluation and saves; a second signal exits at once.

    Args:
        config: the whole configuration.
        console: where progress is shown; by default it is logged by `logging.getLogger("zofo")`.
        remote_code: allow the model's repository to run its own code.
        reward: a reward to maximise instead of the configured objective, or as the upper objective
            (`method.upper_objective=reward`): a function (see `zofo.objectives.Reward`), the name of a packaged one
            (`zofo list rewards`), or several, which are added up. It needs no gradient, so zeroth-order methods can use
            it.

    Returns:
        The run, with adapters or trajectory, metrics and summary.

    Raises:
        ZofoError: a mistake in the configuration, data or model, found before the run folder is created. RunError: the
            disk is full or cannot be written, and the checkpoints are unchanged; or the run would resume with another
            model, task, rows or objective than it began with. NonFiniteError: a loss is not finite. The run folder has
            the state before. Interrupted: the process was asked to stop, and the run is saved.
    """
    console, reward = console or log_console(), None if reward is None else as_rewards(reward)
    processes = joined()
    with processes.one_voice():
        return _train(config, console if processes.is_first else Console(quiet=True), remote_code, reward, processes)


def _train(
    config: RunConfig, console: Console, remote_code: bool, reward: Rewards | None, processes: Processes
) -> RunFolder:
    begun = begun_run(config, processes)  # refuses, before anything is loaded
    config = config if begun is None else begun.as_begun(config)
    loading = working(console, f"reading the rows, loading and checking {config.model.name}")
    kept = "its first step: nothing is written yet" if begun is None else "it went on: what was saved is kept"
    with processes.alike(), loading, Signals().raise_on_signal(lambda: f"before {kept}"):
        check_trackers(config.training.report_to)
        check_shareable(config, processes)
        splits: tuple[Split, ...] = ("train", *config.training.scored_splits)
        prepared = prepare_run(config if begun is None else begun.on_own_task(config), remote_code, splits)
        context = training_context(config, prepared, reward, processes)
        # before a method attaches adapters to the model
        identity = identity_of(config, prepared, objective_name(context.objective_name, reward))
        header = begun_header(begun)
        begun_with = begun_selection(header, prepared.loaded.model)
        method = METHODS[config.method.name](config.method.model_copy(update=begun_with), context)
        steps = checked_steps(config, method, prepared)
        try_parts(config, context, method, steps, reward, functools.partial(say, console))
        notes = check_every_split(config, prepared)
    check_same(processes, identity, prepared)
    trained = Session(prepared, context, method, steps, str(identity.model_hash), notes, header, reward)
    with ExitStack() as held:

        def opened() -> str:
            run = begun or create_run_folder(config)
            held.enter_context(run.locked())
            held.enter_context(writing("the run", run.path, _GOES_ON))
            run.check_not_ended()
            if begun is None:
                own = config.model_copy(update={"output_dir": run.path})
                write_provenance(run, own.with_absolute_paths(), prepared, identity, processes.size)
            else:
                for note in check_provenance(begun, prepared, identity, processes.size):
                    say(console, note)
            return str(run.path)

        with Signals().raise_on_signal(lambda: f"before {kept.partition(': nothing')[0]}"):
            folder = RunFolder(Path(processes.first(opened)))
        own = config if begun is not None else config.model_copy(update={"output_dir": folder.path})
        try:
            (_train_in if processes.is_first else accompany)(folder, own, trained, console)
        except Interrupted as stop:
            stop.hint = _how_to_go_on(stop, folder, remote_code, reward, processes)
            raise
    processes.gather_json(None)  # after the first process has written the run
    return folder


def _how_to_go_on(
    stop: Interrupted, folder: RunFolder, remote_code: bool, reward: Rewards | None, processes: Processes
) -> str:
    again = stop.again
    typed = [part.typed for part in reward.parts] if reward is not None else []
    if not all(typed):
        return f"to {again}: train with output_dir={folder.path}, the same configuration and the same reward"
    options = "".join(f" --reward {shlex.quote(one)}" for one in typed) + (
        " --trust-remote-code" if remote_code else ""
    )
    command = "zofo" if processes.alone else f"torchrun --nproc_per_node {processes.size} -m zofo"
    return f"to {again}: {command} train {shlex.quote(str(folder.path / 'config.yaml'))}{options}"


_GOES_ON = "type the same command again: the run goes on from its newest checkpoint"


def _epsilon(config: RunConfig) -> float | None:
    """The epsilon of the method's differences; None if it makes none."""
    estimator = getattr(config.method, "estimator", None)
    return None if estimator is None else float(estimator.build().epsilon)


def _measuring(folder: RunFolder, trained: Session, config: RunConfig, console: Console) -> list[Measuring]:
    """The measurements of the treatment, if configured, and of the effect of a reward, if there is one."""
    training, method, found = config.training, trained.method, list[Measuring]()
    if training.treatment_steps is not None:
        found.append(TreatmentLogger(method, trained.context, training, _epsilon(config)))
    rewards, rows = rewards_of(trained, config), training.before_after_examples
    if rewards is not None and rows and method.fixed_steps is None:
        found.append(BeforeAfter(method, trained.prepared, rewards, rows, trained.steps, folder, console))
    return found


def _train_in(folder: RunFolder, config: RunConfig, trained: Session, console: Console) -> None:
    """Make the steps of a run, or the remaining ones, and write the results to its folder."""
    prepared, method, steps, training = trained.prepared, trained.method, trained.steps, config.training
    say_notes(config, trained, console)
    processes, memory = trained.context.processes, PeakMemory(prepared.loaded.device)
    parts = loop_parts(folder, config, trained, shown := EvaluationProgress(console))
    (evaluating, testing, _), signals = parts.scorings, parts.signals
    warn, header = functools.partial(_warn, console), trajectory_header(config, trained)
    measuring, diverging = _measuring(folder, trained, config, console), _divergence(config, method, warn)
    done = resumed(folder, trained, parts, header, warn)
    folder.forget_outcome()
    if done.steps:
        say(console, f"goes on after {done.steps} of {steps} steps")
    rewards = rewards_of(trained, config)
    named = trained.context.called
    metrics = MetricsLogger(folder.metrics, method, done.metrics, done.seconds, rewards, processes, named)
    tracking = Trackers(folder.path, config, method.variants[0], warn).begin(metrics, done.steps)
    callbacks: list[Callback] = [tracking, metrics, parts.best, evaluating, parts.early, SameState(trained)]
    lines = metrics_lines(folder.metrics)
    updates = {} if done.trajectory is None else Trajectory.read(folder.trajectory, done.trajectory).updates_by_step
    callbacks += [TiesWarning(warn).begin(lines), diverging.begin(lines, updates)]
    writer: TrajectoryWriter | None = None
    if method.evaluator is not None:
        writer = TrajectoryWriter(folder.trajectory, header["seed"], header, done.trajectory)
        callbacks.append(TrajectoryLogger(writer, method.evaluator.theta))
    start = time.perf_counter() - done.seconds
    callbacks += [one.begin(metrics, lines) for one in measuring]
    callbacks.append(ProgressBar(console, config.method.name, steps, method, memory, done.steps, shown, named))

    def write(made: int, into: Path) -> None:
        for log in filter(Path.is_file, (folder.metrics, folder.trajectory)):
            fsync(log)  # of which the checkpoint keeps the length
        parts.state.save(made, into, metrics, writer, time.perf_counter() - start)

    def finish(stopped: str | None, concluded: Sequence[str] = ()) -> None:
        method.save(folder.path)
        _write_answers(folder, prepared, evaluating, testing)
        seconds = time.perf_counter() - start - math.fsum(one.seconds for one in (*parts.scorings, *measuring))
        outcome = _outcome(config, trained, parts, measuring) | {"seconds": round(seconds, 3)}
        outcome |= {"conclusions": list(concluded)} if concluded else {}
        folder.write_outcome({**outcome, "peak_bytes": memory.bytes, "stopped": stopped})

    kept = parts.checkpoints if method.fixed_steps is None else None
    checkpointing = CheckpointCallback(kept, write, signals, training, warn, done.steps, processes)
    with signals.defer_signals(functools.partial(say, console)):
        try:
            with memory.watching():
                run_parts(config, trained, parts, [*callbacks, checkpointing], checkpointing, done.steps)
        except BaseException as error:
            if not signals.is_second_signal(error):
                finish(str(error) or type(error).__name__)
            raise
        concluded = [*method.conclusions(), *(line for one in callbacks for line in one.conclusions())]
        say_all(console, concluded)
        finish(None, concluded)  # only then are the checkpoints no longer needed
        parts.checkpoints.clear()
    if signals.received is not None:
        say(console, f"{signals.name} came when nothing was left to do: the run has ended")


def _divergence(config: RunConfig, method: Method, warn: Callable[[str], None]) -> DivergenceWarning:
    """The divergence warning, built before the first step."""
    header, linear = method.replay_header(), method.rule is None or method.rule.linear
    own = None if "adapter" in header or header.get("mask") or not linear else method.backbone
    asked = config.method
    tuned = asked.name if getattr(asked, "one_rate", False) else None
    return DivergenceWarning(warn, asked.model_dump(), own, default_rates(asked), tuned)


def _write_answers(
    folder: RunFolder, prepared: PreparedRun, evaluating: EvaluationCallback, testing: EvaluationCallback
) -> None:
    """Write the models' last answers to each example, for reports and comparisons."""
    last: Mapping[Split, Mapping[str, Evaluation]] = {"validation": evaluating.last, "test": testing.last}
    write_answers(folder.path / ANSWERS, {split: (prepared.examples[split], one) for split, one in last.items() if one})


def _outcome(
    config: RunConfig,
    trained: Session,
    parts: LoopParts,
    measuring: Sequence[Measuring],
) -> dict[str, Any]:
    """The summary of a run, without its files, time and memory."""
    (evaluating, testing, _), best = parts.scorings, parts.best
    task, method, backbone = trained.prepared.task, trained.method, trained.method.backbone
    scores = {variant: score.as_dict() for variant, score in evaluating.last.items()}
    tested = {variant: score.as_dict() for variant, score in testing.last.items()}
    counts, seconds = Counts(), sum(scoring.seconds for scoring in parts.scorings)
    for scoring in parts.scorings:
        counts.include(scoring.counts)
    return {
        "method": config.method.name,
        "task": task.name,
        "task_version": task.version,
        "model": config.model.name,
        "split": "validation",
        "metric": task.metric,
        **({"positive_label": task.score_of} if METRICS[task.metric].of_one_label else {}),
        **next(iter(scores.values()), {}),
        "steps": evaluating.steps_made,
        "evaluated_after": evaluating.steps_evaluated,
        "variants": {variant: scores.get(variant, {}) for variant in method.variants},
        **({"test": tested} if tested else {}),
        "trained": _as_patterns(method.trained_names),
        "best": {"step": best.step, "score": best.score, **({"test": best.test_scores} if best.test_scores else {})},
        **method.counts.as_dict(),
        **({"calibration": dict(calibration)} if (calibration := method.adapter_start.calibration) else {}),
        "evaluation": {**counts.as_dict(), "seconds": round(seconds, 3)},
        # which a replay is compared with
        **({"backbone": backbone.fingerprint()} if backbone is not None and not backbone.is_corrupt else {}),
        "objective": trained.context.objective_name,
        **parts.early.summary(),
        **method.summary(),
        **{name: value for one in measuring for name, value in one.summary().items()},
    }


def _as_patterns(names: Sequence[str]) -> dict[str, Any]:
    """The number of tensors, and their names with `*` for layer numbers."""
    return {
        "tensors": len(names),
        "patterns": list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "*", one) for one in names)),
    }


def _warn(console: Console, text: str) -> None:
    say(console, f"warning: {text}")


def try_parts(
    config: RunConfig,
    context: TrainingContext,
    method: Method,
    steps: int,
    reward: Rewards | None,
    tell: Callable[[str], None],
) -> None:
    """Try measurements and rewards before the first step; raises ZofoError for what would fail later."""
    if config.training.treatment_steps is not None:
        check_treatment(method, context, _epsilon(config))
    if reward is not None:
        judged = context.by_objective(REWARD) if context.by_objective else context
        for sentence in reward_trial(judged, method.queries_of(steps)):
            tell(sentence)
        check_reward(judged)


def checked_steps(config: RunConfig, method: Method, prepared: PreparedRun) -> int:
    """The number of steps; refuses what cannot be made or scored."""
    steps = number_of_steps(config, method, prepared.train_rows)
    for split in config.training.scored_splits:
        majority_of(prepared.task, prepared.examples[split])  # refuses a score that cannot be given
    if prepared.start_adapter not in (None, method.adapter_start.begun_from):
        raise ConfigError(
            f"method={config.method.name} does not start from the adapter of init_from",
            "merge it first: zofo export RUN --merged DIR, then train with model=DIR and without init_from; your own "
            "method that goes on with it keeps what attach_adapters gives as its adapter_start",
        )
    method.planned_steps = steps
    if method.fixed_steps is None:
        method.lr_factor = lr_schedule(config.training, steps)
    check_early_stopping(config.training, method, config.method.name, steps)
    method.check_steps(steps)
    method.check()
    return steps


def number_of_steps(config: Any, method: Method, rows: Sequence[int] = ()) -> int:
    """The number of steps: as configured, or for so many epochs over the `rows` of each task, or within the budget of
    queries.

    Raises ConfigError for none or too many.
    """
    training: TrainingConfig = config.training
    if method.fixed_steps is not None:
        return method.fixed_steps
    epochs, budget = training.epochs, training.max_queries
    if epochs is not None:
        steps = int(config.method.steps_of_epochs(epochs, rows))
        if steps >= 1 << 32:
            raise ConfigError(
                f"training.epochs is {epochs:g}, which takes {steps} steps; a run has fewer than 2^32",
                "set training.epochs lower",
            )
        return steps
    if budget is None:
        return training.steps
    first = method.adapter_start.counts.queries
    steps = method.steps_within(max(budget - first, 0))
    if steps < 1:
        before = f", and the calibration of its adapter {first}" if first else ""
        raise ConfigError(
            f"training.max_queries is {budget}, but one step of {config.method.name!r} takes "
            f"{method.queries_per_step}{before}",
            f"give at least training.max_queries={first + method.queries_per_step}",
        )
    if steps >= 1 << 32:
        raise ConfigError(
            f"training.max_queries is {budget}, which pays for {steps} steps; a run has fewer than 2^32",
            "set training.max_queries lower",
        )
    return steps
