"""The verbs of the command line; each only reads its arguments, calls the library and shows what came back."""

from __future__ import annotations

from zofo.cli import export, inspect, studies, training
from zofo.cli.options import verbs

app = verbs("Fine-tune language models by forward passes, by adapters, or by both.")
for part in (training, export, inspect, studies):  # in the order of the help
    app.add_typer(part.commands)
app.add_typer(training.tune, name="tune")
app.add_typer(studies.bench, name="bench")
