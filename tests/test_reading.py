"""Users' own files: what is read, which format it is, and where each mistake that a file can hold is."""

from __future__ import annotations

import csv
import datetime
import decimal
import gzip
import json
import random
import sys

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from zofo.errors import DataError
from zofo.tasks.readers.choices import gold_readings
from zofo.tasks.readers.files import read_file
from zofo.tasks.readers.formats import detect
from zofo.tasks.readers.row import Row, shown_row
from zofo.tasks.readers.sources import folder_origins, has_split, hub_origins, read_folder, read_hub
from zofo.tasks.row_checks import label_notes

GOOD = [{"text": f"film {i} is a joy", "label": i % 2} for i in range(5)]
TURNS = [{"role": "user", "content": "Two and two?"}, {"role": "assistant", "content": "Four."}]
SHAPES = {
    "text-label": GOOD,
    "prompt-completion": [{"prompt": f"{i} and {i}?", "completion": str(2 * i)} for i in range(5)],
    "choices-answer": [{"question": f"q {i}?", "choices": ["yes", "no"], "answer": i % 2} for i in range(5)],
    "messages": [{"messages": TURNS}] * 5,
}


def lines_of(rows):
    return [json.dumps(row, ensure_ascii=False).encode() for row in rows]


def write(path, lines):
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def rows_of(columns, *values):
    return [Row(f"f.jsonl:{i}", dict(zip(columns, value, strict=True))) for i, value in enumerate(values, start=1)]


def refused(path):
    """The mistake found in a file by reading it and recognising its format."""
    with pytest.raises(DataError) as found:
        detect(read_file(path))
    assert "\n" not in found.value.message
    assert len(found.value.message) < 400
    assert len(found.value.hint) < 600
    return found.value


def seeded_place(name):
    """A line from 1 to 5 for a mistake, drawn by its name."""
    return random.Random(name).randrange(1, 6)


# what is read


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_the_same_rows_from_every_kind_of_file(tmp_path, suffix):
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(GOOD), path)
    else:
        write(path, lines_of(GOOD) if suffix == "jsonl" else [json.dumps(GOOD, indent=1).encode()])
    rows = read_file(path)
    assert [row.fields for row in rows] == GOOD
    if suffix == "jsonl":
        assert [row.where for row in rows] == [f"{path}:{i}" for i in range(1, 6)]
    elif suffix == "json":
        assert [row.where for row in rows] == [f"{path}:{i}" for i in range(2, 22, 4)]
    else:
        assert [row.where for row in rows] == [f"{path} row {i}" for i in range(5)]


def test_a_json_file_may_hold_lines_as_well(tmp_path):
    assert [row.fields for row in read_file(write(tmp_path / "rows.json", lines_of(GOOD)))] == GOOD


def test_an_array_on_one_line_has_the_column_in_its_places(tmp_path):
    path = write(tmp_path / "rows.json", [b'[{"text": "a"}, {"text": "b"},', b' {"text": "c"}]'])
    assert [row.where for row in read_file(path)] == [f"{path}:1", f"{path}:1:17", f"{path}:2"]


def test_tables_hold_text_with_newlines_quotes_and_signs(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b'\xef\xbb\xbftext, label\r\n"one\r\ntwo, ""three""",1\r\n\r\n5" disk,0\r\n')
    rows = read_file(path)
    assert rows == [
        Row(f"{path}:2", {"text": 'one\r\ntwo, "three"', "label": "1"}),
        Row(f"{path}:5", {"text": '5" disk', "label": "0"}),
    ]
    path = write(tmp_path / "rows.tsv", [b"text\tlabel", "schön, ja\t1".encode()])
    assert read_file(path) == [Row(f"{path}:2", {"text": "schön, ja", "label": "1"})]


GLUE = [b"text\tlabel", b'"one of the best\tgood', b"plain and dull\tbad", b'a screen of 12"\tbad', b"fine\tgood"]


def test_quotes_in_tsv_are_characters_where_every_line_is_a_row(tmp_path):
    path = write(tmp_path / "rows.tsv", GLUE)
    assert [row.where for row in read_file(path)] == [f"{path}:{n}" for n in range(2, 6)]
    assert [row.fields["text"] for row in read_file(path)][::2] == ['"one of the best', 'a screen of 12"']
    for odd in (
        b'"Wow" he said\tgood',
        b'"never closed\tgood',
        b'""Wow""\tgood',
    ):
        path = write(tmp_path / "rows.tsv", [b"text\tlabel", b'"all of it"\tbad', b"b\tbad", odd])
        assert [row.fields["text"] for row in read_file(path)] == ['"all of it"', "b", odd.split(b"\t")[0].decode()]


def test_quotes_in_tsv_stand_around_values_where_a_program_wrote_them(tmp_path):
    lines = [b"text\tlabel", b'"a\ttab\tand', b'a line"\tgood', b'"""Wow"""\tbad']
    assert [row.fields["text"] for row in read_file(write(tmp_path / "rows.tsv", lines))] == [
        "a\ttab\tand\na line",
        '"Wow"',
    ]
    lines = [b'"text"\t"label"', b'"a"\t"good"', b'"b"\t"bad"']
    assert [row.fields for row in read_file(write(tmp_path / "rows.tsv", lines))][1] == {"text": "b", "label": "bad"}


@pytest.mark.parametrize(
    ("name", "lines", "line", "says"),
    [
        ("rows.tsv", [b"text\tlabel", b"a\tgood", b'"Wow"\tbad'], 3, "is '\"Wow\"' with its quotes, or 'Wow' if"),
        ("rows.tsv", [*GLUE, b'"""Wow"""\tbad'], 2, "closes in line 4: one row with the text"),
        ("rows.tsv", [*GLUE, b'"a\ttab"\tbad'], 2, "or 3 rows with quotes as characters"),
        ("rows.csv", [one.replace(b"\t", b",") for one in [*GLUE, b"slow\tbad"]], 2, "closes in line 4: one row with"),
        ("rows.csv", [b"text,label", b"a,good", b"b,bad", b"c,bad", b'"one,good', b'two",bad'], 5, "or 2 rows with"),
        ("rows.csv", [b"label,text", b"1,a", b"0,b", b"1,c", b'1,"d', b"0,e", b'1,f"'], 5, "or 3 rows with"),
        ("rows.csv", [b"prompt,completion", b"a,b", b'"why,because', b"how,so", b'where",there'], 3, "or 3 rows with"),
        ("rows.csv", [b"label,text", b"0,a", b'1, "b"'], 3, "a quote after a space: the value is ' \"b\"', or"),
        ("rows.csv", [b"label,text,more", b"0,a,b", b'1, "b, c"'], 3, "a quote after a space"),
        ("rows.csv", [b"text,label", b"a,1", b'he said \\"no\\",0'], 3, "a quote after a backslash, which is a char"),
        ("rows.csv", [b"text,more,label", b"a,b,1", b'"he said \\", no",0'], 3, "a quote after a backslash"),
    ],
)
def test_quotes_with_two_readings_are_refused(tmp_path, name, lines, line, says):
    mistake = refused(write(tmp_path / name, lines))
    assert mistake.message.startswith(f"{tmp_path}/{name}:{line}: ")
    assert says in mistake.message
    assert "quote" in mistake.hint


