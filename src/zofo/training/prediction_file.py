"""Answer a file of rows with a trained run, and write them with the answers.

Answers are kept beside the output, in a journal with one line per batch, until all are there. Work that was stopped
continues with the first batch that the journal lacks, and its output is bit-identical.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from zofo.errors import ConfigError, DataError, RunError, listed
from zofo.filesystem import atomic_write_text, check_file_not_taken, locked, real, sha256_of, write_file, writing
from zofo.signals import Signals
from zofo.tasks import Example
from zofo.tasks.columns import check_present, columns_in_file, explaining, renamed
from zofo.tasks.readers.chat_rows import trained_places, turns_of
from zofo.tasks.readers.files import read_file
from zofo.tasks.readers.row import Row, with_valid_example
from zofo.training.identity import content_hash
from zofo.training.predictor import Predictor
from zofo.training.progress import log_console, row_progress, say, working
from zofo.training.row_files import WRITTEN, row_bytes
from zofo.training.run_folder import RunFolder

_JOURNAL = "zofo predictions 1"
_NOTHING = "before a row was answered"


@dataclass(frozen=True)
class PredictionFile:
    """The result of `predict_file`.

    Args:
        rows: number of rows.
        kept: rows that an earlier call of the same command had answered.
        columns: columns added to those of the rows.
    """

    path: Path
    rows: int
    kept: int
    columns: tuple[str, ...]


def predict_file(
    path: Path | str,
    data: Path | str,
    out: Path | str,
    *,
    columns: Mapping[str, str] | None = None,
    prefix: str = "",
    batch_size: int | None = None,
    force: bool = False,
    variant: str | None = None,
    best: bool = False,
    model: str | None = None,
    remote_code: bool = False,
    console: Console | None = None,
) -> PredictionFile:
    """Answer all rows of a file with a trained run, and write them with the answers.

    The output has the rows in order with all of their columns, and `prediction`: the label, the number of the choice,
    or the text. A classification adds `probability`, of that label, and `probability_LABEL` for each label; a multiple
    choice adds `answer`, its text, and `probabilities`, a list. Rows need no label and no answer; a final answer of a
    chat is removed before the model is asked. If stopped, the same call continues after the last answered batch.

    Args:
        path: folder of the run.
        data: the rows: a JSONL, JSON, CSV, TSV or parquet file.
        out: the new file; its extension determines the format: .jsonl, .csv, .tsv or .parquet.
        columns: names of the task's columns in the file, as `task.columns` of the configuration; by default as in
            training.
        prefix: prefix of the names of the new columns.
        batch_size: rows per batch; by default the run's `training.eval_batch_size`.
        force: overwrite an existing output, and discard other work that was stopped.
        variant: which model of the run.
        best: use the model of the best evaluation.
        model: the base model's new location, if it has moved; its hash must match.
        remote_code: allow the model's repository to run its own code.
        console: where progress is shown; by default it is logged by `logging.getLogger("zofo")`.

    Raises:
        DataError: a row cannot be read or asked; the message has file, row and column. Raised before anything is
            computed. RunError: the output exists; or its journal belongs to another run, model or file. Interrupted:
            the process was asked to stop. The answers so far are kept.
    """
    out, data, console = Path(out), Path(data), console or log_console()
    with Signals().raise_on_signal(lambda: _NOTHING):
        run = RunFolder.open(path)
        _check_places(run, data, out, force)
        predictor = Predictor(run, variant, best, model, remote_code, lambda text: say(console, f"warning: {text}"))
        names = columns_in_file(predictor.task, {**(run.config.task.columns or {}), **(columns or {})})
        work = _Work(predictor, out, read_file(data), _Added(predictor, prefix), names, console)
        examples = work.checked_examples(data, columns or {})
    size = batch_size or run.config.training.eval_batch_size
    asked = {"variant": variant, "best": best, "batch_size": size, "columns": names}
    about = {
        "run": content_hash({"trained": run.trained_hash, **run.identity.as_dict()}),
        "rows": sha256_of(data),
        **asked,
    }
    with _lock(out), writing("the answers", out, "type the same command again: it goes on"):
        kept = work.write(examples, size, _Journal(out.with_name(f"{out.name}.part")), about, force)
    return PredictionFile(out, len(examples), kept, work.added.names)


def _check_places(run: RunFolder, data: Path, out: Path, force: bool) -> None:
    if out.suffix.lower() not in WRITTEN:
        raise ConfigError(
            f"{str(out)!r} does not end in a kind of file that answers are written to",
            f"end it in {', '.join(WRITTEN)}",
        )
    if real(out) == real(data):
        raise RunError(f"{str(out)!r} holds the rows that are read", "choose another name for the output")
    check_file_not_taken(out, force, [run.path])


@contextmanager
def _lock(out: Path) -> Iterator[None]:
    """Context in which no other process writes the output; the lock file is deleted with it."""
    lock = out.with_name(f".{out.name}.lock")
    with locked(lock, f"writing {out.name!r} in"):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _asked(fields: Mapping[str, Any], messages: str | None) -> tuple[Mapping[str, Any], bool]:
    """A row without the final answer of its chat, and whether it is a single user message.

    If the last answers of a chat have weight 0, the final answer is the last one that is trained, as in an evaluation.
    """
    if messages is None or messages not in fields:
        return fields, False
    turns = turns_of(fields, messages)
    if isinstance(turns, str):
        return {**fields, messages: [{"role": "user", "content": turns}]}, True
    if isinstance(turns, list) and turns and isinstance(turns[-1], Mapping) and turns[-1].get("role") == "assistant":
        turns = turns[: max(trained_places(turns), default=-1)]
    return {**fields, messages: turns}, False


@dataclass(frozen=True)
class _Work:
    """Rows, the predictor, and the output; `names` are those of the task's columns in the rows."""

    predictor: Predictor
    out: Path
    rows: Sequence[Row]
    added: _Added
    names: Mapping[str, str]
    console: Console

    def checked_examples(self, data: Path, typed: Mapping[str, str]) -> list[Example]:
        """The rows of a file as examples.

        Refuses a row that cannot be asked or written, and a `typed` column that does not exist.
        """
        self.added.check_free(data, self.rows)
        self._bytes([row.fields for row in self.rows])
        needed = {name: own for name, own in self.names.items() if name in self.predictor.columns}
        check_present(self.rows, columns_in_file(self.predictor.task, typed), str(data), typed=True)
        check_present(self.rows, needed, str(data))
        examples: list[Example] = []
        for row in renamed(self.rows, self.names):
            try:
                with explaining(self.names):
                    fields, plain = _asked(row.fields, self.predictor.task.messages)
                    examples.append(self.predictor.example(fields, row.where, plain))
            except DataError as error:
                lacks = next((name for name in self.predictor.columns if name not in row.fields), None)
                if lacks is not None:
                    key = "--text COLUMN" if len(self.predictor.columns) == 1 else f"--column {lacks}=COLUMN"
                    error.hint = f"say which column of the rows it is: {key}"
                raise with_valid_example(error, 1, self.rows[0] if examples else None) from error
        return examples

    def write(
        self, examples: Sequence[Example], size: int, journal: _Journal, about: Mapping[str, Any], force: bool
    ) -> int:
        """Answer what the journal lacks, and write the output; returns the number of rows that it already had."""
        answered = {number: one for number, one in journal.open(about, force).items() if number < len(examples)}
        kept = len(answered)
        if kept:
            say(self.console, f"goes on after {kept} of {len(examples)} rows")

        def now_kept() -> str:
            return f"after {len(answered)} of {len(examples)} rows, which are kept" if answered else _NOTHING

        with Signals().raise_on_signal(now_kept):  # at once: what the journal has is whole at any time
            self._answer(examples, size, answered, journal)
        made = [{**row.fields, **self.added.values(answered[number])} for number, row in enumerate(self.rows)]
        write_file(self.out, self._bytes(made))
        journal.remove()
        return kept

    def _bytes(self, rows: Sequence[Mapping[str, Any]]) -> bytes:
        return row_bytes(self.out, rows, [row.where for row in self.rows])

    def _answer(self, examples: Sequence[Example], size: int, answered: dict[int, Any], journal: _Journal) -> None:
        """Answer in batches, the longest rows first, so that a lack of memory shows at once."""
        if len(answered) == len(examples):
            return
        with working(self.console, f"loading {self.predictor.run.config.model.name}"):
            encoded = self.predictor.encode(examples)  # all, so that a row that is too long is found first
        order = sorted(range(len(encoded)), key=lambda number: -int(encoded[number].length))
        left = [number for number in order if number not in answered]
        with row_progress(self.console, "predict", len(examples), len(answered)) as done:
            for start in range(0, len(left), size):
                chosen = left[start : start + size]
                found = self.predictor.answers(["" for _ in chosen], [encoded[number] for number in chosen])
                made = {
                    number: {
                        "label": one.label,
                        "answer": one.answer,
                        "scores": list((one.probabilities or {}).values()),
                    }
                    for number, one in zip(chosen, found, strict=True)
                }
                journal.write(made)
                answered.update(made)
                done(len(chosen))


