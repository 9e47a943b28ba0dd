"""Prompt templates: sandboxed Jinja with strict names, resource limits, and output that depends on the row alone."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from contextvars import ContextVar
from typing import Any, NamedTuple

import jinja2
import jinja2.meta
import jinja2.nodes
import jinja2.runtime
import jinja2.sandbox

from zofo.tasks.readers.row import RowError
from zofo.temporary import bound

CHOICE = "choice"
"""Name of the choice in a template of choices."""
ROW = "row"
"""Name of the whole row in a template, for columns that are not identifiers: row['my column']."""


def _lower_first(text: str) -> str:
    """Lower-case the first word, unless it is "I" or begins with it, as in "I'm"."""
    first = text.split(maxsplit=1)[:1]
    return text if first and first[0].split("'")[0] == "I" else text[:1].lower() + text[1:]


def _upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


@functools.cache
def _environment() -> _PromptEnvironment:
    environment = _PromptEnvironment()
    environment.filters |= {"lower_first": _lower_first, "upper_first": _upper_first}
    return environment


class _Parsed(NamedTuple):
    """A parsed template or expression.

    Args:
        columns: the columns that it names.
        plain: columns that it writes directly or through filters; these must be texts.
        constants: literal texts in its expressions, such as 'because' in {{ 'because' if cause else 'so' }}.
        run: (columns of a row) -> its output, or the value of the expression.
    """

    columns: frozenset[str]
    plain: frozenset[str]
    constants: frozenset[str]
    run: Callable[..., Any]


@functools.lru_cache(maxsize=256)
def _parsed(template: str, expression: bool) -> _Parsed:
    """Parse a template or an expression. Raises the errors of Jinja, RecursionError and MemoryError."""
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
    """The columns that a template or an expression names, in order of appearance.

    Raises:
        ValueError: it is invalid; the message says why.
    """
    try:
        columns = _parsed(template, expression).columns
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"{template!r} is not a template: {error.message}") from error
    except (RecursionError, MemoryError) as error:
        raise ValueError(f"{template[:40]!r} ... is not a template: it is nested too deeply") from error
    return sorted(columns, key=lambda name: (template.find(name), name))


def check_expression(text: str) -> str:
    """Return a column or an expression of columns unchanged; raises ValueError if it is invalid."""
    columns_of(text, expression=True)
    return text


def check_template(template: str) -> str:
    """Return a template unchanged; raises ValueError if it is invalid."""
    columns_of(template)
    return template


def check_prompt(template: str) -> str:
    """Return a prompt template unchanged; raises ValueError if it is invalid, or names no column."""
    if not columns_of(template) and f"{ROW}[" not in template:
        single = "{" in template and "{{" not in template
        taken = next((name for name in (CHOICE, ROW) if f"{{ {name} }}" in template), None)
        if taken:
            raise ValueError(f"{taken!r} has a meaning of its own in a template: write {{{{ row['{taken}'] }}}}")
        why = "columns stand in double braces" if single else "the template names no column"
        raise ValueError(f"{why}; write for example '{{{{ sentence }}}} It was'")
    return template


def check_no_answer_leak(templates: Sequence[str], right: str) -> None:
    """Raise ValueError for a template that names the column of the right answer.

    Args:
        right: that column, or an expression, of which only a part of a column such as answers.text is considered.
    """
    column = right.partition(".")[0] if re.fullmatch(r"\w+(\.\w+)*", right) else right
    telling = next((text for text in templates if column in columns_of(text)), None)
    if telling is not None:
        raise ValueError(f"the template {telling!r} names {column!r}, which holds what is right: the prompt would tell")


FAILURES = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, MemoryError, RecursionError)
"""Errors of a template besides those of Jinja."""


def fill(template: str, fields: Mapping[str, Any], expression: bool = False, own: list[str] | None = None) -> Any:
    """Fill a template with the columns of a row, or evaluate an expression.

    Args:
        own: a list to which the row's own texts are appended in order.

    Raises:
        RowError: it cannot be filled with this row.
    """
    written: list[str] = []
    try:
        parsed = _parsed(template, expression)
        for column in () if expression else parsed.plain:
            if isinstance(fields.get(column), list | dict):
                raise RowError(f"column {column!r} is {fields[column]!r}, not a text")
        with bound(_LEFT, [MOST_OPERATIONS, MOST_CHARACTERS]):
            value = parsed.run(**{ROW: fields, **fields, _WRITTEN: written})
            value = list(_counted(value)) if isinstance(value, Iterator) else value
        if isinstance(value, str):
            _check_no_address(value, fields)
    except (jinja2.TemplateError, *FAILURES) as error:
        raise RowError(
            f"the template {template!r} cannot be filled: {error}",
            "fix the row, or the template in a copy of the task file (`zofo copy TASK FILE`)",
        ) from error
    if isinstance(value, jinja2.Undefined):
        raise RowError(f"{template!r} has no value in this row", "fix the row, or the task file")
    if own is not None and not expression:
        own += [text for text in written if text not in parsed.constants]
    return value


# limits: a template is a function of its row, and its work and size are bounded

MOST_OPERATIONS = 100_000
"""The most loop passes, calls and filters of a template for one row."""
MOST_CHARACTERS = 10_000_000
"""The most characters and list entries that a template may make for one row, in total."""
_MOST_WIDTH = 10_000  # arguments that determine the length of a result, such as the width of `center`
_MOST_BITS = 4096  # of a whole number
_WRITTEN = "texts written by this template"  # key in its context of the list of these; no template can name it

_CHANCE = {"lipsum": "text by chance", "cycler": "an iterator with a state", "joiner": "an iterator with a state"}
_FILTERS = {"batch", "indent", "pprint", "slice", "tojson", "urlize", "wordwrap", "xmlattr"}
_METHODS = {"center", "expandtabs", "format", "format_map", "join", "ljust", "replace", "rjust", "translate", "zfill"}
_GROWING = _FILTERS | _METHODS  # whose result may be longer than what they are given
_CLOCK = frozenset({"now", "today", "utcnow", "astimezone", "timestamp", "fromtimestamp", "utcfromtimestamp"})
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]{6,}>")  # of an object in memory, as Python writes it
_WIDE = re.compile(r"%[^%a-zA-Z]*(\d{5,}|\*)|\{[^{}]*:[^{}]*(\d{5,}|\{)")  # formats that ask for a long text


_LEFT: ContextVar[list[int]] = ContextVar("template_limits")  # operations and characters per row


def _work(characters: int = 0) -> None:
    """Count one operation and the characters that it produces; raises OverflowError beyond the limits."""
    left = _LEFT.get(None)
    if left is None:
        return
    left[0] -= 1
    left[1] -= characters
    if left[0] < 0:
        raise OverflowError(f"it takes more than {MOST_OPERATIONS:,} loop passes and calls")
    if left[1] < 0:
        raise OverflowError(f"it makes more than {MOST_CHARACTERS:,} characters")


def _size(value: Any) -> int:
    """Characters and entries of a value, counted recursively up to the limit."""
    if isinstance(value, str | bytes):
        return len(value)
    total, waiting = 1, [value]
    while waiting and total <= MOST_CHARACTERS:
        one = waiting.pop()
        if isinstance(one, str | bytes):
            total += len(one)
        elif isinstance(one, list | tuple):
            total += len(one)
            waiting.extend(one)
        elif isinstance(one, dict):
            total += len(one)
            waiting.extend(one.values())
    return total


def _measured(value: Any) -> Any:
    """The value, after counting its size; raises TypeError for a set."""
    if isinstance(value, set | frozenset):
        raise TypeError("a set has no order")
    _work(_size(value))
    return value


def _measured_parts(name: str, arguments: Sequence[Any]) -> Sequence[Any]:
    """The arguments of a filter or method, after measuring those that `join` joins."""
    if name != "join" or not arguments:
        return arguments
    return [[_measured(one) for one in arguments[0]], *arguments[1:]]


def _counted(values: Iterable[Any]) -> Iterator[Any]:
    """The values of a loop, counting each pass."""
    for value in values:
        _work()
        yield value


def _check_result_length(name: str, given: Any, arguments: Iterable[Any]) -> None:
    """Raise OverflowError before a filter or method produces a result that is too long."""
    if name not in _GROWING:
        return
    most = 1
    for argument in arguments:
        if isinstance(argument, int) and not isinstance(argument, bool):
            if argument > _MOST_WIDTH:
                raise OverflowError(f"{name} with {argument}, but the most is {_MOST_WIDTH:,}")
            most = max(most, argument)
        elif isinstance(argument, str):
            most = max(most, len(argument))
    if isinstance(given, str) and name.startswith("format") and _WIDE.search(given):
        raise OverflowError(f"{name} of {given[:40]!r} asks for a text that is too long")
    if (_size(given) + 1) * most > 10 * MOST_CHARACTERS:
        raise OverflowError(f"{name} would make more than {MOST_CHARACTERS:,} characters")


def _limited_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    passes = getattr(function, "jinja_pass_arg", None) is not None  # the context, before what is filtered

    @functools.wraps(function)
    def limited_function(*arguments: Any, **options: Any) -> Any:
        first = arguments[:1] if passes else ()
        values = _measured_parts(name, arguments[len(first) :])
        if values:
            _check_result_length(name, values[0], [*values[1:], *options.values()])
        return _measured(function(*first, *values, **options))

    return limited_function


@jinja2.pass_context
def _finalize(context: jinja2.runtime.Context, value: Any) -> Any:
    """The output of an expression: no function, iterator or other object without a text form."""
    if callable(value) and not isinstance(value, jinja2.Undefined):
        raise TypeError(f"{getattr(value, '__name__', value)!r} is a function: call it, as in column.strip()")
    if isinstance(value, Iterator | KeysView | ValuesView | ItemsView):
        raise TypeError("an iterator has no text: end with | list or | join")
    if isinstance(value, str) and value.strip():
        context[_WRITTEN].append(value)
    return _measured(value)


class _PromptEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """A Jinja environment whose results depend on the row alone, with limits while a row is rendered."""

    intercepted_binops = frozenset({"+", "-", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False, finalize=_finalize
        )
        for name in _CHANCE:
            del self.globals[name]
        self.filters.pop("random")
        self.filters = {name: _limited_filter(name, function) for name, function in self.filters.items()}
        self.filters |= {"_measured": _measured, "_counted": _counted}

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree = super()._parse(source, name, filename)
        _check_deterministic(tree)
        for loop in tree.find_all(jinja2.nodes.For):
            if loop.recursive:
                raise jinja2.TemplateSyntaxError("loops of prompts are not recursive", loop.lineno)
            loop.iter = _through("_counted", loop.iter)
        for assigned in tree.find_all(jinja2.nodes.Assign):
            assigned.node = _through("_measured", assigned.node)
        return tree

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        """An operator, unless its result would be too large, or has no defined order."""
        whole = isinstance(left, int) and isinstance(right, int)
        if operator == "**" and (not whole or right < 0 or left.bit_length() * right > _MOST_BITS):
            if isinstance(left, float) or isinstance(right, float) or (whole and right < 0):
                return left**right
            raise OverflowError(f"{left} ** {right} is too large a number")
        if operator == "*":
            if whole and left.bit_length() + right.bit_length() > _MOST_BITS:
                raise OverflowError("a product is too large a number")
            many, times = (right, left) if isinstance(left, int) else (left, right)
            if isinstance(times, int) and _size(many) * times > MOST_CHARACTERS:
                raise OverflowError(f"{times} times a text or list of {_size(many)} is too long")
        if operator == "%" and isinstance(left, str) and _WIDE.search(left):
            raise OverflowError(f"{left[:40]!r} asks for a text that is too long")
        return _measured(super().call_binop(context, operator, left, right))

    def call(self, context: jinja2.runtime.Context, function: Any, *arguments: Any, **options: Any) -> Any:
        """A function, method or macro, counting its work, arguments and result."""
        name = getattr(function, "__name__", "")
        _check_result_length(name, getattr(function, "__self__", None), [*arguments, *options.values()])
        if max(map(_size, arguments), default=0) > MOST_CHARACTERS:
            raise OverflowError(f"a call is given more than {MOST_CHARACTERS:,} characters")
        return _measured(super().call(context, function, *_measured_parts(name, arguments), **options))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may access it: neither forbidden by the sandbox, nor the clock of dates."""
        return attr not in _CLOCK and super().is_safe_attribute(obj, attr, value)


def _through(name: str, node: Any) -> jinja2.nodes.Filter:
    return jinja2.nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _check_deterministic(tree: jinja2.nodes.Template) -> None:
    """Raise TemplateSyntaxError for anything that does not depend on the row alone."""
    for call in tree.find_all(jinja2.nodes.Call):
        if isinstance(call.node, jinja2.nodes.Name) and call.node.name in _CHANCE:
            what = f"{call.node.name}() is {_CHANCE[call.node.name]}, and a prompt is a function of its row"
            raise jinja2.TemplateSyntaxError(what, call.lineno)
    for one in tree.find_all(jinja2.nodes.Filter):
        if one.name == "random":
            raise jinja2.TemplateSyntaxError(
                "'random' draws by chance, and a prompt is a function of its row", one.lineno
            )


def _check_no_address(text: str, fields: Mapping[str, Any]) -> None:
    """Raise TypeError for a text with a memory address, unless the row has it."""
    for found in _ADDRESS.findall(text):
        if found not in str(dict(fields)):
            raise TypeError(f"it writes an object, not a text ({found.strip(' >')}): call the function, or use | list")
