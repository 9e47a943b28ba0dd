"""Several processes train as one does: the same losses and weights, the same bits in each, few bytes between them."""

import json
import os
import random
import shutil
import signal
import time

import pytest
import torch
import transformers
from accelerate import PartialState
from safetensors.torch import load_file, save_file

import zofo.optim
from conftest import build_model, review_rows, write_rows
from several_processes import Started, together
from test_resume import contents
from zofo.backbone import Backbone, fingerprint
from zofo.displacement import Displacement
from zofo.errors import ConfigError, EvaluatorError
from zofo.evaluators import InPlace
from zofo.evaluators.shared import SharedExamples
from zofo.integrations.transformers import (
    BilevelTrainer,
    BilevelTrainingArguments,
    ZerothOrderTrainer,
    ZerothOrderTrainingArguments,
)
from zofo.methods import METHODS, MeZO, TrainingContext
from zofo.noise import Gaussian
from zofo.objectives import Rewards, WeightedReward
from zofo.processes import Processes, joined
from zofo.tasks import Example
from zofo.training import RunConfig, RunFolder, train
from zofo.training.callbacks import BestCheckpoint
from zofo.training.together import state_hash

pytestmark = pytest.mark.usefixtures("old_objects_kept")
BATCH = 5  # an odd one: one process has an example more than the other
RULE = {"name": "sgd", "lr": 2e-4}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reviews")
    write_rows(folder / "train.jsonl", review_rows(40))
    write_rows(folder / "validation.jsonl", review_rows(9, 40))
    return folder


@pytest.fixture(scope="module")
def configured(data, model_folder):
    def make(run, method=None, rows=data, **training):
        method = {"name": "mezo", "rule": RULE} if method is None else method
        content = {
            "model": str(model_folder),
            "task": {"name": "movie-reviews", "data_dir": str(rows)},
            "method": {"batch_size": BATCH, **method},
            "training": {"steps": 6, **training},
            "output_dir": str(run),
        }
        return RunConfig.model_validate(content)

    return make


def lines(run, event="step"):
    return [one for one in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if one["event"] == event]


def of_method(processes, method, folder):
    """Four steps of a method on random rows: its losses, its weights, what it counted and what it exchanged a step."""
    model, rows = build_model("llama"), list(torch.randint(3, 300, (24, 7), generator=torch.Generator().manual_seed(0)))
    context = TrainingContext(model, sequence_losses, rows, torch.stack, processes=processes)
    kind = METHODS[method["name"]]
    made = kind(kind.Config.model_validate({"batch_size": BATCH, **method}), context)
    made.planned_steps = 4
    before, losses = processes.bytes, [made.step(number).loss for number in range(4)]
    with made.using(made.variants[0]):
        save_file({name: p.detach().clone() for name, p in model.named_parameters()}, folder)
    exchanged = (processes.bytes - before) / 4 / max(made.queries_per_step, 1)
    return losses, made.counts.queries, exchanged, state_hash(made)


def sequence_losses(model, batch):
    logits = model(batch).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none").mean(dim=1)


ZEROTH_ORDER = (
    {"name": "mezo", "directions": "per-example", "evaluator": {"name": "in-forward", "flush_every": 3}},
    {"name": "mezo", "normalize_by_std": True, "rule": RULE, "evaluator": {"name": "in-forward", "micro_batch": 1}},
    {"name": "mezo", "noise": "gaussian", "evaluator": "from-copy", "batch_size": 1},
    {"name": "svrg", "anchor_batch_size": 7},
    {"name": "select", "population": 4, "gate_examples": 7, "keep": 3, "estimator": {"epsilon": 0.02}},
)
FIRST_ORDER = (
    {"name": "first-order", "parameters": "all", "optimizer": "sgd", "gradient_accumulation_steps": 2},
    {"name": "bilevel", "inner_steps": 1, "optimizer": "sgd", "directions": "per-group(2)", "rule": RULE},
)


