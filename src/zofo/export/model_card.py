"""The model card of an export, with a program that loads it and answers a row as zofo does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from zofo.embedded import EMBEDDED_MODELS
from zofo.errors import DataError
from zofo.export.chat_prompt import chat_prompt
from zofo.export.run_metrics import EVALUATED, metrics_of, unscored
from zofo.export.save_pretrained import label_texts, portable_name
from zofo.models.heads import Head, auto_class_name
from zofo.models.quantization import source_of
from zofo.tasks import NO_PROMPT, Task, render
from zofo.tasks.prompt_templates import columns_of
from zofo.tasks.task import ChoicesFromColumn
from zofo.training import RunFolder, environment

_WHAT = {
    "merged": "The whole model: the trained backbone, with its adapter merged into it where there is one.",
    "adapter": "The adapter alone.",
    "patch": "What training added to the base model, to be applied to it.",
    "vote": "The members of a vote: what each adds to the base model, of which a run folder is made beside it.",
}
_BESIDE = " It was trained beside a backbone that moved too, which a patch or the merged model holds."
_PIPELINES: dict[Head, str] = {
    "causal-lm": "text-generation",
    "masked-lm": "fill-mask",
    "classification": "text-classification",
}


def model_card(
    run: RunFolder,
    kind: str,
    variant: str | None = None,
    best: bool = False,
    head: Head = "causal-lm",
    tokenizer: Callable[[], Any | None] | None = None,
) -> str:
    """A model card for the Hub: what the model is, how it was trained, its scores, and example code.

    Args:
        tokenizer: returns the model's tokenizer, whose chat template the example code for a chat needs; None if it is
            not available.
    """
    from huggingface_hub import ModelCard, ModelCardData

    summary, base = run.summary, portable_name(run.config.model.name)
    metrics = metrics_of(run, variant, best)
    program, missing = f"zofo apply model.zofo --base {base} --out DIR\n", None
    if run.is_vote:
        program += "zofo predict DIR TEXT\n"
    if kind != "patch":
        program, missing = usage(run, kind, head, tokenizer)
    note = unscored(metrics)
    card = ModelCard.from_template(
        ModelCardData(
            base_model=base if "/" in base else None,
            library_name={"adapter": "peft", "merged": "transformers"}.get(kind),
            pipeline_tag=_PIPELINES[head] if kind == "merged" else None,
            tags=["zofo", str(summary["method"])],
        ),
        template_path=str(TEMPLATES / "model_card.md.jinja"),
        base=base,
        task=summary["task"],
        what=_WHAT["vote" if run.is_vote else kind]
        + (_BESIDE if kind == "adapter" and run.trajectory.is_file() else ""),
        version=environment()["zofo"],
        method=summary["method"],
        best=best,
        revision=run.config.model.revision,
        weights=run.base_hash,
        split=summary["split"],
        scores=[(name, value) for name, value in metrics.items() if name != EVALUATED],
        notes=[text for text in (note and note.capitalize(), missing) if text],
        kind=kind,
        program=program,
    )
    return str(card)


_ASK = "Rows are asked about with `zofo predict RUN TEXT`"
_DATED = f"Its chat template writes the date of the day, and the run was asked on one day. {_ASK}"
_UNKNOWN = f"Its chat template was not at hand when this was written. {_ASK}"
TEMPLATES = Path(__file__).with_name("templates")
"""The texts of a model card and of its program."""


def usage(
    run: RunFolder, kind: str, head: Head, tokenizer: Callable[[], Any | None] | None = None
) -> tuple[str, str | None]:
    """The example code of a card, with REPO instead of the repository's name; and what zofo does that it does not, or
    None."""
    wanted, model = run.config.task, run.config.model
    task = run.only_task
    prompt = None if head == "classification" and wanted.prompt == NO_PROMPT else wanted.prompt
    row, missing = _row(run, task, prompt, head)
    chat = None
    if row is not None and task is not None and task.messages is not None:
        known = None if tokenizer is None else tokenizer()
        chat = None if known is None else chat_prompt(run, task, known)
        without = _UNKNOWN if known is None else _DATED
        row, missing = (None, without) if chat is None else ({task.messages: chat.turns}, missing)
    labels, name = label_texts(task), portable_name(model.name)
    packed = (run.identity.model_config or {}).get("quantization_config") or {}
    given: dict[str, Any] = {
        "kind": kind,
        "auto": auto_class_name(head),
        "piped": kind == "merged" and head == "classification",  # a pipeline of transformers gives the answer
        "base": name,
        "is_embedded": name in EMBEDDED_MODELS,
        "backbone": _moved(run),
        "dtype": model.dtype,
        "quantization": None if model.quantization is None else source_of(model.quantization, model.dtype, packed),
        "revision": "" if model.revision is None else f", revision={model.revision!r}",
        "num_labels": f", num_labels={len(labels)}" if head == "classification" and labels else "",
        "row": row,
        "chat": chat,
    }
    if task is not None and row is not None:
        given |= {"task": task, "source": task.model_dump_json(), "labels": labels, "scoring": wanted.scoring}
        given |= _asked(task, prompt, head)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["repr"] = repr
    return environment.get_template("program.py.jinja").render(given), missing


def _asked(task: Task, prompt: str | None, head: Head) -> dict[str, Any]:
    """The values in the example code: how candidates are scored, and the texts of the task."""
    if head == "classification":
        plain = prompt is None and task.texts is not None
        return {"way": "head", "templates": task.texts if plain else [task.prompt(prompt).template]}
    asked: dict[str, Any] = {"way": "masked" if head == "masked-lm" else "causal"}
    if task.messages is None:
        asked["prompt"] = task.prompt(prompt)
    if task.kind == "generation":
        return asked | {"way": "generation"}
    if task.kind == "classification":
        return asked | {"verbalizers": list(task.verbalizers_of(prompt).values())}
    return asked | {"choices": task.choices_of(prompt)}


def _moved(run: RunFolder) -> str | None:
    """The command that saves the weights an adapter was trained with; None if these are the base model's."""
    if run.backbone_trajectory is not None:
        return "zofo replay RUN --out BACKBONE"
    start, of = run.start, "of the run it started from"
    if start is None:
        return None
    if start.adapter_for(run.config.method) is None:
        return f"zofo export START --merged BACKBONE, {of}"
    moved = _moved(start)  # its adapter is in this run's
    return None if moved is None else f"{moved}, {of}"


