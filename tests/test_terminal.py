"""What reaches a terminal: nothing that it would obey, whatever files, names and models hold."""

from __future__ import annotations

import errno
import io
import json
import os
import sys

import pytest
from rich.table import Table

from conftest import write_rows
from zofo.cli import main
from zofo.cli.terminal import Terminal, escaped, guarded_streams
from zofo.errors import OutOfMemoryError, ZofoError, of_system, raise_if_out_of_memory

HOSTILE = "\x1b[2J\x1b]0;owned\x07\r\x9b31m\u202eevil\u2066\x7f\x00[red]x[/red] :warning: \udc80"
SHOWN = r"\x1b[2J\x1b]0;owned\x07\r\x9b31m\u202eevil\u2066\x7f\x00[red]x[/red] :warning: \udc80"


def test_what_a_terminal_would_obey_is_written_out():
    assert escaped(HOSTILE) == SHOWN
    for text in ("plain\n\tand tabs", "ein schöner Film", "好看的电影", "یک فیلم می\u200cخواهم", "👩\u200d💻 é"):
        assert escaped(text) == text


def test_a_console_shows_what_it_is_given(capsys):
    console = Terminal()
    console.print(HOSTILE)
    console.say(HOSTILE, (HOSTILE, ""))
    assert capsys.readouterr().out == f"{SHOWN}\n{SHOWN}{SHOWN}\n"


def test_a_line_stays_one(capsys):
    console = Terminal()
    console.say("a name\nerror: not so")
    assert capsys.readouterr().out == "a name\\nerror: not so\n"


def test_a_table_shows_what_it_is_given(capsys):
    console = Terminal()
    table = Table("a\x1b[2J", title=HOSTILE)
    table.add_row("[bold]b[/bold]\x1b]0;x\x07")
    console.print(table, soft_wrap=False)
    shown = capsys.readouterr().out
    assert r"\x1b]0;x" in shown
    assert "[bold]b[/bold]" in shown
    assert "\x1b[2J" not in shown
    assert "\x1b]" not in shown
    assert "\x07" not in shown


def test_a_table_in_a_pipe_ends_its_lines_where_its_words_end(capsys):
    table = Table("name", "what it is", box=None, pad_edge=False)
    for row in (("sgd", "steps against the gradient"), ("momentum", "")):
        table.add_row(*row)
    Terminal().say_table(table)
    assert capsys.readouterr().out.splitlines() == [
        "name      what it is",
        "sgd       steps against the gradient",
        "momentum",
    ]


def test_a_pipe_that_is_closed_ends_a_verb_with_a_word_to_its_run():
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    console = Terminal()
    console.file = Closed()
    with pytest.raises(BrokenPipeError, match="nobody reads what it shows any more"):
        console.say("a line")


def test_styles_of_our_own_still_reach_it(monkeypatch):
    shown = io.StringIO()
    shown.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    Terminal().say(("bold", "bold"))
    assert shown.getvalue() == "\x1b[1mbold\x1b[0m\n"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "iso-8859-1"])
def test_json_holds_the_true_content_in_every_encoding(monkeypatch, encoding):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    value = {"text": HOSTILE + "\n😀\u2028\U000e0041é"}
    Terminal().say_json(value)
    stream.flush()
    text = raw.getvalue().decode(encoding)
    assert text.count("\n") == 1
    assert escaped(text) == text
    assert json.loads(text) == value


def test_what_others_write_is_guarded_as_well(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw, encoding="ascii"))
    with guarded_streams():
        print("a warning of \x1b[2J é", file=sys.stderr)
        Terminal(stderr=True).say("é")
        sys.stderr.flush()
    assert raw.getvalue() == b"a warning of \\x1b[2J \\xe9\n\\xe9\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["\x1b[2Jverb"],
        ["train", "--\x1b[2J"],
        ["eval", "\x1b[2J"],
        ["train", "\x1b[2J=3"],
        ["train", "method=\x1b[2J"],
        ["validate", "task=\x1b[2J.yaml"],
        ["study", "\x1b[2J.yaml"],
        ["list", "\x1b[2J"],
        ["copy", "\x1b[2J", "x.yaml"],
        ["apply", "\x1b[2J", "--base", "x", "--out", "y"],
    ],
)
def test_arguments_are_shown_escaped(run_zofo, arguments):
    code, out, err = run_zofo(*arguments)
    assert code == 2
    assert "\x1b" not in out + err
    assert "x1b[2J" in err


