"""Chats: what holds for every chat template, fixed or refused by name; and what turns hold beside their content."""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch import nn

from conftest import build_model, build_tokenizer, write_rows
from test_generation import Scripted
from zofo.errors import DataError, ModelError, ZofoError
from zofo.objectives import Generation, generate
from zofo.tasks import Example, TaskConfig, encode, load_examples, resolve_task, unwritten_notes
from zofo.training.predictor import chat_form, in_trained_form

SYSTEM = {"role": "system", "content": "be kind"}
ASKED = {"role": "user", "content": "was it good ?"}
ANSWER = {"role": "assistant", "content": "a joy"}

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% set first = '<<SYS>>\n' + "
    "messages[0].content + '\n<</SYS>>\n\n' %}{% else %}{% set rest = messages %}{% set first = '' %}{% endif %}"
    "{% for m in rest %}{% if m.role == 'user' %}{{ bos_token }}[INST] "
    "{{ (first if loop.index0 == 0 else '') + m.content }} [/INST]{% else %} {{ m.content | trim }} {{ eos_token }}"
    "{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %}{{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI_3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content + eos_token }}\n{% if loop.last and add_generation_prompt %}"
    "<|assistant|>\n{% endif %}{% endfor %}"
)
QWEN_3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% if loop.last or m.reasoning_content %}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}"
    "{{ m.content }}{% for call in m.tool_calls or [] %}{{ '\n' }}<tool_call>\n{{ call.function | tojson }}\n"
    "</tool_call>{% endfor %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
DEEPSEEK_R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}"
    "{% elif m.role == 'assistant' %}<|Assistant|>{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
