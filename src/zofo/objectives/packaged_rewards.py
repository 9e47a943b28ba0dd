"""Packaged rewards: each scores a generated text by itself, from 0 to 1."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zofo.errors import ConfigError
from zofo.filesystem import check_not_special
from zofo.registry import Registry
from zofo.tasks import METRICS, Example

TextReward = Callable[[Example, Any], float]
"""(example, generated text) -> a number from 0 to 1."""

REWARDS: Registry[Callable[[str], TextReward]] = Registry("reward")
"""By name, what makes a reward of the text that is typed after it, as in `regex:PATTERN`; "" where there is none."""


@REWARDS.register("exact-match")
def exact_match(typed: str) -> TextReward:
    """1 for a text that equals an accepted answer, as SQuAD compares them."""
    return _of_metric("exact-match", typed)


@REWARDS.register("number-match")
def number_match(typed: str) -> TextReward:
    """1 for a text that is the number of an accepted answer."""
    return _of_metric("number-match", typed)


@REWARDS.register("brevity")
def brevity(typed: str) -> TextReward:
    """1 / (1 + words of the text). Nonsense is short, too: look at the answers."""
    _nothing_after("brevity", typed)

    def reward(example: Example, text: Any) -> float:
        return 1 / (1 + len(str(text).split()))

    return reward


@REWARDS.register("regex")
def regex(typed: str) -> TextReward:
    """`regex:PATTERN`: 1 for a text that the regular expression matches somewhere, as `re.search` does; else 0."""
    if not typed:
        raise ConfigError("the reward regex has no pattern", r"type --reward 'regex:\d+'")
    try:
        pattern = re.compile(typed)
    except re.error as error:
        hint = r"type --reward 'regex:PATTERN' as re.search takes it; a weight stands before it: 'regex*0.2:\d+'"
        raise ConfigError(f"the reward regex:{typed} is no regular expression: {error}", hint) from error

    def reward(example: Example, text: Any) -> float:
        return float(pattern.search(str(text)) is not None)

    return reward


@REWARDS.register("json")
def json_text(typed: str) -> TextReward:
    """`json` or `json:SCHEMA.json`: 1 for JSON that meets the JSON Schema of a file, 1/2 for other JSON, else 0."""
    meets = None if not typed else _validator(typed)

    def reward(example: Example, text: Any) -> float:
        try:
            value = json.loads(_unfenced(str(text)))
        except (ValueError, RecursionError):
            return 0.0
        return 1.0 if meets is None or meets(value) else 0.5

    return reward


@REWARDS.register("rouge-l")
def rouge_l(typed: str) -> TextReward:
    """ROUGE-L (F1 of the longest common subsequence, stemmed) with the closest accepted answer, by rouge-score."""
    _nothing_after("rouge-l", typed)
    scorer = _library("rouge_score.rouge_scorer", "rouge-l").RougeScorer(["rougeL"], use_stemmer=True)

    def reward(example: Example, text: Any) -> float:
        return float(scorer.score_multi(list(_answers(example, "rouge-l")), str(text))["rougeL"].fmeasure)

    return reward


@REWARDS.register("bleu")
def bleu(typed: str) -> TextReward:
    """BLEU of the text with all accepted answers (sentence-wise, smoothed), from 0 to 1, by sacrebleu."""
    _nothing_after("bleu", typed)
    sacrebleu = _library("sacrebleu", "bleu")

    def reward(example: Example, text: Any) -> float:
        return float(sacrebleu.sentence_bleu(str(text), list(_answers(example, "bleu"))).score) / 100

    return reward


@REWARDS.register("ifeval")
def ifeval(typed: str) -> TextReward:
    """The share of a row's instructions that the text follows, by the checks of IFEval in lm-eval.

    A row has `instruction_id_list` and `kwargs`, as in google/IFEval: task.reward_columns=[instruction_id_list,kwargs].
    """
    _nothing_after("ifeval", typed)
    known = _library("lm_eval.tasks.ifeval.instructions_registry", "ifeval", "ifeval").INSTRUCTION_DICT

    def reward(example: Example, text: Any) -> float:
        row = example.columns_of_row
        if "instruction_id_list" not in row or "kwargs" not in row:
            raise ConfigError(
                f"{example.where}: the reward ifeval reads the columns instruction_id_list and kwargs",
                "set task.reward_columns=[instruction_id_list,kwargs]",
            )
        names, options = row["instruction_id_list"], row["kwargs"]
        followed = [
            _follows(known, name, given, example, str(text)) for name, given in zip(names, options, strict=True)
        ]
        return sum(followed) / len(followed)

    return reward


def _follows(known: Any, name: str, options: Any, example: Example, text: str) -> bool:
    """Whether a text follows one instruction, in IFEval's strict sense."""
    if name not in known:
        raise ConfigError(f"{example.where}: IFEval has no instruction {name!r}", f"it has {', '.join(sorted(known))}")
    instruction = known[name](name)
    instruction.build_description(**{key: value for key, value in (options or {}).items() if value is not None})
    if "prompt" in (instruction.get_instruction_args() or {}):
        instruction.build_description(prompt=_asked(example))
    try:
        return bool(text.strip()) and bool(instruction.check_following(text))
    except LookupError as error:  # of nltk, which lacks its model of sentences
        if "punkt" not in str(error):
            raise
        raise ConfigError(
            f"{example.where}: the instruction {name!r} counts sentences with nltk's punkt_tab, which is not there",
            "python -m nltk.downloader punkt_tab",
        ) from error


