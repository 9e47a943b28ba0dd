"""The file of a user's own rewards: its functions, and a hash of it and of the files beside it that it imports."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from zofo.errors import ConfigError, nearest
from zofo.filesystem import check_not_special


def function_of_file(path: Path, name: str) -> tuple[Callable[..., Any], str]:
    """Run a file and return its function of that name, the file's name, and a hash.

    The hash covers the file and the Python files of its folder that it imports.

    Raises:
        ConfigError: there is no such file or function, or the file fails; the message lists what is there.
    """
    try:
        check_not_special(path)
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read the rewards {str(path)!r}: {error.strerror}", "type --reward FILE.py:NAME"
        ) from error
    module = _module(path)
    own = [
        key
        for key, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", "") == module.__name__
    ]
    function = getattr(module, name, None)
    if not callable(function):
        near = nearest(name, own)
        raise ConfigError(
            f"{str(path)!r} has no function {name!r}",
            f"did you mean {near!r}?" if near else f"it has: {', '.join(own) or 'none'}",
        )
    imported = _imported(path.resolve())
    digest = hashlib.sha256(content)
    for place in sorted(imported):
        digest.update(f"\n{place} {hashlib.sha256(imported[place]).hexdigest()}".encode())
    files = f"{path.name} and {', '.join(sorted(imported))}" if imported else path.name
    return function, f"{files} sha256:{digest.hexdigest()[:16]}"


def _imported(path: Path) -> dict[str, bytes]:
    """The Python files in or below a file's folder that it imports, directly or indirectly, by relative path."""
    read, left = dict[Path, bytes](), [path]
    while left:
        file = left.pop()
        if file not in read and file.is_relative_to(path.parent):
            read[file] = file.read_bytes()
            with contextlib.suppress(SyntaxError, ValueError):  # of one that is never run
                left += [one for node in ast.walk(ast.parse(read[file])) for one in _files_of(node, file, path.parent)]
    del read[path]
    return {file.relative_to(path.parent).as_posix(): content for file, content in read.items()}


def _files_of(node: ast.AST, file: Path, folder: Path) -> Iterator[Path]:
    """The existing files that an import may refer to; installed packages are not included."""
    if isinstance(node, ast.Import):
        at, names = folder, [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        at = file.parents[min(node.level, len(file.parents)) - 1] if node.level else folder
        names = [f"{node.module or ''}.{alias.name}".strip(".") for alias in node.names]
    else:
        return
    for parts in (name.split(".") for name in names):
        for count in range(1, len(parts) + 1):
            place = at.joinpath(*parts[:count])
            yield from (one for one in (place.with_name(f"{place.name}.py"), place / "__init__.py") if one.is_file())


def _module(path: Path) -> Any:
    """Import a file as a module under a unique name; raises ConfigError if it fails.

    It can import files beside it, unless an installed module has their name: its folder comes last in `sys.path`.
    """
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(f"zofo_rewards_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(spec.name)
    sys.modules[spec.name] = module  # where dataclasses and the like look for it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever a user's file does
        sys.modules.pop(spec.name)
        if before is not None:
            sys.modules[spec.name] = before
        raise ConfigError(f"the file of rewards {str(path)!r} fails: {their_fault(error, path)}") from error
    return module


def their_fault(error: BaseException, file: Path | None = None) -> str:
    """The line of the user's own code that raised an error, and the error."""
    frames = [one for one in traceback.extract_tb(error.__traceback__) if not _is_ours(one.filename)]
    own = [one for one in frames if file is None or Path(one.filename) == file] or frames
    at = f"{Path(own[-1].filename).name}, line {own[-1].lineno}: {own[-1].line}: " if own else ""
    return f"{at}{type(error).__name__}: {error}"


def _is_ours(file: str) -> bool:
    return Path(file).is_relative_to(Path(__file__).parents[1]) or "importlib" in file