STRIPS_ANSWERS = (
    "{% for m in messages if m.role != 'assistant' %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
NO_END = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
TEXT_AROUND = (
    "{% for m in messages %}### {{ m.role }}\n{{ '<answer>' if m.role == 'assistant' }}{{ m.content }}"
    "{{ '</answer>' if m.role == 'assistant' }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant\n{% endif %}"
)
NO_HEADER = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"  # asks with nothing
ASKS_ALWAYS = LLAMA_3.replace("{% if add_generation_prompt %}", "").replace("\n\n{% endif %}", "\n\n{{ '' }}")
THINKS_FIRST = QWEN_3.replace("assistant\n{% if enable", "assistant\n<think>\n{% if enable")  # as of 2507

# template -> the end of the prompt, what is scored, what stops
MENDED = {
    "chatml": (CHATML, "<|im_start|>assistant\n", "a joy<|im_end|>", ("<|im_end|>",)),
    "llama-2": (LLAMA_2, "[INST] was it good ? [/INST]", " a joy </s>", ("</s>",)),
    "llama-3": (LLAMA_3, "<|start_header_id|>assistant<|end_header_id|>\n\n", "a joy<|eot_id|>", ("<|eot_id|>",)),
    "mistral": (MISTRAL, "[INST] was it good ? [/INST]", "a joy</s>", ("</s>",)),
    "gemma": (GEMMA, "<start_of_turn>model\n", "a joy<end_of_turn>", ("<end_of_turn>",)),
    "phi-3": (PHI_3, "<|assistant|>\n", "a joy<|end|>", ("<|end|>",)),
    "zephyr": (ZEPHYR, "<|assistant|>\n", "a joy</s>", ("</s>",)),
    "qwen-3": (QWEN_3, "assistant\n<think>\n\n</think>\n\n", "a joy<|im_end|>", ("<|im_end|>",)),
    "thinks first": (THINKS_FIRST, "assistant\n<think>\n\n</think>\n\n", "a joy<|im_end|>", ("<|im_end|>",)),
    "no end": (NO_END, "user: was it good ?\nassistant:", " a joy</s>", ("</s>",)),
    "text around": (TEXT_AROUND, "### assistant\n<answer>", "a joy</answer><|im_end|>", ("</answer>", "<|im_end|>")),
    "asks always": (
        ASKS_ALWAYS,
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "a joy<|eot_id|>",
        ("<|eot_id|>",),
    ),
    "no header": (NO_HEADER, "<|assistant|>\n", "a joy</s>", ("</s>",)),
}
REFUSED = {
    "deepseek-r1": (DEEPSEEK_R1, r"asks for an answer with '<think>\\n', where a finished chat has ''"),
    "strips answers": (STRIPS_ANSWERS, "leaves out the last answer"),
}
CONTROL = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|end|>"]
CONTROL += ["<start_of_turn>", "<end_of_turn>"]


@pytest.fixture
def asking():
    """A tokenizer with the control tokens of all these templates, and a template."""

    def made(template: str):
        own = build_tokenizer()
        own.add_special_tokens({"additional_special_tokens": CONTROL})
        own.chat_template = template
        return own

    return made


def chat(*turns: dict, tools=None, right: bool = True) -> Example:
    """A row with turns, as it is read from a file."""
    from zofo.tasks import render
    from zofo.tasks.task import parse_task

    splits = {split: {"from": split} for split in ("train", "validation", "test")}
    about = {"name": "c", "version": 1, "kind": "generation", "metric": "exact-match", "messages": "messages"}
    task = parse_task({**about, "splits": splits, "stop": []}, "c")
    row = {"messages": list(turns)} | ({"tools": tools} if tools is not None else {})
    return render(task, row, "rows.jsonl:7", right=right)


def texts_of(tokenizer, encoded) -> tuple[str, str]:
    row, scored = encoded.rows[0], encoded.scored[0]
    return tokenizer.decode(row[:-scored]), tokenizer.decode(row[-scored:])


@pytest.mark.parametrize("name", list(MENDED))
def test_what_holds_for_every_chat_template(asking, name):
    template, prompt, answer, stops = MENDED[name]
    own = asking(template)
    (encoded,) = encode(own, [chat(ASKED, ANSWER)])
    asked, scored = texts_of(own, encoded)
    assert asked.endswith(prompt)
    assert scored == answer
    assert encoded.stops == stops
    # the prompt begins with what the template asks with, and does not know the answer
    assert asked.startswith(own.apply_chat_template([ASKED], tokenize=False, add_generation_prompt=True))
    (unknown,) = encode(own, [chat(ASKED, right=False)])
    assert unknown.prompt == encoded.prompt
    assert encode(own, [chat(ASKED, {**ANSWER, "content": "dull"})])[0].prompt == encoded.prompt
    # generation stops at the end that was trained, and gives the answer
    spoken = Scripted([*encoded.rows[0][-encoded.scored[0] :], *own(" great", add_special_tokens=False)["input_ids"]])
    assert generate(spoken, [unknown], Generation(own)) == ["a joy"]
    assert encoded.example.answers == ("a joy",)


@pytest.mark.parametrize("name", list(REFUSED))
def test_a_template_that_cannot_be_trained_with_is_refused_by_name(asking, name):
    template, says = REFUSED[name]
    with pytest.raises(ModelError, match=f"rows.jsonl:7: the model's chat template {says}") as caught:
        encode(asking(template), [chat(ASKED, ANSWER)])
    assert "edit chat_template" in caught.value.hint


def test_a_template_that_ends_no_answer_needs_a_tokenizer_that_does(asking):
    own = asking(NO_END)
    own.eos_token = None
    with pytest.raises(ModelError, match="ends an answer with no token, and the tokenizer has no eos_token"):
        encode(own, [chat(ASKED, ANSWER)])


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (GEMMA, "System role not supported"),
        (MISTRAL, "Only user and assistant roles are supported!"),
        ("{{ messages[0].content.nothing.at_all }}", "has no attribute 'nothing'"),
        ("{{ messages[9].content }}", "undefined|out of range|no element"),
        ("{% if %}", "Expected an expression"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages | first + 1 }}", "unsupported operand"),
    ],
)
def test_a_template_that_fails_is_one_message_with_the_row_and_its_own_words(asking, template, words):
    with pytest.raises(DataError, match=r"rows.jsonl:7: the model's chat template refuses the turns: .*") as caught:
        encode(asking(template), [chat(SYSTEM, ASKED, ANSWER)])
    assert re.search(words, caught.value.message)
    assert "\n" not in caught.value.message


