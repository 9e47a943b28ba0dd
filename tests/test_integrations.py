"""zofo in a transformers.Trainer and in TRL's SFTTrainer: what people rely on there, and zofo's own numbers."""

import ast
import copy
import json
import re
from pathlib import Path

import datasets
import peft
import pytest
import torch
import transformers
from accelerate.parallelism_config import ParallelismConfig
from torch import nn

import zofo
from conftest import build_model, build_tokenizer
from zofo.errors import CheckpointError, ConfigError, EvaluatorError, NonFiniteError
from zofo.optim import SVRG, MeZO
from zofo.training import read_config, train
from zofo.training.data_module import prepare_run, training_context
from zofo.training.run_logs import metrics_lines

pytestmark = [
    pytest.mark.usefixtures("old_objects_kept"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # peft asks in an old way
    pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning"),
]
CLASSIFIER = transformers.AutoModelForSequenceClassification


@pytest.fixture(scope="module")
def trainers():
    from zofo.integrations import transformers as integration

    class InOrder(integration.ZerothOrderTrainer):
        def _get_train_sampler(self, *_args):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    integration.InOrder = InOrder
    return integration


def rows_of(tokenizer, count=24):
    texts = [f"{'a joy' if i % 2 else 'dull and lifeless'} film number {i}" + " good" * (i % 5) for i in range(count)]
    return datasets.Dataset.from_list(
        [{"input_ids": tokenizer(t)["input_ids"], "labels": i % 2} for i, t in enumerate(texts)]
    )


def tokens_of(tokenizer):
    rows = rows_of(tokenizer)
    return rows.map(lambda row: {"labels": row["input_ids"]}, load_from_cache_file=False)


@pytest.fixture
def built(trainers, tokenizer, tmp_path):
    """Builds a trainer that is silent, of a tiny model and two kinds of rows."""

    def build(name="run", model=None, rows=None, optimizers=(None, None), in_order=True, more=None, **options):
        given = {"per_device_train_batch_size": 4, "learning_rate": 2e-3, "max_steps": 6, "logging_steps": 1}
        quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
        args = trainers.ZerothOrderTrainingArguments(output_dir=str(tmp_path / name), **{**quiet, **given, **options})
        kind = trainers.InOrder if in_order else trainers.ZerothOrderTrainer
        model = model or build_model("llama", len(tokenizer), head=CLASSIFIER)
        rows = rows or rows_of(tokenizer)
        return kind(
            model,
            args,
            train_dataset=rows,
            eval_dataset=rows,
            processing_class=tokenizer,
            optimizers=optimizers,
            **more or {},
        )

    return build


def losses(trainer):
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def bits(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model, kept):
    return all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())


def other_than(model, kept):
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, kept[name])}


@pytest.mark.parametrize("evaluator", ["in-place", "in-forward"])
def test_the_first_losses_are_those_of_zofo_train(built, tokenizer, data_dir, tmp_path, evaluator):
    build_model("llama", len(tokenizer), head=CLASSIFIER).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    config = read_config(
        model={"name": str(tmp_path / "model"), "dtype": "float32"},
        task={"name": "sst2", "data_dir": str(data_dir)},
        method={"name": "mezo", "batch_size": 4, "lr": 2e-4, "evaluator": evaluator},
        training={"steps": 20, "seed": 3, "lr_scheduler_type": "linear", "warmup_steps": 4},
        output_dir=tmp_path / "zofo",
    )
    logged = [line["loss"] for line in metrics_lines(train(config).metrics) if "projected_gradient_0" in line]
    prepared = prepare_run(config, False, ("train",))
    batches = training_context(config, prepared, None).batches(4, "train")
    rows = [{"input_ids": list(e.tokens), "labels": e.gold} for step in range(20) for e in batches[step].examples]
    options = {"learning_rate": 2e-4, "max_steps": 20, "seed": 3, "warmup_steps": 4, "lr_scheduler_type": "linear"}
    options |= {"model": prepared.loaded.model, "rows": datasets.Dataset.from_list(rows), "zo_evaluator": evaluator}
    still = built(**{**options, "model": copy.deepcopy(prepared.loaded.model), "learning_rate": 0.0})
    trainer = built(**options)
    still.train()
    trainer.train()
    assert len(logged) == 20
    assert max(abs(one - other) for one, other in zip(losses(still), logged, strict=True)) > 1e-2
    assert losses(trainer) == pytest.approx(logged, abs=3e-7)  # the log is of float32