def test_methods_step_alike(tmp_path):
    """Losses within 1e-5 and weights within 1e-6 of one process, the same bits in both, at most 16 bytes a loss."""
    methods = [*ZEROTH_ORDER, *FIRST_ORDER]

    def work(rank):
        return [of_method(joined(), method, tmp_path / f"{rank}-{n}") for n, method in enumerate(methods)]

    alone = [of_method(Processes(), method, tmp_path / f"alone-{n}") for n, method in enumerate(methods)]
    first, second = together(work, tmp_path)
    for number, method in enumerate(methods):
        (losses, queries, _, _), one, two = alone[number], first[number], second[number]
        assert one == two, method
        assert one[0] == pytest.approx(losses, abs=1e-5), method
        assert one[1] == queries
        if method in ZEROTH_ORDER:
            assert 0 < one[2] <= 16
        tensors = [load_file(tmp_path / f"{of}-{number}") for of in ("alone", "0", "1")]
        assert all(torch.equal(tensors[1][name], tensors[2][name]) for name in tensors[1])
        apart = max(float((tensor - tensors[1][name]).abs().max()) for name, tensor in tensors[0].items())
        assert apart <= 1e-6, method


def test_two_processes_train_as_one(configured, tmp_path):
    """Over 50 steps, losses within 1e-5 and weights within 1e-6; the first one writes the run, as one process does."""
    training = {"steps": 50, "eval_steps": 30}
    one, two = tmp_path / "one", tmp_path / "two"
    train(configured(one, {"name": "mezo"}, **training))
    assert together(lambda rank: train(configured(two, {"name": "mezo"}, **training)) and None, tmp_path) == [
        None,
        None,
    ]
    for before, now in zip(lines(one), lines(two), strict=True):
        assert now["loss"] == pytest.approx(before["loss"], abs=1e-5)
        assert now["queries"] == before["queries"]
        assert 0 < now["exchanged_bytes"] <= 16 * 2 * BATCH
    weights = zip(*(RunFolder.open(run).load().model.parameters() for run in (one, two)), strict=True)
    assert max(float((a - b).abs().max()) for a, b in weights) <= 1e-6
    files = [{path.relative_to(run) for path in run.rglob("*")} for run in (one, two)]
    assert files[0] == files[1]
    assert lines(two, "evaluation")[-1]["loss"] == pytest.approx(lines(one, "evaluation")[-1]["loss"], abs=1e-5)
    assert RunFolder.open(two).environment["processes"] == "2"
    assert "processes" not in RunFolder.open(one).environment


def test_each_reward_is_logged_of_the_answers_of_all(configured, tmp_path):
    """Also where a batch has fewer examples than there are processes: what one asks for nothing does not count."""

    def long(example, answer):
        return len(str(answer)) + len(example.prompt)

    def right(example, answer):
        return float(answer == example.gold)

    def trained(run, batch):
        train(configured(run, {"name": "mezo", "batch_size": batch}, steps=2), reward=[long, right])
        return [[line["reward_long"], line["reward_right"]] for line in lines(run)]

    for batch in (BATCH, 1):
        alone = trained(tmp_path / f"one-{batch}", batch)
        first, second = together(lambda rank, b=batch: trained(tmp_path / f"two-{b}", b), tmp_path)
        assert first == second
        for here, there in zip(first, alone, strict=True):
            assert here == pytest.approx(there, rel=1e-12)


def test_an_example_that_only_fills_a_share_does_not_count():
    """Of two batches, a process may have a share of one alone."""
    model, rewards = torch.nn.Linear(1, 1), Rewards((WeightedReward(lambda example, answer: float(answer)),))

    class First(Processes):
        """The first of two; what it gathers is its own."""

        def __init__(self):
            super().__init__()
            self.size = 2

        def gather(self, own, numbers, dtype, failure=None):
            assert failure is None
            return torch.nn.functional.pad(own.reshape(1, -1), (0, numbers - own.numel())).expand(2, -1)

    def objective(_, batch):
        return torch.tensor(rewards([Example("a", (" b",), (0,))] * len(batch), batch[:, 0].tolist()))

    shared = SharedExamples(InPlace(model, Backbone(model, Gaussian())), model, First())
    asks = [(objective, torch.tensor([[7.0]])), (objective, torch.tensor([[1.0], [2.0], [3.0]]))]
    with shared.probe(asks, [Displacement()]):
        assert list(rewards.means().values()) == [1.0]


