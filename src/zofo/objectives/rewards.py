"""A user's own rewards: functions of the model's answers, passed in Python or named by file on the command line."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from zofo.errors import ConfigError, ZofoError, nearest, truncate_repr
from zofo.objectives.packaged_rewards import REWARDS
from zofo.objectives.reward_files import function_of_file, their_fault
from zofo.processes import ALONE, Processes
from zofo.tasks import Example
from zofo.tasks.metrics import Answer
from zofo.temporary import bound

Reward = Callable[..., Any]
"""A user's own objective; higher is better. Either of

- (example, prediction) -> a number. The prediction is the index of a candidate, or the text of a generation.
- (prompts, completions, **columns) -> a list of a number or None for each, as TRL's GRPOTrainer takes it. Columns are
  `answer`, the first accepted answer or right candidate, `answers`, all of them, and those of `task.reward_columns`. Of
  a chat, prompts and completions are lists of messages. None says nothing of an answer.
"""


@dataclass(frozen=True)
class WeightedReward:
    """A reward and its weight.

    Args:
        weight: factor of its values.
        file: the file of the function, with its hash; empty for a function passed in Python.
        typed: its name as typed on the command line.
        of_texts: whether it rewards generated texts only.
    """

    function: Reward
    weight: float = 1.0
    file: str = ""
    typed: str = ""
    of_texts: bool = False

    @property
    def short(self) -> str:
        """Its name in messages: as it was typed, or the function's name."""
        return self.typed or self._function_name

    @property
    def label(self) -> str:
        """A word for logs: the name of the function, or of the packaged reward."""
        return self.typed.partition(":")[0].partition("*")[0] if self.of_texts else self._function_name

    @property
    def _function_name(self) -> str:
        return str(getattr(self.function, "__name__", type(self.function).__name__))

    @property
    def name(self) -> str:
        """Its entry in a run's records: module and name, or file, name and hash; and its weight."""
        if self.of_texts:
            return self.typed
        one = self.function
        named: Any = one if isinstance(getattr(one, "__qualname__", None), str) else type(one)
        whole = f"{self.file}:{named.__qualname__}" if self.file else f"{named.__module__}.{named.__qualname__}"
        return whole if self.weight == 1 else f"{whole}*{self.weight:g}"


_ASIDE: ContextVar[bool] = ContextVar("aside", default=False)


def aside(check: bool = True) -> AbstractContextManager[None]:
    """Context in which calls of rewards are a check, and do not enter their means; with False, they are not."""
    return bound(_ASIDE, check)


def is_aside() -> bool:
    """Whether the current calls are a check, whose answers nobody uses."""
    return _ASIDE.get()