def test_texts_over_several_lines_stay_readable(tmp_path):
    texts = [
        "Dear Sir, I loved it\nBob",
        "one,\ntwo",
        "a\n\nb, c\n\nd",
        'he said "no,\nno", then\nleft',
        "x\n1",
        '\\"o',
    ]
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [("text", "label"), *((text, n % 2) for n, text in enumerate(["a", "b", "c", *texts]))]
        )
    assert [row.fields["text"] for row in read_file(path)][3:] == texts


def test_line_separators_of_unicode_end_no_row(tmp_path):
    text = "one\u2028two\x0bthree\x85four"
    path = write(tmp_path / "rows.jsonl", lines_of([{"text": text}, {"text": "b"}]))
    assert [row.fields["text"] for row in read_file(path)] == [text, "b"]
    path = write(tmp_path / "rows.csv", [b"text,label", f"{text},1".encode(), b"b,0"])
    assert [(row.where, row.fields["text"]) for row in read_file(path)] == [(f"{path}:2", text), (f"{path}:3", "b")]


def test_parquet_may_nest_and_its_folder_adds_no_column(tmp_path):
    path = tmp_path / "label=1" / "rows.parquet"
    path.parent.mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(SHAPES["messages"]), path)
    rows = read_file(path)
    assert [row.fields for row in rows] == SHAPES["messages"]
    assert detect(rows).name == "messages"


# mistakes of lines: name -> the line, what its message says, what its hint says


BAD_LINES = {
    "trailing comma": (
        b'{"text": "a joy", "label": 1,}',
        "column 29: not JSON: a comma before '}'",
        "remove the comma",
    ),
    "comma in list": (b'{"text": ["a", ], "label": 1}', "column 14: not JSON: a comma before ']'", "remove the comma"),
    "two objects": (
        b'{"text": "a", "label": 1} {"text": "b", "label": 0}',
        "column 27: not JSON: more after the first value",
        "begin a new line before the second",
    ),
    "comma between": (b'{"text": "a", "label": 1},', "column 26: not JSON: more after", "without a comma after it"),
    "single quotes": (b"{'text': 'a joy', 'label': 1}", "column 2: not JSON: a single quote", "double quotes only"),
    "cut off": (b'{"text": "a joy", "label": 1', "column 29: not JSON: it ends too early", "and all of it"),
    "open quote": (b'{"text": "a joy, "label": 1}', "column 19: not JSON", "one JSON object a line"),
    "no json": (b"a joy, 1", "column 1: not JSON", "one JSON object a line"),
    "latin-1": ("{'text': 'schön'}".encode("latin-1"), "not UTF-8 text", "iconv -f LATIN1"),
    "list": (b'["a joy", 1]', "a list, not an object with named columns", "one JSON object a line"),
    "array": (b'[{"text": "a joy"}]', "a list, not an object", "ends in .json"),
    "bare text": (b'"a joy"', "a str, not an object", "one JSON object a line"),
    "null": (b"null", "a NoneType, not an object", "one JSON object a line"),
    "bare NaN": (b"NaN", "a number that is not finite, not an object", "one JSON object a line"),
    "NaN": (b'{"text": "a joy", "label": NaN}', "column 'label' holds NaN, not a finite number", "write null"),
    "infinity": (b'{"text": "a", "label": [-Infinity]}', "column 'label' holds -Infinity, not a finite", "write null"),
    "overflow": (b'{"text": "a", "label": 1e999}', "column 'label' holds 1e999, not a finite number", "write null"),
    "long number": (b'{"label": ' + b"9" * 5000 + b"}", "not JSON that can be read", "one JSON object a line"),
    "key twice": (b'{"text": "a", "label": 1, "text": "b"}', "the column 'text' is there twice", "keep one of the two"),
    "deep": (b"[" * 100_000, "not JSON", "one JSON object a line"),
    "NUL": (b'{"text": "a\x00b", "label": 1}', "column 12: a NUL byte", "UTF-8"),
    # rows that can be read, but are not of the format
    "no columns": (b"{}", "the column 'text' is missing; the row has nothing", "remove the row"),
    "no label": (b'{"text": "a joy"}', "the column 'label' is missing; the row has 'text'", "add it"),
    "another name": (b'{"sentence": "a", "label": 1}', "'text' is missing; the row has 'sentence', 'label'", "add it"),
    "another format": (
        b'{"prompt": "a", "completion": "b"}',
        "a row of prompt-completion, in a file of text-label: the column 'text' is missing",
        "one format in one file",
    ),
    "empty text": (b'{"text": " \\t", "label": 1}', "column 'text' is empty", "fix or remove the row"),
    "null text": (b'{"text": null, "label": 1}', "column 'text' is empty", "fix or remove the row"),
    "number for text": (b'{"text": 7, "label": 1}', "column 'text' is 7, not a text", "put quotes around it"),
    "list for text": (b'{"text": ["a"], "label": 1}', "column 'text' is ['a'], not a text", "fix"),
    "half a character": (
        b'{"text": "a \\ud800", "label": 1}',
        "column 'text' holds a lone surrogate (half of a character)",
        "fix",
    ),
    "null label": (b'{"text": "a joy", "label": null}', "column 'label' is empty", "fix or remove the row"),
    "empty label": (b'{"text": "a joy", "label": ""}', "column 'label' is empty", "fix or remove the row"),
    "fraction": (b'{"text": "a joy", "label": 0.5}', "column 'label' is 0.5, not a label", "texts or whole numbers"),
    "list of labels": (b'{"text": "a joy", "label": [1]}', "column 'label' is [1], not a label", "one a row"),
}


@pytest.mark.parametrize("name", list(BAD_LINES))
def test_a_bad_line_is_named_beside_a_good_row(tmp_path, name):
    line, says, hint = BAD_LINES[name]
    place = seeded_place(name)
    lines = lines_of(GOOD)
    lines.insert(place - 1, line)
    mistake = refused(write(tmp_path / "rows.jsonl", lines))
    assert mistake.message.startswith(f"{tmp_path}/rows.jsonl:{place}: ")
    assert says in mistake.message
    assert hint in mistake.hint
    if name != "NUL":
        first = 2 if place == 1 else 1
        shown = '{"text": "film 0 is a joy", "label": 0}'
        assert mistake.hint.endswith(f"a good row: line {first}: {shown}")


def test_the_first_of_several_mistakes_is_named_with_their_number(tmp_path):
    lines = [*lines_of(GOOD), b"{", b'{"text": 1', b"x"]
    mistake = refused(write(tmp_path / "rows.jsonl", lines))
    assert mistake.message.startswith(f"{tmp_path}/rows.jsonl:6: column 2")
    assert "; 3 rows are wrong; a good row: line 1" in mistake.hint
    wrong = [{"text": "", "label": 0}, {"text": "a", "label": None}, {"text": " ", "label": 1}]
    mistake = refused(write(tmp_path / "rows.jsonl", lines_of([*GOOD, *wrong])))
    assert mistake.message == f"{tmp_path}/rows.jsonl:6: column 'text' is empty"
    assert "; 2 rows are wrong; " in mistake.hint  # those whose text is empty


