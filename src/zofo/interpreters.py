"""Python interpreters that zofo starts: none imports anything from the folder that it is called in.

A `json.py` or `torch.py` that lies there, as in somebody's archive of data, would otherwise be taken for the library.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_HAS_SAFE_PATH = sys.version_info >= (3, 11)  # the option -P, and PYTHONSAFEPATH


def python_command(code: str, *arguments: str) -> list[str]:
    """The command of a Python interpreter that runs some code."""
    if _HAS_SAFE_PATH:
        return [sys.executable, "-P", "-c", code, *arguments]
    return [sys.executable, "-c", f"import sys; sys.path.pop(0); {code}", *arguments]


@contextmanager
def safe_path() -> Iterator[None]:
    """While it is open, the same holds for every interpreter that is started, from Python 3.11 on."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before