@dataclass(frozen=True)
class Rewards:
    """The sum of several rewards, and the mean of each since it was last read.

    Args:
        beta: factor of the KL of an answer from the base model, which is subtracted.
    """

    parts: tuple[WeightedReward, ...]
    beta: float = 0.0
    _given: list[tuple[int, float]] = field(default_factory=list, compare=False, repr=False)  # of each: count, sum

    def means(self, processes: Processes = ALONE) -> dict[str, float]:
        """The mean of each reward's own values, before its weight, since the last call; None values are ignored.

        With `beta` also the mean of the finite KLs, as `kl`.

        Args:
            processes: the processes whose answers count; all of them must call this.
        """
        names = [f"reward_{part.label}" for part in self.parts] + ["kl"] * bool(self.beta)
        given = self._given[:] or [(0, 0.0)] * len(names)
        self._given.clear()
        if not processes.alone:
            own = torch.tensor(given, dtype=torch.float64)
            of_all = processes.gather(own, own.numel(), torch.float64).sum(dim=0).view(-1, 2).tolist()
            given = [(int(count), total) for count, total in of_all]
        found: dict[str, float] = {}
        for number, (name, (count, total)) in enumerate(zip(names, given, strict=False), start=1):
            if count:
                found[name if name not in found else f"{name}_{number}"] = total / count
        return found

    @property
    def name(self) -> str:
        """The names of all rewards."""
        return " + ".join(part.name for part in self.parts)

    def __call__(self, examples: Sequence[Example], answers: Sequence[Answer]) -> list[float]:
        """One number per answer.

        Raises:
            ConfigError: a reward failed or returned something other than a finite number per answer; or all returned
                None.
        """
        columns = [_asked(part, examples, answers) for part in self.parts]
        self._note(0, [[value for value in column if value is not None] for column in columns])
        found = []
        for example, values in zip(examples, zip(*columns, strict=True), strict=True):
            weighed = [part.weight * value for part, value in zip(self.parts, values, strict=True) if value is not None]
            if not weighed:
                names = ", ".join(part.short for part in self.parts)
                raise ConfigError(
                    f"{_place(example)}: no reward gives a number: {names} gave None",
                    "return a number for every answer, at least from one of the rewards",
                )
            found.append(math.fsum(weighed))
        return found

    def of_each_copy(self, batch: Any, answers: Sequence[Answer]) -> list[float]:
        """One number per answer of a batch; the answers at each point are a separate call, as F1 needs it."""
        examples, size = [one.example for one in batch.examples], len(answers) // batch.copies
        starts = range(0, len(answers), size)
        return [one for at in starts for one in self(examples[at : at + size], answers[at : at + size])]

    def less_kl(self, rewards: Sequence[float], kl: Sequence[float]) -> list[float]:
        """The reward of each answer minus `beta` times its KL."""
        self._note(len(self.parts), [[value for value in kl if math.isfinite(value)]])
        return [reward - self.beta * apart for reward, apart in zip(rewards, kl, strict=True)]

    def _note(self, first: int, columns: Sequence[Sequence[float]]) -> None:
        """Add values to the means, for the rewards from number `first` on, unless the call is a check."""
        if is_aside():
            return
        if not self._given:
            self._given.extend([(0, 0.0)] * (len(self.parts) + bool(self.beta)))
        for place, values in enumerate(columns, start=first):
            count, total = self._given[place]
            self._given[place] = count + len(values), math.fsum((total, *values))


def as_rewards(given: Reward | WeightedReward | Rewards | str | Sequence[Any]) -> Rewards:
    """One or several rewards: functions, with weights, or names as on the command line (see `load_reward`)."""
    if isinstance(given, Rewards):
        return given
    parts = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    made = tuple(
        load_reward(part)
        if isinstance(part, str)
        else part
        if isinstance(part, WeightedReward)
        else WeightedReward(part)
        for part in parts
    )
    for part in made:
        _check_signature(part)
    return Rewards(made)


def _check_signature(part: WeightedReward) -> None:
    """Raise ConfigError for a function that matches neither signature."""
    try:
        signature = inspect.signature(part.function)
    except (TypeError, ValueError):  # such as a builtin
        return
    if "completions" in signature.parameters:
        return
    try:
        signature.bind(None, None)
    except TypeError:
        keywords = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in signature.parameters.values())
        if not keywords:
            raise ConfigError(
                f"the reward {part.short} takes {signature}",
                "let it take (example, prediction), or (prompts, completions, **columns)",
            ) from None


def load_reward(spec: str) -> WeightedReward:
    """A packaged reward by name (see `zofo list rewards`), or the function that `FILE.py:NAME` refers to.

    The file, which the user has typed, is run. `*WEIGHT` may follow the name: `FILE.py:NAME*0.5`, `brevity*0.5`,
    `regex*0.5:PATTERN`.

    Raises:
        ConfigError: there is no such reward, file or function, or the file fails; the message lists what is there.
    """
    packaged = _packaged(spec)
    if packaged is not None:
        return packaged
    place, star, weight = spec.partition("*")
    path_text, separator, name = place.rpartition(":")
    path = Path(path_text)
    if not separator or path.suffix != ".py" or not name:
        near = nearest(spec.partition(":")[0].partition("*")[0], REWARDS)
        raise ConfigError(
            f"--reward {spec!r} names no function of a file, and none of: {', '.join(REWARDS)}",
            f"did you mean {near!r}?" if near else "type --reward FILE.py:NAME",
        )
    factor = _weight(spec, weight, f"{place}*0.5") if star else 1.0
    function, file = function_of_file(path, name)
    return WeightedReward(function, factor, file, spec)


def _packaged(spec: str) -> WeightedReward | None:
    """The packaged reward for NAME*WEIGHT:TEXT; a `*` after the colon belongs to the text."""
    head, colon, typed = spec.partition(":")
    name, star, weight = head.partition("*")
    if name not in REWARDS:
        return None
    factor = _weight(spec, weight, f"{name}*0.5{colon}{typed}") if star else 1.0
    return WeightedReward(REWARDS[name](typed), factor, typed=spec, of_texts=True)