def at_step(kind, number, what):
    """From now on, a method does something at the beginning of a step."""
    step = kind.step

    def stepped(self, n):
        if n == number:
            what()
        return step(self, n)

    kind.step = stepped


def test_a_signal_to_one_stops_all_after_the_same_step_and_they_go_on_to_the_same_bits(configured, tmp_path):
    def stopped(rank):
        train(configured(tmp_path / "whole"))
        if rank == 1:
            at_step(MeZO, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        train(configured(tmp_path / "stopped"))

    def again(rank):
        train(configured(tmp_path / "stopped"))

    first, second = together(stopped, tmp_path)
    assert first["message"] == "stopped by SIGTERM after 3 steps, which are saved"
    assert (first["quiet"], second["error"], second["quiet"]) == (False, "Interrupted", True)
    assert together(again, tmp_path) == [None, None]
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_early_stopping_ends_all_processes_after_the_same_step(configured, tmp_path):
    """As in one process; and of a run that goes on, where no further step is left, or some are."""
    training = {"steps": 20, "eval_steps": 2, "early_stopping_patience": 2, "save_steps": 1}

    def trained(rank, run, at=None):
        inner, first = BestCheckpoint.after_evaluation, []

        def first_alone(self, steps, scores):
            if not first and self.score is None:
                first.append(inner(self, steps, scores))

        BestCheckpoint.after_evaluation = first_alone
        if at is not None and rank == 1:
            at_step(MeZO, at, lambda: os.kill(os.getpid(), signal.SIGTERM))
        train(configured(tmp_path / run, **training))
        return RunFolder(tmp_path / run).summary

    first, second = together(lambda rank: trained(rank, "whole"), tmp_path)
    assert first == second
    assert (first["steps"], first["best"]["step"], first["stopped"]) == (6, 2, None)
    assert first["early_stopping"] == {"patience": 2, "planned_steps": 20}
    assert [line["step"] for line in lines(tmp_path / "whole")] == list(range(6))
    for at in (3, 5):  # in the middle, and in the last step
        run = f"stopped-{at}"
        stopped = together(lambda rank, run=run, at=at: trained(rank, run, at), tmp_path)
        assert [one["error"] for one in stopped] == ["Interrupted"] * 2
        together(lambda rank, run=run: trained(rank, run), tmp_path)
        assert contents(tmp_path / run) == contents(tmp_path / "whole")


@pytest.mark.soak
def test_one_that_fails_or_dies_ends_the_run_and_is_said_once(configured, tmp_path):
    def failing(rank):
        def reward(example, answer):
            if rank == 1 and asked():
                raise ValueError("no answer today")
            return float(answer == example.gold)

        asked = iter(range(99)).__next__
        train(configured(tmp_path / "failed"), reward=reward)

    def dying(rank):
        if rank == 1:
            at_step(MeZO, 2, lambda: os.kill(os.getpid(), signal.SIGKILL))
        train(configured(tmp_path / "dead"))

    first, second = together(failing, tmp_path)
    assert first == {"error": "ProcessError", "message": "process 1 of 2 could not go on, and says why", "quiet": True}
    assert (second["error"], second["quiet"]) == ("ConfigError", False)
    assert "no answer today" in second["message"]
    first, second = together(dying, tmp_path)
    assert second is None
    assert first["message"] == "another of the 2 processes has ended, so that this one cannot go on"
    assert first["quiet"] is False
    assert json.loads((tmp_path / "dead" / "summary.json").read_text())["stopped"].startswith("another of the 2")


@pytest.mark.soak
def test_what_cannot_be_shared_out_is_refused(configured, tmp_path, monkeypatch):
    def work(rank):
        found = []
        for method, options in (({"name": "linear-probe"}, {}), (None, {"treatment_steps": 2})):
            with pytest.raises(ConfigError) as refused:
                train(configured(tmp_path / "refused", method, **options))
            found.append([refused.value.message, refused.value.quiet])
        with pytest.raises(ConfigError, match="the reward of row 1 is 1 among others and 0 alone"):
            train(configured(tmp_path / "refused"), reward=compares)
        return found

    def compares(prompts, completions, **columns):
        return [float(len(prompts) > 1) for _ in prompts]

    first, second = together(work, tmp_path)
    assert [message for message, _ in first] == [message for message, _ in second]
    assert first[0] == ["method=linear-probe cannot share out its examples over 2 processes", False]
    assert [quiet for _, quiet in second] == [True, True]
    assert not (tmp_path / "refused").exists()
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        with monkeypatch.context() as patched:
            patched.setenv(name, "true")
            with pytest.raises(ConfigError, match="each step writes whole ones"):
                zofo.optim.MeZO(torch.nn.Linear(2, 1))

    def begun_alone(rank):  # as a Trainer does on CPUs, unless it is told
        PartialState()
        joined()

    found, _ = together(begun_alone, tmp_path)
    assert found["message"] == "there are 2 processes, but accelerate finds 1: each would train by itself"


@pytest.mark.soak
def test_models_that_mix_rows_are_refused(tmp_path):
    class Mixing(torch.nn.Linear):
        def forward(self, rows):
            return super().forward(rows - rows.mean(dim=0))[:, 0]

    rows = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))

    def work(rank):
        context = TrainingContext(
            Mixing(3, 1), lambda model, batch: model(batch), list(rows), torch.stack, processes=joined()
        )
        made = MeZO(MeZO.Config.model_validate({"batch_size": 4, "evaluator": "in-place"}), context)
        with pytest.raises(EvaluatorError, match="depend on which examples share a batch"):
            made.check()

    assert together(work, tmp_path) == [None, None]


