"""What the trainers push: weights or an adapter, and a card that says what was done; to a Hub on this machine."""

import copy
import dataclasses
import json
import pickle

import datasets
import peft
import pytest
import transformers

from conftest import build_model
from local_hub import local_hub

pytestmark = [
    pytest.mark.usefixtures("old_objects_kept"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # peft asks in an old way
    pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file in me.base:UserWarning"),
]
CLASSIFIER = transformers.AutoModelForSequenceClassification
OF_TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "training_args.bin"}
ADAPTER = {"adapter_config.json", "adapter_model.safetensors"}
BELOW = {f"lower_adapter/{name}" for name in ADAPTER} | {"base_model/config.json", "base_model/model.safetensors"}


@pytest.fixture
def pushed(tokenizer, tmp_path, monkeypatch):
    """The commits of a training of four steps, which is saved after two and pushed at its end."""

    def push(trainer, arguments, model=None, **options):
        base = build_model("llama", len(tokenizer), head=CLASSIFIER)
        base.name_or_path = base.config._name_or_path = "me/base"
        texts = [f"{'a joy' if i % 2 else 'dull'} film number {i}" for i in range(30)]
        rows = [{"input_ids": tokenizer(text)["input_ids"], "labels": i % 2} for i, text in enumerate(texts)]
        quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True}
        often = {"max_steps": 4, "save_steps": 3, "per_device_train_batch_size": 4, "seed": 7}
        hub = {"push_to_hub": True, "hub_model_id": "me/mine", "hub_token": "hf_secret"}
        args = arguments(str(tmp_path / "mine"), **{**quiet, **often, **hub, **options})
        assert copy.deepcopy(args).hub_token == copy.copy(args).hub_token == "hf_secret"
        with local_hub(monkeypatch) as commits:
            made = trainer(
                base if model is None else model(base),
                args,
                train_dataset=datasets.Dataset.from_list(rows),
                processing_class=tokenizer,
            )
            made.train()
            made.push_to_hub()
        assert not [path for _, files in commits for path, held in files.items() if b"hf_secret" in held]
        return [title for title, _ in commits], [files for _, files in commits]

    return push


def test_the_model_that_moved(pushed):
    from zofo.integrations.transformers import ZerothOrderTrainer, ZerothOrderTrainingArguments

    titles, commits = pushed(ZerothOrderTrainer, ZerothOrderTrainingArguments, zo_epsilon=2e-3)
    assert titles[0] == "Training in progress, step 3"
    model = {"config.json", "model.safetensors"}
    assert [set(files) for files in (commits[0], commits[-1])] == [
        model | OF_TOKENIZER,
        model | OF_TOKENIZER | {"README.md"},
    ]
    card = commits[-1]["README.md"].decode()
    for said in ("- zofo\n", "- method: MeZO", "- learning_rate: 5e-05", "- seed: 7", "epsilon=0.002", "me/base"):
        assert said in card
    assert "ADAMW" not in card.upper()


def test_an_adapter_alone(pushed):
    from zofo.integrations.transformers import ZerothOrderTrainer, ZerothOrderTrainingArguments

    lora = peft.LoraConfig("SEQ_CLS", r=2, target_modules=["q_proj"])
    _, commits = pushed(
        ZerothOrderTrainer,
        ZerothOrderTrainingArguments,
        model=lambda base: peft.get_peft_model(base, lora),
        hub_strategy="end",
    )
    assert set(commits[-1]) == ADAPTER | OF_TOKENIZER | {"README.md"}
    assert b'"base_model_name_or_path": "me/base"' in commits[-1]["adapter_config.json"]
    assert "library_name: peft" in commits[-1]["README.md"].decode()


def test_an_adapter_and_the_model_below_it_also_of_a_checkpoint(pushed):
    from zofo.integrations.transformers import BilevelTrainer, BilevelTrainingArguments

    _, commits = pushed(
        BilevelTrainer, BilevelTrainingArguments, inner_steps=1, penalty={"start": 1, "end": 2, "steps": 3}
    )
    whole = ADAPTER | BELOW | OF_TOKENIZER
    assert [set(files) for files in (commits[0], commits[-1])] == [whole, whole | {"README.md"}]
    assert commits[0]["base_model/model.safetensors"] != commits[-1]["base_model/model.safetensors"]
    assert b'"base_model_name_or_path": "base_model"' in commits[0]["adapter_config.json"]
    card = commits[-1]["README.md"].decode()
    for said in ("- method: bilevel", "the model, which is in `base_model`", "- learning_rate: 0.001", "- seed: 7"):
        assert said in card
    assert "ADAMW_TORCH" not in card


def test_what_is_pushed_by_hand_names_the_model_in_the_repository(pushed, tmp_path):
    from zofo.integrations.transformers import BilevelTrainer, BilevelTrainingArguments

    asked = {"push_to_hub": False, "max_steps": 1, "inner_steps": 1}
    _, (files,) = pushed(BilevelTrainer, BilevelTrainingArguments, **asked)
    assert set(files) >= ADAPTER | BELOW
    for folder in ("", "lower_adapter/"):
        assert json.loads(files[f"{folder}adapter_config.json"])["base_model_name_or_path"] == "base_model"
    with_path = {path for path, held in files.items() if str(tmp_path).encode() in held}
    assert with_path <= {"training_args.bin"}  # which has output_dir


@pytest.mark.filterwarnings("ignore:`pad_token` is deprecated:FutureWarning")
def test_arguments_that_are_pickled_lose_only_the_access_token(tmp_path):
    from zofo.integrations.trl import ZerothOrderSFTConfig

    named = {"eos_token": "<end>", "pad_token": "<pad>", "hub_token": "hf_secret"}
    args = ZerothOrderSFTConfig(str(tmp_path), use_cpu=True, report_to="none", **named)
    pickled = pickle.dumps(args)
    assert b"hf_secret" not in pickled
    again = pickle.loads(pickled)  # noqa: S301
    lost = {one.name for one in dataclasses.fields(args) if getattr(again, one.name) != getattr(args, one.name)}
    assert lost == {"hub_token"}