def _row(
    run: RunFolder, task: Task | None, prompt: str | None, head: Head
) -> tuple[Mapping[str, Any] | None, str | None]:
    """A made-up row for the task's templates, or None; and what example code cannot do."""
    wanted, ask = run.config.task, _ASK
    if task is None:
        return None, f"It was trained on several tasks, each with a prompt of its own. {ask}"
    if wanted.num_fewshot:
        return None, f"{wanted.num_fewshot} solved rows of train stand before each prompt. {ask}"
    if wanted.scoring in ("calibrated", "channel"):
        return None, f"Candidates are compared by `task.scoring={wanted.scoring}`, not by their likelihood alone. {ask}"
    if wanted.temperature:
        return None, f"Answers are drawn at task.temperature={wanted.temperature}. {ask}"
    cut = None
    if wanted.truncate == "left":
        limit = f"{wanted.max_length} tokens" if wanted.max_length else "what the model can take"
        cut = f"Texts longer than {limit} lost the oldest tokens of their prompt, which this program does not do"
    if task.messages is not None:
        return {task.messages: [{"role": "user", "content": "A question."}]}, cut
    plain = head == "classification" and prompt is None and task.texts is not None
    columns = [name for name in task.columns(prompt, plain) if name not in task.optional_columns]
    row: dict[str, Any] = {name: f"Some {name.replace('_', ' ')}." for name in columns}
    if task.kind == "multiple-choice" and isinstance(choices := task.choices_of(prompt), ChoicesFromColumn):
        row |= dict.fromkeys(columns_of(choices.each, expression=True), ["one", "another"])
    try:
        render(task, row, "the card", prompt, head == "classification", right=False)
    except DataError:
        return None, f"A row needs the columns {', '.join(columns)}. {ask}"
    return row, cut
