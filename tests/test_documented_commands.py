"""Every command that README and docs show is one that the command line takes: its verb, its options, its keys."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from zofo.cli.app import command as zofo
from zofo.errors import ZofoError
from zofo.methods import METHODS
from zofo.recipes import recipe_names
from zofo.studies import read_study, study_names
from zofo.training import read_config

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGURED = {"train", "preview", "validate", "tune lr"}  # and eval, of no run
STANDS_FOR = {"S": "0"}  # a number; other words in capitals are paths and names


def written_in(page: Path) -> set[str]:
    """The commands of a page: lines of its shell blocks, indented lines, and what stands between backticks."""
    text = page.read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```(?:sh|bash)\n(.*?)```", text, flags=re.DOTALL))
    rest = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    lines = [line.strip() for line in [*blocks.replace("\\\n", " ").splitlines(), *re.findall(r"^    .*$", rest, re.M)]]
    return {line for line in lines if line.startswith("zofo ")} | set(re.findall(r"`(zofo [^`]+)`", rest))


def parts_of(command: str) -> tuple[str, list[str], list[str]]:
    """Verb, options and arguments; the marks of what is optional or left out (`[--step N]`, `|`, `...`) are none."""
    _, verb, *words = shlex.split(command, comments=True)
    if verb in ("tune", "bench"):
        verb = f"{verb} {words.pop(0)}"
    words = [word if "=" in word else word.strip("[]|") for word in words if "..." not in word and word != "key=value"]
    options = [word for word in words if word.startswith("--")]
    return verb, options, [word for word in words if word not in options]


COMMANDS = sorted({command for page in PAGES for command in written_in(page)})


def options_of(verb: str) -> set[str]:
    """The options that the command line has for a verb."""
    found = zofo
    for part in verb.split():
        assert part in found.commands, f"there is no verb {verb!r}"
        found = found.commands[part]
    return {name for option in found.params for name in (*option.opts, *option.secondary_opts) if name.startswith("--")}


def test_commands_are_found():
    assert len(COMMANDS) > 80
    assert {parts_of(command)[0] for command in COMMANDS} >= {*CONFIGURED, "replay", "diff", "export", "apply", "study"}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_line_takes_it(command):
    verb, options, arguments = parts_of(command)
    assert set(options) <= options_of(verb)
    if verb in CONFIGURED or (verb == "eval" and arguments and "=" in arguments[0]):
        recipe = arguments[0] if arguments and arguments[0] in recipe_names() else None
        keys = [
            word for word in arguments if re.match(r"[a-z_.]+=", word) and (recipe or not word.startswith("preset"))
        ]
        assert read_config(recipe, [re.sub(r"=([A-Z])$", lambda one: f"={STANDS_FOR[one[1]]}", key) for key in keys])
    if verb == "study" and arguments and not arguments[0].endswith(".yaml"):
        words = shlex.split(command, comments=True)
        changes = [word for at, word in enumerate(words) if words[at - 1] == "--set"]
        assert arguments[0] in study_names()  # each can be read: see test_packaged_studies.py
        assert not changes or read_study(arguments[0], changes)


def options_in(page: Path) -> list[str]:
    """The `key=value` that stand between backticks on a page, but for those whose value is a letter."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = re.findall(r"`([^`]+)`", text)
    return [
        one for one in found if re.match(r"[\"']?(method|model|task|training)[.=]", one) and not re.search("=[NQ]", one)
    ]


def accepted(option: str) -> bool:
    """Whether some method takes it, or in place."""
    keys = [key for key in shlex.split(option) if "..." not in key and "=" in key]
    for method in ("mezo", "mezo method.evaluator=in-place", *METHODS):
        try:
            return bool(read_config(None, [*f"method={method}".split(), *keys]))
        except ZofoError:
            continue
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_its_options_are_options(page):
    assert [option for option in options_in(page) if not accepted(option)] == []


def test_the_configuration_of_the_documentation_can_be_read(tmp_path):
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    (tmp_path / "first.yaml").write_text(text.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    shown = read_config(tmp_path / "first.yaml")
    assert shown.training.eval_steps == 10
    given = ["method=bilevel", "method.batch_size=8", "training.eval_steps=10", "training.steps=20"]
    defaults = read_config(None, [*given, "output_dir=runs/first"])
    assert defaults.method == shown.method  # the rest of what it shows are the defaults
