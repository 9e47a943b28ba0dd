"""The cost of a run before it is made: of the configured method, and of usual alternatives."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from zofo.bench.memory import FLOOR, WAYS
from zofo.bench.step_variants import StepOptions, random_examples
from zofo.config import parse_model
from zofo.errors import ConfigError, DataError, ZofoError
from zofo.estimate.budget import clock
from zofo.estimate.machine import Machine, known_machine
from zofo.estimate.step import Rows, StepEstimate, estimate_step, heaviest, known_passes
from zofo.methods import METHODS, MethodConfig, TrainingContext
from zofo.models import LoadedModel, ModelConfig, load_on_meta
from zofo.objectives import classification_loss, token_loss
from zofo.tasks import Example, TokenizedChoices, TokenizedText, collate, collate_texts
from zofo.training import PreparedRun, RunConfig, prepare_run, training_context

BESIDE: Mapping[str, str] = {
    "inference": FLOOR,
    "MeZO": "mezo",
    "MeZO, subspace": "mezo-subspace",
    "SVRG": "svrg",
    "Bilevel": "bilevel",
    "FO-LoRA": "lora",
    "FO-LoRA, checkpointing": "lora-checkpointing",
    "QLoRA": "qlora-nf4",
    "full Adam": "adam",
}
"""What stands beside a configuration, and what `zofo bench memory` calls it."""
TOKENS = 256
"""Of an example whose length is not known."""
_ALIKE = 1.1  # times as many tokens
_SHAPE_ROWS = 1000  # training rows of a task that is not known


@dataclass(frozen=True)
class RunEstimate:
    """The cost of a run, and of alternatives.

    Args:
        name: name of the configured method.
        beside: the alternatives by name; the text of an error if one is impossible.
        rows: the rows it was estimated for, in words.
        machine: the machine of the constants, in words.
    """

    name: str
    configured: StepEstimate
    beside: Mapping[str, StepEstimate | str]
    rows: str
    device: str
    machine: str


class RowSource:
    """Examples for an estimate: of the configured task if its rows are available, otherwise random ones.

    Args:
        config: configuration of the run.
        tokens: tokens per random example; None uses the task's rows.
        answer: how many of these are scored; one means a classification.
        remote_code: allow the model's repository to run its own code.

    Attributes:
        about: a description of the rows.
        training: number of training rows.
        lengths: lengths of the rows that were read, in tokens, sorted.

    Raises:
        ZofoError: something is wrong with the task, its rows or the model.
    """

    def __init__(
        self, config: RunConfig, tokens: int | None = None, answer: int = 1, remote_code: bool = False
    ) -> None:
        self._config = config.model_copy(update={"init_from": None})  # of the same size, and its weights are not read
        self._remote_code = remote_code
        self._answer = max(1, answer)
        self._prepared: PreparedRun | None = None
        self._tokens = tokens or config.task.max_length or TOKENS
        self.about = f"random ones of {self._tokens} tokens, {_SHAPE_ROWS:,} to train on"
        self.training, self.lengths = _SHAPE_ROWS, [self._tokens]
        if tokens is None and "task" in config.model_fields_set:
            self._read()

    def _read(self) -> None:
        load = load_on_meta
        try:
            self._prepared = prepare_run(self._config, self._remote_code, ("train",), load=load)
        except DataError as error:
            if self._config.task.data is not None or self._config.task.data_dir is not None:
                raise
            self.about += f", since those of the task are not at hand ({error.message})"
            return
        self.lengths = lengths = sorted(one.length for one in self._prepared.encoded["train"])
        self.training = len(lengths)
        usual = lengths[len(lengths) // 2]
        self.about = (
            f"{len(lengths):,} training rows of {lengths[0]} to {lengths[-1]} tokens, half of them up to {usual}"
        )

    @functools.cached_property
    def seconds_per_row(self) -> float:
        """Time to encode a row, measured by encoding them again; 0.0 if none were read."""
        if self._prepared is None:
            return 0.0
        since, rows = clock(), self._prepared.examples["train"]
        self._prepared.scorer.encode(rows)
        return since() / len(rows)

    def load(self, model: ModelConfig) -> LoadedModel:
        """The shape of a model, for the labels of the task."""
        labels = None if self._prepared is None else len(self._prepared.task.label_names) or None
        head = model.head == "classification" or self._prepared is None
        return load_on_meta(model, self._remote_code, labels or (2 if head else None), with_tokenizer=False)

    def context(self, config: RunConfig, loaded: LoadedModel, size: int) -> tuple[TrainingContext, Rows]:
        """A training context on the meta device, and the examples to estimate for.

        Args:
            config: configuration of the run, with the model and the method of one alternative.
            loaded: the shape of its model.
            size: number of examples for a batch.
        """
        if self._prepared is None:
            return self._random(loaded, size)
        alone = config.model_copy(update={"training": config.training.model_copy(update={"kl_beta": 0.0})})
        context = training_context(alone, replace(self._prepared, loaded=loaded))
        examples = sorted(context.examples, key=lambda one: -one.length)
        last = sorted((one.last_only() for one in examples), key=lambda one: -one.length)
        memory, evaluated = heaviest(examples, size), heaviest(last, size)
        usual = len(examples) // (config.method.batch_size + 1)  # where the longest of so many rows is expected
        mean = sum(one.length for one in last) / len(last)
        middle = next(place for place, one in enumerate(last) if one.length <= mean)
        time = memory if _alike(examples) else _from(examples, usual, size)
        return context, Rows(memory, time, self.training, evaluated, () if _alike(last) else _from(last, middle, size))

    def _random(self, loaded: LoadedModel, size: int) -> tuple[TrainingContext, Rows]:
        tokens, meta = self._tokens, torch.device("meta")
        text = loaded.model.config.get_text_config()
        limit = getattr(text, "max_position_embeddings", None)
        if limit and tokens > limit:
            raise ConfigError(f"--tokens is {tokens}, but {loaded.name!r} reads {limit}", f"set --tokens={limit}")
        objective = classification_loss
        make: Callable[[Sequence[Any]], Any] = functools.partial(collate, pad=0, device=meta)
        examples: Sequence[Any]
        if loaded.head == "classification":
            nothing = Example("", ("", ""), (0,))
            examples = [TokenizedText((1,) * tokens, (), 0, nothing)] * size
            make = functools.partial(collate_texts, pad=0, device=meta)
        elif loaded.head == "masked-lm":
            raise ConfigError(
                f"{loaded.name!r} is a masked language model, whose rows cannot be made up", "give rows with --data"
            )
        elif self._answer > 1:
            objective = token_loss
            examples = [TokenizedChoices(((1,) * tokens,), (min(self._answer, tokens - 1),), 0)] * size
        else:
            examples = random_examples(text.vocab_size, StepOptions(examples=size, tokens=max(1, tokens - 1)))
        context = TrainingContext(loaded.model, objective, examples, make)
        return context, Rows(examples, examples, self.training)


def _alike(examples: Sequence[Any]) -> bool:
    """Whether all cost about the same, by their tokens and by the positions whose logits are needed."""
    counts = [one.length for one in examples], [one.logits_to_keep for one in examples]
    return all(max(some) <= _ALIKE * min(some) for some in counts)


def _from(examples: Sequence[Any], place: int, size: int) -> Sequence[Any]:
    """This many examples from an index on, or the last ones."""
    first = max(0, min(place, len(examples) - size))
    return examples[first : first + size]


def estimate_config(
    config: RunConfig,
    source: RowSource,
    machine: Machine,
    device: str,
    method: MethodConfig | None,
    evaluation: bool = False,
) -> StepEstimate:
    """The estimate of one configuration.

    Args:
        config: configuration with the model.
        method: method instead of the configured one; None for a forward of its batch.
        evaluation: whether to include the run's evaluation.

    Raises:
        ConfigError: an estimate does not know the method's passes.
        ModelError: nothing readable there.
    """
    if method is not None:
        known_passes(method, source.training)
    loaded = source.load(config.model)
    size = config.method.batch_size
    scored = config.training.eval_batch_size if evaluation else 0
    context, rows = source.context(config, loaded, max(size, scored))
    return estimate_step(
        method,
        loaded,
        context,
        rows,
        machine,
        size,
        scored,
        device,
        bool(config.training.kl_beta) and method is not None,
    )


def estimate_run(
    config: RunConfig,
    tokens: int | None = None,
    answer: int = 1,
    device: str | None = None,
    beside: bool = True,
    remote_code: bool = False,
    on_progress: Callable[[str], None] = lambda text: None,
) -> RunEstimate:
    """Predict the peak memory and the time of a step of a run, from the shape of its model: no weights are read.

    Args:
        tokens: tokens per example, for random examples; by default the task's rows, if there is a task.
        answer: how many of these are scored.
        device: `cpu` or `cuda`; by default what accelerate finds.
        beside: whether to estimate the usual alternatives, too.

    Raises:
        ZofoError: a mistake in the configuration, the rows or the model.
    """
    machine, place = known_machine(), device_of(config, device)
    on_progress(f"the shape of {config.model.name}, and the rows")
    source = RowSource(config, tokens, answer, remote_code)
    on_progress(config.method.name)
    configured = estimate_config(config, source, machine, place, config.method, "task" in config.model_fields_set)
    others: dict[str, StepEstimate | str] = {}
    for name, way in BESIDE.items() if beside else ():
        on_progress(name)
        try:
            asked, method = way_of(config, way)
            others[name] = estimate_config(asked, source, machine, place, method)
        except ZofoError as error:
            others[name] = error.message
    speed = machine.described + (", with the files' pages in memory" if config.model.offload is not None else "")
    return RunEstimate(config.method.name, configured, others, source.about, place, speed)


def way_of(config: RunConfig, way: str) -> tuple[RunConfig, MethodConfig | None]:
    """A configuration with the model and the method of a way of `zofo bench memory`, and its own batch."""
    keys = WAYS[way]
    plain = config.model.model_copy(update={"quantization": None, **keys.model})
    if keys.method is None:
        return config.model_copy(update={"model": plain}), None
    kind = METHODS[str(keys.method["name"])].Config
    method = parse_model(kind, {"batch_size": config.method.batch_size, **keys.method})
    return config.model_copy(update={"model": plain, "method": method}), method


def device_of(config: RunConfig, asked: str | None) -> str:
    """`cpu` or `cuda`: as given, as configured, or what accelerate finds.

    Raises:
        ConfigError: another device.
    """
    from accelerate import PartialState

    place = str(asked or config.model.device or PartialState().device).split(":")[0]
    if place not in ("cpu", "cuda"):
        raise ConfigError(f"an estimate knows no {place!r}", "set --device=cpu or --device=cuda")
    return place