def _weight(spec: str, weight: str, right: str) -> float:
    """The number typed as a weight; raises ConfigError if it is not one."""
    try:
        factor = float(weight)
    except ValueError:
        factor = math.nan
    if not math.isfinite(factor):
        raise ConfigError(f"--reward {spec!r}: the weight {weight!r} is no number", f"type --reward '{right}'")
    return factor


def _asked(part: WeightedReward, examples: Sequence[Example], answers: Sequence[Answer]) -> list[float | None]:
    """The checked values of one reward for all answers."""
    parameters: Mapping[str, inspect.Parameter]
    try:
        parameters = inspect.signature(part.function).parameters
    except (TypeError, ValueError):  # such as a builtin, which is called with the row and the answer
        parameters = {}
    keywords_alone = all(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    if "completions" not in parameters and not (parameters and keywords_alone):
        return [_called(part, [one], one, answer) for one, answer in zip(examples, answers, strict=True)]
    found = _called(part, examples, **_columns(part, parameters, examples, answers))
    try:
        values, several = list(found), True
    except TypeError:  # a number, or a tensor or array without a dimension
        values, several = [found], False
    if len(values) != len(examples):
        gave = f"{len(values)} values" if several else f"{type(found).__name__} {truncate_repr(found)}, and no list,"
        raise ConfigError(
            f"the reward {part.short} gave {gave} for {len(examples)} completions",
            "return a list with a number or None for each completion, in their order",
        )
    return [_number(value, one, part) for value, one in zip(values, examples, strict=True)]


def _columns(
    part: WeightedReward,
    parameters: Mapping[str, inspect.Parameter],
    examples: Sequence[Example],
    answers: Sequence[Answer],
) -> dict[str, Any]:
    """The arguments of a function in TRL's calling convention, as far as it accepts them."""
    texts = [
        one.candidates[answer].strip() if isinstance(answer, int) else answer
        for one, answer in zip(examples, answers, strict=True)
    ]
    right = [list(one.answers) or [one.candidates[gold].strip() for gold in one.golds] for one in examples]
    chats = [bool(one.messages) for one in examples]
    columns: dict[str, Any] = {
        "prompts": [
            [{"role": role, "content": content} for role, content, *_ in one.messages] if chat else one.prompt
            for one, chat in zip(examples, chats, strict=True)
        ],
        "completions": [
            [{"role": "assistant", "content": text}] if chat else text for text, chat in zip(texts, chats, strict=True)
        ],
        "answer": [known[0] if known else None for known in right],
        "answers": right,
    }
    for name in dict.fromkeys(key for one in examples for key in one.columns_of_row):
        columns.setdefault(name, [one.columns_of_row.get(name) for one in examples])
    loose = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    named = {name: one for name, one in parameters.items() if one.kind not in loose}
    needed = {name for name, one in named.items() if one.default is inspect.Parameter.empty}
    if missing := sorted(needed - columns.keys()):
        raise ConfigError(
            f"the reward {part.short} wants {', '.join(missing)}, which is no column here",
            f"set task.reward_columns=[{','.join(missing)}] where your rows have it, or take one of "
            f"{', '.join(columns)}",
        )
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        return columns
    return {name: values for name, values in columns.items() if name in named}


def _called(part: WeightedReward, examples: Sequence[Example], *arguments: Any, **named: Any) -> Any:
    """Call a reward function; errors are reported with their row and line."""
    try:
        found = part.function(*arguments, **named)
    except ZofoError:  # of a packaged reward, which says itself what is wrong
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever a user's function raises
        where = _place(examples[0]) if len(examples) == 1 else f"{_place(examples[0])} and {len(examples) - 1} more"
        raise ConfigError(
            f"the reward {part.short} failed for {where}: {their_fault(error)}",
            "fix the function: nothing was updated",
        ) from error
    return _number(found, examples[0], part) if arguments else found


def _number(given: Any, example: Example, part: WeightedReward) -> float | None:
    if given is None:
        return None
    try:
        value = float(given)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if math.isfinite(value) and not isinstance(given, str):
        return value
    raise ConfigError(
        f"{_place(example)}: the reward {part.short} is {given!r}, not a finite number",
        "return a number for every example and prediction",
    )


def _place(example: Example) -> str:
    return example.where or repr(example.prompt[:40])
