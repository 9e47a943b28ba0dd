"""Load what a configuration names; and try a reward on a few rows before training."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from zofo.errors import ConfigError, DataError, ZofoError
from zofo.methods import METHODS, TrainingContext
from zofo.models import (
    LoadedModel,
    ModelConfig,
    check_head_labels,
    check_mixed_lengths,
    embeddings_of,
    head_of,
    load_model,
)
from zofo.objectives import (
    REWARD,
    Generation,
    TrainingObjective,
    answer_notes,
    build_objective,
    default_objective,
    less_kl,
    packing_limit,
    reward_objective,
)
from zofo.processes import ALONE, Processes
from zofo.tasks import (
    SPLITS,
    Example,
    Split,
    Task,
    check_token_ids,
    collate,
    collate_masked,
    collate_texts,
    encode,
    encode_channel,
    encode_masked,
    encode_texts,
    load_examples,
    readable_splits,
    resolve_task,
    row_notes,
    trained_on_notes,
    unwritten_notes,
)
from zofo.training.config import RunConfig
from zofo.training.evaluation import TaskEvaluator
from zofo.training.run_folder import opened_start


@dataclass(frozen=True)
class PreparedRun:
    """A loaded configuration: the model, the task and its encoded examples."""

    loaded: LoadedModel
    task: Task
    examples: dict[Split, list[Example]]
    encoded: dict[Split, list[Any]]
    scorer: TaskEvaluator
    start_adapter: Path | None = None

    @property
    def train_rows(self) -> list[int]:
        """The number of training rows of each task."""
        return list(Counter(example.task for example in self.examples["train"]).values())


def prepare_run(
    config: RunConfig,
    remote_code: bool = False,
    splits: Sequence[Split] = SPLITS,
    task: Task | None = None,
    load: Callable[[ModelConfig, bool, int | None], LoadedModel] = load_model,
) -> PreparedRun:
    """Load the task first, since its mistakes are cheaper to find, then the model, and tokenise.

    Args:
        remote_code: allow the model's repository to run its own code.
        splits: splits to load; rows of others are not read.
        task: a task to use instead of the configured one.
        load: loads a model, as `load_model` does.

    Raises:
        ZofoError: something is wrong with the task, data or model.
    """
    task = resolve_task(config.task) if task is None else task
    start = opened_start(config)
    if start is not None:
        start.check_not_trained_on(config.task)
    start_adapter = None if start is None else start.adapter_for(config.method)
    try:
        head = head_of(config.model) == "classification"
    except ZofoError:
        load_examples(task, config.task, splits)
        raise
    examples = load_examples(task, config.task, splits, head)
    loaded = load(config.model, remote_code, len(task.label_names) or None)
    if loaded.outputs and task.label_names:
        words = zip(task.label_names, task.verbalizers_of(config.task.prompt).values(), strict=True)
        check_head_labels(loaded.outputs, loaded.name, [(str(label), word.strip()) for label, word in words])
    if start is not None:
        start.restore_as_start(loaded, config.method)
    scorer = scorer_of(config, task, loaded)
    encoded = {split: scorer.encode(rows) for split, rows in examples.items()}
    return PreparedRun(loaded, task, examples, encoded, scorer, start_adapter)


def check_every_split(config: RunConfig, prepared: PreparedRun) -> list[str]:
    """Tokenise the available splits that were not loaded, so that a row that is too long is not found after training.

    Returns notes about the rows. Raises ZofoError for a row that cannot be rendered, is too long, or whose prompt
    without content, which calibrated scores need, cannot be made.
    """
    task, head = prepared.task, prepared.loaded.head == "classification"
    bare = config.task.bare
    examples: dict[Split, Sequence[Example]] = {}
    notes = []
    at_hand = readable_splits(task, config.task)
    of_hub = not config.task.several and config.task.data_dir is None  # whose other splits are only looked through
    for split in SPLITS if of_hub else at_hand:
        rows: Sequence[Example] | None = prepared.examples.get(split)
        if rows is None:
            rows, note = _unscored(config, task, split, head, refuse=split in at_hand)
            notes += [note] if note else []
            if rows:
                prepared.scorer.encode(rows)
            if split not in at_hand:
                continue
        examples[split] = load_examples(task, bare, [split], head)[split] if config.task.num_fewshot else rows
        if config.task.scoring == "calibrated":
            prepared.scorer.encode_content_free(rows)
    encoded = [one for rows in prepared.encoded.values() for one in rows]
    lost = unwritten_notes(prepared.loaded.tokenizer, encoded)
    if task.kind == "generation":
        lost += answer_notes(encoded, prepared.scorer.generation)
    most = config.task.max_rows
    cut = [split for split, rows in prepared.examples.items() if len(rows) == most]
    if cut:
        notes.append(f"task.max_rows={most} leaves {most} rows of {', '.join(cut)}: scores are of these rows alone")
    if (start := opened_start(config)) is not None:
        for run in start.chain():
            notes += trained_on_notes(run.config.task, examples, str(run.path), head)
    return [*notes, *row_notes(task, examples), *lost]


def _unscored(
    config: RunConfig, task: Task, split: Split, head: bool, refuse: bool
) -> tuple[Sequence[Example], str | None]:
    """The rows of a split that a run does not score, and a note about why they cannot be scored.

    With `refuse`, rows that cannot be read or rendered raise DataError.
    """
    try:
        return load_examples(task, config.task, [split], head)[split], None
    except DataError as error:  # such as labels that are not there; they may be predicted nevertheless
        note = f"{split} cannot be scored: {error.message}"
    try:
        return load_examples(task, config.task, [split], head, right=False)[split], note
    except DataError:
        if refuse:
            raise
        return [], note


def scorer_of(config: RunConfig, task: Task, loaded: LoadedModel) -> TaskEvaluator:
    """The evaluator of a model for a task."""
    if task.kind == "generation" and loaded.head != "causal-lm":
        raise ConfigError(
            f"{task.name!r} asks for a free text, which a model with model.head={loaded.head} cannot give",
            "choose a causal language model, or a classification task",
        )
    scoring = config.task.scoring
    needs = {
        "calibrated": ("compares likelihoods of candidates", loaded.head != "classification"),
        "channel": ("is the likelihood of a prompt after a candidate", loaded.head == "causal-lm"),
    }
    means, fits = needs.get(scoring, ("", True))
    if not fits or (means and task.kind == "generation"):
        what = "a generation" if task.kind == "generation" else f"a model with model.head={loaded.head}"
        raise ConfigError(f"task.scoring={scoring} {means}, which {what} has none of", "set task.scoring=mean")
    return TaskEvaluator(
        task=task,
        encode=functools.partial(_encode, config, task, loaded),
        collate=batch_maker(loaded),
        generation=Generation(
            tokenizer=loaded.tokenizer,
            stop=(*task.stop, *([task.separator] if config.task.num_fewshot else [])),
            max_new_tokens=task.max_new_tokens,
            temperature=config.task.temperature,
            seed=config.training.seed,
        ),
        scoring=config.task.scoring,
        batch_size=config.training.eval_batch_size,
    )


def training_context(
    config: RunConfig, prepared: PreparedRun, reward: Any | None = None, processes: Processes = ALONE
) -> TrainingContext:
    """The context that a method trains with; raises ConfigError for an objective that fits neither it nor the task."""
    beneath = config.method.reward_has_a_place
    if reward is not None and not beneath and config.training.objective is not None:
        raise ConfigError(
            f"training.objective is {config.training.objective!r}, and a reward is given, too: one would not count",
            "leave out one of them; of bilevel, method.upper_objective=reward has a place for both",
        )
    objective = _objective(config, prepared, None if beneath else reward)
    if not objective.differentiable and METHODS[config.method.name].needs_gradient:
        raise ConfigError(
            f"the objective {objective.name!r} has no gradient, but method={config.method.name} takes first-order "
            "steps",
            "choose method=mezo or es, or method=bilevel with method.upper_objective; or leave the "
            + ("reward" if reward is not None else "objective")
            + " out",
        )

    if config.training.kl_beta and (base_of := config.method.base_of) is not None:
        how, beta = prepared.scorer.generation, config.training.kl_beta
        objective = less_kl(objective, prepared.task, how, beta, functools.partial(base_of, prepared.loaded.model))

    @functools.cache  # one object, so that all who ask see the same rewards
    def by_objective(name: str) -> TrainingContext:
        if name == REWARD and reward is None:
            raise ConfigError(
                f"an objective is {REWARD!r}, but no reward is given",
                "give one, --reward FILE.py:NAME or zofo.train(config, reward=...), or name an objective of "
                "`zofo list objectives`",
            )
        named = _objective(config, prepared, reward if name == REWARD else None, name)
        return _context(config, prepared, named, processes)

    return replace(_context(config, prepared, objective, processes), by_objective=by_objective)


def _context(
    config: RunConfig, prepared: PreparedRun, objective: TrainingObjective, processes: Processes
) -> TrainingContext:
    """The context for one objective; raises ConfigError if an example has no options to compare."""
    if config.task.several and objective.compares_candidates:
        free = next((one.example for one in prepared.encoded["train"] if len(one.example.candidates) == 1), None)
        if free is not None:
            raise ConfigError(
                f"training.objective is {objective.name!r}, which compares options, but {free.where} has none",
                "set training.objective=answer, or leave such tasks out",
            )
    only_reads = METHODS[config.method.name].fixed_steps is not None  # as evaluation does, examples as they are
    return TrainingContext(
        model=prepared.loaded.model,
        objective=objective.losses,
        examples=prepared.encoded["train"],
        collate=lambda examples: prepared.scorer.collate(
            examples if only_reads else [*map(objective.prepare, examples)]
        ),
        seed=config.training.seed,
        length=(lambda example: example.length) if config.training.group_by_length else None,
        log_ties=not objective.differentiable,
        objective_name=objective.name,
        check_objective=objective.check_losses,
        processes=processes,
        rewards=objective.rewards,
        answers=objective.answers,
        start_adapter=prepared.start_adapter,
    )


def _objective(
    config: RunConfig, prepared: PreparedRun, reward: Any | None, name: str | None = None
) -> TrainingObjective:
    """The objective of that name, or for a reward; by default the configured one."""
    task, how = prepared.task, prepared.scorer.generation
    if reward is not None:
        return reward_objective(reward, task, how)
    causal = prepared.loaded.head == "causal-lm"
    usual = default_objective(task) if causal else "classification"
    return build_objective(name or config.training.objective or usual, task, how, causal)


def batch_maker(loaded: LoadedModel) -> Callable[[Sequence[Any]], Any]:
    """A function that collates encoded examples for the model."""
    pad, device = loaded.tokenizer.pad_token_id, loaded.device
    if loaded.head == "classification":
        return functools.partial(collate_texts, pad=pad, device=device)
    if loaded.head == "masked-lm":
        return functools.partial(collate_masked, pad=pad, device=device)
    return functools.partial(collate, pad=pad, device=device, pack_limit=packing_limit(loaded.model))


def _encode(config: RunConfig, task: Task, loaded: LoadedModel, examples: Sequence[Example]) -> list[Any]:
    """Tokenise examples within the limits of the configuration and the model."""
    limit = _limit(config, task, loaded)
    truncate = config.task.truncate == "left" or config.task.num_fewshot > 0
    plain = functools.partial(encode, require_all=config.task.trained_turns == "all")
    encoders: dict[str, Callable[..., list[Any]]] = {
        "classification": encode_texts,
        "masked-lm": encode_masked,
        "causal-lm": encode_channel if config.task.scoring == "channel" else plain,
    }
    encoded = encoders[loaded.head](loaded.tokenizer, examples, limit, truncate)
    check_token_ids(encoded, loaded.tokenizer, embeddings_of(loaded.model))
    _check_mixed_lengths(config, task, loaded, encoded)
    return encoded


def _check_mixed_lengths(config: RunConfig, task: Task, loaded: LoadedModel, encoded: Sequence[Any]) -> None:
    """Refuse rows whose scores depend on other rows of their batch; a model without weights is not checked."""
    if next(loaded.model.parameters()).is_meta:
        return
    rows = [row for one in encoded for row in one.rows]
    longest = max(map(len, rows), default=0)
    if task.kind == "generation":
        prompts = [one.prompt for one in encoded if one.prompt]
        rows += prompts
        longest = max(longest, max(map(len, prompts), default=0) + task.max_new_tokens)
    longest += _virtual_tokens(config)
    check_mixed_lengths(loaded.model, loaded.tokenizer.pad_token_id, loaded.name, loaded.head, rows, longest)


_NO_LIMIT = 1 << 30


def _positions(model: Any) -> int | None:
    """The maximum number of positions of a model; RoBERTa's begin after the id of its padding token."""
    own: int | None = getattr(model.config, "max_position_embeddings", None)
    tables = [part for name, part in model.named_modules() if name.endswith("position_embeddings")]
    padding = next((pad for table in tables if (pad := getattr(table, "padding_idx", None)) is not None), None)
    return own if own is None or padding is None else own - padding - 1


