"""Verbs for what a run leaves: rebuilt, compared and shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from zofo.cli.options import MODEL_AS_IT_IS, AsJson, BaseModel, Force, ModelOptions, RemoteCode, out, verbs

commands = verbs()
Summed = Annotated[
    bool,
    typer.Option(
        "--summed", help="Write the sum of the updates at once, not record by record: faster, equal up to rounding."
    ),
]


def _say(*lines: str) -> None:
    for line in lines:
        out.say(line)


def _show(found: Any, as_json: bool) -> None:
    out.say_json(found.as_dict()) if as_json else _say(*found.lines())


@commands.command()
def replay(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    step: Annotated[int | None, typer.Option(help="After how many steps; by default all.", show_default=False)] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Write the backbone there, as a transformers folder.")
    ] = None,
    summed: Summed = False,
    force: Force = False,
    model: BaseModel = None,
    as_json: AsJson = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Rebuild the weights of any step from the base model and the trajectory, and check them: zofo replay RUN."""
    from zofo.export import replay_run

    found = replay_run(run, step, folder, summed=summed, force=force, model=model, remote_code=trust_remote_code)
    _show(found, as_json)
    if found.failed:
        raise typer.Exit(1)


@commands.command()
def diff(
    first: Annotated[Path, typer.Argument(metavar="RUN_A", help="A run folder.")],
    second: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another one.")],
    as_json: AsJson = False,
) -> None:
    """Find the first step in which two runs differ, and what does; exit code 1 if anything differs: zofo diff A B."""
    from zofo.export import compare_runs

    found = compare_runs(first, second)
    _show(found, as_json)
    if not found.equal:
        raise typer.Exit(1)


@commands.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    merged: Annotated[
        Path | None, typer.Option(help="A new transformers folder: the whole model.", show_default=False)
    ] = None,
    adapter: Annotated[Path | None, typer.Option(help="A new peft folder: the adapter.", show_default=False)] = None,
    patch: Annotated[
        Path | None, typer.Option(help="A new file: what training added, for zofo apply.", show_default=False)
    ] = None,
    chosen: ModelOptions = MODEL_AS_IT_IS,
    summed: Annotated[
        bool,
        typer.Option(
            "--summed", help="Of a patch: hold the sum of the updates, not record by record what was written."
        ),
    ] = False,
    force: Force = False,
    repo: Annotated[
        str | None, typer.Option("--push", help="Also upload it to this repository of the Hub.", show_default=False)
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Let a repository that --push makes be public.")] = False,
) -> None:
    """Write a run's model as others load it: zofo export RUN --merged DIR | --adapter DIR | --patch FILE."""
    from zofo.export import export_run, parse_export_target, push

    kind, place = parse_export_target(merged=merged, adapter=adapter, patch=patch)
    found = export_run(run, kind, place, force=force, summed=summed, **chosen._asdict())
    _say(f"wrote {found.path} ({found.size:,} bytes)")
    if repo is not None:
        address = push(found, repo, private=not public)
        _say(f"uploaded to {address}")


@commands.command()
def apply(
    file: Annotated[Path, typer.Argument(help="A patch, as zofo export RUN --patch FILE writes it.")],
    base: Annotated[str, typer.Option(help="The base model: an embedded name, a folder or a Hub id.")],
    folder: Annotated[Path, typer.Option("--out", help="The new transformers folder.")],
    revision: Annotated[
        str | None,
        typer.Option(help="Branch, tag or commit of the base model on the Hub; by default the one in the patch."),
    ] = None,
    summed: Summed = False,
    force: Force = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Make the trained model of its base model and a patch: zofo apply FILE --base MODEL --out DIR."""
    from zofo.export import apply_patch

    found = apply_patch(file, base, folder, force, summed, trust_remote_code, revision)
    _say(*found.lines())