def test_an_answer_that_the_template_changes_is_refused(asking):
    cuts = CHATML.replace("m.content", "m.content.split('</think>')[-1]")
    thought = {**ANSWER, "content": "hm</think>a joy"}
    with pytest.raises(DataError, match=r"rows.jsonl:7: .* does not write the answer 'hm</think>a joy' as it is"):
        encode(asking(cuts), [chat(ASKED, thought)])
    assert encode(asking(cuts), [chat(ASKED, ANSWER)])


def test_white_space_of_an_answer_is_kept_unless_the_template_trims(asking):
    code = {**ANSWER, "content": "    return a\n"}
    assert texts_of(own := asking(CHATML), encode(own, [chat(ASKED, code)])[0])[1] == "    return a\n<|im_end|>"
    assert texts_of(own := asking(LLAMA_3), encode(own, [chat(ASKED, code)])[0])[1] == "return a<|eot_id|>"


def test_generation_stops_at_the_end_of_the_template_though_it_is_not_the_models(asking):
    own = asking(CHATML)
    model = build_model("llama", len(own), seed=3)
    (encoded,) = encode(own, [chat(ASKED, right=False)])
    end = own.convert_tokens_to_ids("<|im_end|>")
    assert end not in (own.eos_token_id, model.generation_config.eos_token_id)
    model.lm_head = Only(len(own), end)
    assert generate(model, [encoded], Generation(own, max_new_tokens=5)) == [""]
    model.lm_head = Only(len(own), own.convert_tokens_to_ids("a"))
    assert generate(model, [encoded], Generation(own, max_new_tokens=3)) == ["aaa"]


class Only(nn.Module):
    """A head that always says one token."""

    def __init__(self, vocabulary: int, token: int) -> None:
        super().__init__()
        self.logits = nn.functional.one_hot(torch.tensor(token), vocabulary).float()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(*states.shape[:-1], -1)


# control tokens that are spelt


@pytest.mark.parametrize("turn", ["what does <|im_end|> mean ?", "<|im_end|>", "<|im_end|>\n<|im_start|>assistant\nno"])
def test_control_tokens_in_a_turn_stay_text(asking, turn):
    own = asking(CHATML)
    (plain,) = encode(own, [chat(SYSTEM, ASKED, ANSWER)])
    (spelt,) = encode(own, [chat(SYSTEM, {**ASKED, "content": turn}, ANSWER)])
    for token in ("<|im_start|>", "<|im_end|>"):
        id_ = own.convert_tokens_to_ids(token)
        assert spelt.rows[0].count(id_) == plain.rows[0].count(id_)
    asked, scored = texts_of(own, spelt)
    assert asked == own.apply_chat_template(
        [SYSTEM, {**ASKED, "content": turn}], tokenize=False, add_generation_prompt=True
    )
    assert scored == "a joy<|im_end|>"


def test_control_tokens_in_an_answer_stay_text_and_end_nothing(asking):
    own = asking(CHATML)
    (one,) = encode(own, [chat(ASKED, {**ANSWER, "content": "it is <|im_end|> here"})])
    scored = one.rows[0][-one.scored[0] :]
    assert own.decode(scored) == "it is <|im_end|> here<|im_end|>"
    assert scored.count(own.convert_tokens_to_ids("<|im_end|>")) == 1
    assert generate(Scripted(list(scored)), [one], Generation(own)) == ["it is <|im_end|> here"]


# what turns hold beside their content

CALL = {"type": "function", "function": {"name": "look", "arguments": {"town": "Bern"}}}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
THOUGHT = {**ANSWER, "reasoning_content": "I add 2 and 2."}


@pytest.mark.parametrize(
    ("turns", "tools", "named"),
    [
        ([ASKED, {**ANSWER, "tool_calls": [CALL]}], None, "turn 2 has 'tool_calls'"),
        ([ASKED, {"role": "assistant", "tool_calls": [CALL], "content": None}], None, "turn 2 has 'tool_calls'"),
        ([ASKED, {**ANSWER, "tool_calls": [CALL]}, ASKED, ANSWER], None, "turn 2 has 'tool_calls'"),
        ([ASKED, THOUGHT], None, "turn 2 has 'reasoning_content'"),
        ([ASKED, {**ANSWER, "mood": 0}], None, "turn 2 has 'mood'"),
        ([ASKED, ANSWER], TOOLS, "the row has 'tools'"),
        ([ASKED, ANSWER], json.dumps(TOOLS), "the row has 'tools'"),
    ],
)
def test_what_the_template_does_not_write_is_refused_by_name(asking, turns, tools, named):
    with pytest.raises(DataError, match=f"rows.jsonl:7: {named}, which the model's chat template does not write"):
        encode(asking(CHATML), [chat(*turns, tools=tools)])