def test_where_no_row_is_good_none_is_shown(tmp_path):
    mistake = refused(write(tmp_path / "rows.jsonl", [b"no", b"json"]))
    assert mistake.message.startswith(f"{tmp_path}/rows.jsonl:1: column 1: not JSON")
    assert mistake.hint == "one JSON object a line; 2 rows are wrong"


def test_a_good_row_is_shown_shortened():
    shown = shown_row(Row("f.csv:12", {"text": "x" * 1000, "list": ["y" * 1000] * 9, "half": "\ud800"}))
    assert shown.startswith('line 12: {"text": "' + "x" * 16 + " [...] " + "x" * 16 + '"')
    assert len(shown) < 200
    shown.encode()
    assert shown_row(Row("a/b/train row 7", {"n": 1})) == 'row 7: {"n": 1}'


# mistakes of tables


BAD_TABLES = {
    "too many": (
        b"a joy, really,1",
        "after column 'label': 3 values for 2 columns; the first too many is '1'",
        "quotes",
    ),
    "too few": (b"a joy", "column 'label' is missing: 1 values for 2 columns", "add the value"),
    "quote inside": (b'"a "joy" to see",1', "column 'text': a quote stands inside of a quoted text", 'twice: "he said'),
    "latin-1": ("schön,1".encode("latin-1"), "not UTF-8 text: invalid start byte at byte 4", "iconv -f LATIN1"),
    "NUL": (b"a\x00joy,1", "column 2: a NUL byte", "UTF-8"),
    "empty text": (b",1", "column 'text' is empty", "fix or remove the row"),
    "empty label": (b"a joy,", "column 'label' is empty", "fix or remove the row"),
}


@pytest.mark.parametrize("name", list(BAD_TABLES))
def test_a_bad_line_of_a_table_is_named(tmp_path, name):
    line, says, hint = BAD_TABLES[name]
    place = seeded_place(name) + 1
    lines = [b"text,label", *(f"film {i},{i % 2}".encode() for i in range(5))]
    lines.insert(place - 1, line)
    mistake = refused(write(tmp_path / "rows.csv", lines))
    assert mistake.message.startswith(f"{tmp_path}/rows.csv:{place}: ")
    assert says in mistake.message
    assert hint in mistake.hint
    if name not in ("NUL", "latin-1", "quote inside"):
        assert mistake.hint.endswith(f'a good row: line {3 if place == 2 else 2}: {{"text": "film 0", "label": "0"}}')


def test_lines_in_quotes_are_counted(tmp_path):
    mistake = refused(write(tmp_path / "rows.csv", [b"text,label", b'"one', b"two", b'three",1', b"", b"a joy"]))
    assert mistake.message.startswith(f"{tmp_path}/rows.csv:6: column 'label' is missing")


def test_a_quote_that_is_never_closed_is_named_where_it_opens(tmp_path):
    lines = [b"text,label", b"a,1", b'"a joy,1', *[b"b,0"] * 5]
    mistake = refused(write(tmp_path / "rows.csv", lines))
    assert mistake.message == f"{tmp_path}/rows.csv:3: column 'text': a quote is opened and never closed"
    assert 'a good row: line 2: {"text": "a", "label": "1"}' in mistake.hint
    mistake = refused(write(tmp_path / "rows.csv", [b"text,label", b"a,1", b'"b, ""c""",0', b'd,"1']))
    assert mistake.message == f"{tmp_path}/rows.csv:4: column 'label': a quote is opened and never closed"
    mistake = refused(write(tmp_path / "rows.csv", [*lines, b"c,1" * 100_000]))
    assert mistake.message.startswith(
        f"{tmp_path}/rows.csv:3: column 'text': a text of more than 131072 characters, or"
    )


@pytest.mark.parametrize(
    ("header", "says", "hint"),
    [
        (b"text,text", "column 2: there are two columns 'text'", "rename one"),
        (b",text,label", "column 1 has no name", "index=False"),
        (b"text,label,", "column 3 has no name", "index=False"),
        (b"a joy,1", "column 2: '1' is a value: the first line does not name the columns", "such as text,label"),
        (b"text;label", "one column, 'text;label': columns are divided by ';' here", "with commas"),
        (b"text\tlabel", "columns are divided by '\\t' here", "name the file .tsv"),
        (b'{"text": "a"}', "the file is JSON by its content", ".jsonl"),
        (b"a joy,good", "the columns 'a joy', 'good' fit no known format", "does the first line name the columns?"),
    ],
)
def test_a_bad_header_is_named(tmp_path, header, says, hint):
    mistake = refused(write(tmp_path / "rows.csv", [header, b"b,0"]))
    assert mistake.message.startswith(f"{tmp_path}/rows.csv:{2 if 'fit' in says else 1}: ")
    assert says in mistake.message
    assert hint in mistake.hint


def test_commas_in_a_tsv_are_noticed(tmp_path):
    mistake = refused(write(tmp_path / "rows.tsv", [b"text,label", b"a,1"]))
    assert "columns are divided by ',' here" in mistake.message
    assert mistake.hint == "name the file .csv"


# mistakes of arrays


@pytest.mark.parametrize(
    ("content", "place", "says"),
    [
        (b'[{"text": "a"},\n {"text": "b"}\n', ":3: ", "column 1: not JSON: the array has no end"),
        (b'[{"text": "a"},\n {"text": "b"},\n]', ":2: ", "column 15: not JSON: a comma before ']'"),
        (b'[{"text": "a"}\n {"text": "b"}]', ":2: ", "column 2: not JSON: no comma between two entries"),
        (b'[{"text": "a"}]\n[{"text": "b"}]', ":2: ", "column 1: not JSON: more after the end of the array"),
        (b'[{"text": "a"},\n {"text":\n  "b",}]', ":3: ", "column 6: not JSON: a comma before '}'"),
        (b'[{"text": "a"},\n 7]', ":2: ", "a int, not an object"),
        (b'[{"text": "a"}, {"text": NaN}]', ":1:17: ", "column 'text' holds NaN"),
        (b'[{"text": "a"},\n {"text": "b", "text": "c"}]', ":2: ", "the column 'text' is there twice"),
        (b'[{"text": "a"},\n {"text": "\xff"}]', ":2: ", "not UTF-8 text"),
    ],
)
def test_a_bad_entry_of_an_array_is_named(tmp_path, content, place, says):
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    mistake = refused(path)
    assert mistake.message.startswith(f"{path}{place}")
    assert says in mistake.message
    if "UTF-8" not in says:
        assert 'a good row: line 1: {"text": "a"}' in mistake.hint


# mistakes of whole files


