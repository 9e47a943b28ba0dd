"""The command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb; a mistake of the user is one message and an exit code, never a traceback."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from rich.text import Text

    from zofo.cli.app import app
    from zofo.cli.shared import err
    from zofo.errors import ZofoError

    try:
        app(arguments)
    except ZofoError as error:
        err.print(Text.assemble(("error: ", "bold red"), error.message), soft_wrap=True)
        if error.hint:
            err.print(Text.assemble(("hint: ", "bold"), error.hint), soft_wrap=True)
        sys.exit(error.exit_code)
    except SystemExit as end:
        if end.code == _INTERRUPTED:  # typer's answer to Ctrl-C
            err.print("interrupted; a run that had begun keeps what it learned in its folder")
        raise
