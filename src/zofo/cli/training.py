"""Commands that train, and that score the result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zofo.cli.estimates import say_dry_run
from zofo.cli.options import (
    NO_ROWS,
    AsJson,
    Best,
    Overrides,
    RemoteCode,
    RowOptions,
    Variant,
    err,
    leaving_when_stopped,
    note_of,
    out,
    verbs,
)
from zofo.trees import split_arguments

commands = verbs()
tune = verbs("Search for a good value of an option.")


@commands.command(no_args_is_help=True, several=True, saves=True)
def train(
    arguments: Overrides = None,
    given: RowOptions = NO_ROWS,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            help="FILE.py:NAME of a reward function to maximise, or one of `zofo list rewards`; can be repeated, "
            "with *WEIGHT after the name (brevity*0.1, regex*0.2:PATTERN).",
            show_default=False,
        ),
    ] = None,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Make one step, undo it, and show its memory and time.")
    ] = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Train a model, or resume a stopped run.

    Usage: zofo train [CONFIG.yaml | RECIPE] [key=value ...]
    """
    from zofo.estimate import dry_run
    from zofo.objectives import load_reward
    from zofo.processes import joined
    from zofo.tasks import score_name
    from zofo.training import as_percent, read_config
    from zofo.training import train as run_training

    with leaving_when_stopped():
        rewards = [load_reward(one) for one in reward or []]
        asked = read_config(*split_arguments(arguments, given.keys))
        if dry:
            say_dry_run(dry_run(asked, trust_remote_code, rewards or None, lambda text: err.say((text, "dim"))))
            return
        run = run_training(asked, err, trust_remote_code, rewards or None)
    if not joined().is_first:
        return
    summary = run.summary
    metric, after = summary["metric"], f" after {summary['queries']} queries"
    for split, variants in ((summary["split"], summary["variants"]), ("test", summary.get("test", {}))):
        for number, (variant, scored) in enumerate(variants.items()):
            score = f"{score_name(metric, summary.get('positive_label', ''))} {as_percent(scored[metric])} on {split}"
            if number:
                out.say(f"{variant}: {score}")
            else:
                out.say(f"{score} (majority {as_percent(scored['majority'])}){after}")
    out.say(f"run: {run.path}")


@commands.command(name="eval")
def evaluate(
    arguments: Annotated[list[str], typer.Argument(help="A run folder, or key=value for a zero-shot score.")],
    split: Annotated[str | None, typer.Option(help="train, validation (the default) or test.")] = None,
    variant: Variant = None,
    best: Best = False,
    given: RowOptions = NO_ROWS,
    as_json: AsJson = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Score a run, or an untrained model.

    Examples: zofo eval RUN, or zofo eval model=... task=...

    With --data FILE, every row of the file is scored.
    """
    from zofo.training import as_percent, evaluate_run, evaluate_zero_shot, read_config

    if "=" not in arguments[0] and not arguments[0].endswith((".yaml", ".yml")):
        run, overrides = Path(arguments[0]), [*arguments[1:], *given.columns]
        score = evaluate_run(run, overrides, split, variant, best, given.data_dir, trust_remote_code, given.data, err)
        note_of(run)
    else:
        score = evaluate_zero_shot(read_config(*split_arguments(arguments, given.keys)), split, trust_remote_code, err)
    if as_json:
        out.say_json({"split": score.on, "rows": len(score.predictions), **score.as_dict()})
        return
    line = f"{score.titled()} {as_percent(score.score)} on {score.on} (majority {as_percent(score.majority)})"
    also = "".join(f", {score.titled(name)} {as_percent(value)}" for name, value in score.also.items())
    out.say(f"{line}{also}, loss {score.loss:.4f}, {len(score.predictions)} rows")


@tune.command(name="lr", no_args_is_help=True)
def tune_lr(
    arguments: Overrides = None,
    steps: Annotated[int, typer.Option(help="Steps per trial.", min=1)] = 12,
    given: RowOptions = NO_ROWS,
    as_json: AsJson = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Find the largest stable learning rate of method=mezo.

    Usage: zofo tune lr [CONFIG.yaml] [key=value ...]
    """
    from zofo.training import LrTrial, read_config
    from zofo.training import tune_lr as search

    def show(trial: LrTrial) -> None:
        verdict = "stable" if trial.stable else "unstable"
        err.say(f"lr {trial.lr:.1e}: loss {trial.loss:.3f} after {steps} steps, {verdict}")

    found = search(read_config(*split_arguments(arguments, given.keys)), steps, show, trust_remote_code)
    if as_json:
        out.say_json(found.as_dict())
        return
    work = f"{len(found.trials)} trials of {steps} steps, {found.counts.queries} queries"
    out.say(f"largest stable learning rate {found.largest:.1e} (loss before: {found.loss:.3f}; {work})")
    out.say(f"train with a quarter of it: method.rule.lr={found.lr:.1e}")
