"""Commands for the results of a run: rebuild, compare and ship."""

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
    step: Annotated[
        int | None, typer.Option(help="Number of steps to replay; by default all.", show_default=False)
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Write the backbone to this transformers folder.")
    ] = None,
    summed: Summed = False,
    force: Force = False,
    model: BaseModel = None,
    as_json: AsJson = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Rebuild and check the weights of any step of a run.

    From the base model and the trajectory. Example: zofo replay RUN
    """
    from zofo.export import replay_run

    found = replay_run(run, step, folder, summed=summed, force=force, model=model, remote_code=trust_remote_code)
    _show(found, as_json)
    if found.failed:
        raise typer.Exit(1)


@commands.command()
def diff(
    first: Annotated[Path, typer.Argument(metavar="RUN_A", help="A run folder.")],
    second: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another run folder.")],
    as_json: AsJson = False,
) -> None:
    """Find the first step in which two runs differ, and how.

    The exit code is 1 if anything differs. Example: zofo diff RUN_A RUN_B
    """
    from zofo.export import compare_runs

    found = compare_runs(first, second)
    _show(found, as_json)
    if not found.equal:
        raise typer.Exit(1)


@commands.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    merged: Annotated[
        Path | None, typer.Option(help="New transformers folder for the whole model.", show_default=False)
    ] = None,
    adapter: Annotated[Path | None, typer.Option(help="New peft folder for the adapter.", show_default=False)] = None,
    patch: Annotated[
        Path | None, typer.Option(help="New file with what training added, for zofo apply.", show_default=False)
    ] = None,
    chosen: ModelOptions = MODEL_AS_IT_IS,
    summed: Annotated[
        bool,
        typer.Option("--summed", help="For a patch: contain the sum of the updates instead of each record."),
    ] = False,
    force: Force = False,
    repo: Annotated[
        str | None, typer.Option("--push", help="Also upload it to this Hub repository.", show_default=False)
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a repository created by --push public.")] = False,
) -> None:
    """Write a run's model for other libraries.

    Examples: zofo export RUN --merged DIR | --adapter DIR | --patch FILE
    """
    from zofo.export import export_run, parse_export_target, push

    kind, place = parse_export_target(merged=merged, adapter=adapter, patch=patch)
    found = export_run(run, kind, place, force=force, summed=summed, **chosen._asdict())
    _say(f"wrote {found.path} ({found.size:,} bytes)")
    if repo is not None:
        address = push(found, repo, private=not public)
        _say(f"uploaded to {address}")


@commands.command()
def apply(
    file: Annotated[Path, typer.Argument(help="A patch, written by zofo export RUN --patch FILE.")],
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
    """Make the trained model from a patch and its base model.

    Example: zofo apply FILE --base MODEL --out DIR
    """
    from zofo.export import apply_patch

    found = apply_patch(file, base, folder, force, summed, trust_remote_code, revision)
    _say(*found.lines())