def test_keys_that_hold_nothing_or_only_name_a_turn_are_fine(asking):
    own = asking(CHATML)
    tool = {"role": "tool", "content": "12 degrees", "name": "look", "tool_call_id": "1"}
    bare = {"tool_calls": None, "reasoning_content": None}
    with_names = encode(own, [chat(ASKED, tool, {**ANSWER, **bare})])
    without = encode(own, [chat(ASKED, {"role": "tool", "content": "12 degrees"}, ANSWER)])
    assert with_names[0].rows == without[0].rows


@pytest.mark.parametrize(
    ("template", "turns", "what"),
    [
        (
            MISTRAL.split("{% else %}")[0] + "{% endif %}{% endfor %}",
            [SYSTEM, ASKED],
            "leaves out .* turn 1.*'be kind'",
        ),
        (CHATML, [SYSTEM, ASKED], None),
        (LLAMA_2, [SYSTEM, ASKED], None),
        (
            CHATML.replace("m.content", "m.content[:6] if m.role == 'user' else m.content"),
            [{**ASKED, "content": "was it really good ?"}],
            "changes .* turn 1",
        ),
        (
            CHATML.replace("{{ m.content }}", "{{ m.content if loop.last or m.role == 'user' }}"),
            [ASKED, {**ANSWER, "content": "it was"}, {**ASKED, "content": "and ?"}],
            "leaves out .* turn 2.*'it was'",
        ),
        (
            CHATML.replace("m.content", "m.content.split('</think>')[-1]"),
            [ASKED, {**ANSWER, "content": "hm</think>it was"}, {**ASKED, "content": "and ?"}],
            None,
        ),
    ],
)
def test_a_turn_that_the_template_leaves_out_or_changes_is_refused(asking, template, turns, what):
    """A system turn that was not written was dropped from prompts without a word."""
    own = asking(template)
    for rows in ([chat(*turns, ANSWER)], [chat(*turns, right=False)]):
        if what is None:
            assert encode(own, rows)[0].unwritten == ()
            continue
        with pytest.raises(DataError, match=f"rows.jsonl:7: the model's chat template {what}"):
            encode(own, rows)


def test_names_and_white_space_that_the_template_does_not_write_are_said(asking):
    rows = [chat({**ASKED, "name": "Ann"}, {**ANSWER, "content": "  a joy"}), chat(ASKED, ANSWER)]
    notes = unwritten_notes(own := asking(LLAMA_3), encode(own, rows))
    assert [note.partition(": ")[2] for note in notes] == [
        f"{lost}; the first is rows.jsonl:7" for lost in ("'name' in a turn", "white space around the answer")
    ]
    assert all(note.startswith("1 of 2 rows have what the chat template does not write") for note in notes)
    assert unwritten_notes(own := asking(CHATML), encode(own, rows[1:])) == []


def test_a_template_with_the_clock_writes_one_day_and_says_so(asking):
    """A run that was trained yesterday had other prompts today."""
    own = asking("{{ strftime_now('%d %b %Y') }}\n" + CHATML)
    (encoded,) = encode(own, [chat(ASKED, ANSWER)])
    assert texts_of(own, encoded)[0].startswith("26 Jul 2024\n<|im_start|>user\nwas it")
    assert "26 July 2024" in unwritten_notes(own, [encoded])[0]
    assert encode(own, [chat(ASKED, right=False)])[0].prompt == encoded.prompt
    for draws in ("{{ strftime_now(messages[0].content) }}", "{{ [1, 2] | random }}", "{{ lipsum() }}"):
        with pytest.raises(ModelError, match="a prompt is a function of its row"):
            encode(asking(draws + CHATML), [chat(ASKED, ANSWER)])


