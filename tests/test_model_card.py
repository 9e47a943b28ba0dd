"""What is exported answers as the run does: in pipelines of transformers, in peft, and by the program on its card."""

from __future__ import annotations

import json
import math
import re
import shutil

import pytest
import transformers
import yaml
from packaging.version import Version

from conftest import build_model, build_tokenizer, review_rows, with_soak, write_rows
from zofo.adapters.base import quiet_peft
from zofo.errors import RunError
from zofo.export import apply_patch, export_run, replay_run
from zofo.models import load_model
from zofo.training import Predictor, evaluate_run, predict, predict_file, read_config, train

ROW = "warm and funny film number 5"
SPLITS = {split: {"from": split} for split in ("train", "validation", "test")}
PAIRS = {
    "name": "pairs",
    "version": 1,
    "kind": "classification",
    "metric": "accuracy",
    "splits": SPLITS,
    "label": "label",
    "verbalizers": {"entailed": " yes", "neutral": " maybe", "refuted": " no"},
    "template": "{{ premise }} {{ hypothesis | upper_first }}",
    "texts": ["{{ premise }}", "{{ hypothesis | lower_first }}"],
}
CHOICES = {
    "name": "choices",
    "version": 1,
    "kind": "multiple-choice",
    "metric": "accuracy",
    "splits": SPLITS,
    "label": "label",
    "choices": {"each": "options", "text": " {{ choice }}"},
    "template": "{{ question }}",
}
ANSWERS = {
    "name": "answers",
    "version": 1,
    "kind": "generation",
    "metric": "exact-match",
    "splits": SPLITS,
    "answers": "answer",
    "template": "{{ question }}",
    "max_new_tokens": 8,
}
CHAT = {**{key: ANSWERS[key] for key in ("version", "kind", "metric", "splits", "max_new_tokens")}, "name": "chat"}
CHAT |= {"messages": "messages", "stop": []}
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
THINKING = (  # as of Qwen 3: a finished chat has an empty thought before its last answer
    "{% for m in messages %}{{ m['role'] }}: {% if loop.last and m['role'] == 'assistant' %}<t></t>{% endif %}"
    "{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
LABELS = list(PAIRS["verbalizers"])


def row_of(kind, number):
    text = review_rows(1, number)[0]["sentence"]
    if kind == "pairs":
        return {"premise": text, "hypothesis": "it was a joy", "label": LABELS[number % 3]}
    if kind == "choices":
        return {"question": text, "options": ["great fun", "terrible", "a bad joke"], "label": number % 3}
    if "chat" in kind:
        system = [{"role": "system", "content": "a joy"}] if "system" in kind else []
        turns = [*system, {"role": "user", "content": text}, {"role": "assistant", "content": "great"}]
        return {"messages": turns}
    return {"question": text, "answer": ("great", "terrible")[number % 2]}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What gives a run by model, head, task and method, trained once a few steps until its answers differ."""
    folder = tmp_path_factory.mktemp("cards")
    runs = {}

    def tokenizer_of(kind):
        tokenizer = build_tokenizer()
        if kind in ("bert", "roberta"):
            special = {"mask_token": "<mask>", "sep_token": "<s>", "cls_token": "</s>"}
            tokenizer.add_special_tokens(special)
        tokenizer.chat_template = THINKING if "thinking" in kind else TEMPLATE
        return tokenizer

    def model(kind):
        if not (folder / kind).is_dir():
            tokenizer = tokenizer_of(kind)
            heads = transformers.AutoModelForMaskedLM, transformers.AutoModelForCausalLM
            known = kind.split()[0]
            build_model(known, len(tokenizer), head=heads[known == "llama"]).save_pretrained(folder / kind)
            tokenizer.save_pretrained(folder / kind)
        return folder / kind

    def task(name):
        if name == "reviews":
            data = review_rows
        else:
            contents = {"pairs": PAIRS, "choices": CHOICES, "answers": ANSWERS, "chat": CHAT, "chat-system": CHAT}
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(contents[name], sort_keys=False))
            data = lambda count, start=0: [row_of(name, n) for n in range(start, start + count)]  # noqa: E731
        if not (folder / name).is_dir():
            write_rows(folder / name / "train.jsonl", data(24))
            write_rows(folder / name / "validation.jsonl", data(6, 60))
            write_rows(folder / name / "test.jsonl", data(6, 80))
        own = [] if name == "reviews" else [f"task.name={folder / name}.yaml"]
        return [*own, f"task.data_dir={folder / name}"]

    def run(kind, head, name, *options):
        key = "-".join(re.sub(r"\W+", "-", part) for part in (kind, head, name, *options))
        if key not in runs:
            other = any(option.startswith("method=") for option in options)
            method = [] if other else ["method=first-order", "method.batch_size=4", "method.lr=0.02"]
            given = [f"model={model(kind)}", f"model.head={head}", *task(name), *method, "training.steps=4", *options]
            runs[key] = train(read_config(None, [*given, f"output_dir={folder / 'runs' / key}"]))
        return runs[key]

    run.folder = folder
    return run


def program_of(folder):
    card = (folder / "README.md").read_text(encoding="utf-8")
    return re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace("REPO", str(folder))


def answer_of(folder, capsys, row=None):
    """What the card's program answers, as it stands or to a row; its last name `answer`."""
    program = program_of(folder)
    if row is not None:
        program, times = re.subn(r"^row = .*$", lambda _: f"row = {row!r}", program, flags=re.MULTILINE)
        assert times == 1
    names = {}
    with quiet_peft():  # a note of transformers that is meant for peft
        exec(compile(program, "the card's program", "exec"), names)  # noqa: S102
    assert capsys.readouterr().out
    return names


def shown_rows(run, count=4):
    from zofo.tasks import load_task

    task = load_task(str(run.task_file))
    file = run.config.task.data_dir / "validation.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()[:count]]
    if task.messages is not None:
        return [{"messages": row["messages"][:-1]} for row in rows]
    left_out = {"label", "answer", "rating", "id"}
    return [{key: value for key, value in row.items() if key not in left_out} for row in rows]


CASES = {
    "causal, all weights": ("llama", "causal-lm", "reviews", "method.parameters=all"),
    "causal, LoRA": ("llama", "causal-lm", "reviews", "method.adapter=lora"),
    "causal, sums": ("llama", "causal-lm", "reviews", "method.adapter=lora", "task.scoring=sum"),
    "choices": ("llama", "causal-lm", "choices", "method.adapter=lora"),
    "answers": ("llama", "causal-lm", "answers", "method.adapter=lora"),
    "chat": ("llama", "causal-lm", "chat", "method.adapter=lora"),
    "chat, system and thought": ("llama thinking", "causal-lm", "chat-system", "method.adapter=lora"),
    "masked": ("roberta", "masked-lm", "reviews", "method.adapter=lora"),
    "decoder head": ("llama", "classification", "reviews", "method.adapter=lora"),
    "decoder head, pairs": ("llama", "classification", "pairs", "method.adapter=lora"),
    "encoder head": ("roberta", "classification", "reviews", "method.adapter=lora"),
    "encoder head, pairs": ("roberta", "classification", "pairs", "method.parameters=all"),
    "encoder head, prompt": ("roberta", "classification", "pairs", "task.prompt=default"),
    "a head alone": ("llama", "classification", "reviews", "method.parameters=head"),
}
MERGED = {"causal, all weights", "answers", "masked", "decoder head, pairs", "a head alone"}
"""With those of an adapter, every head, every kind of task and every kind of what is trained."""
ADAPTERS = [name for name, case in CASES.items() if "method.adapter=lora" in case] + ["prefix", "virtual prompt"]
VIRTUAL = {
    "prefix": ("llama", "causal-lm", "reviews", "method.adapter=prefix"),
    "virtual prompt": ("llama", "causal-lm", "reviews", "method.adapter=prompt"),
}


def asked(run, rows, capsys, folder):
    """That the program answers every row as the run does, and as it stands."""
    answer_of(folder, capsys)
    whole = [json.dumps(row) for row in rows]
    for row, expected in zip(rows, predict(run.path, whole), strict=True):
        names = answer_of(folder, capsys, row)
        found = names["answer"]["label"] if isinstance(names["answer"], dict) else names["answer"]
        assert str(found) == str(expected.label)
        if "found" in names and expected.probability is not None:
            assert names["found"].softmax(-1).max().item() == pytest.approx(expected.probability, abs=2e-5)


@pytest.mark.parametrize("case", with_soak(CASES, MERGED))
def test_the_program_on_the_card_of_a_merged_model_answers_as_the_run_does(made, tmp_path, capsys, case):
    run = made(*CASES[case])
    export_run(run.path, "merged", tmp_path / "out")
    asked(run, shown_rows(run), capsys, tmp_path / "out")


@pytest.mark.parametrize(
    "case", with_soak(ADAPTERS, {"choices", "chat", "chat, system and thought", "encoder head", "prefix"})
)
def test_the_program_on_the_card_of_an_adapter_answers_as_the_run_does(made, tmp_path, capsys, monkeypatch, case):
    run = made(*{**CASES, **VIRTUAL}[case])
    export_run(run.path, "adapter", tmp_path / "out")
    monkeypatch.chdir(made.folder)  # where the base model lies, which the card names without its folder
    asked(run, shown_rows(run), capsys, tmp_path / "out")


def test_the_program_of_a_chat_asks_what_the_run_asks(made, tmp_path, capsys, monkeypatch):
    """To the token: with the system turn of the run's chats, and the empty thought that the template leaves out."""
    run = made(*CASES["chat, system and thought"])
    export_run(run.path, "adapter", tmp_path / "out")
    monkeypatch.chdir(made.folder)
    names = answer_of(tmp_path / "out", capsys)
    assert [turn["role"] for turn in names["row"]["messages"]] == ["system", "user"]
    predictor = Predictor(run)
    (encoded,) = predictor.encode([predictor.example(names["row"], "a row")])
    assert names["ids"] == list(encoded.prompt)
    assert names["prompt"].endswith("A question.</s>assistant: <t></t>")


def test_a_pipeline_gives_the_labels_and_probabilities_of_the_run(made, tmp_path):
    for case in ("decoder head", "encoder head, pairs"):
        run = made(*CASES[case])
        folder = tmp_path / case
        export_run(run.path, "merged", folder)
        rows = shown_rows(run, 6)
        given = [
            {"text": row["premise"], "text_pair": row["hypothesis"]} if "premise" in row else row["sentence"]
            for row in rows
        ]
        found = transformers.pipeline("text-classification", model=str(folder), batch_size=3)(given)
        expected = predict(run.path, [json.dumps(row) for row in rows])
        assert [one["label"] for one in found] == [str(one.label) for one in expected]
        for one, other in zip(found, expected, strict=True):
            assert one["score"] == pytest.approx(other.probability, abs=2e-5)


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"), reason="5.6 writes 256 tokens, whatever the folder says"
)
def test_a_pipeline_goes_on_with_a_chat_as_the_run_does(made, tmp_path):
    """By the template and the settings in the folder alone, as servers of chats read them."""
    run = made(*CASES["chat"])
    export_run(run.path, "merged", tmp_path / "out")
    talk = transformers.pipeline("text-generation", model=str(tmp_path / "out"))
    for row in shown_rows(run, 3):
        found = talk(row["messages"])[0]["generated_text"][-1]
        (expected,) = predict(run.path, [json.dumps(row)])
        assert (found["role"], found["content"].strip()) == ("assistant", expected.answer.strip())


