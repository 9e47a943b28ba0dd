"""Templates of prompts: Jinja, as chat templates use it, in a sandbox and strict about names."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.meta
import jinja2.nodes

from zofo.errors import DataError
from zofo.tasks.prompt_limits import WRITTEN, PromptEnvironment, counted, limited, refuse_address

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


def columns_of(template: str, expression: bool = False) -> list[str]:
    """The columns that a template or an expression names, in the order in which they first appear.

    Raises:
        ValueError: it is not one; says what is wrong.
    """
    text = "{{ " + template + " }}" if expression else template
    try:
        tree = _environment().parse(text)
        names = jinja2.meta.find_undeclared_variables(tree)
        _compiled(template, expression)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"{template!r} is not a template: {error.message}") from error
    except (RecursionError, MemoryError) as error:
        raise ValueError(f"{template[:40]!r} ... is not a template: it is nested too deeply") from error
    return sorted((names - {CHOICE, ROW}) | _looked_up(tree), key=lambda name: (template.find(name), name))


def _looked_up(tree: jinja2.nodes.Template) -> set[str]:
    """The columns that are named as row['my column']."""
    found = tree.find_all(jinja2.nodes.Getitem)
    return {
        one.arg.value
        for one in found
        if isinstance(one.node, jinja2.nodes.Name)
        and one.node.name == ROW
        and isinstance(one.arg, jinja2.nodes.Const)
        and isinstance(one.arg.value, str)
    }


def check_template(template: str) -> list[str]:
    """The columns that the template of a prompt names.

    Raises:
        ValueError: it is no template, or names no column.
    """
    columns = columns_of(template)
    if not columns and f"{ROW}[" not in template:
        single = "{" in template and "{{" not in template
        taken = next((name for name in (CHOICE, ROW) if f"{{ {name} }}" in template), None)
        if taken:
            raise ValueError(f"{taken!r} has a meaning of its own in a template: write {{{{ row['{taken}'] }}}}")
        why = "columns stand in double braces" if single else "the template names no column"
        raise ValueError(f"{why}; write for example '{{{{ sentence }}}} It was'")
    return columns


def refuse_telling(templates: Sequence[str], right: str) -> None:
    """Raises ValueError for a template that names the column of what is right.

    Args:
        templates: of prompts.
        right: that column, or an expression: of one, only a part of a column such as answers.text is looked at.
    """
    column = right.partition(".")[0] if re.fullmatch(r"\w+(\.\w+)*", right) else right
    telling = next((text for text in templates if column in columns_of(text)), None)
    if telling is not None:
        raise ValueError(f"the template {telling!r} names {column!r}, which holds what is right: the prompt would tell")


@functools.lru_cache(maxsize=256)
def _compiled(template: str, expression: bool) -> Callable[..., Any]:
    if expression:
        return _environment().compile_expression(template, undefined_to_none=False)
    return _environment().from_string(template).render


@functools.lru_cache(maxsize=256)
def plain_columns(template: str) -> frozenset[str]:
    """The columns that a template writes directly or through filters; these must be texts."""
    found = set()
    for output in _environment().parse(template).find_all(jinja2.nodes.Output):
        for node in output.nodes:
            while isinstance(node, jinja2.nodes.Filter) and node.node is not None:
                node = node.node
            if isinstance(node, jinja2.nodes.Name):
                found.add(node.name)
    return frozenset(found)


FAILURES = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, MemoryError, RecursionError)
"""Errors of a template besides those of Jinja."""


@functools.lru_cache(maxsize=256)
def _constants(template: str) -> frozenset[str]:
    """The literal texts in a template's expressions, such as 'because' in {{ 'because' if cause else 'so' }}."""
    found = _environment().parse(template).find_all(jinja2.nodes.Const)
    return frozenset(node.value for node in found if isinstance(node.value, str))


def fill(
    template: str, fields: Mapping[str, Any], where: str, expression: bool = False, own: list[str] | None = None
) -> Any:
    """A template with the columns of one row in place: a text; of an expression, its value.

    Args:
        template: or an expression.
        fields: the columns of the row.
        where: file and line, for messages.
        expression: whether it is one.
        own: a list to which the texts are added that the row wrote, in their order.

    Raises:
        DataError: it cannot be filled with this row.
    """
    for column in () if expression else plain_columns(template):
        if isinstance(fields.get(column), list | dict):
            raise DataError(f"{where}: column {column!r} is {fields[column]!r}, not a text", "mend or remove the row")
    try:
        written: list[str] = []
        with limited():
            value = _compiled(template, expression)(**{ROW: fields, **fields, WRITTEN: written})
            value = list(counted(value)) if isinstance(value, Iterator) else value
        if isinstance(value, str):
            refuse_address(value, fields)
    except (jinja2.TemplateError, *FAILURES) as error:
        raise DataError(
            f"{where}: the template {template!r} cannot be filled: {error}",
            "mend the row, or the template in a copy of the task file (`zofo copy TASK FILE`)",
        ) from error
    if isinstance(value, jinja2.Undefined):
        raise DataError(f"{where}: {template!r} has no value in this row", "mend the row, or the task file")
    if own is not None and not expression:
        own += [text for text in written if text not in _constants(template)]
    return value


def checked_fields(
    fields: Mapping[str, Any],
    columns: Iterable[str],
    optional: Sequence[str],
    missing: Callable[[str], DataError],
    where: str,
) -> dict[str, Any]:
    """The columns that are needed, with texts stripped of white space around them.

    Raises:
        DataError: a column is missing, empty, not a text or a list, or not Unicode; names the column.
    """
    checked: dict[str, Any] = {}
    for column in columns:
        if column not in fields and column not in optional:
            raise missing(column)
        checked[column] = _checked(fields.get(column), column, column in optional, where)
    return checked


def _checked(value: Any, column: str, optional: bool, where: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _checked(part, f"{column}.{key}", True, where) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_checked(part, column, True, where) for part in value]
    if optional and not isinstance(value, str):
        return "" if value is None else value
    if not isinstance(value, str) or not (optional or value.strip()):
        problem = "empty" if value is None or isinstance(value, str) else f"{value!r}, not a text"
        raise DataError(f"{where}: column {column!r} is {problem}", "mend or remove the row")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(f"{where}: column {column!r} holds half of a character (a lone surrogate)", "mend the row")
    return value.strip()
