"""Templates of prompts: Jinja, as chat templates use it, in a sandbox and strict about names."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import jinja2.meta
import jinja2.nodes

from zofo.tasks.prompt_limits import WRITTEN, PromptEnvironment, check_no_address, counted, limited
from zofo.tasks.readers.row import RowError, check_text, has_half

CHOICE = "choice"
"""Name of the choice in a template of choices."""
ROW = "row"
"""Name of the whole row in a template, for columns that are not identifiers: row['my column']."""


def _lower_first(text: str) -> str:
    """The first word in lower case, unless it is "I" or begins with it, as in "I'm"."""
    first = text.split(maxsplit=1)[:1]
    return text if first and first[0].split("'")[0] == "I" else text[:1].lower() + text[1:]


def _upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


@functools.cache
def _environment() -> PromptEnvironment:
    environment = PromptEnvironment()
    environment.filters |= {"lower_first": _lower_first, "upper_first": _upper_first}
    return environment


class _Parsed(NamedTuple):
    """What is known of a template or an expression.

    Args:
        columns: that it names.
        plain: those that it writes directly or through filters; these must be texts.
        constants: literal texts in its expressions, such as 'because' in {{ 'because' if cause else 'so' }}.
        run: (columns of a row) -> what it writes, or the value of the expression.
    """

    columns: frozenset[str]
    plain: frozenset[str]
    constants: frozenset[str]
    run: Callable[..., Any]


@functools.lru_cache(maxsize=256)
def _parsed(template: str, expression: bool) -> _Parsed:
    """A template, or an expression. Raises the errors of Jinja, RecursionError and MemoryError."""
    environment = _environment()
    tree = environment.parse("{{ " + template + " }}" if expression else template)
    columns = jinja2.meta.find_undeclared_variables(tree) - {CHOICE, ROW}
    for item in tree.find_all(jinja2.nodes.Getitem):  # row['my column']
        whole_row = isinstance(item.node, jinja2.nodes.Name) and item.node.name == ROW
        if whole_row and isinstance(item.arg, jinja2.nodes.Const) and isinstance(item.arg.value, str):
            columns.add(item.arg.value)
    plain = set()
    for output in tree.find_all(jinja2.nodes.Output):
        for node in output.nodes:
            while isinstance(node, jinja2.nodes.Filter) and node.node is not None:
                node = node.node
            if isinstance(node, jinja2.nodes.Name):
                plain.add(node.name)
    constants = {node.value for node in tree.find_all(jinja2.nodes.Const) if isinstance(node.value, str)}
    run = (
        environment.compile_expression(template, undefined_to_none=False)
        if expression
        else environment.from_string(template).render
    )
    return _Parsed(frozenset(columns), frozenset(plain), frozenset(constants), run)


def columns_of(template: str, expression: bool = False) -> list[str]:
    """The columns that a template or an expression names, in the order in which they first appear.

    Raises:
        ValueError: it is not one; says what is wrong.
    """
    try:
        columns = _parsed(template, expression).columns
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"{template!r} is not a template: {error.message}") from error
    except (RecursionError, MemoryError) as error:
        raise ValueError(f"{template[:40]!r} ... is not a template: it is nested too deeply") from error
    return sorted(columns, key=lambda name: (template.find(name), name))


def check_expression(text: str) -> str:
    """A column or an expression of columns as it is; raises ValueError where it is none."""
    columns_of(text, expression=True)
    return text


def check_template(template: str) -> str:
    """A template as it is; raises ValueError where it is none."""
    columns_of(template)
    return template


def check_prompt(template: str) -> str:
    """The template of a prompt as it is; raises ValueError where it is none, or names no column."""
    if not columns_of(template) and f"{ROW}[" not in template:
        single = "{" in template and "{{" not in template
        taken = next((name for name in (CHOICE, ROW) if f"{{ {name} }}" in template), None)
        if taken:
            raise ValueError(f"{taken!r} has a meaning of its own in a template: write {{{{ row['{taken}'] }}}}")
        why = "columns stand in double braces" if single else "the template names no column"
        raise ValueError(f"{why}; write for example '{{{{ sentence }}}} It was'")
    return template


def check_no_answer_leak(templates: Sequence[str], right: str) -> None:
    """Raises ValueError for a template that names the column of what is right.

    Args:
        templates: of prompts.
        right: that column, or an expression: of one, only a part of a column such as answers.text is looked at.
    """
    column = right.partition(".")[0] if re.fullmatch(r"\w+(\.\w+)*", right) else right
    telling = next((text for text in templates if column in columns_of(text)), None)
    if telling is not None:
        raise ValueError(f"the template {telling!r} names {column!r}, which holds what is right: the prompt would tell")


FAILURES = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, MemoryError, RecursionError)
"""Errors of a template besides those of Jinja."""


def fill(template: str, fields: Mapping[str, Any], expression: bool = False, own: list[str] | None = None) -> Any:
    """A template with the columns of one row in place: a text; of an expression, its value.

    Args:
        own: a list to which the texts are added that the row wrote, in their order.

    Raises:
        RowError: it cannot be filled with this row.
    """
    written: list[str] = []
    try:
        parsed = _parsed(template, expression)
        for column in () if expression else parsed.plain:
            if isinstance(fields.get(column), list | dict):
                raise RowError(f"column {column!r} is {fields[column]!r}, not a text")
        with limited():
            value = parsed.run(**{ROW: fields, **fields, WRITTEN: written})
            value = list(counted(value)) if isinstance(value, Iterator) else value
        if isinstance(value, str):
            check_no_address(value, fields)
    except (jinja2.TemplateError, *FAILURES) as error:
        raise RowError(
            f"the template {template!r} cannot be filled: {error}",
            "mend the row, or the template in a copy of the task file (`zofo copy TASK FILE`)",
        ) from error
    if isinstance(value, jinja2.Undefined):
        raise RowError(f"{template!r} has no value in this row", "mend the row, or the task file")
    if own is not None and not expression:
        own += [text for text in written if text not in parsed.constants]
    return value


def checked_fields(fields: Mapping[str, Any], columns: Iterable[str], optional: Sequence[str]) -> dict[str, Any]:
    """The columns that are needed, with texts stripped of white space around them; a missing one is an empty one.

    Raises:
        RowError: a column is empty, not a text or a list, or not Unicode; names the column.
    """
    return {column: _checked(fields.get(column), column, column in optional) for column in columns}


def _checked(value: Any, column: str, optional: bool) -> Any:
    if isinstance(value, Mapping):
        return {key: _checked(part, f"{column}.{key}", True) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_checked(part, column, True) for part in value]
    if optional and not isinstance(value, str):
        return "" if value is None else value
    if not isinstance(value, str) or has_half(value) or not (optional or value.strip()):
        check_text(column, value)
    return value.strip()