@pytest.mark.soak
@pytest.mark.filterwarnings("default")  # of a package that is not ours
def test_lm_eval_gives_the_score_and_the_likelihoods_of_the_run(made, tmp_path, monkeypatch):
    """Of a task that both know, from local rows: likelihoods are summed, as lm_eval does it for `acc`."""
    lm_eval = pytest.importorskip("lm_eval")
    run = made("llama", "causal-lm", "reviews", "task.scoring=sum")
    export_run(run.path, "merged", tmp_path / "out")
    rows, asked = review_rows(40, 100), run.task.prompt().template.replace("{{ sentence }}", "{{sentence}}")
    write_rows(tmp_path / "rows.jsonl", rows)
    task = {
        "task": "reviews",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": asked,
        "doc_to_choice": [text.strip() for text in run.task.verbalizers_of().values()],
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    model = f"pretrained={tmp_path / 'out'},dtype=float32"
    found = lm_eval.simple_evaluate("hf", model_args=model, tasks=[task], device="cpu", log_samples=True)
    predict_file(run.path, tmp_path / "rows.jsonl", tmp_path / "ours.jsonl")
    ours = [json.loads(line) for line in (tmp_path / "ours.jsonl").read_text().splitlines()]
    theirs = sorted(found["samples"]["reviews"], key=lambda sample: sample["doc_id"])
    for one, other in zip(ours, theirs, strict=True):
        first, second = (float(one[0]) for one in other["filtered_resps"])
        assert one["probability_0"] == pytest.approx(1 / (1 + math.exp(second - first)), abs=1e-5)
    score = evaluate_run(run.path, data=str(tmp_path / "rows.jsonl")).score
    assert found["results"]["reviews"]["acc,none"] == pytest.approx(score)


def test_the_labels_of_a_task_are_in_every_folder_that_is_written(made, tmp_path):
    run = made(*CASES["encoder head, pairs"])
    export_run(run.path, "merged", tmp_path / "merged")
    export_run(run.path, "patch", tmp_path / "p.zofo")
    apply_patch(tmp_path / "p.zofo", str(made.folder / "roberta"), tmp_path / "applied")
    moved = made("llama", "classification", "pairs", "method={name: mezo, batch_size: 4, rule: {lr: 1e-4}}")
    replay_run(moved.path, out=tmp_path / "replayed")
    for name in ("merged", "applied", "replayed"):
        content = json.loads((tmp_path / name / "config.json").read_text())
        assert content["id2label"] == {"0": "entailed", "1": "neutral", "2": "refuted"}
        assert content["label2id"] == {"entailed": 0, "neutral": 1, "refuted": 2}
        assert content["architectures"][0].endswith("ForSequenceClassification")
    load_model(str(tmp_path / "merged"), labels=3)


def test_an_adapter_whose_head_peft_cannot_complete_is_refused(made, tmp_path):
    """A masked BERT has no pooler: zofo draws one from a seed, and transformers another in every process."""
    run = made("bert", "classification", "reviews", "method.adapter=lora")
    with pytest.raises(RunError, match=r"lacks 'bert.pooler.dense.bias'") as refused:
        export_run(run.path, "adapter", tmp_path / "out")
    assert "--merged" in refused.value.hint
    assert not (tmp_path / "out").exists()
    export_run(run.path, "merged", tmp_path / "out")
    found = transformers.pipeline("text-classification", model=str(tmp_path / "out"))(ROW)
    (expected,) = predict(run.path, [ROW])
    assert found[0]["label"] == str(expected.label)
    assert found[0]["score"] == pytest.approx(expected.probability, abs=2e-5)


def test_the_card_of_an_adapter_beside_a_trained_backbone_does_not_load_the_base_model(
    made, tmp_path, capsys, monkeypatch
):
    method = "method={name: bilevel, batch_size: 2, inner_steps: 1, rule: {lr: 1e-3}}"
    run = made("llama", "causal-lm", "reviews", method)
    export_run(run.path, "adapter", tmp_path / "out")
    replay_run(run.path, out=tmp_path / "BACKBONE")
    monkeypatch.chdir(tmp_path)
    asked(run, shown_rows(run), capsys, tmp_path / "out")
    assert "zofo replay RUN --out BACKBONE" in program_of(tmp_path / "out")


def test_what_a_program_cannot_do_is_said(made, tmp_path):
    given = "llama", "causal-lm", "reviews", "method.adapter=lora"
    for option, text in (
        ("task.scoring=calibrated", "task.scoring=calibrated"),
        ("task.num_fewshot=2", "2 solved rows of train stand before each prompt"),
        ("task.truncate=left", "lost the oldest tokens"),
    ):
        run = made(*given, option)
        export_run(run.path, "merged", tmp_path / option)
        card = (tmp_path / option / "README.md").read_text()
        assert text in card
        if "truncate" not in option:
            assert "zofo predict RUN TEXT" in card


def test_generation_settings_are_those_that_the_run_used(made, tmp_path):
    run = made(*CASES["answers"])
    export_run(run.path, "merged", tmp_path / "out")
    settings = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert (settings.max_new_tokens, settings.do_sample, settings.eos_token_id) == (8, False, [2])
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.pad_token_id == 0


@pytest.mark.parametrize("name", ["\x1b[31mred", "a\x00b", "\u202eabc", "a" * 1000])
def test_a_patch_keeps_the_names_of_labels_that_no_terminal_shows(made, tmp_path, name):
    run = made(*CASES["encoder head, pairs"])
    copied = shutil.copytree(run.path, tmp_path / "run")
    content = (copied / "task.yaml").read_text(encoding="utf-8")
    (copied / "task.yaml").write_text(content.replace("entailed", json.dumps(name)), encoding="utf-8")
    known = json.loads((copied / "environment.json").read_text(encoding="utf-8"))
    del known["task"]
    (copied / "environment.json").write_text(json.dumps(known), encoding="utf-8")
    export_run(copied, "patch", tmp_path / "p.zofo")
    apply_patch(tmp_path / "p.zofo", str(made.folder / "roberta"), tmp_path / "applied")
    found = json.loads((tmp_path / "applied" / "config.json").read_text(encoding="utf-8"))
    assert found["id2label"]["0"] == name
