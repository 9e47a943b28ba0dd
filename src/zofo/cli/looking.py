"""Verbs that show what can be configured and what the model would see, before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from zofo.cli.shared import AsJson, Data, DataDir, Overrides, RemoteCode, configured, one_line, out, verbs

commands = verbs()


@commands.command()
def preview(
    arguments: Overrides = None,
    rows: Annotated[int, typer.Option(help="How many examples to show.", min=1)] = 3,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    data_dir: DataDir = None,
    data: Data = None,
    as_json: AsJson = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Show what the model sees: prompts, candidates, what is scored, lengths."""
    from zofo.training import preview as look

    seen = look(configured(arguments, data_dir, data), split, rows, trust_remote_code)
    if as_json:
        typer.echo(json.dumps(seen.as_dict(), ensure_ascii=False))
        return
    for example in seen.examples:
        out.print(Text(example.where, style="dim"))
        for candidate, tokens, gold in example.candidates:
            scored = Text(candidate, style="bold green" if gold else "bold")
            out.print(Text.assemble("  ", (repr(example.prompt)[1:-1], ""), scored, (f"  scored: {tokens}", "dim")))
    lengths = f"shortest {seen.shortest}, mean {seen.mean:.1f}, longest {seen.longest}"
    sequences = "one sequence" if seen.sequences == 1 else f"{seen.sequences} sequences"
    text = f"{seen.count} examples of {split}; tokens: {lengths}; {sequences} an example"
    out.print(text, highlight=False, soft_wrap=True)
    for note in seen.notes:
        out.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)


@commands.command()
def validate(arguments: Overrides = None, data_dir: DataDir = None, data: Data = None, as_json: AsJson = False) -> None:
    """Check a task and all its rows, and with model=NAME their tokens: zofo validate task=my.yaml."""
    from zofo.training import as_percent
    from zofo.training import validate as check

    report = check(configured(arguments, data_dir, data))
    if as_json:
        typer.echo(json.dumps(report.as_dict(), ensure_ascii=False))
        return
    about = report.task
    out.print(Text(f"{about['name']}: {about['kind']}, scored by {', '.join(about['scores'])}", style="bold"))
    if about["about"]:
        out.print(Text(about["about"], style="dim"), soft_wrap=True)
    for prompt, text, right in report.example:
        shown = Text.assemble((f"{prompt}: ", "bold"), one_line(text), (one_line(right), "bold green"))
        out.print(shown, soft_wrap=True)
    for split, found in report.splits.items():
        right = ", ".join(f"{name}: {count}" for name, count in found.right.items())
        line = f"{split}: {found.rows} rows; majority {as_percent(found.majority)}" + (f" ({right})" if right else "")
        out.print(line, highlight=False, soft_wrap=True)
    for note in report.notes:
        out.print(Text(f"note: {note}", style="yellow"), soft_wrap=True)
    out.print("every row can be used", highlight=False)


@commands.command()
def copy(
    name: Annotated[str, typer.Argument(help="A task of `zofo list tasks`, or a recipe of `zofo list recipes`.")],
    file: Annotated[Path, typer.Argument(help="The new file, for example my.yaml.")],
) -> None:
    """Copy a packaged task or recipe to a file of your own, to edit: zofo copy sst2 my.yaml."""
    from zofo.recipes import recipe_names
    from zofo.training import copy_recipe, copy_task

    is_recipe = name in recipe_names()
    (copy_recipe if is_recipe else copy_task)(name, file)
    use = f"zofo train {file}" if is_recipe else f"zofo validate task={file}"
    out.print(f"wrote {file}; edit it, then: {use}", highlight=False, soft_wrap=True)


@commands.command(name="list")
def list_names(
    kind: Annotated[str | None, typer.Argument(help="models, tasks, methods, recipes, noises ...")] = None,
    as_json: AsJson = False,
) -> None:
    """Names that a configuration can use."""
    from zofo.studies import study_names
    from zofo.training import names

    found = names(kind, {"studies": study_names()})
    if as_json:
        typer.echo(json.dumps(found))
        return
    table = Table("kind", "name", "what it is", box=None, pad_edge=False)
    for group, entries in found.items():
        for number, (name, about) in enumerate(entries.items()):
            table.add_row(group if number == 0 else "", name, Text(about))
    out.print(table)


@commands.command()
def env(as_json: AsJson = False) -> None:
    """Versions, device and folders, for a report."""
    from zofo.training import describe_environment

    found = describe_environment()
    if as_json:
        typer.echo(json.dumps(found))
        return
    for name, value in found.items():
        out.print(f"{name:14} {value}", highlight=False, soft_wrap=True)
