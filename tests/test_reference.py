"""docs/reference.md: every key and part, as the source has them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from zofo.methods import METHODS
from zofo.noise import MASKS, NOISES
from zofo.rules import RULES
from zofo.training import read_config
from zofo.training.reference import COLUMNS, COMMAND, reference_page
from zofo.trees import flatten

PAGE = Path(__file__).parent.parent / "docs" / "reference.md"


def test_the_page_is_that_of_this_source():
    assert PAGE.read_text(encoding="utf-8") == reference_page(), f"renew it: {COMMAND}"


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].__module__.startswith("zofo.")])
def test_every_key_of_a_run_is_on_it(method):
    keys = {key.removesuffix(".name") for key, _ in flatten(read_config(None, [f"method={method}"]).model_dump())}
    page = reference_page()
    assert {key for key in keys if f"`{key}`" not in page} - {"model", "task", "method"} == set()


def test_every_part_is_on_it():
    page = reference_page()
    for kind, parts in (("noise", NOISES), ("mask", MASKS), ("rule", RULES)):
        shown = set(re.findall(rf"^### `method.{kind}=(.*)`$", page, re.M))
        assert shown == {name for name in parts if parts[name].__module__.startswith("zofo.")}


def test_every_key_has_its_type_default_and_sentence():
    items = re.split(r"^- ", reference_page().split("## Objectives")[0], flags=re.M)[1:]
    assert len(items) > 80
    for item in items:
        assert re.match(r"`[\w.]+` \([^)]*(\([^)]*\)[^)]*)*; (default .+?|not set|must be given)\):\s+\S", item), item


def test_its_lines_are_short():
    assert max(len(line) for line in reference_page().splitlines()) <= COLUMNS
