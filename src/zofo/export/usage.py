"""The code on a model card: it loads what was exported and answers a row as zofo does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zofo.embedded import EMBEDDED_MODELS
from zofo.errors import DataError
from zofo.export.save_pretrained import label_texts, portable_name
from zofo.models.heads import Head, auto_class_name
from zofo.tasks import NO_PROMPT, Task, render
from zofo.tasks.prompt_templates import columns_of
from zofo.tasks.task import ChoicesFromColumn
from zofo.training import RunFolder
from zofo.trajectory import Trajectory

_FILTERS = {
    "lower_first": "lambda text: text if text.split(maxsplit=1)[:1] and text.split()[0].split(\"'\")[0] == 'I' "
    "else text[:1].lower() + text[1:]",
    "upper_first": "lambda text: text[:1].upper() + text[1:]",
}
_ENCODE = """

def encode(text):
    coded = tokenizer(text, return_offsets_mapping=True{special})
    ids, spans = coded["input_ids"], coded["offset_mapping"]
    while len(ids) > 1 and ids[-1] in tokenizer.all_special_ids and spans[-1][0] == spans[-1][1]:
        ids, spans = ids[:-1], spans[:-1]  # a token that some tokenizers append
    return ids, spans
"""
_CAUSAL = """

@torch.no_grad()
def score(prompt, candidate):
    ids, spans = encode(prompt + candidate)
    start = next(place for place, span in enumerate(spans) if span[1] > len(prompt))
    logits = model(torch.tensor([ids])).logits[0, start - 1 - len(ids) : -1].float()
    return logits.log_softmax(-1)[range(len(ids) - start), ids[start:]].{by}()


"""
_MASKED = """

@torch.no_grad()
def scores(prompt, ending):
    targets = []
    for candidate in candidates:
        coded = tokenizer(prompt + candidate + ending, return_offsets_mapping=True)
        ids = coded["input_ids"]
        place = next(n for n, (a, b) in enumerate(coded["offset_mapping"]) if a < b and b > len(prompt))
        targets.append(ids[place])
    ids[place] = tokenizer.mask_token_id
    return model(torch.tensor([ids])).logits[0, place].float().log_softmax(-1)[targets]


"""
_GENERATION = """
own = model.generation_config.eos_token_id
ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
model.generation_config = GenerationConfig(eos_token_id=sorted(ends), pad_token_id=tokenizer.pad_token_id)
ids, _ = encode(prompt)
found = model.generate(
    input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=NEW
)
answer = tokenizer.decode(found[0, len(ids) :], skip_special_tokens=True).lstrip()
for stop in STOP:
    answer = answer.split(stop)[0]