def test_processes_that_differ_are_refused_before_anything_is_written(configured, data, tmp_path):
    other = tmp_path / "other"
    write_rows(other / "train.jsonl", review_rows(40, 2))
    write_rows(other / "validation.jsonl", review_rows(9, 40))
    cases = {
        "seed": (lambda rank: {"seed": rank}, "training.seed is 1 in process 1, and 0 in process 0"),
        "rows": (
            lambda rank: {"rows": (data, other)[rank]},
            "process 1: the train rows of the task 'movie-reviews' are not those that process 0 has",
        ),
    }

    def work(rank):
        found = []
        for name, (differing, _) in cases.items():
            with pytest.raises(Exception) as refused:  # noqa: PT011
                train(configured(tmp_path / name, **differing(rank)))
            found.append([str(refused.value), refused.value.quiet])
        return found

    first, second = together(work, tmp_path)
    for number, (name, (_, said)) in enumerate(cases.items()):
        assert said in first[number][0]
        assert first[number][1] is False
        assert second[number] == [first[number][0], True]
        assert not (tmp_path / name).exists()


ROWS = torch.randint(3, 300, (24, 7), generator=torch.Generator().manual_seed(0))


def compare(alone, first, second):
    """Two processes found what one did with all of the rows: its losses, up to rounding, and the same bits in both."""
    for (losses, exchanged, _), one, two in zip(alone, first, second, strict=True):
        assert exchanged == 0
        assert one == two
        assert one[0] == pytest.approx(losses, abs=1e-5)
        assert one[1] > 0


