"""Files in today's formats, which every later version must load, with the numbers that they gave when they were made.

    python tests/formats/make.py

A format that changes gets a new version and a new file beside the old ones; the old ones are never made again. So the
script refuses to write over a file that is there. The base model that they belong to is not stored: its weights are
given by a formula, in `base_model`, which no library's random numbers enter.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from conftest import build_tokenizer, review_rows, write_rows  # noqa: E402
from zofo import Displacement, Key, TrainingContext, Update  # noqa: E402
from zofo.backbone import UpdateLog  # noqa: E402
from zofo.export import export_run  # noqa: E402
from zofo.methods import METHODS, Method  # noqa: E402
from zofo.objectives import classification_loss  # noqa: E402
from zofo.tasks import Example, collate, encode  # noqa: E402
from zofo.training import predict, read_config, train  # noqa: E402
from zofo.training.callbacks import BestCheckpoint, EvaluationCallback, MetricsLogger  # noqa: E402
from zofo.training.checkpoint import Checkpoints  # noqa: E402
from zofo.training.run_state import RunState, should_checkpoint_weights  # noqa: E402
from zofo.trajectory import TrajectoryWriter  # noqa: E402

TRAJECTORY, CHECKPOINT = HERE / "trajectory-2.bin", HERE / "checkpoint-1"
PATCHES = tuple(HERE / f"patch-{version}.zofo" for version in (1, 2, 3))  # the last is what is written today
VOTE = HERE / "patch-3-vote.zofo"
NUMBERS = HERE / "numbers.json"
STEPS = 3
BILEVEL: dict[str, Any] = {
    "name": "bilevel",
    "batch_size": 2,
    "inner_steps": 1,
    "adapter": {"name": "lora", "rank": 2},
    "rule": {"lr": 1e-3},
}
VOTING: dict[str, Any] = {
    "name": "select",
    "vote": True,
    "population": 8,
    "keep": 3,
    "batch_size": 4,
    "gate_examples": 0,
    "estimator": {"epsilon": 0.25},
}
HEADER: dict[str, Any] = {
    "stream": 1,
    "noise": {"name": "low-rank", "rank": 2, "factors": "gaussian"},
    "mask": None,
    "rule": {"name": "sgd", "lr": 0.01, "weight_decay": 0.1},
    "estimator": {"name": "two-sided", "epsilon": 0.001},
    "evaluator": {"name": "in-forward", "fold_every": 8, "micro_batch": None},
    "select": None,
}


def base_model() -> Any:
    """A Llama of one layer whose weights are a formula of their place: the same bits everywhere, forever."""
    config = transformers.LlamaConfig(
        vocab_size=640,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for number, (_, tensor) in enumerate(sorted(model.named_parameters())):
            words = (torch.arange(tensor.numel(), dtype=torch.int64) + 7919 * number) * 2654435761 % 2**32
            values = words.double() / 2**32 - 0.5  # from -0.5 to 0.5, exact in float64
            tensor.copy_((1.0 + 0.25 * values if tensor.dim() < 2 else values).view_as(tensor))
    model.config.use_cache = False
    return model.eval().requires_grad_(False)


@torch.no_grad()
def numbers_of(model: Any) -> list[list[float]]:
    """Some logits of two fixed rows."""
    ids = torch.tensor([[5, 17, 42, 8], [99, 120, 3, 300]])
    found: list[list[float]] = model(input_ids=ids, use_cache=False).logits[:, -1, ::80].double().tolist()
    return found


def method_of(model: Any) -> Method:
    """A bilevel method on fixed examples."""
    tokenizer = build_tokenizer()
    rows = [Example(f"film number {i} was", (" terrible", " great"), (i % 2,)) for i in range(12)]
    examples = encode(tokenizer, rows, 64, False)
    context = TrainingContext(model, classification_loss, examples, lambda some: collate(some, 0, torch.device("cpu")))
    return METHODS["bilevel"](METHODS["bilevel"].Config.model_validate(BILEVEL), context)


def progress_of(method: Method, folder: Path) -> RunState:
    """What a checkpoint of the method holds; nothing was evaluated."""

    def score(counts: Any) -> Any:
        raise AssertionError("nothing is evaluated")

    return RunState(
        method,
        BestCheckpoint(folder / "best", method.save),
        EvaluationCallback(method, score),
        should_checkpoint_weights(method, None),
    )


def make_trajectory(path: Path) -> None:
    """A trajectory with a record of every kind."""
    writer = TrajectoryWriter(path, 7, HEADER)
    writer.on_move(Displacement({Key(7, 0, 0): 0.001}))
    writer.on_update(Update(Displacement({Key(7, 0, 0): -0.25, Key(7, 0, 1): 0.125})))
    writer.stepped(0)
    writer.on_flush()
    writer.on_update(Update(Displacement({Key(7, 1, 0): 0.5}), decay_factor=0.001))
    writer.stepped(1)
    writer.on_update(Update(Displacement({Key(7, 2, 0): -0.0625}), lr=0.02))
    writer.stepped(2)
    writer.close()


def make_patch(path: Path, method: dict[str, Any] = BILEVEL, reward: Any = None) -> None:
    """The patch of a short run, by default of a bilevel one."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_base(folder / "tiny")
        for split, rows in (("train", review_rows(24)), ("validation", review_rows(6, 60))):
            write_rows(folder / "data" / f"{split}.jsonl", rows)
        given = {
            "model": {"name": str(folder / "tiny")},
            "task": {"data_dir": str(folder / "data")},
            "method": method,
            "training": {"steps": STEPS},
            "output_dir": str(folder / "run"),
        }
        (folder / "run.yaml").write_text(json.dumps(given), encoding="utf-8")
        export_run(train(read_config(str(folder / "run.yaml"), []), reward=reward).path, "patch", path)


