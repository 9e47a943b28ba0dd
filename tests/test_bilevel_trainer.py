"""Bilevel-ZOFO in a transformers.Trainer: zofo's own numbers, two data sets, and what people rely on there."""

import re
from pathlib import Path

import datasets
import peft
import pytest
import torch
import transformers
from packaging.version import Version

from conftest import build_model
from several_processes import together
from zofo.backbone import fingerprint
from zofo.errors import CheckpointError, ConfigError
from zofo.integrations.bilevel_arguments import BilevelTrainingArguments
from zofo.methods.bilevel.bilevel import split_indices
from zofo.training import read_config, train
from zofo.training.data_module import prepare_run, training_context
from zofo.training.run_logs import metrics_lines

pytestmark = [
    pytest.mark.usefixtures("old_objects_kept"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # peft asks in an old way
    pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning"),
]
CHECKPOINTING = next(  # the older name is of older versions
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in transformers.TrainingArguments.__dataclass_fields__
)
NAMES = ("loss", "loss_lower", "loss_inner", "penalty_gap", "backbone_distance")
CLASSIFIER = transformers.AutoModelForSequenceClassification


def losses(trainer):
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(axis=1) == prediction.label_ids).mean())}


@pytest.fixture
def rows(tokenizer):
    texts = [f"{'a joy' if i % 2 else 'dull and lifeless'} film number {i}" + " good" * (i % 5) for i in range(30)]
    return datasets.Dataset.from_list(
        [{"input_ids": tokenizer(t)["input_ids"], "labels": i % 2, "text": t} for i, t in enumerate(texts)]
    )


@pytest.fixture
def built(tokenizer, tmp_path):
    from zofo.integrations.transformers import BilevelTrainer, BilevelTrainingArguments

    def build(name, rows, lower=None, model=None, peft_config="lora", more=None, **options):
        given = {"per_device_train_batch_size": 4, "max_steps": 6, "inner_steps": 2, "logging_steps": 1}
        quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
        return BilevelTrainer(
            model or build_model("llama", len(tokenizer), head=CLASSIFIER),
            BilevelTrainingArguments(output_dir=str(tmp_path / name), **{**quiet, **given, **options}),
            train_dataset=rows,
            eval_dataset=rows,
            processing_class=tokenizer,
            lower_train_dataset=lower,
            peft_config=peft_config,
            **more or {},
        )

    return build


def test_the_first_losses_are_those_of_zofo_train(built, tokenizer, data_dir, tmp_path):
    """By one data set that is split as zofo splits it, and by the two sets, and by peft's configuration."""
    build_model("llama", len(tokenizer), head=CLASSIFIER).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    config = read_config(
        model={"name": str(tmp_path / "model"), "dtype": "float32"},
        task={"name": "sst2", "data_dir": str(data_dir)},
        method={"name": "bilevel", "batch_size": 4, "inner_steps": 3, "penalty": 10, "rule": {"lr": 1e-3}},
        training={"steps": 6, "seed": 3, "lr_scheduler_type": "linear", "warmup_steps": 2},
        output_dir=tmp_path / "zofo",
    )
    logged = [line for line in metrics_lines(train(config).metrics) if "loss_lower" in line]
    prepared = prepare_run(config, False, ("train",))
    examples = training_context(config, prepared, None).examples
    rows = datasets.Dataset.from_list([{"input_ids": list(e.tokens), "labels": e.gold} for e in examples])
    options = {"max_steps": 6, "seed": 3, "warmup_steps": 2, "lr_scheduler_type": "linear", "inner_steps": 3}
    options |= {"penalty": 10, "zo_learning_rate": 1e-3, "train_sampling_strategy": "group_by_length"}
    whole = built("whole", rows, model=prepared.loaded.model, **options)
    whole.train()
    steps = [line for line in whole.state.log_history if "loss" in line]
    for name in NAMES:
        assert [step[name] for step in steps] == pytest.approx([line[name] for line in logged], abs=1e-6), name
    assert steps[-1]["backbone_distance"] > 1e-4
    d_f, d_p = split_indices(3, len(rows))
    lora = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="SEQ_CLS")
    model = CLASSIFIER.from_pretrained(tmp_path / "model", pad_token_id=tokenizer.pad_token_id)
    two = built("two", rows.select(d_f), rows.select(d_p), model=model, peft_config=lora, **options)
    two.train()
    assert losses(two) == losses(whole)