answer = answer.strip()
print(answer)
"""


@dataclass(frozen=True)
class Shipped:
    """What the code is about.

    Args:
        run: the run.
        kind: merged or adapter.
        head: what the model's outputs are.
        task: that the run was trained on; None for several.
    """

    run: RunFolder
    kind: str
    head: Head
    task: Task | None


def usage(shipped: Shipped) -> tuple[str, str | None]:
    """The code that a card shows, with REPO in place of the repository's name.

    Returns:
        A program; and what it does not do that zofo does, or None.
    """
    loading = _loading(shipped)
    asked = _row(shipped)
    if isinstance(asked, str):
        return "\n".join(_imports(shipped, ()) + ["", *loading]) + "\n", asked
    task, wanted = shipped.task, shipped.run.config.task
    assert task is not None
    environment = f"row = {dict(asked)!r}"
    if task.messages is None:
        environment = f"environment = Environment(keep_trailing_newline=True)\n{_filters(task)}{environment}"
    if shipped.head == "classification":
        body = _of_head(shipped, task, environment)
    elif task.kind == "generation":
        body = _of_generation(shipped, task, environment)
    else:
        body = _of_candidates(shipped, task, environment)
    extra = ["from jinja2 import Environment"] if "Environment" in body else []
    program = "\n".join(_imports(shipped, extra) + ["", *loading, body]).rstrip() + "\n"
    cut = None
    if wanted.truncate == "left":
        limit = f"{wanted.max_length} tokens" if wanted.max_length else "what the model can take"
        cut = f"Texts longer than {limit} lost the oldest tokens of their prompt, which this program does not do"
    return program, cut


def _piped(shipped: Shipped) -> bool:
    """Whether a pipeline of transformers gives the answer."""
    return shipped.kind == "merged" and shipped.head == "classification"


def _imports(shipped: Shipped, extra: Any) -> list[str]:
    names = [auto_class_name(shipped.head), "AutoTokenizer"]
    if shipped.task is not None and shipped.task.kind == "generation":
        names.append("GenerationConfig")
    lines = [*extra, *([] if _piped(shipped) else ["import torch"])]
    if shipped.kind == "adapter":
        lines.append("from peft import PeftModel")
    names += ["pipeline"] if _piped(shipped) else []
    lines.append(f"from transformers import {', '.join(names)}")
    if shipped.kind == "adapter" and portable_name(shipped.run.config.model.name) in EMBEDDED_MODELS:
        lines.append("from zofo.embedded import EMBEDDED_MODELS")
    return sorted(lines, key=lambda line: (not line.startswith("import"), line))


def _loading(shipped: Shipped) -> list[str]:
    auto, config = auto_class_name(shipped.head), shipped.run.config.model
    if shipped.kind == "merged":
        return [
            'tokenizer = AutoTokenizer.from_pretrained("REPO")',
            f'model = {auto}.from_pretrained("REPO", dtype="auto").eval()',
            *(['classify = pipeline("text-classification", model=model, tokenizer=tokenizer)'] * _piped(shipped)),
        ]
    name = portable_name(config.name)
    base = f"str(EMBEDDED_MODELS[{name!r}]())" if name in EMBEDDED_MODELS else repr(name)
    moved = _moved(shipped.run)
    if moved is not None:
        base = f'"BACKBONE"  # a folder with the backbone as it was trained: {moved}'
    options = "" if config.revision is None else f", revision={config.revision!r}"
    labels = label_texts(shipped.task)
    of_head = f", num_labels={len(labels)}" if shipped.head == "classification" and labels else ""
    return [
        f"base = {base}",
        f"tokenizer = AutoTokenizer.from_pretrained(base{options})",
        f"model = {auto}.from_pretrained(base, dtype=torch.{config.dtype}{options}{of_head})",
        'model = PeftModel.from_pretrained(model, "REPO").eval()',
    ]


def _moved(run: RunFolder) -> str | None:
    """How to write the backbone that an adapter was trained beside, where that is not the base model."""
    if run.trajectory.is_file() and not Trajectory.read(run.trajectory).of_adapter:
        return "zofo replay RUN --out BACKBONE"
    return None if run.config.start is None else "zofo export START --merged BACKBONE, of the run it started from"


def _row(shipped: Shipped) -> Mapping[str, Any] | str:
    """A made-up row that the task's templates can be filled with; or why no program can ask as zofo does."""
    wanted, task = shipped.run.config.task, shipped.task
    ask = "Rows are asked about with `zofo predict RUN TEXT`"
    if task is None:
        return f"It was trained on several tasks, each with a prompt of its own. {ask}"
    if wanted.demonstrations:
        return f"{wanted.demonstrations} solved rows of train stand before each prompt. {ask}"
    if wanted.scoring in ("calibrated", "channel"):
        return f"Candidates are compared by `task.scoring={wanted.scoring}`, not by their likelihood alone. {ask}"
    if wanted.temperature:
        return f"Answers are drawn at task.temperature={wanted.temperature}. {ask}"
    if task.messages is not None:
        return {task.messages: [{"role": "user", "content": "A question."}]}
    prompt, plain = _prompt(shipped)
    columns = [name for name in task.columns(prompt, plain) if name not in task.optional]
    row: dict[str, Any] = {name: f"Some {name.replace('_', ' ')}." for name in columns}
    if task.kind == "multiple-choice":
        choices = task.choices_of(prompt)
        if isinstance(choices, ChoicesFromColumn):
            row |= dict.fromkeys(columns_of(choices.each, expression=True), ["one", "another"])
    try:
        render(task, row, "the card", prompt, shipped.head == "classification", right=False)
    except DataError:
        return f"A row needs the columns {', '.join(columns)}. {ask}"
    return row


