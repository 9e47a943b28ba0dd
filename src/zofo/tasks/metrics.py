"""Scores of predictions, through scikit-learn and torchmetrics."""

from __future__ import annotations

import functools
import re
import string
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from zofo.errors import ConfigError, DataError
from zofo.registry import Registry

if TYPE_CHECKING:
    from zofo.tasks.readers.row import Example

Answer = int | str
"""What a model predicts for an example: the index of a candidate, or the text of a generation."""

Score = Callable[[Sequence["Example"], Sequence[Answer]], float]
"""(examples, predictions) -> one number, higher is better."""


@dataclass(frozen=True)
class Metric:
    """A score of predictions.

    Args:
        kinds: the kinds of task that it applies to.
        about: one line on what it measures.
        score: (examples, predictions), of the same length n >= 1 -> from 0 to 1 (Matthews: from -1), never NaN. Raises
            a DataError if the right answer is unknown.
        of_one_label: whether it is the score of a single label, which outputs then name.
    """

    kinds: frozenset[str]
    about: str
    score: Score
    of_one_label: bool = False


METRICS: Registry[Metric] = Registry("metric")

_CHOSEN = ("classification", "multiple-choice")


def _metric(name: str, kinds: Sequence[str], about: str, of_one_label: bool = False) -> Callable[[Score], Score]:
    def enter(score: Score) -> Score:
        METRICS.register(name)(Metric(frozenset(kinds), about, score, of_one_label))
        return score

    return enter


def score_name(metric: str, label: str) -> str:
    """The name of a metric for people, with its label if it is for a single one: "f1 of 'fraud'"."""
    return f"{metric} of {label!r}" if label and metric in METRICS and METRICS[metric].of_one_label else metric


def check_metric(name: str, kind: str) -> None:
    """Refuse a metric that does not apply to a kind of task.

    Raises:
        UnknownNameError: there is no such metric.
        ConfigError: it does not apply to the kind; the hint lists those that do.
    """
    if kind not in METRICS[name].kinds:
        fitting = ", ".join(other for other in METRICS if kind in METRICS[other].kinds)
        raise ConfigError(f"the metric {name!r} has no meaning for a {kind} task", f"these have: {fitting}")


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """Token F1 of a generated text with the best of its accepted answers.

    2 * shared / (tokens of the prediction + tokens of the answer), after SQuAD's normalisation: lower case, without
    punctuation and the articles a, an, the, split at white space. Unlike SQuAD's script, it compares two numbers by
    value, keeps signs and decimal points in texts, so that "-5 C" is not "5 C", and does not normalise an answer that
    would become empty, such as "A".

    Args:
        answers: accepted texts, at least one.

    Returns:
        From 0 to 1.

    Raises:
        DataError: there is no accepted answer.
    """
    if not answers:
        raise _unknown("", "answer")
    return _squad([prediction], [answers], "f1")


def _squad(predictions: Sequence[str], answers: Sequence[Sequence[str]], which: str) -> float:
    """The mean of `f1` or `exact_match` over texts, each with the best of its accepted answers."""
    values = [
        max(_squad_pair(prediction, answer, which) for answer in accepted)
        for prediction, accepted in zip(predictions, answers, strict=True)
    ]
    return sum(values) / len(values)


@functools.lru_cache(1 << 16)  # an interval by resampling compares the same texts a thousand times
def _squad_pair(prediction: str, answer: str, which: str) -> float:
    from torchmetrics.functional.text.squad import squad

    same = same_number(prediction, answer)
    if same is None:
        same = same_without_tokens(prediction, answer)
    if same is not None:
        return float(same)
    found = [{"prediction_text": with_whole_numbers(prediction), "id": "0"}]
    right = [{"answers": {"answer_start": [0], "text": [with_whole_numbers(answer)]}, "id": "0"}]
    return float(squad(found, right)[which]) / 100


@_metric("accuracy", _CHOSEN, "share of predictions that are right")
def _accuracy(examples: Sequence[Example], answers: Sequence[Answer]) -> float:
    return _share(_rights(examples, answers))


@_metric("macro-f1", ("classification",), "mean of the F1 of each label that occurs or is predicted")
def _macro_f1(examples: Sequence[Example], answers: Sequence[Answer]) -> float:
    return macro_f1_of(*_labels(examples, answers))


