"""Tiny rows of our own making for every packaged task: the Hub's columns and types, and some that are awkward.

Each list has 24 rows, so that train keeps 16 of them and validation has 8. No sentence is from a data set.
"""

from __future__ import annotations

from itertools import cycle, islice
from pathlib import Path
from typing import Any

from conftest import write_rows

Row = dict[str, Any]
COUNT = 24

NAMES = ("Ana", "Björn", "Chidi", "Dana", "Émile", "Fatma", "小明", "O'Neil")
THINGS = ("a lamp", "two boats", "the old map", "a green kite", "the jam", "a drum")
PLACES = ("in Oslo", "at the pier", "in the attic", "near São Paulo", "on the hill")


def _some(words: tuple[str, ...], step: int) -> list[str]:
    """COUNT words, each sequence in another order."""
    return list(islice(cycle([words[(i * step) % len(words)] for i in range(len(words))]), COUNT))


def _sentences() -> list[str]:
    people, things, places = _some(NAMES, 1), _some(THINGS, 5), _some(PLACES, 2)
    return [f"{who} found {what} {where}." for who, what, where in zip(people, things, places, strict=True)]


def sst2() -> list[Row]:
    good, bad = (
        ("warm and funny ", "a joy — naïve , but a joy ", "an honest 映画 "),
        ("dull ", "it drags ", "lifeless "),
    )
    return [
        {"sentence": (good if i % 2 else bad)[i // 2 % 3] + f"number {i} ", "label": i % 2, "idx": i}
        for i in range(COUNT)
    ]


def rte() -> list[Row]:
    return [
        {
            "premise": text,
            "hypothesis": text.replace("found", "has" if i % 2 == 0 else "lost"),
            "label": i % 2,
            "idx": i,
        }
        for i, text in enumerate(_sentences())
    ]


def cb() -> list[Row]:
    said = ("said that", "doubted that", "wondered if")
    return [
        {
            "premise": f"Well, {who} {said[i % 3]} the shop was open. Nobody asked.",
            "hypothesis": "the shop was open",
            "label": i % 3,
            "idx": i,
        }
        for i, who in enumerate(_some(NAMES, 3))
    ]


def boolq() -> list[Row]:
    ends = ("", "?", " ?")
    return [
        {
            "question": f"did {text.split()[0]} find {'it' if i % 2 else 'nothing'}{ends[i % 3]}",
            "passage": f"Finds (list) -- {text}",
            "label": i % 2,
            "idx": i,
        }
        for i, text in enumerate(_sentences())
    ]


def wsc() -> list[Row]:
    rows = []
    for i, (one, two) in enumerate(zip(_some(NAMES, 1), _some(NAMES, 5)[1:] + ["Ana"], strict=True)):
        text = f"{one} thanked {two}-san because he had been given a lamp."
        right = i % 2 == 1
        span = one if right else f"{two}-san"
        rows.append(
            {
                "text": text,
                "span1_index": 0 if right else 2,
                "span2_index": 4,
                "span1_text": span,
                "span2_text": "he",
                "idx": i,
                "label": int(right),
            }
        )
    return rows


def wic() -> list[Row]:
    uses = ("They sat on the bank.", "The bank was muddy.", "The bank lent money.", "A bank — closed today.")
    rows = []
    for i in range(COUNT):
        one, two = uses[i % 4], uses[(i + 1 + i // 4) % 4]
        same = (uses.index(one) < 2) == (uses.index(two) < 2)
        starts = [text.index("bank") for text in (one, two)]
        rows.append(
            {
                "word": "bank",
                "sentence1": one,
                "sentence2": two,
                "start1": starts[0],
                "start2": starts[1],
                "end1": starts[0] + 4,
                "end2": starts[1] + 4,
                "idx": i,
                "label": int(same),
            }
        )
    return rows


def multirc() -> list[Row]:
    """Eight questions with three answers each; two questions on one paragraph, and one question on two paragraphs."""
    rows = []
    for i in range(COUNT):
        question = i // 3
        who = NAMES[-1 - question]
        rows.append(
            {
                "paragraph": f"{NAMES[question // 2]} met {who}. It was {'late' if question % 2 else 'early'}.",
                "question": "Who was met?" if question % 3 else "Whom did they meet?",
                "answer": (who, "Nobody", f"{who}, it seems")[i % 3],
                "idx": {"paragraph": question // 2, "question": question, "answer": i},
                "label": int(i % 3 != 1),
            }
        )
    return rows


def copa() -> list[Row]:
    rows = []
    for i, who in enumerate(_some(NAMES, 3)):
        cause = i % 2 == 0
        texts = ("I lit the stove.", f"{who} put on a coat.")
        rows.append(
            {
                "premise": f"{who}'s {('kitchen', 'hall', 'attic')[i // 8]} was {'warm' if cause else 'cold'}.",
                "choice1": texts[i // 2 % 2],
                "choice2": texts[1 - i // 2 % 2],
                "question": "cause" if cause else "effect",
                "idx": i,
                "label": i // 2 % 2 if cause else 1 - i // 2 % 2,
            }
        )
    return rows


def record() -> list[Row]:
    """Entities that are there twice, or once in each spelling; gaps at the start, in the middle and in quotes."""
    queries = ("Later @placeholder sang.", "@placeholder's song was short.", 'They cheered "@placeholder" again.')
    rows = []
    for i, who in enumerate(_some(NAMES, 3)):
        passage = f"{who} and Gil met Ida.\n@highlight\n{who} sang to Ida\n@highlight\nGil, or GIL, played"
        entities = [who, "Gil", "Ida", who, "Gil", "GIL"][: 4 if i % 3 == 1 else 6]
        rows.append(
            {
                "passage": passage,
                "query": queries[i % 3],
                "entities": entities,
                "entity_spans": {
                    "text": entities,
                    "start": [passage.index(one) for one in entities],
                    "end": [passage.index(one) + len(one) for one in entities],
                },
                "answers": [who] if i % 4 else ["GIL", "Gil"],
                "idx": {"passage": i // 2, "query": i},
            }
        )
    return rows


def winogrande() -> list[Row]:
    """With the blank in the middle and, in every fourth row, at the start of the sentence."""
    rows = []
    for i, (one, two) in enumerate(zip(_some(NAMES, 1), _some(NAMES, 3)[1:] + ["Gil"], strict=True)):
        late = f"{one} lent {two} a map so _ could find the way."
        first = f"_ got lost although {one} had given {two} a map."
        rows.append(
            {
                "sentence": first if i % 4 == 3 else late,
                "option1": one if one != two else "Ida",
                "option2": two,
                "answer": "2" if i % 2 else "1",
            }
        )
    return rows


def squad() -> list[Row]:
    rows = []
    for i, text in enumerate(_sentences()):
        answer = text.split(" found ")[1].split(" in ")[0].split(" at ")[0].split(" near ")[0].split(" on ")[0]
        texts = [answer, answer.split()[-1], answer] if i % 3 == 0 else [answer]
        rows.append(
            {
                "id": f"{i:024x}",
                "title": "" if i % 2 else "Lost_and_found",
                "context": f"  {text}\n",
                "question": "What was found?",
                "answers": {"text": texts, "answer_start": [text.index(one) + 2 for one in texts]},
            }
        )
    return rows


def drop() -> list[Row]:
    rows = []
    for i, who in enumerate(_some(NAMES, 5)):
        answers = (["3"], ["4 May", "May 4"], [who, f"{who} "])[i % 3]
        question = ("How many goals?", "On which day?", "Who scored?")[i % 3]
        rows.append(
            {
                "section_id": f"nfl_{i // 3}",
                "query_id": f"q{i}",
                "passage": f"{who} scored 3 goals on 4 May.",
                "question": question,
                "answers_spans": {"spans": answers, "types": [("number", "date", "span")[i % 3]] * len(answers)},
            }
        )
    return rows


def mnli() -> list[Row]:
    verbs = ("has", "once saw", "never had")
    return [
        {"premise": text, "hypothesis": text.replace("found", verbs[i % 3]), "label": i % 3, "idx": i}
        for i, text in enumerate(_sentences())
    ]


def qnli() -> list[Row]:
    return [
        {
            "question": f"{'How old is' if i % 2 else 'What was found by'} {text.split()[0]}?",
            "sentence": text,
            "label": i % 2,
            "idx": i,
        }
        for i, text in enumerate(_sentences())
    ]


def cola() -> list[Row]:
    return [
        {"sentence": text if i % 3 else " ".join(reversed(text.split())), "label": int(i % 3 > 0), "idx": i}
        for i, text in enumerate(_sentences())
    ]


def movie_reviews() -> list[Row]:
    return [{key: row[key] for key in ("sentence", "label")} for row in sst2()]


ROWS: dict[str, list[Row]] = {
    "sst2": sst2(),
    "rte": rte(),
    "cb": cb(),
    "boolq": boolq(),
    "wsc": wsc(),
    "wic": wic(),
    "multirc": multirc(),
    "copa": copa(),
    "record": record(),
    "winogrande": winogrande(),
    "squad": squad(),
    "drop": drop(),
    "mnli": mnli(),
    "qnli": qnli(),
    "cola": cola(),
    "movie-reviews": movie_reviews(),
}
FILES = {  # of a local folder; other tasks have train.jsonl and validation.jsonl
    "mnli": ("train", "validation_matched"),
    "movie-reviews": ("train", "validation", "test"),
}


def write_task(folder: Path, task: str) -> Path:
    """A folder as `--data-dir` takes it; all files have the same rows, but for their first one."""
    for number, origin in enumerate(FILES.get(task, ("train", "validation"))):
        write_rows(folder / f"{origin}.jsonl", ROWS[task][number:])
    return folder