def _prompt(shipped: Shipped) -> tuple[str | None, bool]:
    """The name of the prompt that rows are asked with, and whether they are the task's plain texts instead."""
    head, wanted, task = shipped.head == "classification", shipped.run.config.task, shipped.task
    prompt = None if head and wanted.prompt == NO_PROMPT else wanted.prompt
    return prompt, head and prompt is None and task is not None and task.texts is not None


def _filters(task: Task) -> str:
    """Lines that give jinja the filters of zofo that a task uses."""
    used = [name for name in _FILTERS if name in task.model_dump_json()]
    return "".join(f"environment.filters[{name!r}] = {_FILTERS[name]}\n" for name in used)


def _filled(template: str, more: str = "") -> str:
    return f"environment.from_string({template!r}).render(row{more})"


def _of_head(shipped: Shipped, task: Task, environment: str) -> str:
    prompt, plain = _prompt(shipped)
    templates = task.texts if plain and task.texts else [task.prompt(prompt).template]
    lines = [environment, f"texts = [{', '.join(map(_filled, templates))}]"]
    if len(templates) == 2:
        lines.append('if tokenizer.sep_token is None:\n    texts = ["\\n".join(texts)]')
    if _piped(shipped):
        lines.append('answer = classify([dict(zip(("text", "text_pair"), texts))])[0]\nprint(answer)')
    else:
        lines += [
            "with torch.no_grad():",
            '    logits = model(**tokenizer(*texts, return_tensors="pt")).logits[0].float()',
            f"labels = {label_texts(task)!r}",
            "answer = labels[int(logits.argmax())]\nprint(answer, logits.softmax(-1).tolist())",
        ]
    return "\n".join(lines)


def _of_candidates(shipped: Shipped, task: Task, environment: str) -> str:
    prompt, _ = _prompt(shipped)
    asked, by = task.prompt(prompt), shipped.run.config.task.scoring
    lines = [environment, f"prompt = {_filled(asked.template)}"]
    if task.kind == "classification":
        lines.append(f"candidates = {list(task.verbalizers_of(prompt).values())!r}")
        lines.append(f"labels = {label_texts(task)!r}")
    else:
        choices = task.choices_of(prompt)
        if isinstance(choices, ChoicesFromColumn):
            lines.append(f"choices = list(environment.compile_expression({choices.each!r})(row))")
            lines.append(f"candidates = [{_filled(choices.text, ', choice=choice')} for choice in choices]")
        else:
            lines.append(f"candidates = [{', '.join(map(_filled, choices))}]")
        lines.append("labels = list(range(len(candidates)))")
    if shipped.head == "masked-lm":
        lines.append(f"found = scores(prompt, {_filled(asked.ending)})")
        definitions = _MASKED
    else:
        lines.append("found = torch.tensor([score(prompt, candidate) for candidate in candidates])")
        definitions = _ENCODE.format(special="") + _CAUSAL.format(by=by)
    lines.append("answer = labels[int(found.argmax())]\nprint(answer, found.softmax(-1).tolist())")
    return definitions + "\n".join(lines)


def _of_generation(shipped: Shipped, task: Task, environment: str) -> str:
    chat = task.messages is not None
    prompt = f"prompt = {_filled(task.prompt(_prompt(shipped)[0]).template)}"
    if chat:
        turns = f"row[{task.messages!r}]"
        prompt = f"prompt = tokenizer.apply_chat_template({turns}, tokenize=False, add_generation_prompt=True)"
    generation = _GENERATION.replace("NEW", str(task.max_new_tokens)).replace("STOP", repr(task.stop))
    definitions = _ENCODE.format(special=", add_special_tokens=False" if chat else "")
    return f"{definitions}\n\n{environment}\n{prompt}{generation}"
