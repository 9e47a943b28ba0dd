"""No interpreter that zofo starts takes a module from the folder that it is called in."""

from __future__ import annotations

import ast
import multiprocessing
import os
import subprocess
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

import zofo
from zofo import interpreters
from zofo.interpreters import LIBRARIES, python_command, safe_path, worker_context

SOURCE = Path(zofo.__file__).parent
MODULES = ("json", "random", "tempfile", "logging", "torch", "pip", "colorsys", "zofo", "transformers", "queue")


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """The current folder holds modules that leave a trace when they are imported."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    for name in MODULES:
        (folder / f"{name}.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'trace')!r} + {name!r})\n")
    monkeypatch.chdir(folder)
    yield folder
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("trace")] == []


@pytest.mark.promise(12)
@pytest.mark.parametrize("option", [True, False])
def test_a_command_imports_nothing_from_its_folder(hostile, monkeypatch, option):
    """With -P, and as Python 3.10 has to do without it."""
    monkeypatch.setattr(interpreters, "_HAS_SAFE_PATH", option and interpreters._HAS_SAFE_PATH)
    command = python_command("import json, colorsys, sys; print(json.__file__, sys.argv[1])", "given")
    assert ("-P" in command) == (option and interpreters._HAS_SAFE_PATH)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert str(hostile) not in done.stdout
    assert done.stdout.split()[1] == "given"


def test_python_path_is_left_to_the_user(hostile, monkeypatch, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine_alone.py").write_text("value = 7\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "own"), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(python_command("import mine_alone; print(mine_alone.value)"), capture_output=True, text=True)
    assert done.stdout == "7\n"


@pytest.mark.promise(12)
@pytest.mark.skipif(not interpreters._HAS_SAFE_PATH, reason="Python 3.10 has no PYTHONSAFEPATH")
def test_a_pool_of_processes_imports_nothing_from_its_folder(hostile, monkeypatch):
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    for context in (multiprocessing.get_context("spawn"), worker_context(())):
        with safe_path(), ProcessPoolExecutor(1, context) as pool:
            assert pool.submit(os.getpid).result() != os.getpid()
    assert "PYTHONSAFEPATH" not in os.environ


@pytest.mark.soak
def test_what_is_imported_once_starts_no_threads_of_its_own():
    """Those of OpenBLAS end in a fork and start again; others would be missing in it."""
    imports = ", ".join(LIBRARIES)
    command = python_command(f"import {imports}, os, sys, torch; print(*os.listdir('/proc/self/task'), os.getpid())")
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "4"}
    threads, own = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()
    assert threads == own


@pytest.mark.skipif(not interpreters._HAS_SAFE_PATH, reason="Python 3.10 has no PYTHONSAFEPATH")
@pytest.mark.parametrize(
    ("platform", "accelerator", "how"),
    [("linux", False, "forkserver"), ("linux", True, "spawn"), ("darwin", False, "spawn")],
)
def test_processes_are_forked_where_that_is_safe(monkeypatch, platform, accelerator, how):
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr("torch.accelerator.is_available", lambda *_: accelerator)
    assert worker_context(()).get_start_method() == how


@pytest.mark.promise(12)
def test_every_interpreter_is_started_so():
    starters = {"subprocess.run", "subprocess.Popen", "ProcessPoolExecutor", "worker_context"}
    for path in SOURCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        named = any(name.partition(".")[0] in text for name in starters)  # to parse all of the source takes a second
        tree = ast.parse(text if named else "")
        calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        if calls & starters:
            assert {"python_command", "safe_path"} & calls, path
        if path.name not in ("interpreters.py", "demo.py"):  # which shows the path of the command zofo
            assert "sys.executable" not in text, path


@pytest.mark.parametrize(("leader", "shown"), [("os.getppid()", True), ("dead", False)])
def test_an_error_of_a_process_whose_leader_has_gone_is_not_shown(leader, shown):
    ended = "import subprocess, sys; dead = subprocess.Popen([sys.executable, '-c', '']); dead.wait(); dead = dead.pid"
    code = f"{ended}; import os; import zofo.fork_server as one; one._LEADER = {leader}; 1 / 0"
    done = subprocess.run(python_command(code), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert ("ZeroDivisionError" in done.stderr) == shown


@pytest.mark.parametrize(("given", "set_to"), [(None, [3]), ("1", [])])
def test_a_worker_has_the_threads_that_the_user_gives(monkeypatch, given, set_to):
    asked = []
    monkeypatch.setattr("torch.set_num_threads", asked.append)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    interpreters.begin_worker(3)
    assert asked == set_to
