"""The model card of what a run is exported as."""

from __future__ import annotations

from typing import Any

import yaml

from zofo.export.run_metrics import EVALUATED, metrics_of, unscored
from zofo.export.save_pretrained import portable_name
from zofo.export.usage import Shipped, usage
from zofo.models.heads import Head
from zofo.training import RunFolder, environment

_PIPELINES: dict[Head, str] = {
    "causal-lm": "text-generation",
    "masked-lm": "fill-mask",
    "classification": "text-classification",
}


def model_card(
    run: RunFolder, kind: str, variant: str | None = None, best: bool = False, head: Head = "causal-lm"
) -> str:
    """A model card in the Hub's form: what it is, how it was trained, its scores, and a program that asks it.

    Args:
        run: that has ended, or was stopped.
        kind: merged, adapter or patch.
        variant: which model of the run.
        best: as of the best evaluation.
        head: what the model's outputs are; of no matter for a patch.
    """
    summary, base = run.summary, portable_name(run.config.model.name)
    about: dict[str, Any] = {"tags": ["zofo", str(summary["method"])]}
    if kind != "patch":
        about["library_name"] = "peft" if kind == "adapter" else "transformers"
    if kind == "merged":
        about["pipeline_tag"] = _PIPELINES[head]
    if "/" in base:
        about["base_model"] = base
    metrics = metrics_of(run, variant, best)
    note, revision = unscored(metrics), run.config.model.revision
    rows = [f"| {name} | {_shown(value)} |" for name, value in metrics.items() if name != EVALUATED]
    load, missing = f"zofo apply model.zofo --base {base} --out DIR\n", None
    if kind != "patch":
        load, missing = usage(Shipped(run, kind, head, None if run.config.task.several else run.task))
    what = {
        "merged": "The whole model: the trained backbone, with its adapter merged into it where there is one.",
        "adapter": "The adapter alone."
        + (
            " It was trained beside a backbone that moved too, which a patch or the merged model holds."
            if run.trajectory.is_file()
            else ""
        ),
        "patch": "What training added to the base model, to be applied to it.",
    }[kind]
    return (
        f"---\n{yaml.safe_dump(about, sort_keys=False)}---\n\n"
        f"# {base}, fine-tuned on {summary['task']}\n\n{what} Made by zofo {environment()['zofo']} with the method "
        f"`{summary['method']}`{', as of its best evaluation' if best else ''}.\n\n"
        f"Base model: `{base}`{f', revision `{revision}`' if revision else ''}, weights {run.base_hash}.\n\n"
        f"| on {summary['split']} | |\n|---|---|\n"
        + "\n".join(rows)
        + (f"\n\n{note.capitalize()}." if note else "")
        + (f"\n\n{missing}." if missing else "")
        + f"\n\n```{'sh' if kind == 'patch' else 'python'}\n{load}```\n"
    )


def _shown(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