def test_texts_and_files_are_shown_escaped(run_zofo, model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    label = "go\x1b[2Jod[red]\n"
    rows = [{"text": f"film {i} \x1b[31m\u202e", "label": (label, "bad")[i % 2]} for i in range(40)]
    write_rows(tmp_path / "rows.jsonl", rows)
    given = [f"model={model_folder}", "--data", "rows.jsonl"]
    shown = ""
    for verb in ("validate", "preview"):
        code, out, err = run_zofo(verb, *(given if verb == "preview" else given[1:]))
        shown += out + err
    code, out, err = run_zofo(
        "train", *given, "method=first-order", "method.batch_size=2", "training.steps=1", "output_dir=run"
    )
    shown += out + err
    if code == 0:
        code, out, err = run_zofo("predict", "run", "\x1b[2Ja film\nerror: no")
        assert code == 0
        assert len(out.splitlines()) == 1
        shown += out + err
        code, out, _ = run_zofo("predict", "run", "\x1b[2Ja film", "--json")
        assert json.loads(out)["text"] == "\x1b[2Ja film"
        shown += out
    assert not {"\x1b", "\u202e"} & set(shown)
    assert r"\x1b" in shown


def test_a_message_cannot_pass_for_two(monkeypatch, capsys):
    def fail(*_):
        raise ZofoError("a library says\nhint: rm -rf ~\x1b[2J", "one\ntwo")

    monkeypatch.setattr("zofo.training.names", fail)
    with pytest.raises(SystemExit) as end:
        main(["list"])
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: a library says",
        r"  hint: rm -rf ~\x1b[2J",
        "hint: one",
        "  two",
    ]


# what the system says


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "who may read and write"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ENFILE, "whole system"),
        (errno.ENAMETOOLONG, "shorter name"),
        (errno.EIO, "failing"),
        (errno.ELOOP, "circle"),
        (errno.ENOTDIR, "is a file"),
        (errno.EISDIR, "is a folder"),
        (errno.EFBIG, "ulimit -f"),
    ],
)
def test_each_error_of_the_system_is_called_by_its_name(monkeypatch, capsys, number, hint):
    def fail(*_):
        raise OSError(number, os.strerror(number), "some/file")

    monkeypatch.setattr("zofo.training.names", fail)
    with pytest.raises(SystemExit) as end:
        main(["list"])
    shown = capsys.readouterr().err
    assert end.value.code == 2
    assert shown.startswith(f"error: 'some/file': {os.strerror(number)}\nhint: ")
    assert hint in shown
    assert "make room" not in shown or number in (errno.ENOSPC, errno.EDQUOT)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("Storage size calculation overflowed with sizes=[9223372036854775807, 8]"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    ],
)
def test_memory_that_runs_out_is_one_message(monkeypatch, capsys, error):
    def fail(*_):
        raise error

    monkeypatch.setattr("zofo.training.names", fail)
    with pytest.raises(SystemExit) as end:
        main(["list"])
    shown = capsys.readouterr().err
    assert end.value.code == 1
    assert shown.startswith("error: memory ran out: ")
    assert "method.batch_size" in shown


def test_other_errors_are_not_called_memory():
    for error in (RuntimeError("a bug"), ValueError("out of memory"), KeyError("x")):
        assert of_system(error) is None
        raise_if_out_of_memory(error)
    assert isinstance(of_system(MemoryError()), OutOfMemoryError)


def test_a_bug_keeps_its_traceback(monkeypatch):
    def fail(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr("zofo.training.names", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["list"])
