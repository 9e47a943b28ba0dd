"""Metrics: against values by hand and scikit-learn, for the right kinds of task, and never NaN."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from sklearn.metrics import f1_score, matthews_corrcoef

from zofo.errors import ConfigError, DataError, UnknownNameError
from zofo.tasks.metrics import METRICS, check_metric, token_f1
from zofo.tasks.readers.row import Example

KINDS = {
    "accuracy": {"classification", "multiple-choice"},
    "macro-f1": {"classification"},
    "f1": {"classification"},
    "matthews": {"classification"},
    "f1a": {"classification"},
    "em": {"classification"},
    "exact-match": {"generation"},
    "token-f1": {"generation"},
    "text-match": {"generation"},
    "number-match": {"generation"},
}


def labelled(*golds, labels=2, groups=None):
    """One example for each right label, or for each tuple of right choices."""
    names = tuple(f" label {i}" for i in range(labels))
    return [
        Example(
            "", names, gold if isinstance(gold, tuple) else (gold,), group=groups[i] if groups else "", where=f"f:{i}"
        )
        for i, gold in enumerate(golds)
    ]


def asked(*answers):
    return [Example("", (a[0],), (0,), a, where=f"f:{i}") for i, a in enumerate(answers)]


def score(name, examples, answers):
    return METRICS[name].score(examples, answers)


def test_every_metric_has_its_kinds_and_a_line_about_it():
    assert {name: METRICS[name].kinds for name in METRICS} == KINDS
    assert all(METRICS[name].about and "\n" not in METRICS[name].about for name in METRICS)


def test_accuracy_takes_any_of_the_right_choices():
    assert score("accuracy", labelled(0, 1, 1, 0), [0, 1, 0, 0]) == 0.75
    assert score("accuracy", labelled((0, 2), (1,), (1, 2), labels=3), [2, 1, 0]) == 2 / 3


def test_f1_by_hand():
    # positives: 3 right ones, 3 predicted, 2 shared
    assert score("f1", labelled(1, 1, 1, 0, 0), [1, 1, 0, 1, 0]) == pytest.approx(2 / 3)
    # negatives: 2 right ones, 2 predicted, 1 shared
    assert score("macro-f1", labelled(1, 1, 1, 0, 0), [1, 1, 0, 1, 0]) == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_f1_is_of_the_last_label():
    assert score("f1", labelled(1, 0, 0), [1, 1, 1]) == pytest.approx(0.5)
    assert score("f1", labelled(0, 1, 1), [0, 0, 0]) == 0.0


def test_matthews_by_hand():
    # 2 true positives, 1 false positive, 1 false negative, 1 true negative
    assert score("matthews", labelled(1, 1, 1, 0, 0), [1, 1, 0, 1, 0]) == pytest.approx((2 * 1 - 1 * 1) / 6)
    assert score("matthews", labelled(0, 1, 0, 1), [1, 0, 1, 0]) == pytest.approx(-1)


def test_multirc_by_hand():
    examples = labelled(1, 0, 1, 1, 0, groups=["a", "b", "a", "b", "c"])
    answers = [1, 0, 1, 0, 0]  # all of a and c, not all of b
    assert score("em", examples, answers) == pytest.approx(2 / 3)
    assert score("f1a", examples, answers) == pytest.approx(2 * 2 / (3 + 2))


@pytest.mark.parametrize("labels", [2, 5])
def test_labels_score_as_in_scikit_learn(labels):
    dice = random.Random(labels)
    gold, found = ([dice.randrange(labels) for _ in range(200)] for _ in range(2))
    examples = labelled(*gold, labels=labels)
    assert score("macro-f1", examples, found) == pytest.approx(f1_score(gold, found, average="macro"))
    assert score("matthews", examples, found) == pytest.approx(matthews_corrcoef(gold, found))
    if labels == 2:
        assert score("f1", examples, found) == score("f1a", examples, found) == pytest.approx(f1_score(gold, found))


@pytest.mark.parametrize(
    ("prediction", "answers", "f1"),
    [
        ("Denver Broncos", ["Denver Broncos"], 1),
        ("the Denver Broncos!", ["denver  broncos"], 1),
        ("Denver", ["Denver Broncos"], 2 / 3),
        ("Denver", ["Denver Broncos", "Denver"], 1),
        ("in Denver in Denver", ["Denver"], 2 / 5),  # a token is shared as often as both have it
        ("Carolina", ["Denver"], 0),
        ("", ["Denver"], 0),
        ("the", ["Denver"], 0),
        ("", ["The"], 0),  # nothing is left of the answer, so it is compared as it is
        ("naïve café", ["café"], 2 / 3),
        ("東京", ["東京"], 1),
        ("👍", ["👎"], 0),
        ("\ud800", ["\ud800"], 1),
    ],
)
def test_token_f1_by_hand(prediction, answers, f1):
    assert token_f1(prediction, answers) == pytest.approx(f1)
    assert score("token-f1", asked(tuple(answers)), [prediction]) == pytest.approx(f1)


def test_texts_score_as_the_mean_over_examples():
    examples = asked(("Denver Broncos",), ("1976", "in 1976"), ("no",))
    found = ["Denver", "In 1976.", "yes"]
    assert score("token-f1", examples, found) == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert score("exact-match", examples, found) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("prediction", "answer", "squad", "text", "number"),
    [
        ("", "A", 0, 0, 0),  # of which SQuAD's normalisation leaves nothing
        ("the", "A", 0, 0, 0),
        ("A.", "A", 1, 0, 0),
        ("", "-", 0, 0, 0),
        ("-", "-", 1, 1, 1),
        ("-5", "5", 0, 0, 0),
        ("1.5", "15", 0, 0, 0),
        ("12.0", "12", 1, 0, 1),
        ("12.", "12", 1, 0, 1),
        (".5", "0.50", 1, 0, 1),
        ("1e3", "1000", 1, 0, 1),
        ("\u22125", "-5", 1, 0, 1),  # the minus sign of typesetting
        ("caf\u00e9", "cafe\u0301", 1, 1, 1),
        (" Paris\n", "Paris", 1, 1, 1),
        ("paris", "Paris", 1, 0, 0),
        ("1,000", "1000", 1, 0, 1),
        ("1\u202f000", "1000", 1, 0, 1),
        ("1,00", "100", 0, 0, 0),  # no thousands: two texts
        ("1/2", "12", 0, 0, 0),
        ("-5 C", "5 C", 0, 0, 0),
        ("it is 1.5", "it is 15", 0, 0, 0),
        ("a 1:0 win", "a 10 win", 0, 0, 0),
        ("1,000 men", "1000 men", 1, 0, 0),
        ("-5 C.", "the -5 C", 1, 0, 0),
        ("$5", "5", 1, 0, 1),
        ("-$5", "-5", 1, 0, 1),
        ("$5", "\u20ac5", 0, 0, 0),
        ("5 %", "5%", 1, 0, 1),
        ("5%", "0.05", 0, 0, 0),
        ("it is 5", "5", 0, 0, 0),
    ],
)
def test_free_answers_by_hand(prediction, answer, squad, text, number):
    examples = asked((answer,))
    assert score("exact-match", examples, [prediction]) == squad
    assert score("text-match", examples, [prediction]) == text
    assert score("number-match", examples, [prediction]) == number
    if not squad:
        assert token_f1(prediction, [answer]) < 1
    assert {score(name, asked(("no", answer)), [answer]) for name in KINDS if "generation" in KINDS[name]} == {1}


def test_squads_scores_are_those_of_its_script_for_texts_that_are_no_numbers():
    from torchmetrics.functional.text.squad import squad

    dice, words = random.Random(0), ["the", "Denver", "Broncos,", "in", "1976", "a", "joy", "\u6771\u4eac"]
    for _ in range(200):
        said, right = (" ".join(["x", *dice.choices(words, k=dice.randrange(4))]) for _ in range(2))
        known = squad(
            [{"prediction_text": said, "id": "0"}], [{"answers": {"answer_start": [0], "text": [right]}, "id": "0"}]
        )
        assert 100 * score("exact-match", asked((right,)), [said]) == pytest.approx(float(known["exact_match"]))
        assert 100 * score("token-f1", asked((right,)), [said]) == pytest.approx(float(known["f1"]))


@pytest.mark.parametrize("name", [name for name, kinds in KINDS.items() if "classification" in kinds])
@pytest.mark.parametrize(
    ("gold", "found"), [([0], [0]), ([1], [1]), ([0, 0], [1, 1]), ([1, 1], [0, 1]), ([0, 1], [0, 0])]
)
def test_no_metric_of_few_labels_is_nan_or_warns(name, gold, found):
    value = score(name, labelled(*gold, groups=["q"] * len(gold)), found)
    assert math.isfinite(value)
    assert 0 <= value <= 1


# mistakes


def test_a_metric_of_the_wrong_kind_lists_those_that_fit():
    with pytest.raises(ConfigError) as refused:
        check_metric("f1", "generation")
    assert refused.value.message == "the metric 'f1' has no meaning for a generation task"
    assert refused.value.hint == "these have: exact-match, number-match, text-match, token-f1"
    with pytest.raises(ConfigError, match="multiple-choice"):
        check_metric("token-f1", "multiple-choice")
    with pytest.raises(UnknownNameError, match="Did you mean 'matthews'"):
        check_metric("mathews", "classification")
    for name, kinds in KINDS.items():
        for kind in kinds:
            check_metric(name, kind)


@pytest.mark.parametrize("name", list(KINDS))
def test_examples_without_what_is_right_are_refused_with_their_place(name):
    generation = "generation" in KINDS[name]
    good = asked(("yes",)) if generation else labelled(0, groups=["q"])
    bad = Example("", (" no", " yes"), group="q", where="rows.jsonl:7")
    with pytest.raises(DataError) as refused:
        score(name, [*good, bad], ["yes", "no"] if generation else [0, 1])
    what = "answer" if generation else "label"
    assert refused.value.message.startswith(f"rows.jsonl:7: its {what} is not known")
    assert what in refused.value.hint


@pytest.mark.parametrize("name", list(KINDS))
def test_no_examples_at_all_are_refused(name):
    with pytest.raises(DataError, match="no examples"):
        score(name, [], [])


def test_f1_is_of_the_label_that_is_named():
    examples = [replace(one, positive=0) for one in labelled(1, 1, 1, 0, 0)]
    assert score("f1", examples, [1, 1, 0, 1, 0]) == pytest.approx(1 / 2)  # 2 right, 2 predicted, 1 shared
    three = [replace(one, positive=2) for one in labelled(2, 1, 2, 0, labels=3)]
    assert score("f1", three, [2, 2, 1, 0]) == pytest.approx(1 / 2)


@pytest.mark.parametrize("name", ["f1", "f1a"])
def test_f1_of_three_labels_is_refused(name):
    with pytest.raises(DataError, match="f:0: the metric 'f1a?' needs two labels, and there are 3") as refused:
        score(name, labelled(0, 1, labels=3), [0, 1])
    assert "macro-f1" in refused.value.hint
    assert "task.positive_label" in refused.value.hint


def test_em_without_groups_is_refused():
    with pytest.raises(DataError, match="f:0: the metric 'em' counts groups") as refused:
        score("em", labelled(0, 1), [0, 1])
    assert "group:" in refused.value.hint


def test_token_f1_without_answers_is_refused():
    with pytest.raises(DataError, match="answer is not known"):
        token_f1("yes", [])
