"""Conversations whose answers are all trained: which tokens, by whose rule, at what loss, and what is left out."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
import yaml

from conftest import build_model, build_tokenizer, write_rows
from test_chats import ANSWER, ASKED, CALL, CHATML, CONTROL, LLAMA_2, LLAMA_3, NO_END, QWEN_3, SYSTEM, TOOLS, chat
from zofo.backbone import Backbone
from zofo.displacement import Displacement, Key
from zofo.errors import DataError
from zofo.estimate import RowSource, dry_run, estimate_run
from zofo.evaluators import InForward, InPlace
from zofo.noise import LowRank
from zofo.objectives import Generation, token_loss
from zofo.objectives.generation import Completion
from zofo.objectives.kl import kl_to_base
from zofo.tasks import TaskConfig, collate, encode, load_examples, resolve_task, unwritten_notes
from zofo.temporary import temporarily
from zofo.training import prepare_run, preview, read_config, train, validate
from zofo.training.identity import rows_hash, tokens_hash
from zofo.training.inference import evaluate_run, evaluate_zero_shot
from zofo.training.run_folder import RunFolder

MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_CALLS = CHATML.replace(
    "{{ m.content }}", "{{ m.content }}{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}"
).replace("{% for m", "{% if tools %}{{ tools | tojson }}{% endif %}{% for m", 1)


def asked(text: str) -> dict:
    return {"role": "user", "content": text}


def said(text: str, **more) -> dict:
    return {"role": "assistant", "content": text, **more}


LONG = (SYSTEM, ASKED, said("a joy"), asked("and the end ?"), said("it drags on"), asked("so ?"), said("see it"))


@pytest.fixture
def asking():
    """A tokenizer with the control tokens of all these templates, and a template."""

    def made(template: str, bos: bool = False):
        own = build_tokenizer(bos)
        own.add_special_tokens({"additional_special_tokens": CONTROL})
        own.chat_template = template
        return own

    return made


def pieces(tokenizer, encoded) -> list[str]:
    """The texts that are scored, one after the other."""
    spans = [*encoded.earlier_spans, (len(encoded.rows[0]) - encoded.scored[0], len(encoded.rows[0]))]
    return [tokenizer.decode(encoded.rows[0][start:end]) for start, end in spans]


def expanded(turns) -> list[list[dict]]:
    """A conversation for each answer of one: up to it."""
    return [list(turns[: place + 1]) for place, turn in enumerate(turns) if turn["role"] == "assistant"]


def test_the_mask_is_that_of_transformers(asking):
    own = asking(MARKED)
    (encoded,) = encode(own, [chat(*LONG)])
    theirs = own.apply_chat_template(list(LONG), return_dict=True, return_assistant_tokens_mask=True)
    row, length = encoded.rows[0], len(encoded.rows[0])
    assert list(row) == theirs["input_ids"][:length]
    mask = [int(place in encoded.places(0)) for place in range(length)]
    assert mask == theirs["assistant_masks"][:length]
    assert not any(theirs["assistant_masks"][length:])
    assert sum(mask) > encoded.scored[0]


@pytest.mark.parametrize("template", [CHATML, LLAMA_2, LLAMA_3, MARKED])
def test_the_loss_of_a_row_is_the_mean_over_the_tokens_of_its_answers_alone(asking, template):
    own = asking(template)
    model = build_model("llama", len(own), seed=3, positions=256)
    (whole,) = encode(own, [chat(*LONG)])
    alone = [one.last_only() for one in encode(own, [chat(*turns) for turns in expanded(LONG)])]
    assert len(whole.earlier_spans) == 2
    assert whole.untrained == ""
    batches = [collate([one.gold_only() for one in some], 0, torch.device("cpu")) for some in ([whole], alone)]
    with torch.no_grad():
        (together,), each = (token_loss(model, batch) for batch in batches)
    counts = torch.tensor([one.scored[0] for one in alone]).float()
    assert len(whole.places(0)) == counts.sum()
    assert together.item() == pytest.approx(((each * counts).sum() / counts.sum()).item(), abs=1e-5)
    assert len(batches[0].input_ids) == 1
    # beside other rows it is the same, and each of their own
    with torch.no_grad():
        beside = token_loss(model, collate([alone[0], whole, alone[2]], 0, torch.device("cpu")))
    assert torch.allclose(beside, torch.stack([each[0], together, each[2]]), atol=1e-5)


def test_the_evaluators_of_points_and_gradients_take_every_answer(asking):
    own = asking(CHATML)
    rows = encode(own, [chat(*LONG), chat(ASKED, ANSWER), chat(*LONG[:5])])
    batch = collate([one.gold_only() for one in rows], 0, torch.device("cpu"))
    points = [Displacement({Key(11, 3): 1e-2}), Displacement({Key(11, 3): -1e-2})]
    found = []
    for kind in (InPlace, InForward):
        model = build_model("llama", len(own), seed=3, positions=256)
        backbone = Backbone(model, LowRank(rank=2))
        found.append(kind(model, backbone).losses(token_loss, batch, points))
    assert torch.allclose(*found, atol=1e-4)
    assert not torch.allclose(found[0][0], found[0][1])
    model = build_model("llama", len(own), seed=3, positions=256)
    token_loss(model, batch)[0].backward()
    whole = model.lm_head.weight.grad.clone()
    model.zero_grad()
    alone = collate([one.last_only() for one in encode(own, [chat(*t) for t in expanded(LONG)])], 0, batch.gold.device)
    counts = alone.target_mask.sum(dim=(1, 2))
    ((token_loss(model, alone) * counts).sum() / counts.sum()).backward()
    assert torch.allclose(model.lm_head.weight.grad, whole, atol=1e-5)


def test_a_row_of_one_answer_is_what_it_was(asking):
    """Its text, tokens and their hashes: literals of the version that knew the last answer alone."""
    own = asking(CHATML)
    rows = [chat(SYSTEM, ASKED, ANSWER), chat(ASKED, said("dull"))]
    encoded = encode(own, rows)
    assert rows_hash(rows) == ROWS
    assert tokens_hash(encoded) == TOKENS
    assert all(one.earlier_spans == () and one.gold_only().last_only() == one.gold_only() for one in encoded)
    last = replace(chat(*LONG), earlier_answers=())
    assert rows_hash([last]) == LAST_ROWS
    assert tokens_hash(encode(own, [last])) == LAST_TOKENS
    assert rows_hash([chat(*LONG)]) != LAST_ROWS


ROWS = "sha256:ac6c9db35395d04ae3314b9a26ceb145a1d34b8565687092d89136797e003ce7"
TOKENS = "sha256:a3f0575a9cb672c11d1fb10fba177c6f325e45a4c5b7889eb1281423600ba816"
LAST_ROWS = "sha256:2a6bcddfcb2d1e70cd449f128ec48148262124d118aa856ece98e3f78ef87819"
LAST_TOKENS = "sha256:2c491abdcbd1824e27de5061a0fafee283c2df717d1f047e11704ceb6c2d2053"


@pytest.mark.parametrize("spelt", ["it is <|im_end|> here", "<|im_end|>\n<|im_start|>assistant\nno", "<|im_end|>"])
def test_control_tokens_that_a_turn_spells_stay_text(asking, spelt):
    own = asking(CHATML)
    for place in range(1, len(LONG)):
        turns = [{**turn, "content": spelt} if number == place else turn for number, turn in enumerate(LONG)]
        (one,) = encode(own, [chat(*turns)])
        answers = [turn["content"] + "<|im_end|>" for turn in turns if turn["role"] == "assistant"]
        assert pieces(own, one) == answers
        ends = [one.rows[0][end - 1] for _, end in one.earlier_spans]
        assert ends == [own.convert_tokens_to_ids("<|im_end|>")] * 2
        scored = [one.rows[0][at] for at in one.places(0)]
        assert scored.count(ends[0]) == 3


def test_calls_of_tools_are_trained_and_what_tools_say_is_not(asking):
    own = asking(WITH_CALLS)
    turns = (ASKED, said("", tool_calls=[CALL]), {"role": "tool", "content": "12 degrees"}, said("it is 12"))
    (one,) = encode(own, [chat(*turns, tools=TOOLS)])
    assert pieces(own, one) == [json.dumps(CALL["function"]) + "<|im_end|>", "it is 12<|im_end|>"]


def test_an_answer_that_nothing_is_asked_before_is_not_trained(asking):
    own = asking(CHATML)
    (one,) = encode(own, [chat(said("hello"), ASKED, said("a joy"), ASKED, ANSWER)], require_all=True)
    assert pieces(own, one) == ["a joy<|im_end|>"] * 2
    assert one.untrained == ""
    (note,) = unwritten_notes(own, [one])
    assert note.startswith("1 of 1 rows begin with an answer, which is read and not trained")
    (after,) = encode(own, [chat(SYSTEM, said("hello"), ASKED, ANSWER)])
    assert pieces(own, after) == ["hello<|im_end|>", "a joy<|im_end|>"]


# templates that write earlier answers in another way

CHANGED = {
    "thoughts": (QWEN_3, LONG, "turn 3: the model's chat template writes '<think>"),
    "an end of the last alone": (NO_END, LONG[1:], "turn 2: the model's chat template writes '</s>'"),
    "of one kind": (
        QWEN_3,
        (ASKED, said("a joy", reasoning_content="hm"), ASKED, ANSWER),
        "turn 2: the answer holds what was thought before it",
    ),
}


@pytest.mark.parametrize("name", CHANGED)
def test_an_answer_that_the_template_writes_otherwise_later_is_not_trained_and_counted_once(asking, name):
    template, turns, why = CHANGED[name]
    own = asking(template)
    rows = [chat(*turns), chat(*turns[-2:]), chat(*turns)]
    encoded = encode(own, rows)
    assert [one.earlier_spans for one in encoded] == [(), (), ()]
    assert encoded[0].untrained.startswith(why)
    notes = [note for note in unwritten_notes(own, encoded) if "not trained" in note]
    assert len(notes) == 1
    assert notes[0].startswith("2 of 2 rows of train with several answers have an earlier one that is not trained; the")
    assert f"the first is rows.jsonl:7, {why}" in notes[0]
    with pytest.raises(DataError, match="rows.jsonl:7: an earlier answer cannot be trained") as refused:
        encode(own, rows, require_all=True)
    assert why in refused.value.message
    assert "task.trained_turns=auto" in refused.value.hint
    last = encode(own, [replace(one, earlier_answers=()) for one in rows], require_all=True)
    assert [one.rows for one in last] == [one.rows for one in encoded]


def test_earlier_answers_that_keep_their_thoughts_are_trained_beside_others_that_do_not(asking):
    """Of this template an earlier answer with thoughts keeps them, and one without is written without the block."""
    own = asking(QWEN_3)
    thought = {"reasoning_content": "hm"}
    turns = (ASKED, said("a joy"), ASKED, said("dull", **thought), ASKED, said("see it", **thought))
    (one,) = encode(own, [chat(*turns)])
    assert pieces(own, one) == [f"<think>\nhm\n</think>\n\n{text}<|im_end|>" for text in ("dull", "see it")]
    assert one.untrained.startswith("turn 2: ")


def test_an_answer_whose_tokens_change_with_what_follows_is_not_trained(asking):
    """A tokenizer that has one token for the end of an answer and what follows it."""
    own = asking(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}~"
        "{{ '' if loop.last and not add_generation_prompt else '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    own.add_tokens(["~\n", "~"])
    (one,) = encode(own, [chat(ASKED, ANSWER, ASKED, ANSWER)])
    assert pieces(own, one) == [" a joy~"]
    assert one.untrained == "turn 2: what follows it changes its tokens"


# rows that are cut


@pytest.mark.parametrize("bos", [False, True])
def test_answers_that_a_cut_reaches_are_not_trained(asking, bos):
    own = asking(("{{ bos_token }}" if bos else "") + CHATML, bos)
    (whole,) = encode(own, [chat(*LONG)])
    seen = set()
    for limit in range(whole.scored[0] + 2, len(whole.rows[0]) + 1):
        (cut,) = encode(own, [chat(*LONG)], limit, truncate=True)
        dropped = len(whole.rows[0]) - len(cut.rows[0])
        assert cut.scored == whole.scored
        assert pieces(own, cut) == pieces(own, whole)[-1 - len(cut.earlier_spans) :]
        kept = [
            (start, end) for start, end in whole.earlier_spans if not dropped or start - dropped > 1
        ]  # a special token stays first
        assert cut.earlier_spans == tuple((start - dropped, end - dropped) for start, end in kept)
        assert all(cut.rows[0][at] == whole.rows[0][at + dropped] for at in cut.places(0))
        assert bool(cut.untrained) == (len(cut.earlier_spans) < 2)
        if cut.untrained:
            with pytest.raises(DataError, match="cannot be trained: task.truncate=left cuts [12] of [12] of them"):
                encode(own, [chat(*LONG)], limit, truncate=True, require_all=True)
        seen.add(len(cut.earlier_spans))
    assert seen == {0, 1, 2}


# weights


def test_an_answer_with_the_weight_0_is_not_trained(asking):
    own = asking(CHATML)
    weights = {
        (1, 1, 1): ["a joy", "it drags on", "see it"],
        (0, 1, 1): ["it drags on", "see it"],
        (1, 0, None): ["a joy", "see it"],
        (0, 0, 1): ["see it"],
        (1, 1, 0): ["a joy", "it drags on"],
        (1, 0, 0): ["a joy"],
    }
    for given, trained in weights.items():
        each = iter(given)
        turns = [{**one, "weight": next(each) if one["role"] == "assistant" else None} for one in LONG]
        (one,) = encode(own, [chat(*turns)])
        assert pieces(own, one) == [f"{text}<|im_end|>" for text in trained]
        assert one.example.answers == (trained[-1],)
        (bare,) = encode(own, [chat(*LONG)])
        assert bare.rows[0][: len(one.rows[0])] == one.rows[0]  # a weight is not written
    assert encode(own, [chat({**ASKED, "weight": 0}, right=False)])[0].prompt
    assert encode(own, [chat({**ASKED, "weight": 1}, ANSWER)]) == encode(own, [chat(ASKED, ANSWER)])


@pytest.mark.parametrize(
    ("turns", "says"),
    [
        ((ASKED, {**ANSWER, "weight": 0.5}), r"rows.jsonl:7: column 'messages': turn 2 has the weight 0.5"),
        ((ASKED, {**ANSWER, "weight": "1"}), r"turn 2 has the weight '1'"),
        ((ASKED, {**ANSWER, "weight": -1}), r"turn 2 has the weight -1"),
        (({**ASKED, "weight": 2}, ANSWER), r"turn 1 has the weight 2"),
        ((ASKED, {**ANSWER, "weight": True}), r"turn 2 has the weight True"),
        ((said("hello"), ASKED, {**ANSWER, "weight": 0}), r"in every answer but one that nothing is asked before"),
        ((ASKED, {**ANSWER, "weight": 0}), r"rows.jsonl:7: column 'messages' has the weight 0 in every answer"),
    ],
)
def test_other_weights_are_refused_with_their_place(turns, says):
    with pytest.raises(DataError, match=says) as refused:
        chat(*turns)
    assert "weight" in refused.value.hint
    with pytest.raises(DataError, match="turn 1 has the role 'asistant'"):  # the mistake that matters
        chat({"role": "asistant", "content": "a", "weight": 3}, ANSWER)


# runs


@pytest.fixture
def chats(tmp_path, asking):
    """Conversations of two answers in a file, and the folder of a model with a template; each as keys of a run."""
    own = asking(CHATML)
    folder = tmp_path / "model"
    build_model("llama", len(own), seed=3, positions=256).save_pretrained(folder)
    own.save_pretrained(folder)
    rows = tmp_path / "chats.jsonl"
    words = ("a joy", "dull", "warm and funny", "lifeless")
    write_rows(
        rows,
        [
            {"messages": [asked(f"film {n} ?"), said(words[n % 4]), asked("sure ?"), said(words[(n + 1) % 4])]}
            for n in range(12)
        ],
    )
    return [f"model={folder}", f"task.data={rows}", "task.split_sizes={validation: 3, test: 3}"]


def losses_of(run) -> list[float]:
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    return [line["loss"] for line in map(json.loads, lines) if line["event"] == "step"]


@pytest.mark.parametrize("method", ["mezo", "first-order"])
def test_a_run_trains_every_answer_and_scores_the_last(chats, tmp_path, method):
    given = [*chats, f"method={method}", "method.batch_size=6", "training.steps=1", "task.max_new_tokens=3"]
    runs, found = {}, {}
    for turns in ("auto", "last"):
        config = read_config(None, [*given, f"task.trained_turns={turns}", f"output_dir={tmp_path / turns}"])
        prepared = prepare_run(config)
        assert all(len(one.earlier_spans) == (turns == "auto") for one in prepared.encoded["train"])
        assert not any(one.earlier_spans for split in ("validation", "test") for one in prepared.encoded[split])
        batch = collate([one.gold_only() for one in prepared.encoded["train"]], 0, torch.device("cpu"))
        with torch.no_grad():
            found[turns] = token_loss(prepared.loaded.model, batch).mean().item()
        runs[turns] = train(config)
    assert found["auto"] != pytest.approx(found["last"], abs=1e-3)
    for turns, run in runs.items():
        assert losses_of(run)[0] == pytest.approx(found[turns], abs=2e-2 if method == "mezo" else 1e-4)
    # before training they score alike, on the rows that are trained on, too
    scores = [
        evaluate_zero_shot(read_config(None, [*given, f"task.trained_turns={turns}"]), "train")
        for turns in ("auto", "last")
    ]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("typed", ["its configuration", "the same command"])
def test_a_run_of_before_trained_the_last_answer_goes_on_and_is_scored_as_it_was(chats, tmp_path, typed):
    keys = [*chats, "method=mezo", "method.batch_size=4", "training.steps=4", "training.save_steps=2"]
    keys += ["task.trained_turns=last", "task.max_new_tokens=3"]
    run = train(read_config(None, [*keys, f"output_dir={tmp_path / 'now'}"]))
    then = tmp_path / "then"
    shutil.copytree(run.path, then)
    config = yaml.safe_load((then / "config.yaml").read_text())
    assert config["task"].pop("trained_turns") == "last"
    (then / "config.yaml").write_text(yaml.safe_dump(config))
    environment = json.loads((then / "environment.json").read_text())
    del environment["configuration"]["task"]["trained_turns"]
    (then / "environment.json").write_text(json.dumps(environment))
    assert RunFolder.open(then).config.task.trained_turns == "last"
    assert evaluate_run(run.path) == evaluate_run(then)
    (then / "summary.json").unlink()  # as if it had been killed before its end
    same = [key for key in keys if "trained_turns" not in key]
    again = train(
        read_config(then / "config.yaml")
        if typed == "its configuration"
        else read_config(None, [*same, f"output_dir={then}"])
    )
    assert again.path == then
    assert again.summary["backbone"] == run.summary["backbone"]
    assert losses_of(again) == losses_of(run)
    # a configuration that is no run's means what is so today
    (tmp_path / "mine.yaml").write_text((then / "config.yaml").read_text())
    assert read_config(tmp_path / "mine.yaml").task.trained_turns == "auto"


def test_preview_shows_every_piece_that_is_scored(chats, run_zofo):
    seen = preview(read_config(None, chats), rows=1)
    ((text, tokens),) = seen.examples[0].earlier
    assert text.endswith("<|im_end|>")
    assert tokens[-1] == "<|im_end|>"
    assert preview(read_config(None, [*chats, "task.trained_turns=last"]), rows=1).examples[0].earlier == ()
    assert preview(read_config(None, chats), "validation", rows=1).examples[0].earlier == ()
    code, out, err = run_zofo("preview", *chats)
    assert code == 0, err
    assert out.count("  and before it ") == 3
    assert out.count("scored: (") == 6


def test_a_template_that_changes_earlier_turns_is_noted_or_refused_by_the_commands(chats, tmp_path):
    template = tmp_path / "model" / "chat_template.jinja"
    template.write_text(QWEN_3)
    notes = preview(read_config(None, chats)).notes
    assert [
        note
        for note in notes
        if note.startswith("6 of 6 rows of train with several answers have an earlier one that is not")
    ]
    assert any("is not trained" in note for note in validate(read_config(None, chats)).notes)
    for look in (preview, validate, train):
        with pytest.raises(DataError, match=r"chats.jsonl:\d+: an earlier answer cannot be trained"):
            look(read_config(None, [*chats, "task.trained_turns=all"]))
    # rows that are not trained on are no matter
    assert preview(read_config(None, [*chats, "task.trained_turns=all"]), "validation").count == 3


def test_rows_of_one_split_alone_have_earlier_answers_to_train(chats):
    config = TaskConfig(data=chats[1].partition("=")[2], split_sizes={"validation": 3, "test": 3})
    examples = load_examples(resolve_task(config), config)
    assert {split: {one.earlier_answers for one in rows} for split, rows in examples.items()} == {
        "train": {(1,)},
        "validation": {()},
        "test": {()},
    }


def test_a_kl_asks_for_the_text_that_was_written_alone(asking):
    own = asking(CHATML)
    model = build_model("llama", len(own), seed=3, positions=256)
    base = build_model("llama", len(own), seed=4, positions=256)
    rows = encode(own, [chat(*LONG), chat(ASKED, ANSWER)])
    said_now = [Completion((5, 6, 7), "x"), Completion((8,), "y")]
    as_base = lambda one: temporarily(one, forward=base.forward)  # noqa: E731
    found = [
        kl_to_base(model, examples, said_now, own.pad_token_id, as_base)
        for examples in (rows, [one.last_only() for one in rows])
    ]
    assert torch.equal(*found)
    assert (found[0] > 0).all()


def test_every_token_is_scored_once_where_the_whole_text_is(asking):
    own = asking(CHATML)
    (one,) = encode(own, [chat(*LONG)])
    assert one.full_sequence().places(0) == list(range(1, len(one.rows[0])))


def test_generation_is_asked_for_the_last_answer(asking):
    own = asking(CHATML)
    (one,) = encode(own, [chat(*LONG)])
    (unknown,) = encode(own, [chat(*LONG[:-1], right=False)])
    assert one.prompt == unknown.prompt == one.gold_only().prompt
    assert Generation(own).stop == ()


def test_an_estimate_counts_the_logits_of_every_answer_in_a_step_and_of_the_last_in_an_evaluation(chats):
    found = {}
    for turns in ("auto", "last"):
        config = read_config(None, [*chats, f"task.trained_turns={turns}", "method=mezo", "task.max_new_tokens=3"])
        alone = config.model_copy(update={"training": config.training.model_copy(update={"eval_batch_size": 1})})
        found[turns] = [estimate_run(one, device="cpu", beside=False).configured for one in (alone, config)]
    assert found["auto"][0].peak_bytes > found["last"][0].peak_bytes
    assert found["auto"][0].seconds > found["last"][0].seconds
    assert [one.evaluation for one in found["auto"]] == [one.evaluation for one in found["last"]]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_longer_rows_of_one_answer_do_not_hide_the_logits_of_conversations(chats, tmp_path, batch_size):
    path = tmp_path / "chats.jsonl"
    talk = [turn for n in range(6) for turn in (asked(f"film {n} ?"), said("a joy"))]
    talks = [{"messages": [asked(f"the film {n} ?"), said("warm"), *talk]} for n in range(10, 22)]
    single = [{"messages": [asked(f"film {n} " + "and the end " * 34), said("dull")]} for n in range(10, 22)]
    found = {}
    for name, rows in {"talks": talks, "single": single, "both": talks + single}.items():
        write_rows(path, rows)
        keys = [*chats, "method=mezo", f"method.batch_size={batch_size}", "training.eval_batch_size=1"]
        config = read_config(None, [*keys, "task.max_new_tokens=3"])
        lengths = RowSource(config).lengths
        found[name] = estimate_run(config, device="cpu", beside=False).configured.peak_bytes, lengths[-1]
    assert found["talks"][1] < found["single"][1] == found["both"][1]
    assert found["talks"][0] > found["single"][0]
    assert found["both"][0] >= found["talks"][0]
    dry = dry_run(config)
    assert dry.estimate.peak_bytes >= found["talks"][0]
