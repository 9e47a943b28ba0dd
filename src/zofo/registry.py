"""Names for parts: the only way a configuration can say which class it wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from zofo.errors import UnknownNameError

T = TypeVar("T")


class Registry(Generic[T]):
    """A mapping from a public name to a part of one kind, with "did you mean" for unknown names.

    Args:
        kind: what the parts are, in the singular, as an error message should call them.

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

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that enters a part under `name`; a name can be taken only once."""

        def enter(part: T) -> T:
            if name in self._parts:
                raise ValueError(f"the {self.kind} {name!r} is registered twice")
            self._parts[name] = part
            return part

        return enter

    def __getitem__(self, name: str) -> T:
        if not isinstance(name, str) or name not in self._parts:
            raise UnknownNameError(self.kind, str(name), self._parts)
        return self._parts[name]

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._parts))

    def __len__(self) -> int:
        return len(self._parts)