def test_optimizers_bring_their_own_rows(tmp_path):
    def optimized(batches, evaluator):
        model, losses = build_model("llama"), []
        optimizer = zofo.optim.MeZO(model, lr=1e-4, evaluator=evaluator, num_directions=2)
        for batch in batches:
            given = batch if evaluator == "in-forward" else None
            losses.append(float(optimizer.step(lambda seen=batch: sequence_losses(model, seen), given)))
        return losses, optimizer.exchanged_bytes, fingerprint(dict(model.named_parameters()))

    def work(rank):
        own = [(b[:3], b[3:])[rank] for b in ROWS.split(5)[:4]]  # an example more for one of them
        with pytest.raises(ConfigError, match="seed is 1 in process 1, and 0 in process 0"):
            zofo.optim.MeZO(build_model("llama"), seed=rank).step(lambda: torch.tensor(1.0))
        return [optimized(own, evaluator) for evaluator in ("from-copy", "in-forward")]

    alone = [optimized(ROWS.split(5)[:4], evaluator) for evaluator in ("from-copy", "in-forward")]
    compare(alone, *together(work, tmp_path))


def test_a_head_that_counts_no_labels_has_the_loss_of_one_process(tmp_path):
    """transformers multiplies it by the number of processes, in training and in evaluation."""

    def trained(size, number):
        args = ZerothOrderTrainingArguments(
            str(tmp_path / str(number)),
            per_device_train_batch_size=size,
            max_steps=2,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            learning_rate=1e-3,
        )
        rows = [{"input_ids": row, "labels": torch.tensor(i % 2)} for i, row in enumerate(ROWS)]
        model = build_model("llama", head=transformers.AutoModelForSequenceClassification)
        model.config.pad_token_id = 0
        trainer = ZerothOrderTrainer(model, args, train_dataset=rows, eval_dataset=rows)
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        return [before, *(line["loss"] for line in trainer.state.log_history if "loss" in line)]

    first, second = together(lambda rank: trained(2, 2), tmp_path)
    assert first == second == pytest.approx(trained(4, 1), abs=1e-5)


OTHER_MODELS = {  # what process 1 says of it
    "dtype": ("the model's tensor model.embed_tokens.weight is 'bfloat16 [300,", "and 'float32 [300,"),
    "labels": ("the model's tensor score.weight is 'float32 [3,", "and 'float32 [2,"),
    "more in process 1": ("the model's tensor extra is 'float32 [2]' in process 1, and None in process 0", ""),
    "more in process 0": ("the number of the model's tensors is ", ""),
    "architecture": ("the model's tensor transformer.wte.weight is ", "and None in process 0"),
    "order": ("the hash of their order is ", ""),
}


def other_model(what, rank):
    is_gpt = what == "architecture" and rank == 1
    model = build_model("gpt2" if is_gpt else "llama", head=transformers.AutoModelForSequenceClassification)
    model.config.pad_token_id = 0
    if what == "labels" and rank == 1:
        model.score = torch.nn.Linear(model.score.in_features, 3, bias=False)
        model.num_labels = 3
    if what == f"more in process {rank}":
        model.register_buffer("extra", torch.zeros(2))
    for name in ("ab", "ba")[rank] if what == "order" else "":
        model.register_parameter(name, torch.nn.Parameter(torch.zeros(2)))
    return model.bfloat16() if what == "dtype" and rank == 1 else model


def test_another_model_is_refused_by_name_before_weights_are_taken(tmp_path):
    rows = [{"input_ids": row, "labels": torch.tensor(i % 2)} for i, row in enumerate(ROWS)]
    quiet = {"max_steps": 1, "per_device_train_batch_size": 1, "save_strategy": "no", "report_to": [], "use_cpu": True}

    def refused(trainer, arguments, what, rank):
        model = other_model(what, rank)
        before = fingerprint(dict(model.named_parameters()))
        made = trainer(model, arguments(str(tmp_path / "run"), **quiet), train_dataset=rows)
        with pytest.raises(ConfigError) as caught:
            made.train()
        assert fingerprint(dict(model.named_parameters())) == before
        assert caught.value.quiet == (rank == 1)
        assert "the same model: one checkpoint, dtype" in caught.value.hint
        return caught.value.message

    def work(rank):
        of_two = refused(BilevelTrainer, BilevelTrainingArguments, "labels", rank)
        found = {what: refused(ZerothOrderTrainer, ZerothOrderTrainingArguments, what, rank) for what in OTHER_MODELS}
        assert of_two == found["labels"]
        return found

    first, second = together(work, tmp_path)
    assert first == second
    for what, texts in OTHER_MODELS.items():
        assert all(text in first[what] for text in texts), first[what]


