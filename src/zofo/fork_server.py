"""Imported first by the fork server, from which workers are forked: hides errors of a server whose parent is gone.

Its locks are gone with the parent, for which Python would show a traceback.
"""

from __future__ import annotations

import os
import sys
from types import TracebackType

import psutil

_LEADER = os.getppid()  # of the process that imports this, and so of all that are forked from it


def _is_gone(process: int) -> bool:
    try:
        return bool(psutil.Process(process).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not _is_gone(_LEADER):
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _show