def test_it_goes_on_to_the_same_bits_with_metrics_callbacks_and_the_best_model(built, tokenizer, tmp_path):
    def accuracy(prediction):
        return {"accuracy": float((prediction.predictions.argmax(axis=1) == prediction.label_ids).mean())}

    more = {"compute_metrics": accuracy, "callbacks": [transformers.EarlyStoppingCallback(5)]}
    options = {
        "more": more,
        "in_order": False,
        "max_steps": 8,
        "save_strategy": "steps",
        "save_steps": 4,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "lr_scheduler_type": "cosine",
        "zo_momentum": 0.5,
        "gradient_accumulation_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "accuracy",
    }
    whole = built("whole", **options)
    whole.train()
    assert [line["step"] for line in whole.state.log_history if "eval_accuracy" in line] == [4, 8]
    assert not any("grad_norm" in line for line in whole.state.log_history)
    checkpoint = tmp_path / "whole" / "checkpoint-4"
    held = {path.name for path in checkpoint.iterdir()}
    assert {"model.safetensors", "optimizer.json", "scheduler.json", "trainer_state.json"} <= held
    assert held.isdisjoint({"optimizer.pt", "scheduler.pt"})
    assert json.loads((checkpoint / "optimizer.json").read_text())["state"]["zofo"]["steps"] == 4
    assert (checkpoint / "optimizer.json").stat().st_size < 4096
    rest = built("rest", **options)
    rest.train(resume_from_checkpoint=str(checkpoint))
    assert losses(rest) == losses(whole)
    assert same(rest.model, bits(whole.model))
    assert whole.predict(whole.eval_dataset).metrics["test_accuracy"] == whole.state.best_metric
    rebuilt = CLASSIFIER.from_pretrained(whole.state.best_model_checkpoint)
    assert same(rebuilt, bits(whole.model))


def test_updates_that_wait_are_written_when_the_trainer_ends_saves_or_evaluates(built, tokenizer, tmp_path):
    """So that in the forward a resumed run has the same bits, and the model is theta."""
    options = {"zo_evaluator": "in-forward", "max_steps": 7, "save_strategy": "steps", "save_steps": 3}
    options |= {"eval_strategy": "steps", "eval_steps": 2}
    whole = built("whole", **options)
    assert whole.create_optimizer()._zo.theta.flush_every == 8
    whole.train()
    assert not len(whole.zeroth_order._zo.theta.pending)
    rest = built("rest", **options)
    rest.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert losses(rest) == losses(whole)
    assert same(rest.model, bits(whole.model))
    at_once = built("at once", **{**options, "zo_evaluator": {"name": "in-forward", "flush_every": 1}})
    at_once.train()
    assert losses(at_once) == pytest.approx(losses(whole), abs=5e-6)
    scores = [[line["eval_loss"] for line in one.state.log_history if "eval_loss" in line] for one in (whole, at_once)]
    assert scores[0] == pytest.approx(scores[1], abs=5e-6)


@pytest.mark.parametrize("kind", ["causal", "classification"])
@pytest.mark.parametrize("evaluator", ["in-place", "in-forward"])
def test_accumulated_batches_are_one_large_batch(built, tokenizer, kind, evaluator):
    """Of rows of several lengths, each token counting once; and of a model that takes their number and ignores it."""

    def run(size, accumulated):
        options = {"model": None, "rows": None, "more": None}
        if kind == "causal":
            collator = transformers.DataCollatorForSeq2Seq(tokenizer)
            options = {"model": build_model("llama", len(tokenizer)), "rows": tokens_of(tokenizer)}
            options["more"] = {"data_collator": collator}
        size = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated, "max_steps": 3}
        trainer = built(zo_evaluator=evaluator, **options, **size)
        trainer.train()
        return losses(trainer)

    assert run(2, 3) == pytest.approx(run(6, 1), abs=2e-6)


