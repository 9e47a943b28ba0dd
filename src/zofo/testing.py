"""Conformance checks for methods, adapters, metrics, noises and rules, zofo's own and those of plugins.

    from zofo.testing import check_method

    def test_my_method(tmp_path):
        check_method("my-method", tmp_path, batch_size=4)

Each check raises an AssertionError that says what is wrong. They work offline, on a tiny Llama and made-up rows, in a
few seconds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, cast

import torch
from rich.console import Console

from zofo.adapters import ADAPTERS
from zofo.backbone import Backbone, Theta
from zofo.displacement import Displacement, Key
from zofo.errors import Interrupted
from zofo.estimators import Estimate
from zofo.methods import METHODS
from zofo.noise import NOISES
from zofo.rules import RULES
from zofo.tasks import METRICS, Example
from zofo.training import RunFolder, evaluate_run, read_config, train

STEPS = 4
_WORDS = ("a joy", "dull", "warm and funny", "lifeless", "an honest picture", "it drags on")
_LOGS = ("config.yaml", "environment.json", "metrics.jsonl", "summary.json")  # which hold seconds


def tiny_model(folder: Path) -> Path:
    """Save a Llama of two layers with random weights and a tokenizer as a transformers folder; returns the folder.

    Args:
        folder: where it is written; it is made.
    """
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.train_from_iterator(
        [f"{words} film . It was great terrible" for words in _WORDS],
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<pad>", "<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, **names)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_rows(folder: Path, count: int = 24) -> Path:
    """Write made-up film reviews with labels 0 and 1 for `task.data_dir`; returns the folder.

    Args:
        folder: new folder for train.jsonl, validation.jsonl and test.jsonl.
        count: number of training rows; the other files have six.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for first, split, rows in ((0, "train", count), (100, "validation", 6), (200, "test", 6)):
        lines = [
            json.dumps({"sentence": f"{_WORDS[i % 6]} film number {first + i}", "label": 1 - i % 2})
            for i in range(rows)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def check_method(name: str, folder: Path, **options: Any) -> RunFolder:
    """Train with a method, and check seeds, counts, resuming, restoring, and its configuration.

    * The same seed gives the same bits, and the last step's count of queries is the summary's.
    * A run that is stopped after two steps and resumed ends with the same bits as one that was not stopped.
    * The restored model has the loss that training ended with.
    * The saved configuration is equal when read back.

    Args:
        name: name of the method.
        folder: an empty folder to work in.
        options: options of the method, instead of its defaults.

    Returns:
        The run, of four steps.

    Raises:
        AssertionError: something of this does not hold.
    """
    assert METHODS[name].paper.strip(), "`paper` is empty: say where the method comes from"
    given: dict[str, Any] = {
        "model": str(tiny_model(folder / "model")),
        "task": {"name": "movie-reviews", "data_dir": str(tiny_rows(folder / "data"))},
        "method": {"name": name, **options},
        "training": {"steps": STEPS},
    }
    run = train(read_config(**given, output_dir=str(folder / "run")))
    lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    steps = METHODS[name].fixed_steps is None
    counted = max((line["queries"] for line in lines if line["event"] == "step"), default=0)
    total = run.summary["queries"]
    assert not steps or counted == total, f"steps log {counted} queries, the run counts {total}"
    again = train(read_config(**given, output_dir=str(folder / "again")))
    _assert_same(run, again, "a second run with the same seed")
    loss = evaluate_run(run.path).loss
    assert abs(loss - run.summary["loss"]) <= 1e-5 * abs(loss), (
        "the restored model has another loss than the trained one"
    )
    assert read_config(run.path / "config.yaml").method == run.config.method, "the configuration reads back differently"
    if steps:
        config = read_config(**given, output_dir=str(folder / "stopped"))
        try:
            train(config, Console(file=cast(IO[str], _StopsAt(2))))
        except Interrupted:
            pass
        else:
            raise AssertionError("the run was not stopped: it does not show its steps")
        _assert_same(run, train(config), "a run that was stopped after two steps and went on")
    return run


def check_adapter(name: str, folder: Path, **options: Any) -> RunFolder:
    """Train an adapter with first-order steps, as `check_method` does, and check that its tensors are saved.

    Args:
        name: name of the adapter.
        folder: an empty folder to work in.
        options: options of the adapter, instead of its defaults.

    Returns:
        The run, of four steps.

    Raises:
        AssertionError: as `check_method`; or the adapter has no tensors.
    """
    assert (ADAPTERS[name].__doc__ or "").strip(), (
        "the adapter has no docstring: `zofo list adapters` shows its first line"
    )
    run = check_method("first-order", folder, batch_size=4, adapter={"name": name, **options})
    assert any((run.path / "adapter").glob("*.safetensors")), "the run holds no tensors of the adapter"
    return run


def check_metric(
    name: str, examples: Sequence[Example], right: Sequence[int | str], wrong: Sequence[int | str]
) -> None:
    """Check that a metric is between -1 and 1, independent of the order of examples, and higher for better answers.

    Args:
        name: name of the metric.
        examples: at least two.
        right: a good answer to each.
        wrong: a bad answer to each.

    Raises:
        AssertionError: something of this does not hold.
    """
    metric = METRICS[name]
    assert metric.about.strip(), "`about` is empty: it is what `zofo list metrics` shows"
    good, bad = metric.score(examples, right), metric.score(examples, wrong)
    assert -1 <= bad <= good <= 1, f"good answers score {good}, bad ones {bad}"
    assert good > bad, f"good answers and bad ones both score {good}"
    turned = metric.score(list(reversed(examples)), list(reversed(right)))
    assert turned == good, f"the examples in another order score {turned}, not {good}"


def check_noise(name: str, draws: int = 4000, **options: Any) -> None:
    """Check that directions have the same bits for any block size, mean 0 and covariance I.

    Args:
        name: name of the noise.
        draws: number of directions of 12 entries; moments may deviate by 5 standard errors.
        options: options of the noise.

    Raises:
        AssertionError: something of this does not hold.
    """
    noise, shape, size = NOISES[name](**options), (3, 4), 12
    key = Key(5, 3, 1)
    whole = noise.draw(key, "weight", shape, (0, size), torch.device("cpu"))
    parts = [noise.draw(key, "weight", shape, block, torch.device("cpu")) for block in ((0, 4), (4, size))]
    assert torch.equal(torch.cat(parts), whole), "a direction has other bits when it is drawn in blocks"
    z = torch.stack(
        [noise.draw(Key(5, step, 0), "weight", shape, (0, size), torch.device("cpu")) for step in range(draws)]
    ).double()
    for what, values in (("mean", z), ("covariance", z[:, :, None] * z[:, None, :] - torch.eye(size).double())):
        error = values.std(0) / draws**0.5
        apart = values.mean(0).abs() > 5 * error + 1e-12
        assert not apart.any(), (
            f"the {what} of {int(apart.sum())} entries is more than 5 standard errors from where it is"
        )


def check_rule(name: str, **options: Any) -> None:
    """Check that a rule is deterministic, and moves against the gradient.

    Args:
        name: name of the rule.
        options: options of the rule.

    Raises:
        AssertionError: something of this does not hold.
    """

    def weights(slope: float) -> torch.Tensor:
        layer = torch.nn.Linear(4, 3, bias=False)
        torch.nn.init.zeros_(layer.weight)
        theta, rule = Theta(Backbone(layer, NOISES["gaussian"]())), RULES[name](**options)
        state = rule.init()
        for step in range(3):
            key = Key(0, step, 0)
            gradient = Displacement({key: slope})
            estimate = Estimate(loss=1.0, gradient=gradient, queries=2, projected_gradients={key: slope})
            update, state = rule.update(estimate, state)
            theta.apply(update)
        return layer.weight.detach().clone()

    moved = weights(2.0)
    assert torch.equal(moved, weights(2.0)), "the same estimates lead to other weights"
    along = sum(NOISES["gaussian"]().whole(Key(0, step, 0), "weight", (3, 4)) for step in range(3))
    assert (moved * along).sum() < 0, "three updates do not move against the gradient"


class _StopsAt:
    """A stream that asks the process to stop when a given step is reported."""

    def __init__(self, step: int) -> None:
        self._step = step

    def write(self, text: str) -> int:
        import signal

        if f"step {self._step}/" in text:
            signal.raise_signal(signal.SIGTERM)
        return len(text)

    def flush(self) -> None:
        """Does nothing: nothing is buffered."""


def _assert_same(run: RunFolder, other: RunFolder, what: str) -> None:
    """Compare the files of two runs, except for times and folder names."""
    first, second = _files(run), _files(other)
    assert first.keys() == second.keys(), f"{what} has left other files: {sorted(first.keys() ^ second.keys())}"
    differing = [name for name in first if first[name] != second[name]]
    assert not differing, f"{what} differs in {', '.join(differing)}"


def _files(run: RunFolder) -> dict[str, bytes]:
    found = {}
    for path in sorted(run.path.rglob("*")):
        if path.is_file() and path.name not in (*_LOGS, "README.md"):
            found[path.relative_to(run.path).as_posix()] = path.read_bytes()
    return found
