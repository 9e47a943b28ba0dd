"""Seeded draws: the rows of each split, demonstrations for each prompt, and the rows of a batch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Generic, TypeVar

from zofo.displacement import Key
from zofo.errors import ConfigError, DataError
from zofo.noise import permutation
from zofo.tasks.config import TaskConfig
from zofo.tasks.readers.chat_rows import chat_example
from zofo.tasks.readers.row import Example, Row, RowError, normalized, question_of, questions_of
from zofo.tasks.task import SEPARATOR, SPLITS, Split, Task
from zofo.tasks.tokenization_channel import in_channel

Unit = list[Row]
"""Rows that are drawn together."""


def divide(task: Task, origin: str, rows: Sequence[Row], config: TaskConfig) -> dict[Split, Sequence[Row]]:
    """The rows of every split that comes from `origin`, in the order train, validation, test; no row twice.

    Raises:
        ConfigError: `task.split_sizes` asks for more rows than there are.
        DataError: a split would have no row.
    """
    wanted = [split for split in SPLITS if task.splits[split].origin == origin]
    given = {split: config.split_sizes[split] for split in wanted if split in config.split_sizes}
    if given and sum(given.values()) > len(rows) - (len(wanted) - len(given)):  # a row at least for each of the others
        raise ConfigError(
            f"task.split_sizes asks for {' + '.join(f'{size} of {split}' for split, size in given.items())}, but "
            f"{origin!r} has {len(rows)} rows" + (f" for {', '.join(wanted)}" if len(wanted) > len(given) else ""),
            "lower task.split_sizes, or give more rows",
        )
    if len(wanted) == 1 and not given and task.splits[wanted[0]].size is None:
        return {wanted[0]: rows}
    known = _sizes(task, wanted, given, len(rows), 1)
    most = min((known[split] for split in wanted if split != "train"), default=len(rows)) // 2
    units, common = _units(task, rows, config, most if "train" in wanted else None)
    order = permutation(Key(config.split_seed, 0), f"splits/{origin}", len(units))
    drawn = [units[i] for i in order]
    if config.draw == "stratified":
        drawn = _interleaved(drawn, task.label)
    labels = len({_labels(unit, task.label) for unit in units}) if config.draw == "stratified" else 0
    sizes = _sizes(task, wanted, given, len(rows), labels)
    divided = _filled(drawn, sizes, sizes if config.draw == "stratified" else ()) if not common else {}
    if common:
        order = permutation(Key(config.split_seed, 0), f"common/{origin}", len(common))
        divided = _filled_with_common(drawn, [common[i] for i in order], sizes)
    if not all(divided.values()):
        alike = f" that ask only {len(units)} different things" if len(units) < len(rows) else ""
        alike = " that all ask the same" if len(units) == 1 < len(rows) else alike
        allowed = ", or let splits share them with task.allow_overlap=true" if alike and not task.group else ""
        if alike and task.messages is not None and config.trained_turns != "last":
            alike = f" in {len(units)} groups that ask the same, or train each other's answers"
            allowed = f", or train the last answer of each alone with task.trained_turns=last{allowed}"
        raise DataError(
            f"{rows[0].where}: {len(rows)} rows in all{alike}, too few to draw {' and '.join(wanted)} from",
            f"give more rows{allowed}",
        )
    return divided


def _sizes(task: Task, wanted: Sequence[Split], given: dict[Split, int], rows: int, labels: int) -> dict[Split, int]:
    """The number of rows of each split.

    If there are too few, the first split keeps two thirds, or half if the others would otherwise lack a label.
    """
    sizes = {split: given.get(split) or task.splits[split].size or rows for split in wanted}
    others, room = [split for split in wanted if split not in given], rows - sum(given.values())
    if sum(sizes[split] for split in others) > room:
        for split in others[1:]:
            few = room // 3 // (len(others) - 1)
            sizes[split] = min(sizes[split], max(few, min(labels, room // 2 // (len(others) - 1))))
        sizes[others[0]] = min(sizes[others[0]], room - sum(sizes[split] for split in others[1:]))
    return sizes


def _filled(units: Sequence[Unit], sizes: dict[Split, int], some: Collection[Split] = ()) -> dict[Split, Sequence[Row]]:
    """The rows of each split: units in order, until it has its size; splits in `some` get at least one."""
    left: Iterator[Unit] = iter(units)
    divided: dict[Split, Sequence[Row]] = {}
    taken = 0
    for number, (split, size) in enumerate(sizes.items(), start=1):
        drawn: list[Row] = []
        last = len(units) - sum(later in some for later in list(sizes)[number:])
        while len(drawn) < max(size, 1 if split in some else 0) and taken < last and (unit := next(left, None)):
            drawn.extend(unit)
            taken += 1
        divided[split] = drawn
    return divided


def _filled_with_common(
    units: Sequence[Unit], common: Sequence[Unit], sizes: dict[Split, int]
) -> dict[Split, Sequence[Row]]:
    """As `_filled`, if only train may have the units in `common`.

    Train is then filled last, and gets as many of them as fit.
    """
    scored_first = sorted(sizes, key=lambda split: split == "train")
    scored = [split for split in sizes if split != "train"]
    divided = _filled(units, {split: sizes[split] for split in scored_first}, scored)
    more = _filled(common, {"train": sizes["train"] - len(divided["train"])})["train"]
    return {split: [*divided[split], *(more if split == "train" else ())] for split in sizes}


def _interleaved(units: Sequence[Unit], label: str | None) -> list[Unit]:
    """Units reordered so that labels are spread evenly.

    The n units of a label are placed at fractions (1/2, 3/2, ..., n - 1/2) / n, in their given order.
    """
    strata: dict[Hashable, list[int]] = {}
    for number, unit in enumerate(units):
        strata.setdefault(_labels(unit, label), []).append(number)
    places = {number: (rank + 0.5) / len(stratum) for stratum in strata.values() for rank, number in enumerate(stratum)}
    return [units[number] for number in sorted(places, key=lambda number: (places[number], number))]


def _labels(unit: Unit, label: str | None) -> Hashable:
    """The labels of the rows of a unit."""
    return frozenset(_as_text(row.fields.get(label)) for row in unit) if label is not None else frozenset()


def _units(task: Task, rows: Sequence[Row], config: TaskConfig, most: int | None) -> tuple[list[Unit], list[Unit]]:
    """Rows that must be in the same split: connected by a group, or because one is trained on another's question.

    A row is scored only on its own question, the last one, so only that can connect rows. A question that more than
    `most` rows train within longer chats, such as a greeting, does not connect rows; rows with it as their own question
    are never scored.

    Args:
        most: None if no rows are trained on.

    Returns:
        The units of all splits, and those that only train may have.
    """
    asked: list[list[Hashable]] = [[] for _ in rows]
    if config.draw == "stratified" and not config.allow_overlap:
        asked = _asked(task, rows, every=config.trained_turns != "last", earlier=most is not None)
    own = {questions[-1] for questions in asked if questions}
    within = Counter(one for questions in asked for one in questions[:-1] if one in own)
    common = {one for one, count in within.items() if most is not None and count > most}
    keys: list[list[Hashable]] = []
    for row, questions in zip(rows, asked, strict=True):
        group = [("group", (str(row.fields.get(task.group[0])),))] if task.group else []
        keys.append([*group, *(one for one in questions if one in own and one not in common)])
    alone = {id(row) for row, questions in zip(rows, asked, strict=True) if questions and questions[-1] in common}
    parts: tuple[list[Unit], list[Unit]] = [], []
    for unit in _connected(rows, keys):
        parts[any(id(row) in alone for row in unit)].append(unit)
    return parts


def _asked(task: Task, rows: Sequence[Row], every: bool, earlier: bool) -> list[list[Hashable]]:
    """The questions that each row is trained to answer, normalised, with its own question last.

    Two rows ask the same if they agree in the columns that prompts use, without the final answer of a chat.

    Args:
        every: whether chats end with their last trained answer; otherwise with their last answer.
        earlier: with `every`, whether earlier answers of chats are trained, too.
    """
    columns = [column for column in task.asked_columns if column != task.label]
    asked: list[list[Hashable]] = []
    for row in rows:
        chat = _chat(task, row) if every and task.messages is not None else None
        if chat is None:
            chat = [tuple(_as_text(row.fields.get(column)) for column in columns)]
        asked.append(chat if earlier else chat[-1:])
    return asked


def _chat(task: Task, row: Row) -> list[Hashable] | None:
    """The questions of a chat; None for an invalid one, which is reported when it is rendered."""
    for right in (True, False):
        try:
            return questions_of(chat_example(task.name, str(task.messages), row.fields, right), False)
        except RowError:
            continue
    return None


def _connected(rows: Sequence[Row], keys: Sequence[Sequence[Hashable]]) -> list[Unit]:
    """Groups of rows that share a key, directly or through others."""
    units: list[Unit] = []
    place: dict[Hashable, int] = {}  # of each key, its unit
    joined: list[int] = []  # of each unit, one that it is joined with, or itself

    def root(number: int) -> int:
        while joined[number] != number:
            joined[number] = joined[joined[number]]
            number = joined[number]
        return number

    for row, own in zip(rows, keys, strict=True):
        known = sorted({root(place[key]) for key in own if key in place})
        if not known:
            known = [len(units)]
            units.append([])
            joined.append(known[0])
        first = known[0]
        for other in known[1:]:
            joined[other] = first
            units[first] += units[other]
            units[other] = []
        units[first].append(row)
        place.update(dict.fromkeys(own, first))
    return [unit for unit in units if unit]


def _as_text(value: Any) -> str:
    """A value in normalised form; a chat without its final answer."""
    if isinstance(value, list) and value and isinstance(value[-1], dict) and value[-1].get("role") == "assistant":
        value = value[:-1]
    return normalized(value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False))


def with_demonstrations(
    examples: Sequence[Example], pool: Sequence[Example], config: TaskConfig, separator: str = SEPARATOR
) -> list[Example]:
    """Examples with demonstrations from the pool before each prompt; `fewshot_sampling`: the same for all, or not.

    No demonstration asks the same question as its example, in any row or form (see `question_of`). The draw depends on
    `split_seed` and the example's number.

    Args:
        pool: solved training examples.

    Raises:
        ConfigError: the pool is too small, has too few other questions, or contains chats.

    Source: Brown et al. (2020), "Language Models are Few-Shot Learners".
    """
    wanted, seed = config.num_fewshot, config.split_seed
    if len(pool) <= wanted:
        raise ConfigError(
            f"task.num_fewshot is {wanted}, but train has {len(pool)} rows", "ask for fewer, or give more rows"
        )
    if any(example.messages for example in pool):
        raise ConfigError("a chat takes no demonstrations", "put solved turns into its messages")
    with_candidates = not any(one.answers for one in pool)  # of a generation, they are its answer
    asked = [question_of(one, with_candidates) for one in pool]
    shared = permutation(Key(seed, 0), "demonstrations", len(pool)) if config.fewshot_sampling == "fixed" else None
    solved = []
    for number, example in enumerate(examples):
        order = permutation(Key(seed, number), "demonstrations of one", len(pool)) if shared is None else shared
        asks = question_of(example, with_candidates)
        chosen = [pool[i] for i in islice((i for i in order if asked[i] != asks), wanted)]
        if len(chosen) < wanted:
            raise ConfigError(
                f"task.num_fewshot is {wanted}, but only {len(chosen)} rows of train ask something else than "
                f"{example.where}",
                "ask for fewer, or give more rows",
            )
        own = tuple(text for one in (*chosen, example) for text in one.own)
        if config.scoring == "channel":
            solved.append(replace(example, before="".join(in_channel(one) + separator for one in chosen), own=own))
            continue
        demonstrations = [(one.prompt + one.candidates[one.gold]).rstrip() for one in chosen]
        before = separator.join(demonstrations) + separator
        free = before + example.content_free if example.content_free else ""
        solved.append(replace(example, prompt=before + example.prompt, content_free=free, own=own))
    return solved


def few_of_each(task: Task, examples: Sequence[Example], shots: int, seed: int) -> list[Example]:
    """A seeded draw of `shots` examples per label, or in total if there are no labels; raises DataError for too few
    rows."""
    drawn = [examples[i] for i in permutation(Key(seed, 0), "shots", len(examples))]
    kept: list[Example] = []
    for gold in range(len(task.label_names)) or [None]:
        own = [one for one in drawn if gold is None or one.golds[:1] == (gold,)][:shots]
        if len(own) < shots:
            of = f" with the label {task.label_names[gold]!r}" if gold is not None else ""
            raise DataError(
                f"task.train_examples_per_label is {shots}, but train of {task.name!r} has {len(own)} rows{of}",
                f"set task.train_examples_per_label={max(1, len(own))}, or give more rows",
            )
        kept += own
    return kept


T = TypeVar("T")
B = TypeVar("B")

_WINDOW = 8  # batches whose examples are sorted by length together


class EpochSampler(Generic[T, B]):
    """An endless sequence of batches, addressed by number: a pure function of (seed, name, number).

    Each epoch visits the examples in a new random order. With `length`, examples of similar length share a batch:
    windows of 8 batches are sorted by length, and the batches are shuffled again. A remainder smaller than a batch is
    dropped until the next epoch. To resume, only the number is needed.

    Args:
        collate: turns a list of examples into a batch.
        name: distinguishes several sequences of one run.
        length: returns the length of an example to group by; None does not group.

    Raises:
        ConfigError: there are fewer examples than in one batch.
    """

    def __init__(
        self,
        examples: Sequence[T],
        size: int,
        collate: Callable[[Sequence[T]], B],
        seed: int,
        name: str,
        length: Callable[[T], int] | None = None,
    ) -> None:
        if len(examples) < size:
            raise ConfigError(
                f"a batch of {size} examples cannot be drawn from the {len(examples)} of {name!r}",
                f"lower batch_size to {len(examples)} or less, or give more data",
            )
        self.examples = examples
        self.size = size
        self.per_epoch = len(examples) // size
        self._collate = collate
        self._seed = seed
        self._name = name
        self._length = length
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    def __getitem__(self, number: int) -> B:
        epoch, place = divmod(number, self.per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._draw(epoch))
        return self._collate([self.examples[i] for i in self._epoch[1][place]])

    def _draw(self, epoch: int) -> list[list[int]]:
        """The batches of one epoch, as indices of examples."""
        key = Key(self._seed, epoch)
        order = permutation(key, f"batches/{self._name}", len(self.examples))[: self.per_epoch * self.size]
        if self._length is None:
            return _cut(order, self.size)
        lengths = {i: self._length(self.examples[i]) for i in order}
        windows = [sorted(window, key=lengths.__getitem__) for window in _cut(order, _WINDOW * self.size)]
        batches = [batch for window in windows for batch in _cut(window, self.size)]
        return [batches[i] for i in permutation(key, f"grouped/{self._name}", len(batches))]


def _cut(items: list[int], size: int) -> list[list[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