@pytest.mark.soak
@pytest.mark.parametrize(("evaluator", "batches"), [("in-forward", 1), ("in-place", 2)])  # that are accumulated
def test_trainers_bring_their_own_rows(tmp_path, evaluator, batches):
    def trained(name, size, resumed=None):
        made = ZerothOrderTrainingArguments(
            str(tmp_path / name),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=batches,
            max_steps=3,
            logging_steps=1,
            save_steps=2,
            learning_rate=1e-4,
            report_to=[],
            use_cpu=True,
            zo_evaluator=evaluator,
        )
        counted = torch.arange(7)
        rows = [{"input_ids": row, "labels": row.masked_fill(counted >= 7 - i % 4, -100)} for i, row in enumerate(ROWS)]
        trainer = ZerothOrderTrainer(build_model("llama"), made, train_dataset=rows)
        trainer.train(resume_from_checkpoint=resumed)
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        return losses, trainer.zeroth_order.exchanged_bytes, fingerprint(dict(trainer.model.named_parameters()))

    def work(rank):
        whole = trained("two", 2)
        again = trained("two", 2, str(tmp_path / "two" / "checkpoint-2"))
        assert (again[0][-1], again[2]) == (whole[0][-1], whole[2])
        return [whole]

    compare([trained("one", 4)], *together(work, tmp_path))
    saved = {path.name for path in (tmp_path / "two" / "checkpoint-2").iterdir()}
    assert "optimizer.json" in saved
    assert "optimizer.pt" not in saved


@pytest.mark.soak
@pytest.mark.promise(6)
@pytest.mark.parametrize(
    "method", [{"name": "mezo", "rule": RULE}, {"name": "bilevel", "inner_steps": 2, "rule": RULE}]
)
def test_runs_of_two_processes_killed_at_random_moments_end_with_the_same_bits(configured, tmp_path, method):
    """One of the two is killed, the other ends by itself, and the same command goes on: ten times for each method."""
    chosen, kills, number = random.Random(f"1871 {method['name']}"), 0, 0

    def work(run):
        options = {"steps": 24, "eval_steps": 5, "save_steps": 3}
        return Started(lambda rank: train(configured(run, method, **options)) and None, tmp_path)

    start = time.monotonic()
    assert work(tmp_path / "whole").results() == [None, None]
    took, whole = time.monotonic() - start, contents(tmp_path / "whole")
    while kills < 10:
        number += 1
        run, ended = tmp_path / f"killed-{number}", False
        for _ in range(chosen.choice((1, 1, 2, 3))):  # times that it is killed
            started, rank = work(run), chosen.randrange(2)
            time.sleep(chosen.uniform(0.05, 1) * took)
            started.kill(rank)
            found = started.results()
            left = found[1 - rank]
            assert left is None or left["error"] in ("ProcessError", "RunError"), left
            if (run / "summary.json").is_file() and json.loads((run / "summary.json").read_text())["stopped"] is None:
                ended = True
                break
            kills += 1
        if not ended:
            assert work(run).results() == [None, None]
        shutil.rmtree(run / "checkpoints", ignore_errors=True)  # of one that was killed after its summary
        assert contents(run) == whole, number
    print(f"{method['name']}: {kills} kills of {number} runs")


def test_a_number_of_processes_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ConfigError, match="WORLD_SIZE is 'two', which is no number of processes"):
        joined()
