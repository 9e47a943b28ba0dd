"""Verbs that ask a trained run: for rows, and in a chat."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from zofo.cli.options import (
    AsJson,
    BaseModel,
    Best,
    Force,
    RemoteCode,
    Text,
    Variant,
    err,
    leaving_when_stopped,
    note_of,
    out,
    verbs,
)

commands = verbs()


@commands.command()
def predict(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    texts: Annotated[
        list[str] | None,
        typer.Argument(help="Texts; or rows as JSON objects, for tasks with several columns.", show_default=False),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Rows in place of texts: a JSONL, CSV, TSV or parquet file.", show_default=False),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--out", help="The new file, of rows and answers: .jsonl, .csv, .tsv or .parquet."),
    ] = None,
    text: Text = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="NAME=COLUMN", help="What a column of the task is called in the rows."),
    ] = None,
    prefix: Annotated[str, typer.Option(help="Stands before the names of new columns.", show_default=False)] = "",
    batch_size: Annotated[
        int | None, typer.Option(help="Rows a batch; by default training.eval_batch_size.", min=1, show_default=False)
    ] = None,
    force: Force = False,
    variant: Variant = None,
    best: Best = False,
    model: BaseModel = None,
    as_json: AsJson = False,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Answer rows with a trained run: zofo predict RUN 'A joy from start to finish.'.

    Of a file: zofo predict RUN --data FILE --out FILE; stopped, the same command goes on.
    """
    options: dict[str, Any] = {"variant": variant, "best": best, "model": model, "remote_code": trust_remote_code}
    check_rows_given(texts, data, file)
    note_of(run)
    if data is not None and file is not None:
        options |= {"columns": as_columns(columns, text), "prefix": prefix, "batch_size": batch_size, "force": force}
        answer_file(run, data, file, **options)
    else:
        answer_texts(run, texts or [], as_json, **options)


def answer_file(run: Path, data: Path, file: Path, **options: Any) -> None:
    """Answer the rows of a file, and say what was written."""
    from zofo.training import predict_file

    with leaving_when_stopped():
        found = predict_file(run, data, file, console=err, **options)
    out.say(f"wrote {found.path}: {found.rows} rows, with {', '.join(found.columns)}")


def answer_texts(run: Path, texts: Sequence[str], as_json: bool, **options: Any) -> None:
    """Answer texts on the terminal, a line each."""
    from zofo.training import as_percent
    from zofo.training import predict as label_texts

    def warn(text: str) -> None:
        err.say(f"warning: {text}")

    for prediction in label_texts(run, texts, warn=warn, **options):
        if as_json:
            out.say_json(prediction.as_dict())
            continue
        chosen = str(prediction.label)
        if prediction.probability is not None:
            chosen += f"  ({prediction.answer.strip()}, {as_percent(prediction.probability)})"
        out.say(f"{chosen}  {prediction.text}")


def check_rows_given(texts: Sequence[str] | None, data: Path | None, file: Path | None) -> None:
    """Raises ConfigError unless there are either texts, or a file of rows and one to write."""
    from zofo.errors import ConfigError

    if texts and (data or file):
        raise ConfigError("texts are answered on the terminal, and --data is written to --out", "give one of the two")
    if (data is None) != (file is None) or not texts and data is None:
        what = {True: "nothing to answer", False: "--data needs --out"}[data is None and file is None]
        raise ConfigError(what, "zofo predict RUN TEXT ..., or zofo predict RUN --data rows.csv --out answers.csv")


def as_columns(given: Sequence[str] | None, text: str | None) -> dict[str, str]:
    """NAME=COLUMN as a mapping, with the column of `--text`."""
    from zofo.errors import ConfigError

    found = {} if text is None else {"text": text}
    for one in given or ():
        name, sign, own = one.partition("=")
        if not (name and sign and own):
            raise ConfigError(f"--column {one!r} is not NAME=COLUMN", "name the task's column, then that of the rows")
        found[name] = own
    return found