@pytest.mark.parametrize(
    ("name", "content", "says", "hint"),
    [
        ("rows.jsonl", b"", "no rows", "one JSON object a line is expected"),
        ("rows.jsonl", b"\n \n", "no rows", "one JSON object a line is expected"),
        ("rows.json", b"[]", "no rows", "one JSON object a line is expected"),
        ("rows.csv", b"", "no rows", "a line of column names"),
        ("rows.csv", b"text,label\n", "no rows", "a line of column names"),
        ("rows.jsonl", '{"text": "a"}'.encode("utf-16"), "the file is UTF-16 text", "iconv -f UTF-16"),
        ("rows.csv", b"\xfe\xff" + "text,label".encode("utf-16-be"), "the file is UTF-16 text", "iconv -f UTF-16"),
        ("rows.jsonl", gzip.compress(b'{"text": "a"}', mtime=0), "the file is compressed with gzip", "gunzip"),
        ("rows.csv", b"PK\x03\x04sheet", "an Excel sheet", "save the sheet as CSV"),
        ("rows.csv", b"PAR1....", "a parquet file by its content", ".parquet"),
        ("rows.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS", "git lfs pull"),
        ("rows.parquet", b"text,label\na,1\n", "not a parquet file", "name the file by what it holds"),
        ("rows.parquet", b"", "not a parquet file", "write it again"),
        ("rows.jsonl.gz", b"", "files that end in .gz are not read", "gunzip"),
        ("rows.xlsx", b"", "files that end in .xlsx are not read", ".jsonl, .json, .csv, .tsv or .parquet"),
        ("rows", b"", "its name does not end in what it holds", "rows are read from"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path, name, content, says, hint):
    path = tmp_path / name
    path.write_bytes(content)
    mistake = refused(path)
    assert mistake.message.startswith(f"{path}: ")
    assert says in mistake.message
    assert hint in mistake.hint


def test_a_json_array_of_lines_hints_at_the_name(tmp_path):
    mistake = refused(write(tmp_path / "rows.jsonl", [b"[", *lines_of(GOOD), b"]"]))
    assert mistake.message == f"{tmp_path}/rows.jsonl:1: column 2: not JSON: it ends too early"
    assert "an array is read from a file that ends in .json" in mistake.hint


def test_a_file_that_is_not_there_or_a_folder_is_named(tmp_path):
    assert refused(tmp_path / "none.jsonl").message == f"there is no file '{tmp_path}/none.jsonl'"
    assert refused(tmp_path).message == f"'{tmp_path}' is a folder"
    (tmp_path / "mail.csv").touch()
    assert refused(tmp_path / "mial.csv").hint == f"did you mean '{tmp_path}/mail.csv'?"


# folders and the Hub


def test_a_folder_has_a_file_for_each_split(tmp_path):
    write(tmp_path / "train.csv", [b"text,label", b"a,1"])
    write(tmp_path / "dev.jsonl", lines_of(GOOD))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(GOOD[:2]), tmp_path / "test.parquet")
    write(tmp_path / "README.md", [b"about"])
    assert folder_origins(tmp_path) == {"train", "validation", "test"}
    assert [len(read_folder(tmp_path, split)) for split in ("train", "validation", "test")] == [1, 5, 2]


def shards(folder, *names):
    """Parquet files of two rows each, which count on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        rows = [{"text": f"film {2 * number + i}", "label": i} for i in range(2)]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / name)
    return folder


@pytest.mark.parametrize("folder", ["", "data"])
def test_shards_are_one_split_in_their_order(tmp_path, folder):
    names = ["train-00000-of-00003", "train-00001-of-00003", "train-00002-of-00003", "test-00000-of-00001"]
    shards(tmp_path / folder, *(f"{name}.parquet" for name in names))
    assert folder_origins(tmp_path) == {"train", "test"}
    assert [row.fields["text"] for row in read_folder(tmp_path, "train")] == [f"film {n}" for n in range(6)]
    assert has_split(tmp_path, "train")
    assert not has_split(tmp_path, "validation")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train-00000-of-00002.parquet"], "train-00001-of-00002.parquet is missing"),
        (["train-00001-of-00003.parquet", "train-00002-of-00003.parquet"], "train-00000-of-00003.parquet is missing"),
        (["train-00000-of-00001.parquet", "train.parquet"], "2 files for the split 'train'"),
        (["train-00000-of-00001.parquet", "train-00000-of-00002.parquet"], "2 files for the split 'train'"),
        (["train-00000-of-00001.parquet", "train-00000-of-00001.PARQUET"], "2 files for the split 'train'"),
        (["train-00000-of-00001.parquet", "train-00001-of-00001.parquet"], "there are 2 shards of 1"),
    ],
)
def test_shards_that_are_missing_or_too_many_are_named(tmp_path, names, message):
    shards(tmp_path, *names)
    with pytest.raises(DataError, match=message):
        read_folder(tmp_path, "train")
    assert has_split(tmp_path, "train")


def test_a_compressed_split_is_not_taken_for_one_that_is_missing(tmp_path):
    write(tmp_path / "train.jsonl", lines_of(GOOD))
    write(tmp_path / "test.jsonl.gz", [b""])
    with pytest.raises(DataError, match=r"test\.jsonl\.gz: the file is compressed") as found:
        folder_origins(tmp_path)
    assert found.value.hint == "unpack it first: gunzip test.jsonl.gz"


CLASSES = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})


def saved_rows(labels=(0, 1, 1)):
    return datasets.Dataset.from_dict({"text": [f"film {n}" for n in range(len(labels))], "label": labels}, CLASSES)


def test_what_save_to_disk_writes_is_read(tmp_path):
    saved_rows().select([2, 0]).save_to_disk(tmp_path / "one")
    assert folder_origins(tmp_path / "one") is None
    rows = read_folder(tmp_path / "one", "data")
    assert [row.fields["text"] for row in rows] == ["film 2", "film 0"]
    assert [row.fields["label"].name for row in rows] == ["pos", "neg"]
    with pytest.raises(DataError, match="has no split 'train'; it has one Dataset, in no splits"):
        read_folder(tmp_path / "one", "train")
    datasets.DatasetDict({"train": saved_rows(), "val": saved_rows([0])}).save_to_disk(tmp_path / "several")
    assert folder_origins(tmp_path / "several") == {"train", "validation"}
    assert [len(read_folder(tmp_path / "several", split)) for split in ("train", "validation")] == [3, 1]
    assert has_split(tmp_path / "several", "validation")
    assert not has_split(tmp_path / "several", "test")
    next((tmp_path / "several" / "train").glob("*.arrow")).unlink()
    with pytest.raises(DataError, match="cannot load the data set that was saved in"):
        read_folder(tmp_path / "several", "train")


def test_names_of_classes_are_read_with_parquet(tmp_path):
    path = tmp_path / "rows.parquet"
    saved_rows().to_parquet(path)
    rows = read_file(path)
    assert [(row.fields["label"], row.fields["label"].name) for row in rows] == [(0, "neg"), (1, "pos"), (1, "pos")]
    saved_rows([0, 1, -1]).to_parquet(path)
    assert (
        refused(path).message
        == f"{path} row 2: column 'label' is -1, which is none of its classes: the row has no label"
    )
    table = pyarrow.parquet.read_table(path)
    pyarrow.parquet.write_table(
        table.set_column(1, "label", [[0, 1, 2]]).replace_schema_metadata(table.schema.metadata), path
    )
    assert "row 2: column 'label' is 2, but its classes are neg, pos" in refused(path).message


# columns of parquet


def test_values_of_parquet_keep_what_they_are(tmp_path):
    values = {"none": None, "words": ["a", None], "turn": {"role": "user", "content": " a\n"}, "many": 2**53 + 1}
    table = pyarrow.Table.from_pylist([values]).append_column("kind", pyarrow.array(["a"]).dictionary_encode())
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    assert read_file(tmp_path / "rows.parquet")[0].fields == {**values, "kind": "a"}


@pytest.mark.parametrize(
    ("column", "says"),
    [
        (pyarrow.array([decimal.Decimal("1.50")] * 2), "column 'label' is Decimal('1.50'), not a label"),
        (pyarrow.array([datetime.datetime(2020, 1, 1)] * 2), "column 'label' is datetime.datetime(2020, 1, 1"),
        (pyarrow.array([b"good", b"bad"]), "column 'label' is b'good', not a label"),
        (pyarrow.array([1, 2], pyarrow.time64("ns")), "would lose data"),
    ],
)
def test_columns_that_are_no_labels_are_named(tmp_path, column, says):
    table = pyarrow.table({"text": ["a", "b"], "label": column})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    assert says in refused(tmp_path / "rows.parquet").message


def test_two_columns_of_one_name_are_refused_at_any_depth(tmp_path):
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table([["a"], [1], ["b"]], ["text", "label", "text"]), path)
    assert refused(path).message == f"{path}: there are two columns 'text'"
    twice = pyarrow.StructArray.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], ["role", "role"])
    pyarrow.parquet.write_table(pyarrow.table({"messages": pyarrow.ListArray.from_arrays([0, 1], twice)}), path)
    assert refused(path).message == f"{path}: column 'messages': there are two columns 'role'"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet"])
def test_white_space_of_completions_survives_reading(tmp_path, name):
    rows = [
        {"prompt": "def f():\n", "completion": "    if x:\n\t\treturn  1\n"},
        {"prompt": "g\t", "completion": "\n\n  y \n"},
    ]
    path = tmp_path / name
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif name.endswith(".csv"):
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([rows[0].keys(), *(row.values() for row in rows)])
    else:
        write(path, lines_of(rows) if name.endswith("l") else [json.dumps(rows).encode()])
    assert [row.fields for row in read_file(path)] == rows


def test_two_files_for_a_split_are_refused(tmp_path):
    write(tmp_path / "val.csv", [b"text,label", b"a,1"])
    write(tmp_path / "validation.jsonl", lines_of(GOOD))
    with pytest.raises(DataError, match="has 2 files for the split 'validation': val.csv, validation.jsonl") as found:
        read_folder(tmp_path, "validation")
    assert found.value.hint == "keep one of them there"


def test_a_folder_without_the_split_says_what_it_holds(tmp_path):
    with pytest.raises(DataError, match=r"the data folder .*none' does not exist"):
        read_folder(tmp_path / "none", "train")
    with pytest.raises(DataError, match=r"has no train\.jsonl; it holds no \.jsonl file") as found:
        read_folder(tmp_path, "train")
    assert ".csv, .tsv or .parquet" in found.value.hint
    write(tmp_path / "test.csv", [b"text,label", b"a,1"])
    with pytest.raises(DataError, match=r"has no train\.jsonl; it holds test\.csv"):
        read_folder(tmp_path, "train")


def test_the_hub_is_asked_for_one_split(monkeypatch):
    asked = []

    def load(*given, **named):
        asked.append((given, named))
        return datasets.Dataset.from_list([{"text": "a"}, {"text": "b"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda hub: ["train", "test"])
    rows = read_hub("someone/rows", "small", "abc", "train", "mine")
    assert asked == [(("someone/rows", "small"), {"revision": "abc", "split": "train"})]
    assert rows[1] == Row("someone/rows/train row 1", {"text": "b"})
    assert hub_origins("someone/rows") == {"train", "test"}


@pytest.mark.parametrize(
    "error", [ConnectionError("no route\nsecond line"), ValueError("Unknown split"), FileNotFoundError()]
)
def test_a_hub_that_does_not_answer_is_one_clear_message(monkeypatch, error):
    def fail(*given, **named):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.setattr(datasets, "get_dataset_split_names", fail)
    for ask in (lambda: read_hub("a/b", None, None, "train", "mine"), lambda: hub_origins("a/b")):
        with pytest.raises(DataError) as found:
            ask()
        first = (str(error).splitlines() or ["FileNotFoundError"])[0]
        assert found.value.message == f"cannot load 'a/b' from the Hub or its cache: {first}"


# formats


@pytest.mark.parametrize("name", list(SHAPES))
def test_each_format_is_recognised_and_shown(tmp_path, name):
    rows = read_file(write(tmp_path / "rows.jsonl", lines_of(SHAPES[name])))
    found = detect(rows)
    assert found.name == name
    assert found.about.startswith(name)
    assert all(repr(column) in found.about for column in found.columns.values())


ALPACA = {"prompt": "instruction", "completion": "output", "input": "input"}


@pytest.mark.parametrize(
    ("columns", "name", "used", "unused"),
    [
        (("Sentence", "LABEL"), "text-label", {"text": "Sentence", "label": "LABEL"}, ()),
        (("idx", "input", "class"), "text-label", {"text": "input", "label": "class"}, ("idx",)),
        (("instruction", "input", "output"), "prompt-completion", ALPACA, ()),
        (("input", "output"), "prompt-completion", {"prompt": "input", "completion": "output"}, ()),
        (("question", "answer"), "prompt-completion", {"prompt": "question", "completion": "answer"}, ()),
    ],
)
def test_synonyms_are_recognised_and_unused_columns_shown(columns, name, used, unused):
    found = detect(rows_of(columns, ["a"] * len(columns), ["b"] * len(columns)))
    assert (found.name, found.columns) == (name, used)
    assert ("not used: " + ", ".join(map(repr, unused)) in found.about) if unused else "not used" not in found.about


@pytest.mark.parametrize(
    ("columns", "hint"),
    [
        (["text", "lable"], "did you mean 'label' by 'lable'?"),
        (["promt", "completion"], "did you mean 'prompt' by 'promt'?"),
        (["mesages"], "did you mean 'messages' by 'mesages'?"),
        (["Message", "Team"], "--text 'Message' --label 'Team'"),
        (["question", "options"], "beside 'options', a column 'answer' or 'answerKey' or 'label' is missing"),
        (["review", "label"], "if 'review' is the text, --text 'review' --label 'label'"),
        (["zzz"], "rename yours"),
    ],
)
def test_unknown_columns_get_the_nearest_and_the_four_formats(columns, hint):
    with pytest.raises(DataError) as found:
        detect(rows_of(columns, ["a"] * len(columns)))
    assert found.value.message == f"f.jsonl:1: the columns {', '.join(map(repr, columns))} fit no known format"
    assert hint in found.value.hint
    assert "prompt and completion, text and label, choices and answer, or messages" in found.value.hint


BAD_CHOICES = {
    "text": ("yes, no", 0, "column 'choices' is 'yes, no', not a list of choices", "write a list of texts"),
    "dict": ({"text": ["a", "b"]}, 0, "not a list of choices", "choices: {each: choices.text}"),
    "one": (["yes"], 0, "column 'choices' has 1 choices, but two or more", "fix"),
    "none": ([], 0, "column 'choices' has 0 choices, but two or more", "fix"),
    "twice": (["yes", "no", "yes "], 0, "column 'choices' holds the choice 'yes' twice", "fix"),
    "numbers": (["yes", 2], 0, "column 'choices': choice 1 is 2, not a text", "texts"),
    "empty": (["yes", " "], 0, "column 'choices': choice 1 is ' ', not a text", "texts"),
    "above": (
        ["yes", "no"],
        2,
        "column 'answer' is 2, which is none of the 2 choices",
        "from 0 to 1, a letter from A to B",
    ),
    "hidden": (["yes", "no"], -1, "column 'answer' is -1, which is none", "take a split that has its labels"),
    "below": (["yes", "no"], -2, "column 'answer' is -2, which is none", "from 0 to 1"),
    "keys twice": (
        {"text": ["a", "b"], "label": ["A", "A"]},
        "A",
        "column 'choices' holds the label 'A' twice",
        "fix",
    ),
    "keys": ({"text": ["a", "b"], "label": ["A"]}, "A", "column 'choices' holds 2 texts and 1 labels", "fix"),
    "no key": ({"text": ["a", "b"], "label": ["A", "B"]}, "C", "none of the labels in 'choices'", "one of 'A', 'B'"),
    "pairs": ([{"label": "A", "text": "a"}] * 2, 0, "choice 0 is {'label': 'A', 'text': 'a'}", "map(attribute='text')"),
    "by key": ({"A": "a", "B": "b"}, "A", "not a list of choices", "labels: choices.keys() | list"),
    "fraction": (["yes", "no"], 0.5, "column 'answer' is 0.5, which is none", "from 0 to 1"),
    "truth": (["yes", "no"], True, "column 'answer' is True, which is none", "from 0 to 1"),
    "letter": (["yes", "no"], "C", "column 'answer' is 'C', which is none", "from A to B"),
    "word": (["yes", "no"], "maybe", "column 'answer' is 'maybe', which is none", "the text of a choice"),
    "null": (["yes", "no"], None, "column 'answer' is None, which is none", "the text of a choice"),
    "list": (["yes", "no"], ["yes"], "column 'answer' is ['yes'], which is none", "the text of a choice"),
    "long": (["yes", "no"], "9" * 5000, "which is none of the 2 choices", "from 0 to 1"),
}


@pytest.mark.parametrize("name", list(BAD_CHOICES))
def test_bad_choices_are_named(tmp_path, name):
    choices, answer, says, hint = BAD_CHOICES[name]
    place = seeded_place(name)
    lines = lines_of(SHAPES["choices-answer"])
    lines.insert(place - 1, lines_of([{"question": "q?", "choices": choices, "answer": answer}])[0])
    mistake = refused(write(tmp_path / "rows.jsonl", lines))
    assert mistake.message.startswith(f"{tmp_path}/rows.jsonl:{place}: column ")
    assert says in mistake.message
    assert hint in mistake.hint
    assert f'a good row: line {2 if place == 1 else 1}: {{"question": "q 0?"' in mistake.hint


USER, ASSISTANT = TURNS
BAD_TURNS = {
    "text": ("hello", "column 'messages' is 'hello', not a list of turns", "turns are written"),
    "none": ([], "column 'messages' is [], not a list of turns", "turns are written"),
    "a text": (["hello", ASSISTANT], "turn 1 is 'hello', without role and content", "turns are written"),
    "other keys": (
        [{"speaker": "human", "value": "a"}],
        "turn 1 has no 'role'; it has 'speaker', 'value'",
        "turns are written",
    ),
    "another speaker": ([{"from": "robot", "value": "a"}, ASSISTANT], "turn 1 has the role 'robot'", "system, user"),
    "no content": ([USER, {"role": "assistant"}], "turn 2 has no 'content'; it has 'role'", "turns are written"),
    "role": ([{"role": "human", "content": "a"}, ASSISTANT], "turn 1 has the role 'human'", "system, user, assistant"),
    "parts": (
        [USER, {"role": "assistant", "content": [{"type": "text"}]}],
        "turn 2 has a list of parts",
        "join the texts",
    ),
    "null": ([USER, {"role": "assistant", "content": None}], "turn 2 has no content", "content is a text"),
    "empty": ([{"role": "user", "content": " "}, ASSISTANT], "turn 1 has no content", "content is a text"),
    "invisible": ([USER, {"role": "assistant", "content": "\u200b"}], "turn 2 has no content", "content is a text"),
    "number": ([USER, {"role": "assistant", "content": 4}], "turn 2 has the content 4", "content is a text"),
    "unanswered": (
        [USER, ASSISTANT, USER],
        "does not end with an answer of the assistant, but with a turn of the user",
        "add",
    ),
    "unasked": ([ASSISTANT], "column 'messages' has no turn of the user", "turns are written"),
    "late system": ([USER, {"role": "system", "content": "s"}, ASSISTANT], "turn 2 is of the system", "first"),
    "half": (
        [USER, {"role": "assistant", "content": "\ud800"}],
        "turn 2 holds a lone surrogate (half of a character)",
        "fix",
    ),
}


@pytest.mark.parametrize("name", list(BAD_TURNS))
def test_bad_turns_are_named(tmp_path, name):
    turns, says, hint = BAD_TURNS[name]
    place = seeded_place(name)
    lines = lines_of(SHAPES["messages"])
    lines.insert(place - 1, json.dumps({"messages": turns}).encode())
    mistake = refused(write(tmp_path / "rows.jsonl", lines))
    assert mistake.message.startswith(f"{tmp_path}/rows.jsonl:{place}: column 'messages'")
    assert says in mistake.message
    assert hint in mistake.hint
    assert f"a good row: line {2 if place == 1 else 1}: " in mistake.hint


TWO_READINGS = {  # name -> choices, answer, what the message says, what the hint says
    "number": (
        ["2", "3", "4", "5"],
        3,
        "3, which may be the text of choice 1 or the number of choice 3",
        "=choices for",
    ),
    "digits": (
        ["2", "3", "4", "5"],
        "3",
        "'3', which may be the text of choice 1 or the number",
        "[0, 1, 2, 3] for numbers",
    ),
    "float": (["2", "3", "4", "5"], 2.0, "may be the text of choice 0 or the number of choice 2", "=choices for texts"),
    "decimals": (["1.0", "0.5", "2"], 1, "may be the text of choice 0 or the number of choice 1", "=choices for texts"),
    "letter": (
        ["C", "A", "B"],
        "A",
        "'A', which may be the text of choice 1 or the letter of choice 0",
        "[A, B, C] for",
    ),
    "own letter": (
        ["B. red", "A. blue"],
        "A",
        "the key that choice 1 begins with or the letter of choice 0",
        "[A, B] for",
    ),
    "own number": (
        ["1) red", "2) blue"],
        1,
        "the key that choice 0 begins with or the number of choice 1",
        "[0, 1] for",
    ),
}


@pytest.mark.parametrize("name", list(TWO_READINGS))
def test_an_answer_with_two_readings_is_refused_and_both_are_named(tmp_path, name):
    choices, answer, says, hint = TWO_READINGS[name]
    lines = lines_of([*SHAPES["choices-answer"], {"question": "q?", "choices": choices, "answer": answer}])
    mistake = refused(write(tmp_path / "rows.jsonl", lines))
    assert mistake.message.startswith(f"{tmp_path}/rows.jsonl:6: column 'answer' is {answer!r}, which may be ")
    assert says in mistake.message
    assert hint in mistake.hint


@pytest.mark.parametrize(
    ("choices", "answer", "place"),
    [
        (["0", "1", "2"], 1, 1),  # the number and the text of the same choice
        (["A", "B"], "B", 1),
        (["A. red", "B. blue"], "B", 1),
        (["10", "12", "14"], 12, 1),
        (["10", "12", "14"], 2, 2),
        (["1.5", "2.5"], 2.5, 1),
        (["red", "blue"], "1", 1),
        (["(b) red", "(a) blue"], "a", 1),
    ],
)
def test_an_answer_with_one_reading_is_that_choice(choices, answer, place):
    assert set(gold_readings(choices, answer).values()) == {place}
    rows = rows_of(["question", "choices", "answer"], ["q?", ["red", "blue"], 0], ["q?", choices, answer])
    assert detect(rows).name == "choices-answer"


@pytest.mark.parametrize(
    ("answers", "says", "hint"),
    [
        (
            [1, 4, 2],
            "f.jsonl:2: column 'answer' is 4 for 4 choices, and no row has 0",
            "say so: task.labels=[1, 2, 3, 4]",
        ),
        (["1", "4"], "f.jsonl:2: column 'answer' is '4' for 4 choices", "task.labels=[1, 2, 3, 4]"),
        ([1, 3, 2], "f.jsonl:1: no row has 0 in column 'answer'", "[1, 2, 3, 4] or task.labels=[0, 1, 2, 3]"),
        (["A", "3", "B"], "f.jsonl:2: no row has 0 in column 'answer'", "[1, 2, 3, 4] or task.labels=[0, 1, 2, 3]"),
        (["red", 1], "f.jsonl:2: no row has 0 in column 'answer'", "[1, 2, 3, 4] or task.labels=[0, 1, 2, 3]"),
        ([1, "D"], "f.jsonl:1: no row has 0 in column 'answer'", "[1, 2, 3, 4] or task.labels=[0, 1, 2, 3]"),
        ([2.0, 3.0], "f.jsonl:1: no row has 0 in column 'answer'", "[1, 2, 3, 4] or task.labels=[0, 1, 2, 3]"),
    ],
)
def test_numbers_of_choices_that_may_count_from_1_are_refused(answers, says, hint):
    rows = rows_of(["question", "choices", "answer"], *[["q?", ["red", "green", "blue", "grey"], a] for a in answers])
    with pytest.raises(DataError) as found:
        detect(rows)
    assert found.value.message.startswith(says)
    assert hint in found.value.hint
    assert detect(rows, answers=False).name == "choices-answer"


@pytest.mark.parametrize("answers", [[0, 1], [1, "D", 0], [0, "red"], ["A", "C"]])
def test_numbers_of_choices_count_from_0_where_a_row_says_so(answers):
    rows = rows_of(["question", "choices", "answer"], *[["q?", ["red", "green", "blue", "grey"], a] for a in answers])
    assert detect(rows).name == "choices-answer"


def test_prompts_and_completions_are_texts(tmp_path):
    lines = [*lines_of(SHAPES["prompt-completion"]), b'{"prompt": "2 and 2?", "completion": 4}']
    mistake = refused(write(tmp_path / "rows.jsonl", lines))
    assert mistake.message == f"{tmp_path}/rows.jsonl:6: column 'completion' is 4, not a text"
    assert "put quotes around it" in mistake.hint


@pytest.mark.parametrize(
    ("labels", "says", "hint"),
    [
        ([1] * 5, "f.jsonl:1: column 'label' is 1 in all 5 rows", "two labels or more"),
        ([*range(101), 0], "f.jsonl:1: column 'label' has 101 different values in 102 rows", "no labels"),
        (
            [0, 1, "1"],
            "f.jsonl:3: column 'label' is '1', and 1 in other rows",
            'a good row: line 2: {"text": "a", "label": 1}',
        ),
        (["good", "bad", "good "], "f.jsonl:3: column 'label' is 'good ', and 'good' in other rows", "the same way"),
        ([0, float("nan")], "f.jsonl:2: column 'label' is not a number", "whole numbers"),
    ],
)
def test_labels_that_cannot_be_labels_are_refused(labels, says, hint):
    with pytest.raises(DataError) as found:
        detect(rows_of(["text", "label"], *[["a", label] for label in labels]))
    assert found.value.message.startswith(says)
    assert hint in found.value.hint


def test_an_answer_that_looks_like_a_choice_is_told_apart():
    rows = rows_of(["question", "choices", "answer"], ["q?", ["caf\u00e9", "tea"], "cafe\u0301"])
    with pytest.raises(DataError, match=r"'cafe\\u0301', which is not the choice 'caf\\xe9', though it looks like it"):
        detect(rows)


def test_a_label_that_is_the_name_of_its_column_or_says_that_there_is_none_is_refused():
    """A header with an empty column behind the rows was a class of its own, and so was the -100 of PyTorch."""
    rows = [["a", "good", "1"], ["b", "bad", "2"], ["text", "Label", ""]]
    with pytest.raises(DataError, match="f.jsonl:3: column 'label' is 'Label', the column's own name: is it a header"):
        detect(rows_of(["text", "label", "id"], *rows))
    with pytest.raises(DataError, match="f.jsonl:3: column 'label' is -100, which is a label, or says that"):
        detect(rows_of(["text", "label"], ["a", 0], ["b", 1], ["c", -100]))
    assert detect(rows_of(["text", "label"], ["a", 0], ["b", 1], ["c", -100]), named=[0, 1, -100])


LOOK_ALIKES = {
    "forms": ("caf\u00e9", "cafe\u0301"),
    "byte order mark": ("good", "\ufeffgood"),
    "zero width": ("good", "go\u200bod"),
    "soft hyphen": ("goodness", "good\u00adness"),
    "full width": ("good", "\uff47ood"),
    "ligature": ("file", "\ufb01le"),
    "variation": ("\u2764", "\u2764\ufe0f"),
    "Cyrillic": ("good", "g\u043eod"),
    "Greek": ("A", "\u0391"),
    "minus": ("-1", "\u22121"),
    "apostrophe": ("don't know", "don\u2019t know"),
    "no-break space": ("not good", "not\u00a0good"),
    "two spaces": ("not good", "not  good"),
    "case": ("good", "Good"),
    "sharp s": ("Strasse", "stra\u00dfe"),
    "space": ("good", " good"),
    "decimal": ("1", "1.0"),
    "exponent": ("1", "1e0"),
    "leading zero": ("1", "01"),
    "plus": ("1", "+1"),
    "number and text": (1, "1"),
    "truth and text": (True, "true"),
    "truth and number": (True, 1),
    "truth in words": ("True", "1"),
}


@pytest.mark.parametrize("name", list(LOOK_ALIKES))
def test_labels_that_look_alike_are_refused_and_told_apart(name):
    one, other = LOOK_ALIKES[name]
    with pytest.raises(DataError) as found:
        detect(rows_of(["text", "label"], ["a", "other"], ["b", one], ["c", other]))
    assert found.value.message.startswith("f.jsonl:3: column 'label' is ")
    before, _, after = found.value.message.partition(", and ")
    assert before.rpartition(" is ")[2] != after.partition(" in other rows")[0]
    assert found.value.message.isascii()
    assert "the same way in all rows" in found.value.hint


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (["0,5", "1,5"], "is '0,5': a number with a comma in it, or two labels"),
        (["1,000", "2,000"], "is '1,000': a number with a comma in it, or two labels"),
        (["1e-3", "2e-3"], "is 1e-3, not a label"),
        ([2.0**53, 2.0**53 + 2], "a float too large to tell it from its neighbours"),
        (["\ufeff", "a"], "column 'label' is empty"),
    ],
)
def test_values_that_are_no_labels(labels, says):
    with pytest.raises(DataError) as found:
        detect(rows_of(["text", "label"], *[["a", label] for label in labels]))
    assert says in found.value.message


def test_whole_numbers_of_any_size_are_labels():
    rows = rows_of(["text", "label"], ["a", 2**53], ["b", 2**53 + 1], ["c", 10**30])
    assert detect(rows).name == "text-label"


def test_minus_one_beside_labels_that_need_no_other_is_refused():
    """It is a label of three, or says that the row has none."""
    for labels in ([0, 1, -1], ["0", "1", "-1"], ["good", "bad", "-1"], [0.0, 1.0, -1.0]):
        rows = rows_of(["text", "label"], *[["a", label] for label in labels])
        with pytest.raises(DataError) as found:
            detect(rows)
        assert found.value.message == (
            "f.jsonl:3: column 'label' is -1, which is a label, or says that the row has none"
        )
        assert "task.verbalizers={-1: ' ...'" in found.value.hint
        assert detect(rows, named=[-1, 0, 1]).name == "text-label"
    for labels in ([-1, 1], [-2, -1, 0, 1], [-1, 0]):
        assert detect(rows_of(["text", "label"], *[["a", label] for label in labels])).name == "text-label"


def test_what_is_pointed_out_of_labels():
    assert label_notes({"positive": 60, "postive": 2, "negative": 50}) == [
        "label 'postive' (2 rows) looks like a typo of 'positive' (60 rows)"
    ]
    assert "'psoitive' (1 row) looks like" in label_notes({"positive": 60, "psoitive": 1})[0]
    assert "'not entailed' (9 rows) looks like" in label_notes({"not_entailed": 10, "not entailed": 9})[0]
    assert label_notes({"none": 4, "favor": 4}) == ["label 'none' (4 rows) is read as a label, not as a missing one"]
    for fine in (
        {"positive": 60, "postive": 10},
        {"level 1": 100, "level 2": 1},
        {"cat": 100, "car": 1},
        {"entailment": 100, "contradiction": 1},
        {0: 100, 1: 1},
    ):
        assert label_notes(fine) == []


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("rows.csv", [b"text,label", b"a,0", b"text,label", b"b,1"]),
        ("rows.csv", [b"text,label", b"a,0", b"\xef\xbb\xbfText, Label", b"b,1"]),
        ("rows.csv", [b"text,label", b"a,0", b"label,text", b"1,b"]),
        ("rows.tsv", [b"text\tlabel", b"a\t0", b"text\tlabel", b"b\t1"]),
        ("rows.jsonl", [b'{"text": "a", "label": "0"}', *[b""], b'{"text": "text", "label": "label"}']),
    ],
)
def test_a_header_among_the_rows_is_refused(tmp_path, name, lines):
    mistake = refused(write(tmp_path / name, lines))
    assert mistake.message == f"{tmp_path}/{name}:3: the row holds the names of the columns"
    assert "remove the line" in mistake.hint


def test_columns_of_any_row_are_used_or_named():
    rows = rows_of(["text", "label"], ["a", 0], ["b", 1])
    rows.append(Row("f.jsonl:3", {"text": "c", "label": 0, "reason": "d"}))
    assert "not used: 'reason'" in detect(rows).about
    rows = rows_of(["instruction", "output"], ["greet", "hi"], ["leave", "bye"])
    rows.append(Row("f.jsonl:3", {"instruction": "add", "input": "2 3", "output": "5"}))
    assert detect(rows).columns["input"] == "input"


def test_a_hundred_labels_are_labels():
    assert detect(rows_of(["text", "label"], *[["a", label] for label in range(100)])).name == "text-label"


def test_no_rows_have_no_format():
    with pytest.raises(DataError, match="no rows"):
        detect([])


def test_nothing_heavy_is_imported_for_plain_files(tmp_path):
    """Formats and readers of text need neither pyarrow nor datasets."""
    import subprocess

    path = write(tmp_path / "rows.jsonl", lines_of(GOOD))
    code = (
        "import sys, pathlib; from zofo.tasks.readers.files import read_file; "
        f"from zofo.tasks.readers.formats import detect; detect(read_file(pathlib.Path({str(path)!r}))); "
        "print([name for name in ('datasets', 'pyarrow', 'sklearn', 'torchmetrics') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_decimal_texts_and_labels_that_differ_in_their_case_are_no_labels(tmp_path):
    """CSV has only texts, so that a column of numbers must not pass for many labels."""
    lines = ["text,label", *(f"film {i},{i / 7:.3f}" for i in range(1, 6))]
    with pytest.raises(DataError, match=r"rows.csv:2: column 'label' is 0.143, not a label"):
        detect(read_file(write(tmp_path / "rows.csv", [line.encode() for line in lines])))
    with pytest.raises(DataError, match=r"column 'label' is 'Yes', and 'yes' in other rows"):
        detect(read_file(write(tmp_path / "case.csv", [b"text,label", b"a,yes", b"b,no", b"c,Yes"])))


def test_an_instruction_may_come_without_its_input():
    rows = rows_of(["instruction", "input", "output"], ["add", "2 3", "5"], ["greet", "", "hi"])
    rows.append(Row("f.jsonl:3", {"instruction": "greet", "output": "hi"}))
    assert detect(rows).columns["input"] == "input"
