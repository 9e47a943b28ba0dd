"""The model card of an export."""

from __future__ import annotations

from zofo.export.run_metrics import EVALUATED, metrics_of, unscored
from zofo.export.save_pretrained import portable_name
from zofo.export.usage import TEMPLATES, usage
from zofo.models.heads import Head
from zofo.training import RunFolder, environment

_WHAT = {
    "merged": "The whole model: the trained backbone, with its adapter merged into it where there is one.",
    "adapter": "The adapter alone.",
    "patch": "What training added to the base model, to be applied to it.",
}
_BESIDE = " It was trained beside a backbone that moved too, which a patch or the merged model holds."
_PIPELINES: dict[Head, str] = {
    "causal-lm": "text-generation",
    "masked-lm": "fill-mask",
    "classification": "text-classification",
}


def model_card(
    run: RunFolder, kind: str, variant: str | None = None, best: bool = False, head: Head = "causal-lm"
) -> str:
    """A model card in the Hub's form: what it is, how it was trained, its scores, and a program that asks it."""
    from huggingface_hub import ModelCard, ModelCardData

    summary, base = run.summary, portable_name(run.config.model.name)
    metrics = metrics_of(run, variant, best)
    program, missing = f"zofo apply model.zofo --base {base} --out DIR\n", None
    if kind != "patch":
        program, missing = usage(run, kind, head)
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
        what=_WHAT[kind] + (_BESIDE if kind == "adapter" and run.trajectory.is_file() else ""),
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
