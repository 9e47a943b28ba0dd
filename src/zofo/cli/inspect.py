"""Commands that show what can be configured and what the model would see, before training."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from zofo.cli.options import (
    NO_ROWS,
    AsJson,
    Overrides,
    RemoteCode,
    RowOptions,
    err,
    out,
    verbs,
)
from zofo.trees import split_arguments

commands = verbs()
_SHOWN = 400  # characters of a prompt


@commands.command()
def preview(
    arguments: Overrides = None,
    rows: Annotated[int, typer.Option(help="Number of examples to show.", min=1)] = 3,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    given: RowOptions = NO_ROWS,
    as_json: AsJson = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Show what the model sees: prompts, candidates, lengths."""
    from zofo.training import preview as look
    from zofo.training import read_config

    seen = look(read_config(*split_arguments(arguments, given.keys)), split, rows, trust_remote_code)
    if as_json:
        out.say_json(asdict(seen))
        return
    for example in seen.examples:
        out.say((example.where, "dim"))
        for candidate, tokens, gold in example.candidates:
            scored = (candidate, "bold green" if gold else "bold")
            out.say("  ", repr(example.prompt)[1:-1], scored, (f"  scored: {tokens}", "dim"))
        for answer, tokens in example.earlier:
            out.say("  and before it ", (repr(answer)[1:-1], "bold green"), (f"  scored: {tokens}", "dim"))
    lengths = f"shortest {seen.shortest}, mean {seen.mean:.1f}, longest {seen.longest}"
    sequences = "one sequence" if seen.sequences == 1 else f"{seen.sequences} sequences"
    out.say(f"{seen.count} examples of {split}; tokens: {lengths}; {sequences} an example")
    for note in seen.notes:
        out.say(f"note: {note}")


@commands.command()
def validate(
    arguments: Overrides = None,
    given: RowOptions = NO_ROWS,
    as_json: AsJson = False,
) -> None:
    """Check a task and all its rows.

    With model=NAME also their tokens. Example: zofo validate task=my.yaml
    """
    from zofo.errors import truncate
    from zofo.training import as_percent, read_config
    from zofo.training import validate as check

    report = check(read_config(*split_arguments(arguments, given.keys)))
    if as_json:
        out.say_json(asdict(report))
        return
    about = report.task
    out.say((f"{about['name']}: {about['kind']}, scored by {', '.join(about['scores'])}", "bold"))
    if about["about"]:
        out.say((" ".join(about["about"].split()), "dim"))
    for prompt, shown, right in report.example:
        out.say((f"{prompt}: ", "bold"), truncate(shown, _SHOWN), (truncate(right, _SHOWN), "bold green"))
    for split, found in report.splits.items():
        right = ", ".join(f"{name}: {count}" for name, count in found.right.items())
        line = f"{split}: {found.rows} rows; majority {as_percent(found.majority)}" + (f" ({right})" if right else "")
        out.say(line)
    for note in report.notes:
        out.say((f"note: {note}", "yellow"))
    out.say("every row can be used")


@commands.command()
def copy(
    name: Annotated[str, typer.Argument(help="A task of `zofo list tasks`, or a recipe of `zofo list recipes`.")],
    file: Annotated[Path, typer.Argument(help="The new file, for example my.yaml.")],
) -> None:
    """Copy a packaged task or recipe to your own file.

    Example: zofo copy sst2 my.yaml
    """
    from zofo.training import copy_packaged

    use = f"zofo train {file}" if copy_packaged(name, file) else f"zofo validate task={file}"
    out.say(f"wrote {file}; edit it, then: {use}")


@commands.command()
def config(
    arguments: Overrides = None,
    given: RowOptions = NO_ROWS,
    as_json: AsJson = False,
) -> None:
    """Show every key of a configuration: value, origin, meaning."""
    from zofo.training import explain_config

    found = explain_config(*split_arguments(arguments, given.keys))
    if as_json:
        out.say_json([asdict(one) for one in found])
        return
    table = Table("key", "value", "from", "what it does", box=None, pad_edge=False)
    for one in found:
        table.add_row(
            one.key, one.value if isinstance(one.value, str) else json.dumps(one.value), one.source, one.about
        )
    out.say_table(table)


@commands.command(name="list")
def list_names(
    kind: Annotated[str | None, typer.Argument(help="models, tasks, methods, recipes, noises ...")] = None,
    as_json: AsJson = False,
) -> None:
    """List the names that a configuration can use."""
    from zofo.studies import study_names
    from zofo.training import names

    found = names(kind, {"studies": study_names()})
    if as_json:
        out.say_json(found)
        return
    table = Table("kind", "name", "what it is", box=None, pad_edge=False)
    for group, entries in found.items():
        for number, (name, about) in enumerate(entries.items()):
            table.add_row(group if number == 0 else "", name, about)
    out.say_table(table)


@commands.command()
def env(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="With --report: the run concerned.", show_default=False)
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="Everything an issue needs, without secrets.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show versions, device and folders.

    For an issue: zofo env --report [RUN]
    """
    from zofo.errors import ConfigError
    from zofo.training import describe_environment, issue_report

    if report:
        for line in issue_report(run).splitlines():
            out.say(line)
        err.say("look through it before you send it: a configuration may hold prompts and paths of yours")
        return
    if run is not None:
        raise ConfigError(f"zofo env looks at {str(run)!r} only with --report", f"zofo env --report {str(run)!r}")
    found = describe_environment()
    if as_json:
        out.say_json(found)
        return
    for name, value in found.items():
        out.say(f"{name:14} {value}")