@pytest.mark.parametrize("evaluator", ["in-forward", pytest.param("in-place", marks=pytest.mark.soak)])
def test_accumulated_batches_and_processes_are_one_large_batch(built, rows, tokenizer, tmp_path, evaluator):
    """With a third and a half of the memory of activations: no forward has more rows than a batch."""
    seen = []

    class Counting(transformers.DataCollatorWithPadding):
        def __call__(self, features):
            seen.append(len(features))
            return super().__call__(features)

    def trained(name, size, accumulated, steps=3, resume=None):
        shape = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated, "max_steps": steps}
        often = {"save_strategy": "steps", "save_steps": 2, "zo_evaluator": evaluator, "zo_learning_rate": 1e-3}
        more = {"data_collator": Counting(tokenizer)}
        trainer = built(name, rows.remove_columns("text"), more=more, **shape, **often)
        seen.clear()
        trainer.train(resume_from_checkpoint=resume)
        counts = trainer.bilevel.counts
        steps = [[line[n] for n in NAMES] for line in trainer.state.log_history if "loss" in line]
        weights = fingerprint(dict(trainer.model.named_parameters()))
        return [steps, trainer.state.epoch, counts.queries, weights, counts.backwards, max(seen)]

    whole = trained("whole", 6, 1)
    parts = trained("parts", 2, 3)
    assert parts[5] == 2 < whole[5]
    assert (parts[1], parts[2], parts[4]) == (whole[1], whole[2], 3 * whole[4])

    def work(rank):
        found = trained("two", 1, 3)
        assert trained("rest", 1, 3, resume=str(tmp_path / "two" / "checkpoint-2"))[3] == found[3]
        with pytest.raises(ConfigError, match=r"^the hash of rows of train_dataset is .* in process 1, and .* in "):
            built("other", rows.select(range(rank, rank + 29))).train()
        return found

    first, second = together(work, tmp_path)
    assert first[:4] == second[:4]
    assert (first[5], first[2]) == (2, whole[2])  # two in a check
    for found in (parts, first):
        for here, there in zip(found[0], whole[0], strict=True):
            assert here == pytest.approx(there, abs=1e-5)


def test_it_goes_on_to_the_same_bits_and_is_loaded_with_one_line(built, rows, tokenizer, tmp_path):
    options = {
        "more": {"compute_metrics": accuracy, "callbacks": [transformers.EarlyStoppingCallback(5)]},
        "peft_config": peft.LoraConfig(r=2, target_modules=["q_proj"], rank_pattern={"layers.0.self_attn.q_proj": 3}),
        "save_strategy": "steps",
        "max_steps": 4,
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "lr_scheduler_type": "cosine",
        "zo_rule": {"name": "momentum", "beta": 0.5},
        "zo_learning_rate": 3e-3,
        "max_grad_norm": 1.0,
        CHECKPOINTING: True,
        "load_best_model_at_end": True,
        "metric_for_best_model": "accuracy",
    }
    upper, lower = rows.select(range(10)), rows.select(range(10, 30))
    whole = built("whole", upper, lower, **options)
    whole.train()
    assert [line["step"] for line in whole.state.log_history if "eval_accuracy" in line] == [2, 4]
    assert not any("grad_norm" in line for line in whole.state.log_history)
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    held = {path.name for path in checkpoint.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "lower_adapter", "base_model", "optimizer.json"} <= held
    assert held.isdisjoint({"optimizer.pt", "scheduler.pt", "theta.safetensors", "training_args.bin"})
    rest = built("rest", upper, lower, **options)
    rest.train(resume_from_checkpoint=str(checkpoint))
    assert losses(rest) == losses(whole)
    assert rest.bilevel.counts == whole.bilevel.counts
    last = [Path(tmp_path / name / "checkpoint-4") for name in ("whole", "rest")]
    for file in ("adapter_model", "lower_adapter/adapter_model", "base_model/model", "optimizer"):
        one, other = (path / f"{file}.safetensors" for path in last)
        assert one.read_bytes() == other.read_bytes(), file
    predicted = whole.predict(upper)
    assert predicted.metrics["test_accuracy"] == whole.state.best_metric
    whole.save_model(str(tmp_path / "saved"))
    inputs = whole.data_collator([{"input_ids": row["input_ids"]} for row in upper])
    bare = CLASSIFIER.from_pretrained(tmp_path / "saved" / "base_model")
    ways = [peft.PeftModel.from_pretrained(bare, tmp_path / "saved").eval()]
    if Version(transformers.__version__) >= Version("5.23"):  # 5.6 loses the head of a classifier
        ways.append(CLASSIFIER.from_pretrained(tmp_path / "saved", pad_token_id=tokenizer.pad_token_id))
    for model in ways:
        with torch.no_grad():
            assert model(**inputs).logits.numpy() == pytest.approx(predicted.predictions, abs=1e-5)
    with pytest.raises(CheckpointError, match="there is no folder"):
        built("none", upper, lower, **options).train(resume_from_checkpoint=str(tmp_path / "elsewhere"))
    with pytest.raises(CheckpointError, match="was made with inner_steps=2, now it is 5"):
        built("other", upper, lower, **{**options, "inner_steps": 5}).train(resume_from_checkpoint=str(checkpoint))