class _Added:
    """The columns that answers add to a row."""

    def __init__(self, predictor: Predictor, prefix: str) -> None:
        task = predictor.task
        more = {
            "classification": ("probability", *(f"probability_{label}" for label in task.label_names)),
            "multiple-choice": ("answer", "probability", "probabilities"),
            "generation": (),
        }
        self._kind = task.kind
        self.names = tuple(f"{prefix}{name}" for name in ("prediction", *more[task.kind]))

    def check_free(self, data: Path, rows: Sequence[Row]) -> None:
        """Raise DataError if the rows already have one of the columns."""
        taken = [name for name in self.names if any(name in row.fields for row in rows)]
        if taken:
            raise DataError(
                f"{data}: the rows have the column {listed(taken)} already",
                "put something before the names of the new ones: --prefix second_",
            )

    def values(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        """The values for one row."""
        scores = answer["scores"]
        values = [answer["label"]]
        if self._kind == "classification":
            values += [max(scores), *scores]
        elif self._kind == "multiple-choice":
            values += [answer["answer"].strip(), max(scores), scores]
        return dict(zip(self.names, values, strict=True))


class _Journal:
    """The answers so far: a line that identifies the work, and one line per batch."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self, about: Mapping[str, Any], force: bool) -> dict[int, Any]:
        """The kept answers of the same work, by row number; a line that a kill has cut is ignored.

        Raises RunError if it belongs to other work, unless `force` is set.
        """
        lines = _whole_lines(self._path)
        first = {"format": _JOURNAL, **about}
        if lines and lines[0] != first and not force:
            differs = [key for key in first if key not in lines[0] or lines[0][key] != first[key]]
            raise RunError(
                f"{str(self._path)!r} keeps answers of other work, with another {' and another '.join(differs)}",
                "type that command again, or begin again with --force",
            )
        if not lines or lines[0] != first:
            lines = [first]
        atomic_write_text(self._path, "".join(json.dumps(line) + "\n" for line in lines))
        return {int(number): answer for line in lines[1:] for number, answer in line.items()}

    def write(self, answers: Mapping[int, Any]) -> None:
        """Save the answers of a batch."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(answers) + "\n")

    def remove(self) -> None:
        """Delete the journal, after the output is written."""
        self._path.unlink(missing_ok=True)


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal up to the first incomplete one."""
    if not path.is_file():
        return []
    lines: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(content, dict) or lines and not all(map(_is_answer, content.items())):
            break
        lines.append(content)
    return lines


def _is_answer(item: tuple[str, Any]) -> bool:
    number, answer = item
    return number.isdecimal() and isinstance(answer, dict) and {"label", "answer", "scores"} <= set(answer)