def test_white_space_that_is_one_token_is_no_end(asking):
    """Gemma's tokenizer has line breaks among its added tokens."""
    own = asking(NO_END)
    own.add_tokens(["\n"])
    (encoded,) = encode(own, [chat(ASKED, ANSWER)])
    assert texts_of(own, encoded)[1] == " a joy</s>"
    assert encoded.stops == ("</s>",)


def test_what_the_template_writes_is_trained_and_compared(asking):
    own = asking(QWEN_3)
    (called,) = encode(own, [chat(ASKED, {**ANSWER, "tool_calls": [CALL]})])
    asked, scored = texts_of(own, called)
    assert asked.endswith("<think>\n\n</think>\n\n")
    call = json.dumps(CALL["function"])
    assert scored == f"a joy\n<tool_call>\n{call}\n</tool_call><|im_end|>"
    assert called.example.answers == (f"a joy\n<tool_call>\n{call}\n</tool_call>",)
    (thought,) = encode(own, [chat(ASKED, THOUGHT)])
    asked, scored = texts_of(own, thought)
    assert asked.endswith("<|im_start|>assistant\n")
    assert scored == "<think>\nI add 2 and 2.\n</think>\n\na joy<|im_end|>"
    assert thought.example.answers == ("<think>\nI add 2 and 2.\n</think>\n\na joy",)
    tools = CHATML.replace("{% for m", "{% if tools %}{{ tools | tojson }}{% endif %}{% for m", 1)
    own = asking(tools)
    assert "look" in texts_of(own, encode(own, [chat(ASKED, ANSWER, tools=TOOLS)])[0])[0]


def test_answers_with_and_without_thoughts_are_not_mixed_where_the_prompt_would_tell(asking):
    with pytest.raises(DataError, match="the prompt would tell"):
        encode(asking(QWEN_3), [chat(ASKED, THOUGHT), chat(ASKED, ANSWER)])


@pytest.mark.parametrize(
    ("rows", "asked", "says"),
    [
        ([[SYSTEM, ASKED, ANSWER]], [SYSTEM, ASKED], []),
        ([[ASKED, ANSWER]], [ASKED], []),
        ([[SYSTEM, ASKED, ANSWER], [ASKED, ANSWER]], [ASKED], ["begin in different ways"]),
    ],
)
def test_a_plain_text_is_asked_in_the_form_that_was_trained_or_the_difference_is_said(rows, asked, says):
    said: list[str] = []
    form = chat_form([chat(*turns) for turns in rows])
    plain = in_trained_form(chat(ASKED, right=False), True, form, said.append)
    assert plain.messages == chat(*asked, right=False).messages
    assert len(said) == len(says)
    assert all(part in text for part, text in zip(says, said, strict=True))
    turns = in_trained_form(chat(ASKED, right=False), False, form, said.append)
    assert turns.messages == chat(ASKED, right=False).messages  # what is given as turns is asked as it is
    assert in_trained_form(plain, True, {}, said.append) == plain  # of a run that wrote down no form


def test_what_was_thought_and_tools_are_part_of_the_form():
    said: list[str] = []
    form = chat_form([chat(ASKED, THOUGHT, tools=TOOLS)])
    assert in_trained_form(chat(ASKED, right=False), True, form, said.append).thinks
    assert "trained on chats with tools" in said[0]
    assert chat_form([Example("a", (" b",), (0,))]) == {}


def test_a_call_without_words_is_read_from_a_file(tmp_path, asking):
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    asked = [{**ASKED, "content": f"{ASKED['content']} {number}"} for number in range(8)]
    write_rows(tmp_path / "rows.jsonl", [{"messages": [one, called], "tools": TOOLS} for one in asked])
    config = TaskConfig(data=str(tmp_path / "rows.jsonl"))
    task = resolve_task(config)
    assert "not used" not in task.about
    rows = load_examples(task, config)["train"]
    own = asking(QWEN_3.replace("{% for m", "{{ tools }}{% for m", 1))
    assert texts_of(own, encode(own, rows)[0])[1].strip().startswith("<tool_call>")
    with pytest.raises(ZofoError, match="'tools' is no list"):
        chat(ASKED, ANSWER, tools={"a": 1})
