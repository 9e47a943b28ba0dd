"""Prompts are functions of the row: nothing by chance, nothing of the clock or of memory, within limits of work."""

from __future__ import annotations

import datetime
import time

import pytest

from zofo.errors import DataError
from zofo.tasks.prompt_templates import columns_of, fill
from zofo.tasks.readers.row import at_row

ROW = {
    "text": "a joy",
    "words": ["b", "a", "c"],
    "fields": {"x": 1, "y": 2},
    "made": datetime.datetime(2020, 1, 2),
    "big": "x" * 100_000,
}


def filled(template, expression=False):
    with at_row("rows.jsonl:7"):
        return fill(template, ROW, expression)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{% for w in words %}{{ loop.index }}/{{ loop.length }}{{ w }}{% endfor %}", "1/3b2/3a3/3c"),
        ("{% for w in words if w != 'a' %}{{ w }}{{ '' if loop.last else '-' }}{% endfor %}", "b-c"),
        ("{{ words[:] | sort | map('upper') | join(' ') }}", "A B C"),
        ("{% set ns = namespace(n=0) %}{% for w in words %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "3"),
        ("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(text) }}{{ m('b' ~ 2 ** 10) }}", "<a joy><b1024>"),
        ("{{ '%5.1f|%s' % (2.25, text) }}{{ '{:>4}'.format('x') }}", "  2.2|a joy   x"),
        ("{{ text.center(9) }}{{ ', '.join(words) }}{{ '-' * 3 }}", "  a joy  b, a, c---"),
        (
            "{{ fields.items() | list | join(' ') }}{{ made.year }}{{ words[::-1] }}",
            "('x', 1) ('y', 2)2020['c', 'a', 'b']",
        ),
        ("{{ big | length }}{{ big | truncate(5) }}{{ big.replace('x', 'yy') | length }}", "100000xx...200000"),
    ],
)
def test_templates_that_are_functions_of_the_row(template, text):
    assert filled(template) == text == filled(template)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ words[:] | random }}", "'random' draws by chance, and a prompt is a function of its row"),
        ("{{ text }}{{ lipsum(n=2) }}", r"lipsum\(\) is text by chance"),
        ("{% set c = cycler('a', 'b') %}{{ c.next() }}{{ text }}", r"cycler\(\) is an iterator with a state"),
        ("{% set j = joiner(', ') %}{{ j() }}{{ text }}", r"joiner\(\) is an iterator"),
        ("{% for w in words recursive %}{{ w }}{% endfor %}", "not recursive"),
        ("{{ " + "(" * 5000 + "text" + ")" * 5000 + " }}", "nested too deeply"),
    ],
)
def test_chance_is_refused_when_a_template_is_read(template, says):
    with pytest.raises(ValueError, match=says):
        columns_of(template)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ words[:] | map('upper') }}", "an iterator has no text: end with | list or | join"),
        ("{{ fields.items() }}", "an iterator has no text"),
        ("{{ words[:] | map('upper') | string }}", "it writes an object, not a text (generator object"),
        ("{{ text.upper ~ '' }}", "it writes an object, not a text (at 0x"),
        ("{{ (fields.keys() - ['x']) | join }}", "a set has no order"),
        ("{{ fields.keys().isdisjoint([]) and made.now() }}", "unsafe"),
        ("{{ made.today().year }}", "unsafe"),
    ],
)
def test_what_is_no_function_of_the_row_is_refused_with_its_place(template, says):
    with pytest.raises(DataError, match="rows.jsonl:7: the template .* cannot be filled") as refused:
        filled(template)
    assert says.partition("(")[0] in refused.value.message


DOUBLING = "{% set ns = namespace(x='ab') %}{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}"
LOOPS = (
    "{% for a in range(1000) %}{% for b in range(1000) %}{% for c in range(1000) %}."
    "{% endfor %}{% endfor %}{% endfor %}"
)
BLOCKS = (
    "{% set ns = namespace(x='ab') %}{% for i in range(64) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}"
)


@pytest.mark.parametrize(
    "template",
    [
        LOOPS,
        "{{ 'a' * 10 ** 9 }}",
        "{{ 10 ** 9 * 'a' }}",
        "{{ 10 ** 1000000000 }}",
        "{{ ['a'] * 1000000000 }}",
        "{{ [big] * 100000 }}",
        "{{ ([big] * 100000) | join }}",
        "{{ ''.join([big] * 100000) }}",
        "{{ text | center(1000000000) }}",
        "{{ text.ljust(1000000000) }}",
        "{{ text.zfill(1000000000) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '%1000000000s' | format(text) }}",
        "{{ '{:>1000000000}'.format(text) }}",
        "{{ '{:>{}}'.format(text, 1000000000) }}",
        "{{ words[:] | batch(1000000000, 'x') | list | length }}",
        "{{ words[:] | slice(1000000000) | list | length }}",
        "{{ big.replace('x', big) }}",
        "{{ big | replace('', big) }}",
        "{{ words[:] | tojson(indent=1000000000) }}",
        "{{ text | indent(1000000000, true) }}",
        DOUBLING,
        BLOCKS,
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "{% macro m(x) %}{{ m(x ~ x) }}{% endmacro %}{{ m(big) }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for a in range(100000) %}{{ big }}{% endfor %}",
        "{% set x %}{% for a in range(100000) %}{{ big }}{% endfor %}{% endset %}{{ x | length }}",
    ],
)
def test_work_and_size_are_limited(template):
    start = time.monotonic()
    with pytest.raises(DataError, match="rows.jsonl:7: the template .* cannot be filled"):
        filled(template)
    assert time.monotonic() - start < 30  # seconds where it takes hours, on any machine


def test_an_iterator_that_an_expression_gives_becomes_a_list():
    assert filled("words | map('upper')", expression=True) == ["B", "A", "C"]