def test_an_adapter_stands_for_theta_and_the_base_stays(built, rows, tokenizer, tmp_path):
    model = build_model("llama", len(tokenizer))
    tokens = rows.map(lambda row: {"labels": row["input_ids"]}, load_from_cache_file=False)
    more = {"data_collator": transformers.DataCollatorForSeq2Seq(tokenizer)}
    options = {
        "backbone_adapter": {"name": "subspace", "rank": 2},
        "save_strategy": "steps",
        "save_steps": 2,
        "max_steps": 4,
    }
    whole = built("whole", tokens, model=model, more=more, zo_learning_rate=1e-3, **options)
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    assert not (checkpoint / "base_model").exists()
    assert losses(whole)[0] > 1
    again = build_model("llama", len(tokenizer))
    rest = built("rest", tokens, model=again, more=more, zo_learning_rate=1e-3, **options)
    rest.train(resume_from_checkpoint=str(checkpoint))
    assert losses(rest) == losses(whole)
    inputs = whole.data_collator([{k: tokens[0][k] for k in ("input_ids", "labels")}])
    loaded = peft.PeftModel.from_pretrained(build_model("llama", len(tokenizer)), tmp_path / "whole" / "checkpoint-4")
    with torch.no_grad():
        assert float(loaded.eval()(**inputs).loss) == pytest.approx(float(model(**inputs).loss), abs=1e-5)


def test_a_command_line_gives_its_arguments(tmp_path):
    """Through transformers' own parser, which takes one type for each."""
    from zofo.integrations.transformers import BilevelTrainingArguments

    words = f"--output_dir {tmp_path} --penalty 10 --zo_noise gaussian --backbone_adapter subspace --use_cpu".split()
    words += ["--zo_rule", '{"name": "momentum", "beta": 0.5}']
    (args,) = transformers.HfArgumentParser(BilevelTrainingArguments).parse_args_into_dataclasses(words)
    assert (args.penalty, args.zo_noise, args.backbone_adapter) == (10.0, "gaussian", "subspace")
    assert args.zo_rule == {"name": "momentum", "beta": 0.5}


REFUSED = {
    "fp16": {"fp16": True},
    "bf16": {"bf16": True},
    "optim": {"optim": "adafactor"},
    "train_sampling_strategy": {"train_sampling_strategy": "sequential"},
    "data_seed": {"data_seed": 1},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_meaning_is_refused(built, rows, name):
    with pytest.raises(ConfigError, match=f"^{name}=.* does not go with steps of two levels") as caught:
        built("run", rows, **REFUSED[name])
    assert caught.value.hint


def test_what_is_wrong_is_said_in_the_words_of_the_trainer(built, rows, tokenizer):
    def refused(text, *given, **options):
        with pytest.raises(ConfigError, match=text) as caught:
            built("run", *given, **options).train()
        assert not re.search(r"\b(method|training|task)\.[a-z]", str(caught.value))
        return caught.value.hint

    assert "lora_dropout=0" in refused("lora_dropout=0.1", rows, peft_config=peft.LoraConfig(lora_dropout=0.1))
    assert "LoraConfig" in refused("of LOHA", rows, peft_config=peft.LoHaConfig())
    refused("train_dataset has 2 rows of its level", rows.select(range(8)))
    refused("lower_train_dataset has 3 rows", rows, rows.select(range(3)))
    refused("zo_learning_rate", rows, zo_learning_rate=-1.0)
    refused("learning_rate", rows, learning_rate=-1.0)
    refused("penalty is -1", rows, penalty=-1)
    refused("peft_config", rows, peft_config={"name": "lora", "rnk": 2})
    refused("loss of its own", rows, more={"compute_loss_func": lambda *_a, **_k: torch.ones(())})
    refused("has no length", rows.to_iterable_dataset())
    with pytest.raises(ConfigError, match="^zo_epsilon: "):
        BilevelTrainingArguments("unused", use_cpu=True, zo_epsilon=0.0)
    carrying = peft.get_peft_model(build_model("llama", len(tokenizer), head=CLASSIFIER), peft.LoraConfig("SEQ_CLS"))
    refused("already has adapters", rows, model=carrying)


def test_the_program_of_the_page_runs_as_it_stands(rows, tokenizer, tmp_path, monkeypatch):
    page = (Path(__file__).parent.parent / "docs" / "integrations.md").read_text(encoding="utf-8")
    (program,) = [one for one in re.findall(r"```py\n(.*?)```", page, flags=re.DOTALL) if "BilevelTrainer(" in one]
    monkeypatch.chdir(tmp_path)
    made = {"model": build_model("llama", len(tokenizer), head=CLASSIFIER), "tokenizer": tokenizer}
    made |= {"rows": rows, "more": rows}
    few = "max_steps=1, report_to='none', use_cpu=True, inner_steps=1"
    exec(program.replace("max_steps=1000", few), made)  # noqa: S102  # our own
    assert (tmp_path / "mine" / "base_model" / "model.safetensors").is_file()