def macro_f1_of(gold: Sequence[Any], predicted: Sequence[Any]) -> float:
    """The mean F1 over all labels that occur or are predicted, from 0 to 1."""
    from sklearn.metrics import f1_score

    return float(f1_score(gold, predicted, average="macro", zero_division=0.0))


def _positive_f1(name: str) -> Score:
    """F1 of `Example.positive`, or of the second of two labels, under the name of a metric."""

    def score(examples: Sequence[Example], answers: Sequence[Answer]) -> float:
        from sklearn.metrics import f1_score

        gold, predicted = _labels(examples, answers)
        for example in examples:
            if example.positive is None and len(example.candidates) != 2:
                raise DataError(
                    f"{example.where}: the metric {name!r} needs two labels, and there are {len(example.candidates)}",
                    "name the one that it is of with task.positive_label, or set the metric to macro-f1",
                )
        positive = 1 if examples[0].positive is None else examples[0].positive
        found = [one == positive for one in predicted]
        return float(f1_score([one == positive for one in gold], found, average="binary", zero_division=0.0))

    return score


_F1 = "F1 of one label, `task.positive_label`; by default the last of two"
_metric("f1", ("classification",), _F1, of_one_label=True)(_positive_f1("f1"))


@_metric("matthews", ("classification",), "Matthews' correlation of right and predicted labels, from -1 to 1")
def _matthews(examples: Sequence[Example], answers: Sequence[Answer]) -> float:
    from sklearn.metrics import matthews_corrcoef

    gold, predicted = _labels(examples, answers)
    if len(set(gold)) == 1 or len(set(predicted)) == 1:
        return 0.0  # what scikit-learn returns as well, but with a warning for some of these
    return float(matthews_corrcoef(gold, predicted))


_F1A = "MultiRC: F1 of the last of two labels over the answers to all questions"
_metric("f1a", ("classification",), _F1A, of_one_label=True)(_positive_f1("f1a"))


@_metric("em", ("classification",), "MultiRC: share of groups, its questions, in which every prediction is right")
def _em(examples: Sequence[Example], answers: Sequence[Answer]) -> float:
    groups: dict[str, bool] = {}
    for example, right in zip(examples, _rights(examples, answers), strict=True):
        if not example.group:
            raise DataError(
                f"{example.where}: the metric 'em' counts groups of rows, and this row is in none",
                "name the columns that tell the groups apart in the task file: group: [question]",
            )
        groups[example.group] = groups.get(example.group, True) and right
    return _share(list(groups.values()))


@_metric("exact-match", ("generation",), "share of texts that equal an accepted answer, as SQuAD compares them")
def _exact_match(examples: Sequence[Example], answers: Sequence[Answer]) -> float:
    return _squad(*_texts(examples, answers), "exact_match")


@_metric("token-f1", ("generation",), "mean F1 of the tokens of a text and its best accepted answer, as in SQuAD")
def _token_f1(examples: Sequence[Example], answers: Sequence[Answer]) -> float:
    return _squad(*_texts(examples, answers), "f1")


@_metric("text-match", ("generation",), "share of texts that equal an accepted answer, but for white space around them")
def _text_match(examples: Sequence[Example], answers: Sequence[Answer]) -> float:
    return _matches(examples, answers, lambda one, other: plain(one) == plain(other))


@_metric("number-match", ("generation",), "share of texts that are the number of an accepted answer: 12.0 is 12")
def _number_match(examples: Sequence[Example], answers: Sequence[Answer]) -> float:
    return _matches(examples, answers, number_or_text_match)


def _matches(examples: Sequence[Example], answers: Sequence[Answer], same: Callable[[str, str], bool]) -> float:
    found, right = _texts(examples, answers)
    return _share([any(same(text, one) for one in accepted) for text, accepted in zip(found, right, strict=True)])


def _unknown(where: str, what: str) -> DataError:
    return DataError(
        f"{where or 'an example'}: its {what} is not known, so that predictions cannot be scored",
        f"give rows with their {what}, or take a split that has them; `zofo predict` needs none",
    )


def _known(examples: Sequence[Example], name: str, what: str) -> None:
    if not examples:
        raise DataError("no examples to score", "give at least one row")
    for example in examples:
        if not getattr(example, name):
            raise _unknown(example.where, what)


