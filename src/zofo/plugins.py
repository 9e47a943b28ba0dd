"""Parts from other packages: methods, noises, rules, adapters, metrics, tasks and all else that a registry holds.

A package names a module under the entry point group `zofo.plugins`:

    [project.entry-points."zofo.plugins"]
    my-parts = "my_package.zofo_parts"

Importing that module registers its parts, with the same decorators as zofo's own. The module is imported when somebody
names a part that zofo does not have, or lists all of them. So it works on the command line, in Python, in the processes
of a study and in every later use of a run; and a plugin that is broken harms nobody who does not need it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

GROUP = "zofo.plugins"


@dataclass(frozen=True)
class Plugin:
    """An entry point of the group.

    Args:
        name: of the entry point.
        package: the distribution that has it.
        version: of the distribution.
        error: why its module could not be imported; empty for a plugin that works.
    """

    name: str
    package: str
    version: str
    error: str = ""

    def __str__(self) -> str:
        return f"the plugin {self.name!r} of {self.package} {self.version}"


_plugins: list[Plugin] | None = None
_undo: list[Callable[[], object]] | None = None  # of what the plugin that is being imported has registered
_done: list[Callable[[], object]] = []  # of what all plugins have


def load_plugins() -> list[Plugin]:
    """Import all plugins, once a process, and give them back; those that failed say why and have registered nothing."""
    global _plugins
    if _plugins is None:
        _plugins = []  # a plugin that looks up a name while it is imported finds those before it
        for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value)):
            _plugins.append(_load(entry))
    return _plugins


def loaded_packages() -> dict[str, str]:
    """The packages whose plugins are in use in this process, with their versions."""
    return {plugin.package: plugin.version for plugin in _plugins or () if not plugin.error}


def broken_plugins() -> str:
    """What is wrong with the plugins that could not be imported, in one sentence each; empty where all could."""
    return "; ".join(f"{plugin} could not be imported: {plugin.error}" for plugin in load_plugins() if plugin.error)


def lost_packages(recorded: Mapping[str, object]) -> str:
    """Which packages a run was made with whose plugins are not at hand, and what to type; empty for none.

    Args:
        recorded: the environment.json of the run, which has `plugin PACKAGE` with the version for each.
    """
    here = {plugin.package for plugin in load_plugins() if not plugin.error}
    used = {key.removeprefix("plugin "): value for key, value in recorded.items() if key.startswith("plugin ")}
    lost = {package: version for package, version in used.items() if package not in here}
    if not lost:
        return ""
    install = " ".join(f"'{package}=={version}'" for package, version in lost.items())
    said = f"the run was made with plugins that are not installed: pip install {install}"
    return f"{said}; {broken}" if (broken := broken_plugins()) else said


def registered(undo: Callable[[], object]) -> None:
    """Say that something was registered, and how that is taken back if the plugin that did it fails later."""
    if _undo is not None:
        _undo.append(undo)


def forget_plugins() -> None:
    """Take back what all plugins registered, so that they are looked for again: for tests of plugins."""
    global _plugins
    while _done:
        _done.pop()()
    _plugins = None


def _load(entry: EntryPoint) -> Plugin:
    global _undo
    package, version = (entry.dist.name, entry.dist.version) if entry.dist is not None else ("?", "?")
    undo = _undo = []
    try:
        entry.load()
    except (Exception, SystemExit) as error:  # noqa: BLE001  # of somebody else's module
        while undo:
            undo.pop()()
        return Plugin(entry.name, package, version, f"{type(error).__name__}: {error}")
    finally:
        _undo = None
    _done.extend(undo)
    return Plugin(entry.name, package, version)