REFUSED = {
    "fp16": {"fp16": True},
    "bf16": {"bf16": True},
    "max_grad_norm": {"max_grad_norm": 1.0},
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "deepspeed": {"deepspeed": {"zero_optimization": {"stage": 3}}},
    "fsdp": {"fsdp": "full_shard"},
    "parallelism_config": {"parallelism_config": ParallelismConfig()},
    "neftune_noise_alpha": {"neftune_noise_alpha": 5.0},
    "optim": {"optim": "sgd"},
    "adam_beta1": {"adam_beta1": 0.5},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_meaning_without_gradients_is_refused(built, name):
    with pytest.raises(ConfigError, match=f"^{name}=.* has no meaning for zeroth-order steps") as caught:
        built(**REFUSED[name])
    assert caught.value.hint


def test_what_stays_is_said_in_the_words_of_the_trainer(built, tokenizer, monkeypatch):
    said = []
    monkeypatch.setattr("zofo.integrations.mixin.LOG.warning", said.append)
    model = build_model("llama", len(tokenizer), head=CLASSIFIER)
    model.score.weight.requires_grad_(False)
    built(model=model, max_steps=2).train()
    (note,) = said
    assert "1 tensors with requires_grad=False" in note
    assert note.endswith("name them in zo_trainable by more than '*'")


def test_what_is_wrong_is_said_in_the_words_of_the_trainer(built, trainers, tokenizer, tmp_path):
    model = build_model("llama", len(tokenizer), head=CLASSIFIER)
    with pytest.raises(ConfigError, match="zo_noise='{rank: 2}' cannot be read"):
        built(zo_noise="{rank: 2}")
    for options, text in (
        ({"learning_rate": -1.0}, "^learning_rate: "),
        ({"zo_epsilon": 0.0}, "^zo_epsilon: "),
        ({"zo_momentum": 2.0}, "^zo_momentum is 2.0"),
        ({"zo_momentum": 0.5, "zo_rule": "sign"}, "^zo_momentum and zo_rule are both given"),
        ({"zo_rule": {"name": "momentum", "bta": 1}}, "^zo_rule.bta: not an option"),
        ({"zo_trainable": "x*"}, r"the pattern 'x\*' of zo_trainable matches none"),
    ):
        with pytest.raises(ConfigError, match=text):
            built(**options).create_optimizer()
    with pytest.raises(ConfigError, match="unknown rule 'sdg'"):
        trainers.ZerothOrderTrainingArguments(str(tmp_path), use_cpu=True, zo_rule="sdg")
    with pytest.raises(ConfigError, match="args is TrainingArguments"):
        trainers.ZerothOrderTrainer(model, transformers.TrainingArguments(str(tmp_path), use_cpu=True))
    with pytest.raises(ConfigError, match="optimizer that was given takes gradients"):
        built(optimizers=(torch.optim.SGD(model.parameters(), lr=1.0), None))
    half = build_model("llama", len(tokenizer), head=CLASSIFIER).bfloat16()
    with pytest.raises(EvaluatorError, match="moving bfloat16 weights in place") as caught:
        built(model=half, zo_evaluator="in-place").train()
    *allowed, drift = re.findall(r"(?<!\w)zo_evaluator=(\{.*?\}|\S+)(?<!,)", caught.value.hint)
    assert list(map(ast.literal_eval, allowed)) == ["in-forward", "from-copy"]  # what it says is Python
    assert ast.literal_eval(drift) == {"name": "in-place", "allow_half": True}
    with pytest.raises(ConfigError, match="fp16=True has no meaning") as caught:
        built(fp16=True)
    assert "dtype=torch.bfloat16" in caught.value.hint
    assert 'zo_evaluator="from-copy"' in caught.value.hint  # which takes such a model, see below
    with pytest.raises(ConfigError, match="loss of its own"):
        built(zo_evaluator="in-forward", more={"compute_loss_func": lambda *_a, **_k: torch.ones(())}).train()
    model.save_pretrained(tmp_path / "other")
    transformers.TrainerState(
        max_steps=6, train_batch_size=4, logging_steps=1, eval_steps=6, save_steps=6
    ).save_to_json(str(tmp_path / "other" / "trainer_state.json"))
    with pytest.raises(CheckpointError, match=r"holds no optimizer\.json"):
        built().train(resume_from_checkpoint=str(tmp_path / "other"))
    before = bits(model)
    broken = built(
        model=model, zo_evaluator="from-copy", more={"compute_loss_func": lambda *_a, **_k: torch.tensor(1e39)}
    )
    with pytest.raises(NonFiniteError):
        broken.train()
    assert same(model, before)


def test_dropout_is_off_and_evaluation_between_steps_changes_nothing(built, tokenizer):
    def model():
        made = build_model("gpt2", len(tokenizer), head=CLASSIFIER)
        assert any(isinstance(part, nn.Dropout) and part.p > 0 for part in made.modules())
        return made.train()

    plain = built(model=model())
    plain.train()
    evaluated = built(model=model(), eval_strategy="steps", eval_steps=1)
    evaluated.train()
    assert losses(plain) == losses(evaluated)


def test_an_adapter_of_peft_is_what_moves_and_is_saved(built, tokenizer, tmp_path):
    base = build_model("llama", len(tokenizer), head=CLASSIFIER)
    model = peft.get_peft_model(base, peft.LoraConfig("SEQ_CLS", r=2, target_modules=["q_proj"]))
    before = bits(model)
    trainer = built(model=model, zo_epsilon=1e-2, save_strategy="steps", save_steps=6)
    trainer.train()
    moved = other_than(model, before)
    assert moved
    assert all("lora_" in name or "modules_to_save" in name for name in moved)
    assert (tmp_path / "run" / "checkpoint-6" / "adapter_model.safetensors").is_file()


def test_another_optimizer_of_zofo_and_half_precision(built, tokenizer):
    model = build_model("llama", len(tokenizer), head=CLASSIFIER)
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    anchor = SVRG(model, lambda: model(input_ids=ids, labels=torch.tensor([0, 1])).loss, lr=1e-3)
    trainer = built(model=model, optimizers=(anchor, None))
    trainer.train()
    assert trainer.zeroth_order is anchor
    assert anchor.steps == 6
    half = build_model("llama", len(tokenizer)).bfloat16()
    before = bits(half)
    more = {"data_collator": transformers.DataCollatorForSeq2Seq(tokenizer)}
    trainer = built(model=half, rows=tokens_of(tokenizer), more=more)
    trainer.train()  # from a copy, by default
    assert not same(half, before)
    assert trainer.zeroth_order.config.evaluator.name == "from-copy"
    assert built().create_optimizer().config.evaluator.name == "in-place"


def test_rates_of_a_trainer_are_those_of_the_optimizer_on_the_same_model(built, tokenizer):
    for adapter in (None, peft.LoraConfig(r=2, target_modules=["q_proj"])):
        model = build_model("llama", len(tokenizer), head=CLASSIFIER)
        model = model if adapter is None else peft.get_peft_model(model, adapter)
        ours, theirs = MeZO(model).config, built(model=model, learning_rate=None).create_optimizer().config
        assert (ours.rule.lr, ours.estimator.epsilon) == (theirs.rule.lr, theirs.estimator.epsilon)


def test_a_loss_that_only_has_a_gradient_is_named(built, trainers, monkeypatch):
    """As that of GRPO on its own samples: the ratio of a probability to itself is 1, whatever the weights are."""

    class Ratio(trainers.ZerothOrderTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, **more):
            loss = super().compute_loss(model, inputs, **more)
            return (loss - loss.detach()).exp()

    said = []
    monkeypatch.setattr("zofo.integrations.mixin.LOG.warning", said.append)
    plain = built(max_steps=7)
    plain.train()
    assert not said
    trainer = Ratio(plain.model, plain.args, train_dataset=plain.train_dataset, processing_class=plain.processing_class)
    trainer.train()
    (warned,) = said
    assert "no direction of 5 steps in a row changed the loss" in warned
    assert "zofo train --reward" in warned


def test_what_trl_has_counted_is_copied_in_the_first_step_alone(built):
    """It grows from step to step where nothing is logged."""

    class Counted(dict):
        copies = 0

        def __deepcopy__(self, memory):
            Counted.copies += 1
            return Counted(self)

    trainer = built(max_steps=1)
    trainer._metrics = Counted()
    trainer.train()
    first, trainer = Counted.copies, built(max_steps=6)
    trainer._metrics = Counted()
    trainer.train()
    assert Counted.copies == 2 * first > 0


@pytest.mark.parametrize("name", ["GRPOTrainer", "RLOOTrainer"])
def test_a_policy_gradient_of_trl_is_refused_unless_its_loss_is_another(built, trainers, monkeypatch, name):
    base = getattr(pytest.importorskip("trl"), name)
    plain = built()

    class Mine(trainers.ZerothOrderMixin, base):
        pass

    with pytest.raises(ConfigError, match="the loss of Mine has the gradient of a policy") as caught:
        Mine(plain.model, args=plain.args)
    assert "zofo train --reward" in caught.value.hint

    class Valued(Mine):
        def compute_loss(self, model, inputs, *args, **more):
            return -self.reward(model, inputs)

    def reached(self, model, args):
        raise LookupError

    monkeypatch.setattr(base, "__init__", reached)
    with pytest.raises(LookupError):
        Valued(plain.model, args=plain.args)


@pytest.mark.parametrize("name", ["trl.DistillationTrainer", "trl.experimental.a2po.A2POTrainer"])
def test_a_trainer_whose_loss_follows_the_weights_is_taken_though_it_draws_or_rewards_texts(
    built, trainers, monkeypatch, name
):
    module, _, kind = name.rpartition(".")
    base, plain = getattr(pytest.importorskip(module), kind), built()

    class Mine(trainers.ZerothOrderMixin, base):
        """Whose loss is a distance of distributions, or of a log-ratio from a reward."""

    def reached(self, model, args):
        raise LookupError

    monkeypatch.setattr(base, "__init__", reached)
    with pytest.raises(LookupError):
        Mine(plain.model, args=plain.args)


def test_a_trainer_with_its_own_loop_ends_at_its_first_step(built, trainers):
    plain = built()

    class Looping(trainers.ZerothOrderTrainer):
        def _inner_training_loop(self, *_args, **_more):
            self.create_optimizer().step()

    looping = Looping(plain.model, plain.args, train_dataset=plain.train_dataset)
    with pytest.raises(ConfigError, match="needs losses at several points, and no gradients"):
        looping.train()


def program_with(text):
    """A program of the page, with few steps."""
    page = (Path(__file__).parent.parent / "docs" / "integrations.md").read_text(encoding="utf-8")
    (found,) = [one for one in re.findall(r"```py\n(.*?)```", page, flags=re.DOTALL) if text in one]
    assert "max_steps=1000" in found
    return found.replace("max_steps=1000", "max_steps=2, report_to='none', use_cpu=True")


def test_the_program_of_the_page_runs_as_it_stands(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = build_model("llama", len(tokenizer), head=CLASSIFIER)
    made = {"model": model, "rows": rows_of(tokenizer), "tokenizer": tokenizer}
    exec(program_with("ZerothOrderTrainer"), made)  # noqa: S102  # our own
    assert made["trainer"].state.global_step == 2


def test_nothing_else_of_zofo_imports_a_trainer():
    """So that `import zofo` and the command line do not become slower."""
    source = Path(zofo.__file__).parent
    importing = re.compile(
        r"^ *(from|import) (zofo\.integrations|trl|transformers.* import .*\bTrainer)\b", re.MULTILINE
    )
    files = [path for path in source.rglob("*.py") if importing.search(path.read_text(encoding="utf-8"))]
    assert files
    assert {path.parent for path in files} == {source / "integrations"}


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore")
def test_trl_trains_chats_packs_and_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    tokenizer = build_tokenizer()
    from zofo.integrations.trl import ZerothOrderSFTConfig, ZerothOrderSFTTrainer

    rows = [{"prompt": f"number {i} is ", "completion": "a joy" if i % 2 else "dull"} for i in range(24)]
    rows = datasets.Dataset.from_list(rows)

    def run(name, resume=None, adapter=None, **options):
        given = {"per_device_train_batch_size": 4, "learning_rate": 1e-3, "max_steps": 6, "logging_steps": 1}
        quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_steps": 3}
        every = {"eval_strategy": "steps", "eval_steps": 3}
        args = ZerothOrderSFTConfig(output_dir=str(tmp_path / name), **{**given, **quiet, **every, **options})
        model = build_model("llama", len(tokenizer))
        trainer = ZerothOrderSFTTrainer(
            model, args, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer, peft_config=adapter
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run("whole")
    seen = [line["num_tokens"] for line in whole.state.log_history if "num_tokens" in line]
    assert seen[-1] == sum(len(tokenizer(row["prompt"] + row["completion"])["input_ids"]) + 1 for row in rows)
    assert all("mean_token_accuracy" in line for line in whole.state.log_history if "loss" in line)
    rest = run("rest", resume=str(tmp_path / "whole" / "checkpoint-3"))
    assert losses(rest) == losses(whole)
    assert same(rest.model, bits(whole.model))
    forward = run("forward", zo_evaluator="in-forward")
    assert losses(forward) == pytest.approx(losses(whole), abs=1e-5)
    in_turn = [[line["num_tokens"] for line in one.state.log_history if "loss" in line] for one in (forward, whole)]
    assert in_turn[0] == in_turn[1]
    more = {"gradient_accumulation_steps": 2, "max_steps": 3}
    twice = [run(f"more-{name}", zo_evaluator=name, **more) for name in ("in-forward", "in-place")]
    in_turn = [[line["num_tokens"] for line in one.state.log_history if "loss" in line] for one in twice]
    assert in_turn[0] == in_turn[1]
    assert in_turn[0][-1] == seen[-1]
    adapted = run("adapter", adapter=peft.LoraConfig(r=2, target_modules=["q_proj"]), zo_evaluator="from-copy")
    assert (tmp_path / "adapter" / "checkpoint-6" / "adapter_model.safetensors").is_file()
    assert isinstance(adapted.zeroth_order, MeZO)
    chats = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]] * 16
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    made = {"chats": datasets.Dataset.from_list([{"messages": one} for one in chats]), "tokenizer": tokenizer}
    monkeypatch.chdir(tmp_path)
    exec(program_with("ZerothOrderSFTTrainer"), made | {"model": build_model("llama", len(tokenizer))})  # noqa: S102
    assert len(losses(run("packed", packing=True, max_length=32))) == 6
