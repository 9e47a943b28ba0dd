"""The README's commands and programs run as they stand, on a tiny model and made-up rows in place of the real ones."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from zofo.cli import main
from zofo.methods import METHODS
from zofo.training import read_config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


PAPERS = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


PROGRAMS = [*blocks("python"), *blocks("python", PAPERS)]


def run_commands(text, model_folder, tmp_path, monkeypatch, capsys, data_dir=None):
    """Run the shell blocks of a page as they stand, with a tiny model in place of the named ones; the verbs of zofo."""
    monkeypatch.chdir(tmp_path)
    verbs = set()
    for block in blocks("sh", text):
        if "printf " in block:
            subprocess.run(["bash", "-c", re.split(r"^zofo ", block, flags=re.MULTILINE)[0]], check=True)
        for line in block.replace("\\\n", " ").splitlines():
            if not line.startswith("zofo "):
                continue
            _, verb, *arguments = shlex.split(line)
            arguments = [re.sub("smollm2-135m|minilm", str(model_folder), one) for one in arguments]
            if verb == "preview":
                arguments.append(f"model={model_folder}")
            if data_dir is not None and verb not in ("predict", "study") and "--data" not in arguments:
                arguments += ["--data-dir", str(data_dir)]
            with pytest.raises(SystemExit) as end:
                main([verb, *arguments])
            assert not end.value.code, capsys.readouterr().err
            verbs.add(verb)
    return verbs


def test_commands(model_folder, data_dir, tmp_path, monkeypatch, capsys):
    verbs = run_commands(README, model_folder, tmp_path, monkeypatch, capsys, data_dir)
    assert verbs >= {"train", "eval", "predict", "preview", "validate", "study"}


@pytest.mark.soak
def test_commands_of_the_tutorial(model_folder, tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    few = re.sub(r"training\.steps=\d+", "training.steps=2", text)
    verbs = run_commands(few, model_folder, tmp_path, monkeypatch, capsys)
    assert verbs >= {"validate", "eval", "train", "predict", "export", "tune", "apply"}
    assert (tmp_path / "tickets-model" / "config.json").is_file()


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_programs(number, model_folder, data_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    program = PROGRAMS[number].replace('"smollm2-135m"', repr(str(model_folder)))
    program = program.replace('"movie-reviews"', repr({"name": "movie-reviews", "data_dir": str(data_dir)}))
    names: dict[str, object] = {}
    exec(compile(program, f"README program {number}", "exec"), names)  # noqa: S102
    assert capsys.readouterr().out or "print(" not in program
    assert "run" not in names or names["run"].summary["steps"] == 5
    if "losses" in names:
        assert names["losses"][-1] < names["losses"][0] / 2


def test_make_targets_that_are_named_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    text = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for target in set(re.findall(r"(?:^|`)make ([a-z]+)\b", text, flags=re.MULTILINE)):
        assert f"\n{target}:" in makefile, target


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!https?:)([\w/.-]*)#?([\w-]*)\)", text):
        file = (ROOT / page).parent / target if target else ROOT / page
        assert file.is_file(), target
        titles = re.findall(r"^#+ (.*)", file.read_text(encoding="utf-8"), flags=re.MULTILINE) if anchor else []
        found = {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}
        assert not anchor or anchor in found, f"{target}#{anchor}"


OPTIONS = [
    found for found in re.findall(r"`([^`\n]+)`", PAPERS) if re.match(r"(method|model|task|training)[.\w]*=", found)
]


@pytest.mark.parametrize("options", OPTIONS)
def test_every_row_of_the_papers_tables_is_a_configuration(options):
    given = [option for option in shlex.split(options) if "..." not in option]
    assert read_config(None, given).method.name


def test_the_papers_page_names_every_method():
    assert {name for name in METHODS if f"method={name}" not in PAPERS} == set()
