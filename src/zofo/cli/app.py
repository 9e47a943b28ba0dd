"""The commands of the command line; each only parses its arguments, calls the library and prints the result."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

import typer

from zofo.cli import answers, estimates, export, inspect, reports, studies, training
from zofo.cli.options import out, verbs

app = verbs()
for part in (training, answers, reports, estimates, export, inspect, studies):  # in the order of the help
    app.add_typer(part.commands)
app.add_typer(training.tune, name="tune")
app.add_typer(studies.bench, name="bench")


def _show_version(asked: bool) -> None:
    if asked:
        out.say(f"zofo {metadata.version('zofo')}")
        raise typer.Exit


@app.callback(help="Fine-tune language models with forward passes, adapters, or both.")
def main(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options before any command."""


command = typer.main.get_command(app)
