"""The Jinja of prompts: in a sandbox, a function of the row alone, and within limits of work and size."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jinja2
import jinja2.nodes
import jinja2.runtime
import jinja2.sandbox

MOST_OPERATIONS = 100_000
"""The most loop passes, calls and filters of a template for one row."""
MOST_CHARACTERS = 10_000_000
"""The most characters and list entries that a template may make for one row, in total."""
_MOST_WIDTH = 10_000  # numbers that say how long a result shall be, such as the width of `center`
_MOST_BITS = 4096  # of a whole number
WRITTEN = "texts written by this template"
"""Key in a template's context of the list of texts that it writes; no template can name it."""
_CHANCE = {"lipsum": "text by chance", "cycler": "an iterator with a state", "joiner": "an iterator with a state"}
_FILTERS = {"batch", "indent", "pprint", "slice", "tojson", "urlize", "wordwrap", "xmlattr"}
_METHODS = {"center", "expandtabs", "format", "format_map", "join", "ljust", "replace", "rjust", "translate", "zfill"}
_GROWING = _FILTERS | _METHODS  # whose result may be longer than what they are given
_CLOCK = frozenset({"now", "today", "utcnow", "astimezone", "timestamp", "fromtimestamp", "utcfromtimestamp"})
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]{6,}>")  # of an object in memory, as Python writes it
_WIDE = re.compile(r"%[^%a-zA-Z]*(\d{5,}|\*)|\{[^{}]*:[^{}]*(\d{5,}|\{)")  # formats that ask for a long text


@dataclass
class _Budget:
    """The rest of the limits for one row."""

    operations: int = MOST_OPERATIONS
    characters: int = MOST_CHARACTERS

    def work(self, characters: int = 0) -> None:
        """Count one operation, and characters that it makes.

        Raises:
            OverflowError: the limits are passed.
        """
        self.operations -= 1
        self.characters -= characters
        if self.operations < 0:
            raise OverflowError(f"it takes more than {MOST_OPERATIONS:,} loop passes and calls")
        if self.characters < 0:
            raise OverflowError(f"it makes more than {MOST_CHARACTERS:,} characters")


_BUDGET: ContextVar[_Budget] = ContextVar("template_budget")


@contextmanager
def limited() -> Iterator[None]:
    """The limits of one template for one row, while it is filled."""
    token = _BUDGET.set(_Budget())
    try:
        yield
    finally:
        _BUDGET.reset(token)


def _work(characters: int = 0) -> None:
    budget = _BUDGET.get(None)
    if budget is not None:
        budget.work(characters)


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
    """The value, once its size is counted; raises TypeError for a set."""
    if isinstance(value, set | frozenset):
        raise TypeError("a set has no order")
    _work(_size(value))
    return value


def _measured_parts(name: str, arguments: Sequence[Any]) -> Sequence[Any]:
    """The arguments of a filter or method, those that `join` joins measured."""
    if name != "join" or not arguments:
        return arguments
    return [[_measured(one) for one in arguments[0]], *arguments[1:]]


def counted(values: Iterable[Any]) -> Iterator[Any]:
    """The values of a loop, each pass counted."""
    for value in values:
        _work()
        yield value


def _check_result_length(name: str, given: Any, arguments: Iterable[Any]) -> None:
    """Raises OverflowError for a growing filter or method whose result would be too long, before it is made."""
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
    """What a template writes: no function, iterator or other thing that has no text of its own."""
    if callable(value) and not isinstance(value, jinja2.Undefined):
        raise TypeError(f"{getattr(value, '__name__', value)!r} is a function: call it, as in column.strip()")
    if isinstance(value, Iterator | KeysView | ValuesView | ItemsView):
        raise TypeError("an iterator has no text: end with | list or | join")
    if isinstance(value, str) and value.strip():
        context[WRITTEN].append(value)
    return _measured(value)


class PromptEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The environment of templates whose result is a function of the row, within limits while `limited` is open."""

    intercepted_binops = frozenset({"+", "-", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False, finalize=_finalize
        )
        for name in _CHANCE:
            del self.globals[name]
        self.filters.pop("random")
        self.filters = {name: _limited_filter(name, function) for name, function in self.filters.items()}
        self.filters |= {"_measured": _measured, "_counted": counted}

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
        """An operator, unless its result would be too large, or has no order."""
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
        """A function, method or macro, its work and what it is given and makes counted."""
        name = getattr(function, "__name__", "")
        _check_result_length(name, getattr(function, "__self__", None), [*arguments, *options.values()])
        if max(map(_size, arguments), default=0) > MOST_CHARACTERS:
            raise OverflowError(f"a call is given more than {MOST_CHARACTERS:,} characters")
        return _measured(super().call(context, function, *_measured_parts(name, arguments), **options))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may look it up: neither what the sandbox forbids nor the clock of dates."""
        return attr not in _CLOCK and super().is_safe_attribute(obj, attr, value)


def _through(name: str, node: Any) -> jinja2.nodes.Filter:
    return jinja2.nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _check_deterministic(tree: jinja2.nodes.Template) -> None:
    """Raises TemplateSyntaxError for what is not a function of the row."""
    for call in tree.find_all(jinja2.nodes.Call):
        if isinstance(call.node, jinja2.nodes.Name) and call.node.name in _CHANCE:
            what = f"{call.node.name}() is {_CHANCE[call.node.name]}, and a prompt is a function of its row"
            raise jinja2.TemplateSyntaxError(what, call.lineno)
    for one in tree.find_all(jinja2.nodes.Filter):
        if one.name == "random":
            raise jinja2.TemplateSyntaxError(
                "'random' draws by chance, and a prompt is a function of its row", one.lineno
            )


def check_no_address(text: str, fields: Mapping[str, Any]) -> None:
    """Raises TypeError for a text that holds the place of an object in memory, unless the row has it."""
    for found in _ADDRESS.findall(text):
        if found not in str(dict(fields)):
            raise TypeError(f"it writes an object, not a text ({found.strip(' >')}): call the function, or use | list")