def _virtual_tokens(config: RunConfig) -> int:
    """The number of tokens that adapters put before every row."""
    return sum(adapter.kind.virtual_tokens(adapter.options) for adapter in config.method.adapter_configs)


def _limit(config: RunConfig, task: Task, loaded: LoadedModel) -> int | None:
    """The maximum length of a text in tokens; for a generation, without its new tokens."""
    given = config.task.max_length, _positions(loaded.model), loaded.tokenizer.model_max_length  # often a huge number
    limits = [limit for limit in given if limit and limit < _NO_LIMIT]
    if not limits:
        return None
    virtual = _virtual_tokens(config)
    limit = min(limits) - virtual - (task.max_new_tokens if task.kind == "generation" else 0)
    if limit < 2:
        takers, remedies = [], []
        if task.kind == "generation":
            takers.append(f"the task {task.name!r} generates {task.max_new_tokens} tokens")
            remedies.append("task.max_new_tokens")
        if virtual:
            takers.append(f"the adapter takes {virtual}")
            remedies.append("method.adapter.num_virtual_tokens")
        raise ConfigError(
            f"a text has at most {min(limits)} tokens here, which leaves none for the prompt: {' and '.join(takers)}",
            "lower " + " or ".join(remedies),
        )
    return limit


ROWS = 5


def reward_trial(context: TrainingContext, queries: int) -> Iterator[str]:
    """Sentences about the rewards of the untrained model's answers to the first rows, and how long so many queries
    take.

    Raises:
        ConfigError: the reward failed, or returned something other than numbers.
    """
    rows = context.examples[:ROWS]
    batch = context.collate(rows)
    start = time.perf_counter()
    with torch.no_grad():
        found = (-context.objective(context.model, batch)).tolist()
    each = (time.perf_counter() - start) / len(rows)
    values = ", ".join(f"{value:.4g}" for value in found)
    minutes = each * queries / 60
    takes = f"{minutes / 60:.3g} h" if minutes > 90 else f"{minutes:.2g} min"
    yield (
        f"the reward of the first {len(rows)} rows, untrained: {values}; {each:.2g} s a row, with the answer: about "
        f"{takes} for the {queries:,} queries of this run, or less in larger batches"
    )
    if len(set(found)) == 1 and len(found) > 1:
        yield (
            "warning: it is the same for all of them: a reward that never differs moves nothing; give partial credit, "
            "or raise method.batch_size"
        )