def _asked(example: Example) -> str:
    """What the user asked: the last turn of a chat, or the prompt."""
    return str(example.messages[-1][1]) if example.messages else example.prompt


def _of_metric(name: str, typed: str) -> TextReward:
    _nothing_after(name, typed)
    score = METRICS[name].score

    def reward(example: Example, text: Any) -> float:
        return score([example], [text])

    return reward


def _nothing_after(name: str, typed: str) -> None:
    if typed:
        raise ConfigError(f"the reward {name} takes nothing after its name, but {typed!r} is given", f"type {name}")


def _answers(example: Example, name: str) -> tuple[str, ...]:
    if not example.answers:
        raise ConfigError(f"{example.where}: the reward {name} compares with an answer, and the row has none", "add it")
    return example.answers


def _unfenced(text: str) -> str:
    """A text without the code fence around it, with which chat models write JSON."""
    found = re.fullmatch(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", text, flags=re.DOTALL)
    return found[1] if found else text


def _validator(typed: str) -> Callable[[Any], bool]:
    """A validator of a file's schema; references to other documents are not followed."""
    jsonschema, path = _library("jsonschema", "json"), Path(typed)
    referencing = importlib.import_module("referencing")
    hint = "type --reward 'json:SCHEMA.json', the path of a JSON Schema; a weight stands before it: 'json*0.5:...'"
    try:
        check_not_special(path)
        schema = json.loads(path.read_text(encoding="utf-8"))
        kind = jsonschema.validators.validator_for(schema)
        kind.check_schema(schema)
    except OSError as error:
        raise ConfigError(f"cannot read the schema {typed!r}: {error.strerror}", hint) from error
    except (ValueError, RecursionError, AttributeError, jsonschema.SchemaError) as error:
        raise ConfigError(f"{typed!r} is no JSON Schema: {str(error).splitlines()[0]}", hint) from error
    checks = kind(schema, registry=referencing.Registry())

    def meets(value: Any) -> bool:
        try:
            return bool(checks.is_valid(value))
        except referencing.exceptions.Unresolvable as error:
            raise ConfigError(
                f"the schema {typed!r} refers to {error}, which is not in it", "put what it refers to into its $defs"
            ) from error
        except RecursionError as error:
            raise ConfigError(
                f"the schema {typed!r} refers to itself without end", "let each $ref lead to another part of it"
            ) from error

    return meets


@functools.cache
def _library(name: str, reward: str, extra: str = "rewards") -> Any:
    """Import a module of a library that only this reward needs."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # lm-eval prints what it has downloaded
            return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"the reward {reward} needs {error.name or name}, which is not installed", f"pip install 'zofo[{extra}]'"
        ) from error
