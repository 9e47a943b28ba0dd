"""Named parts: the only way in which a configuration can select a class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from zofo.errors import ConfigError, UnknownNameError, truncate_repr
from zofo.plugins import broken_plugins, load_plugins, registered

T = TypeVar("T")


class Registry(Generic[T]):
    """A mapping from a public name to a part of one kind, with "did you mean" for unknown names.

    Unknown names are looked up in the plugins of other packages; see `zofo.plugins`.

    Args:
        kind: the kind of its parts in the singular, for error messages.

    Example:
        >>> colours = Registry[type]("colour")
        >>> @colours.register("red")
        ... class Red: ...
        >>> colours["red"].__name__
        'Red'
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._parts: dict[str, T] = {}
        self._use: dict[str, Callable[[], object]] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that registers a part under `name`; names are unique.

        Raises:
            ValueError: it is taken, or contains a slash, which only paths and Hub ids do.
        """

        def enter(part: T) -> T:
            if name in self._parts:
                raise ValueError(f"the {self.kind} {name!r} is registered twice")
            if "/" in name:
                raise ValueError(f"the {self.kind} {name!r} has a slash in its name")
            self._parts[name] = part
            self._use[name] = registered(lambda: self._parts.pop(name))
            return part

        return enter

    def __getitem__(self, name: str) -> T:
        if not isinstance(name, str) or not name:
            what = "has no name" if name in (None, "") else f"has the name {truncate_repr(name)}, which is no text"
            raise ConfigError(f"the {self.kind} {what}", f"name one of these: {', '.join(self)}")
        if name not in self:
            known, broken = ", ".join(self), broken_plugins()
            raise UnknownNameError(self.kind, name, self, f"known: {known}" + (f"; {broken}" if broken else ""))
        if name in self._use:
            self._use[name]()
        return self._parts[name]

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        if name not in self._parts and "/" not in name:
            load_plugins()
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        load_plugins()
        return iter(sorted(self._parts))

    def __len__(self) -> int:
        return sum(1 for _ in self)
