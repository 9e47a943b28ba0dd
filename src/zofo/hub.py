"""Whether the Hub can be reached, found out in seconds: its own client retries for half a minute."""

from __future__ import annotations

import functools
import socket
import threading
import time
import urllib.request
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import urlsplit

from zofo.errors import nearest
from zofo.temporary import temporarily

_SECONDS = 3.0  # seconds for a name lookup and an answer
_MINUTE = 60  # seconds that an answer is valid


def unreachable() -> str | None:
    """Why the Hub, or the proxy to it, cannot be reached; None if it can, or if only its cache is used."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return None
    host = urlsplit(constants.ENDPOINT).hostname or ""
    proxies = {} if urllib.request.proxy_bypass(host) else urllib.request.getproxies()
    address = urlsplit(proxies.get(urlsplit(constants.ENDPOINT).scheme) or constants.ENDPOINT)
    port = address.port or (443 if address.scheme == "https" else 80)
    return _cannot_connect(address.hostname or "", port, int(time.monotonic() // _MINUTE))


@functools.lru_cache(maxsize=1)
def _cannot_connect(host: str, port: int, _minute: int) -> str | None:
    said: list[str | None] = [f"no answer of {host} in {_SECONDS:g} seconds"]

    def connect() -> None:
        try:
            socket.create_connection((host, port), _SECONDS).close()
            said.append(None)
        except OSError as error:
            said.append(f"{host}: {error.strerror or error}")

    thread = threading.Thread(target=connect, daemon=True)  # a name lookup may take too long
    thread.start()
    thread.join(_SECONDS + 0.5)
    return said[-1]


def asking_cache() -> AbstractContextManager[None]:
    """Context in which the Hub's client reads only its cache."""
    from huggingface_hub import constants

    return temporarily(constants, HF_HUB_OFFLINE=True)


def near_path(name: str, ends: tuple[str, ...] = ()) -> str | None:
    """An existing file or folder with a similar name in the same place; None if there is none.

    Args:
        ends: possible extensions; without any, a bare name is not looked up, as it may be a Hub id.
    """
    path = Path(name)
    if not ends and path.parent == Path("."):
        return None
    try:
        beside = [other.name for other in path.parent.iterdir() if not ends or other.name.endswith(ends)]
    except OSError:  # there is no such folder, or it may not be read
        return None
    near = nearest(path.name, beside)
    return None if near is None else str(path.parent / near)