def votes_of(folder: Path) -> list[list[float]]:
    """What an applied vote thinks of two texts."""
    return [list((one.probabilities or {}).values()) for one in predict(folder, ["a dull film", "so good"])]


def save_base(folder: Path) -> None:
    """The base model as a transformers folder."""
    base_model().save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)


def make_checkpoint(folder: Path) -> list[list[float]]:
    """A checkpoint after some steps, with the logs that it goes on from; gives what the model was then."""
    folder.mkdir()
    method = method_of(base_model())
    progress = progress_of(method, folder)
    assert method.evaluator is not None
    metrics = MetricsLogger(folder / "metrics.jsonl", method)
    writer = TrajectoryWriter(folder / "trajectory.bin", 0, {"stream": 1, **method.replay_header()})
    method.evaluator.theta.log = writer
    for number in range(STEPS):
        metrics.after_step(number, method.step(number))
        writer.stepped(number)
    Checkpoints(folder).save(STEPS, lambda into: progress.save(STEPS, into, metrics, writer, 1.0))
    metrics.after_run(None)
    writer.close()
    method.evaluator.theta.log = UpdateLog()
    with method.using("adapter"):
        return numbers_of(method.model)


def main() -> None:
    """Make what is not there yet."""
    from zofo.export import apply_patch
    from zofo.trajectory import Trajectory, replay

    numbers = json.loads(NUMBERS.read_text(encoding="utf-8")) if NUMBERS.exists() else {}
    if not TRAJECTORY.exists():
        make_trajectory(TRAJECTORY)
        model = base_model()
        replay(model, Trajectory.read(TRAJECTORY))
        numbers[TRAJECTORY.name] = numbers_of(model)
    if not (patch := PATCHES[-1]).exists():
        make_patch(patch)
        with tempfile.TemporaryDirectory() as temporary:
            save_base(Path(temporary) / "base")
            apply_patch(patch, str(Path(temporary) / "base"), Path(temporary) / "out")
            model = transformers.AutoModelForCausalLM.from_pretrained(Path(temporary) / "out", dtype=torch.float32)
            numbers[patch.name] = numbers_of(model.eval())
    if not VOTE.exists():
        make_patch(VOTE, VOTING, lambda example, told: float(len(example.prompt)) * (-1) ** told)
        with tempfile.TemporaryDirectory() as temporary:
            save_base(Path(temporary) / "base")
            apply_patch(VOTE, str(Path(temporary) / "base"), Path(temporary) / "out")
            numbers[VOTE.name] = votes_of(Path(temporary) / "out")
    if not CHECKPOINT.exists():
        try:
            numbers[CHECKPOINT.name] = make_checkpoint(CHECKPOINT)
        except BaseException:
            shutil.rmtree(CHECKPOINT, ignore_errors=True)
            raise
    numbers["base"] = numbers_of(base_model())
    NUMBERS.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
