"""Parts from other packages: methods, noises, rules, adapters, metrics, tasks and all else that a registry holds.

A package names a module under the entry point group `zofo.plugins`:

    [project.entry-points."zofo.plugins"]
    my-parts = "my_package.zofo_parts"

Importing that module registers its parts, with the same decorators as zofo's own. It is imported when a name is not one
of zofo's own parts, or when all parts are listed. So it works on the command line, in Python, in the workers of a study
and in every later use of a run; and a broken plugin affects nobody who does not need it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

GROUP = "zofo.plugins"


@dataclass(frozen=True)
class Plugin:
    """An entry point of the group.

    Args:
        name: name of the entry point.
        package: its distribution.
        version: version of the distribution.
        error: why its module could not be imported; empty for a working plugin.
    """

    name: str
    package: str
    version: str
    error: str = ""

    def __str__(self) -> str:
        return f"the plugin {self.name!r} of {self.package} {self.version}"


_lock = threading.RLock()
_plugins: list[Plugin] | None = None
_found: list[Plugin] | None = None  # while they are being imported: those before
_undo: list[Callable[[], object]] = []  # of what the plugin that is being imported has registered
_done: list[Callable[[], object]] = []  # of what all plugins have
_used: dict[str, str] = {}


def load_plugins() -> list[Plugin]:
    """Import all plugins, once per process, and return them; failed ones have an error, and have registered nothing."""
    global _plugins, _found
    with _lock:
        if _plugins is not None or _found is not None:  # a plugin may ask for a name while it is imported
            return _plugins if _plugins is not None else _found or []
        entries = entry_points(group=GROUP)
        if entries:  # zofo registers its own parts first, so that none of them counts as a plugin's
            import_module("zofo.studies.problems")
        _found = []
        try:
            for entry in sorted(entries, key=lambda entry: (entry.name, entry.value)):
                _found.append(_load(entry))
            _plugins = _found
        finally:
            _found = None
            if _plugins is None:  # Ctrl-C, for one
                forget_plugins()
        return _plugins


def used_packages() -> dict[str, str]:
    """The packages of plugins whose parts this process has used, with their versions."""
    return dict(_used)


def broken_plugins() -> str:
    """A sentence about each plugin that could not be imported."""
    return "; ".join(f"{plugin} could not be imported: {plugin.error}" for plugin in load_plugins() if plugin.error)


def lost_packages(recorded: Mapping[str, object]) -> str:
    """The packages whose plugins a run needs and that are missing, and what to type; empty for none.

    Args:
        recorded: the run's environment.json, which has `plugin PACKAGE` with the version for each.
    """
    here = {plugin.package for plugin in load_plugins() if not plugin.error}
    used = {key.removeprefix("plugin "): value for key, value in recorded.items() if key.startswith("plugin ")}
    lost = {package: version for package, version in used.items() if package not in here}
    if not lost:
        return ""
    install = " ".join(f"'{package}=={version}'" for package, version in lost.items())
    said = f"the run was made with plugins that are not at hand: pip install {install}"
    return f"{said}; {broken}" if (broken := broken_plugins()) else said


def registered(undo: Callable[[], object]) -> Callable[[], object]:
    """Record a registration by a plugin.

    Args:
        undo: undoes the registration if the plugin fails later.

    Returns:
        A function to call when it is used, so that a run can record which packages it needs.
    """
    if _found is None:
        return lambda: None
    _undo.append(undo)
    loading = _loading

    def use() -> None:
        if loading is not None:
            _used[loading.package] = loading.version

    return use


def forget_plugins() -> None:
    """Undo all registrations of plugins, so that they are looked for again. For tests of plugins."""
    global _plugins
    for undos in (_undo, _done):
        while undos:
            undos.pop()()
    _used.clear()
    _plugins = None


_loading: Plugin | None = None


def _load(entry: EntryPoint) -> Plugin:
    global _loading
    package, version = (entry.dist.name, entry.dist.version) if entry.dist is not None else ("?", "?")
    before, _loading = set(sys.modules), Plugin(entry.name, package, version)
    try:
        entry.load()
    except (Exception, SystemExit) as error:  # noqa: BLE001  # of somebody else's module
        while _undo:
            _undo.pop()()
        own = entry.module.partition(".")[0]
        for name in set(sys.modules) - before:  # another plugin may have the same module, which is imported again
            if name.partition(".")[0] == own:
                del sys.modules[name]
        return replace(_loading, error=f"{type(error).__name__}: {error}")
    finally:
        plugin, _loading = _loading, None
    _done.extend(_undo)
    _undo.clear()
    return plugin
