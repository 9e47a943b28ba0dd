"""The README's commands and programs run as they stand, on a tiny model and made-up rows instead of the real ones."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import build_model
from zofo.cli import main
from zofo.methods import METHODS
from zofo.training import read_config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def page(name: str) -> str:
    """A page of the documentation."""
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


def with_few_steps(text: str) -> str:
    """A page whose commands and programs make two steps."""
    return re.sub(r"""(training\.steps=|"steps": )\d+""", r"\g<1>2", text)


PAPERS = page("papers")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


PROGRAMS = [*blocks("python"), *blocks("python", PAPERS)]


def shell(text, **options):
    """Run lines of a page; `zofo` is the one beside this Python."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(["bash", "-c", text], check=True, env={**os.environ, "PATH": path}, **options)


def run_commands(text, model_folder, tmp_path, monkeypatch, capsys, data_dir=None):
    """Run the shell blocks of a page as they stand, with a tiny model instead of the named ones; the verbs of zofo."""
    monkeypatch.chdir(tmp_path)
    verbs = set()
    for block in blocks("sh", text):
        if "printf " in block:
            shell(re.split(r"^zofo ", block, flags=re.MULTILINE)[0])
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
    verbs = run_commands(with_few_steps(page("tutorial")), model_folder, tmp_path, monkeypatch, capsys)
    assert verbs >= {"validate", "eval", "train", "predict", "export", "tune", "apply"}
    assert (tmp_path / "tickets-model" / "config.json").is_file()


GUIDES = {
    "classify": {"validate", "train", "eval", "predict"},
    "chat": {"preview", "eval", "train", "predict"},
    "reward": {"train"},
    "big-model": {"estimate", "train", "export"},
    "many-runs": {"study"},
}
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture
def chat_model(tmp_path, tokenizer) -> Path:
    """A tiny model with room for a chat, and a chat template."""
    folder = tmp_path / "tiny-chat"
    build_model("llama", len(tokenizer), positions=2048).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder


@pytest.mark.soak
@pytest.mark.parametrize("name", GUIDES)
def test_commands_of_a_guide(name, chat_model, tmp_path, monkeypatch, capsys):
    """Also its programs and its study; pages take the rows of those on classifying and on chats."""
    text, model = with_few_steps(page(name)), str(chat_model)
    for source in ("classify", "chat"):
        rows = next(block for block in blocks("sh", page(source)) if "printf " in block)
        shell(re.split(r"^zofo ", rows, flags=re.MULTILINE)[0], cwd=tmp_path)
    for program in blocks("python", text):
        if file := re.match(r"# (\w+\.py)\n", program):
            (tmp_path / file[1]).write_text(program, encoding="utf-8")
    for study in blocks("yaml", text):
        (tmp_path / "compare.yaml").write_text(study.replace("minilm", model), encoding="utf-8")
    assert run_commands(text, chat_model, tmp_path, monkeypatch, capsys) == GUIDES[name]
    for program in blocks("python", text):
        exec(compile(program.replace("smollm2-135m", model), name, "exec"), {})  # noqa: S102


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
    "file", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!https?:)([\w/.-]*)#?([\w-]*)\)", text):
        led_to = (ROOT / file).parent / target if target else ROOT / file
        assert led_to.is_file(), target
        titles = re.findall(r"^#+ (.*)", led_to.read_text(encoding="utf-8"), flags=re.MULTILINE) if anchor else []
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
