"""What the commands share: their options, and how they read and show things."""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints

import typer

from zofo.cli.terminal import Terminal, is_heard, linger

out = Terminal()
err = Terminal(stderr=True)


Text = Annotated[
    str | None,
    typer.Option("--text", metavar="COLUMN", help="Name of the text column in your rows.", show_default=False),
]
Best = Annotated[bool, typer.Option("--best", help="Use the model of the best evaluation, not of the last step.")]
Variant = Annotated[str | None, typer.Option(help="Which model of the run, for example lower_adapter.")]
BaseModel = Annotated[str | None, typer.Option("--model", help="New location of the base model, if it has moved.")]
RemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Let the model's repository run its own code.")]


class ModelOptions(NamedTuple):
    """Options of a verb that say which model of a run is meant, and how it is loaded; named as the library does."""

    variant: Variant = None
    best: Best = False
    model: BaseModel = None
    remote_code: RemoteCode = False


class RowOptions(NamedTuple):
    """Options of a verb that say where rows of the user's own are, and what their columns are called."""

    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with the task's rows, one file per split.", show_default=False)
    ] = None
    data: Annotated[
        str | None,
        typer.Option(
            help="Your own rows: a JSONL, CSV or parquet file, a folder of them, or a Hub id.", show_default=False
        ),
    ] = None
    text: Text = None
    label: Annotated[
        str | None,
        typer.Option("--label", metavar="COLUMN", help="Name of the label column in your rows.", show_default=False),
    ] = None

    @property
    def columns(self) -> list[str]:
        """The overrides that set the names of the columns."""
        columns = {"text": self.text, "label": self.label}
        return [f"task.columns.{name}={json.dumps(own)}" for name, own in columns.items() if own is not None]

    @property
    def keys(self) -> list[str]:
        """The overrides that these options stand for."""
        folder = [] if self.data_dir is None else [f"task.data_dir={json.dumps(str(self.data_dir))}"]
        return [*folder, *([] if self.data is None else [f"task.data={json.dumps(self.data)}"]), *self.columns]


NO_ROWS, MODEL_AS_IT_IS = RowOptions(), ModelOptions()


class _Verbs(typer.Typer):
    """Verbs whose libraries are loaded, which takes seconds, while a terminal says so."""

    def command(
        self, *arguments: Any, several: bool = False, saves: bool = False, **options: Any
    ) -> Callable[[Any], Any]:
        """As typer's, for a function that imports zofo.training by itself; `several` processes may share its work.

        One that is asked to stop says that nothing is saved, unless it `saves`, and says by itself what is,
        or has nothing to save.

        An argument that is a `RowOptions` or a `ModelOptions` stands for its options.
        """
        register = super().command(*arguments, **options)

        def registered(verb: Callable[..., None]) -> Callable[..., None]:
            groups, parameters = _spread(verb)

            @functools.wraps(verb)
            def loading_first(**named: Any) -> None:
                if not several:
                    _check_one_process(options.get("name") or verb.__name__)
                with waiting("loading torch and transformers"):
                    import zofo.training  # noqa: F401
                given = {one: kind(*(named.pop(name) for name in kind._fields)) for one, kind in groups.items()}
                with nullcontext() if saves else _saving_nothing():
                    verb(**named, **given)

            loading_first.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
            loading_first.__annotations__ = {one.name: one.annotation for one in parameters}
            register(loading_first)
            return verb

        return registered


@contextmanager
def _saving_nothing() -> Iterator[None]:
    """Context in which a process that is asked to stop exits, and says that it will start again."""
    from zofo.signals import Signals

    with leaving_when_stopped(), Signals().raise_on_signal():
        yield


def _spread(verb: Callable[..., None]) -> tuple[dict[str, Any], list[inspect.Parameter]]:
    """The arguments that stand for groups of options, each with its class; and all options in their place."""
    groups, found = dict[str, Any](), list[inspect.Parameter]()
    for one in inspect.signature(verb, eval_str=True).parameters.values():
        kind: Any = one.annotation
        if kind in (RowOptions, ModelOptions):
            groups[one.name], hints, defaults = kind, get_type_hints(kind, include_extras=True), kind._field_defaults
            found += [one.replace(name=name, annotation=hints[name], default=defaults[name]) for name in kind._fields]
        else:
            found.append(one)
    return groups, found


def _check_one_process(verb: str) -> None:
    """Raise ZofoError if a launcher has started several processes, which would all do the same."""
    from zofo.errors import ConfigError

    processes = os.environ.get("WORLD_SIZE", "1")
    if processes not in ("", "1"):
        raise ConfigError(
            f"{processes} processes would each do all of zofo {verb}; only zofo train shares its work out",
            "type it without the launcher, or unset WORLD_SIZE",
        )


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Context in which a terminal shows what is being done."""
    with err.status(what) if err.is_terminal else nullcontext():
        yield


def verbs(about: str | None = None) -> _Verbs:
    """A group of commands."""
    return _Verbs(
        help=about,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
        rich_markup_mode=None,
    )


Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value, for example training.steps=20", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing files.")]


def note_of(run: Path) -> None:
    """Print which parts of a run could not be compared, and that it has not ended."""
    from zofo.training import RunFolder

    opened = RunFolder.open(run)
    if note := opened.identity.note:
        err.say(note)
    if stopped := opened.summary.get("stopped"):
        err.say(f"this run has not ended ({stopped}): the model is as it was then")


@contextmanager
def leaving_when_stopped(hint: str | None = None) -> Iterator[None]:
    """Context that exits with 143 or 130 when the process was asked to stop, and says how to resume.

    Args:
        hint: what is said instead of what the run that was stopped says.
    """
    from zofo.errors import Interrupted

    try:
        yield
    except Interrupted as stop:
        if is_heard(stop.quiet):
            err.say(stop.message)
            err.say(f"hint: {hint or stop.hint}")
        else:
            linger()
        raise SystemExit(stop.exit_code) from stop  # whose cause has already been reported
