"""Commands that use a trained run: for rows, and in a chat."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from zofo.cli.options import (
    MODEL_AS_IT_IS,
    AsJson,
    Force,
    ModelOptions,
    Text,
    err,
    leaving_when_stopped,
    note_of,
    out,
    verbs,
    waiting,
)

commands = verbs()


@commands.command()
def predict(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    texts: Annotated[
        list[str] | None,
        typer.Argument(help="Texts; for tasks with several columns, rows as JSON objects.", show_default=False),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Rows instead of texts: a JSONL, CSV, TSV or parquet file.", show_default=False),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--out", help="New file for rows and answers: .jsonl, .csv, .tsv or .parquet."),
    ] = None,
    text: Text = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="NAME=COLUMN", help="Name of a task's column in the rows."),
    ] = None,
    prefix: Annotated[str, typer.Option(help="Prefix of the names of new columns.", show_default=False)] = "",
    batch_size: Annotated[
        int | None, typer.Option(help="Rows per batch; by default training.eval_batch_size.", min=1, show_default=False)
    ] = None,
    force: Force = False,
    chosen: ModelOptions = MODEL_AS_IT_IS,
    as_json: AsJson = False,
) -> None:
    """Answer texts or a file of rows with a trained run.

    Texts: zofo predict RUN 'A joy from start to finish.'

    A file: zofo predict RUN --data FILE --out FILE. If it was stopped, the same command resumes.
    """
    options = chosen._asdict()
    check_rows_given(texts, data, file)
    note_of(run)
    if data is not None and file is not None:
        options |= {"columns": as_columns(columns, text), "prefix": prefix, "batch_size": batch_size, "force": force}
        answer_file(run, data, file, **options)
    else:
        answer_texts(run, texts or [], as_json, **options)


@commands.command(saves=True)
def chat(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    system: Annotated[
        str | None, typer.Option(help="System message instead of the run's own.", show_default=False)
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Maximum number of tokens of an answer.", min=1, show_default=False)
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Sampling temperature; 0 is greedy.", min=0, show_default=False)
    ] = None,
    chosen: ModelOptions = MODEL_AS_IT_IS,
) -> None:
    """Chat with a trained run.

    Example: zofo chat RUN. From a pipe, each line is a turn, and answers go to standard output.
    """
    from zofo.training import Conversation, Predictor, RunFolder

    note_of(run)
    opened, talking = RunFolder.open(run), sys.stdin.isatty()
    predictor = Predictor(opened, *chosen, warn_once(), max_new_tokens, temperature)
    conversation = Conversation(predictor, system)
    with waiting(f"loading {opened.config.model.name}"):
        _ = predictor.loaded  # before the first question
    if not conversation.remembers:
        err.say("this run was not trained on chats: each text is asked by itself")
    if talking:
        err.say("type a text; /new begins again, /exit, Ctrl-C or Ctrl-D ends")
    with suppress(KeyboardInterrupt) if talking else nullcontext():  # a person leaves by it
        _talk(conversation, talking)


def _talk(conversation: Any, talking: bool) -> None:
    """Answer turn by turn until there is no more input, or the user leaves."""
    while (text := next_text(talking)) not in ("", "/exit"):
        if text == "/new":
            conversation.restart()
        else:
            answer_turn(conversation, text, talking)


def next_text(talking: bool) -> str:
    """The next non-empty line, "" after the last one."""
    while True:
        if talking:
            err.print("> ", end="")
        line = sys.stdin.readline()
        if not line or line.strip():
            return line.strip()


def answer_turn(conversation: Any, text: str, talking: bool) -> None:
    """Print the answer to a text; for a person, a text that cannot be asked does not end the conversation."""
    from zofo.errors import ZofoError

    try:
        with waiting("answering") if talking else nullcontext():
            answer = conversation.say(text)
    except ZofoError as error:
        if not talking:
            raise
        err.say(f"error: {error.message}")
        err.say(f"hint: {error.hint or 'say it in another way'}; /new begins again")
    else:
        out.print(answer or "(no answer)" if talking else answer)


def warn_once() -> Callable[[str], None]:
    """Prints each warning only once."""
    said: set[str] = set()

    def warn(text: str) -> None:
        if text not in said:
            said.add(text)
            err.say(f"warning: {text}")

    return warn


def answer_file(run: Path, data: Path, file: Path, **options: Any) -> None:
    """Answer the rows of a file, and print what was written."""
    from zofo.training import predict_file

    with leaving_when_stopped():
        found = predict_file(run, data, file, console=err, **options)
    out.say(f"wrote {found.path}: {found.rows} rows, with {', '.join(found.columns)}")


def answer_texts(run: Path, texts: Sequence[str], as_json: bool, **options: Any) -> None:
    """Answer texts on the terminal, one per line."""
    from zofo.training import as_percent
    from zofo.training import predict as label_texts

    with waiting("loading the run and asking it"):
        found = label_texts(run, texts, warn=warn_once(), **options)
    for prediction in found:
        if as_json:
            out.say_json(prediction.as_dict())
            continue
        chosen = str(prediction.label)
        if prediction.probability is not None:
            chosen += f"  ({prediction.answer.strip()}, {as_percent(prediction.probability)})"
        out.say(f"{chosen}  {prediction.text}")


def check_rows_given(texts: Sequence[str] | None, data: Path | None, file: Path | None) -> None:
    """Raise ConfigError unless there are either texts, or an input and an output file."""
    from zofo.errors import ConfigError

    rows = "zofo predict RUN --data rows.csv --out answers.csv"
    if texts and data is not None:
        raise ConfigError("texts and --data are given, and one of them is answered", f"leave out the texts: {rows}")
    if texts and file is not None:
        raise ConfigError("--out is for the rows of --data; texts are answered on the terminal", "leave out --out")
    if data is not None and file is None:
        raise ConfigError("--data has no --out to write its answers to", f"add --out: {rows}")
    if file is not None and data is None:
        raise ConfigError("--out has no --data, whose rows it would answer", f"add --data: {rows}")
    if not texts and data is None:
        raise ConfigError("nothing to answer", f"zofo predict RUN TEXT ..., or {rows}")


def as_columns(given: Sequence[str] | None, text: str | None) -> dict[str, str]:
    """NAME=COLUMN as a mapping, including the column of `--text`."""
    from zofo.errors import ConfigError

    found = {} if text is None else {"text": text}
    for one in given or ():
        name, sign, own = one.partition("=")
        if not (name and sign and own):
            raise ConfigError(f"--column {one!r} is not NAME=COLUMN", "name the task's column, then that of the rows")
        found[name] = own
    return found