def _rights(examples: Sequence[Example], answers: Sequence[Answer]) -> list[bool]:
    _known(examples, "golds", "label")
    return [answer in example.golds for example, answer in zip(examples, answers, strict=True)]


def _share(rights: Sequence[bool]) -> float:
    return sum(rights) / len(rights)


def _labels(examples: Sequence[Example], answers: Sequence[Answer]) -> tuple[list[int], list[int]]:
    """The right and the predicted label of each example; if several are right, the predicted one if it is among
    them."""
    _known(examples, "golds", "label")
    predicted = [int(answer) for answer in answers]
    pairs = zip(examples, predicted, strict=True)
    return [label if label in example.golds else example.golds[0] for example, label in pairs], predicted


def _texts(examples: Sequence[Example], answers: Sequence[Answer]) -> tuple[list[str], list[tuple[str, ...]]]:
    _known(examples, "answers", "answer")
    return [str(answer) for answer in answers], [example.answers for _, example in zip(answers, examples, strict=True)]


# when two free answers are the same: as texts, and as numbers

_NUMBER = re.compile(
    r"(?P<before>[$€£¥₹]?)\s?(?P<sign>[+-]?)\s?(?P<inner>[$€£¥₹]?)"
    r"(?P<digits>\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d+|(?=\.\d))(?P<fraction>\.\d*)?(?P<power>[eE][+-]?\d{1,4})?"
    r"\s?(?P<after>[%$€£¥₹]?)\.?"
)
_MINUS = str.maketrans({"−": "-", "﹣": "-", "－": "-", "\u00a0": " ", "\u2009": " ", "\u202f": " "})
_BETWEEN = {".": "point", ",": "comma", ":": "colon", "/": "slash", "-": "dash"}
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def plain(text: str) -> str:
    """A text in Unicode form NFC, without surrounding white space."""
    return unicodedata.normalize("NFC", text).strip()


def number_in(text: str) -> tuple[Decimal, str] | None:
    """The number that a whole text represents, with its unit; None for any other text.

    A unit is one currency sign or a percent sign, "" for none. Commas and spaces may group digits by three; a full stop
    may follow. `1.000,5` and `1/2` are not numbers.
    """
    found = _NUMBER.fullmatch(plain(text).translate(_MINUS))
    if found is None:
        return None
    units = [found[part] for part in ("before", "inner", "after") if found[part]]
    if len(units) > 1:
        return None
    digits = re.sub("[, ]", "", found["digits"])
    written = f"{found['sign']}{digits or '0'}{(found['fraction'] or '').rstrip('.')}{found['power'] or ''}"
    return Decimal(written), units[0] if units else ""


def same_number(one: str, other: str) -> bool | None:
    """Whether two texts are the same number; None if one of them is not a number.

    Units must agree if both have one: `$5` equals `5`, but not `€5`. A percentage is not a fraction: `5%` equals `5`,
    not `0.05`.
    """
    first, second = number_in(one), number_in(other)
    if first is None or second is None:
        return None
    return first[0] == second[0] and (first[1] == second[1] or not first[1] or not second[1])


def number_or_text_match(one: str, other: str) -> bool:
    """Whether two texts are the same number or, if one is not a number, the same text."""
    same = same_number(one, other)
    return plain(one) == plain(other) if same is None else same


def same_without_tokens(one: str, other: str) -> bool | None:
    """Whether a text equals one that SQuAD's normalisation would make empty; None if it would not be empty.

    SQuAD drops punctuation and the articles a, an, the. Here articles are kept and, if necessary, punctuation.
    """
    first, second = _bare(one), _bare(other)
    if _ARTICLES.sub(" ", second).strip():
        return None
    return first == second if first or second else plain(one) == plain(other)


def with_whole_numbers(text: str) -> str:
    """A text whose numbers survive SQuAD's normalisation, which would make 15 of 1.5 and of -15, and 10 of 1:0.

    Signs, and separators between digits, become words; thousands separators are removed.
    """
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", plain(text).translate(_MINUS))
    text = re.sub(r"(?<![\w.,])-(?=\.?\d)", "minus", text)
    text = re.sub(r"(?<![\w.])\.(?=\d)", "0.", text)
    return re.sub(r"(?<=\d)[.,:/-](?=\d)", lambda sign: _BETWEEN[sign[0]], text)


def _bare(text: str) -> str:
    return " ".join(plain(text).lower().translate(_PUNCTUATION).split())
