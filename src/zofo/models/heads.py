"""The head of a model, which maps its last hidden states to outputs: which one it is, and how a new one starts."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from zofo.displacement import Key
from zofo.errors import ModelError
from zofo.models.quantization import is_packed
from zofo.noise import Gaussian

Head = Literal["causal-lm", "masked-lm", "classification"]
"""What a model's outputs are: scores of the next token, of a masked token, or of labels."""

_CLASSES: dict[str, tuple[str, str]] = {  # transformers' auto class, and its supported model types
    "causal-lm": ("AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"),
    "masked-lm": ("AutoModelForMaskedLM", "MODEL_FOR_MASKED_LM_MAPPING_NAMES"),
    "classification": ("AutoModelForSequenceClassification", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"),
}
_CLASSIFIER = "ForSequenceClassification"
_USUAL_SPREAD = 0.02  # of initial weights, if a configuration has none


def default_head(content: Mapping[str, Any]) -> Head:
    """The head that a checkpoint was saved with; classification for an encoder without a head."""
    made = _architecture(content)
    if made.endswith("ForMaskedLM"):
        return "masked-lm"
    if has_own_classifier(content):
        return "classification"
    writes = made.endswith(("ForCausalLM", "LMHeadModel"))
    return "classification" if made and not writes and is_encoder(content) else "causal-lm"


def is_encoder(content: Mapping[str, Any]) -> bool:
    """Whether a configuration belongs to a model such as BERT, whose tokens attend to later ones."""
    decodes = any(content.get(flag) for flag in ("is_decoder", "is_encoder_decoder", "causal"))
    return not decodes and content.get("model_type") in _types_with("masked-lm")


def head_options(head: Head, content: Mapping[str, Any], name: str, labels: int | None) -> dict[str, Any]:
    """transformers' options for loading a checkpoint with a head.

    Args:
        labels: number of labels of the task; None for those of the checkpoint's own head.

    Raises:
        ModelError: the architecture has no such head, or the checkpoint's head has another number of labels.
    """
    kind = content.get("model_type")
    known = kind in _types_with(head) or _CLASSES[head][0] in (content.get("auto_map") or {})
    if kind is not None and not known and any(kind in _types_with(other) for other in _CLASSES):
        others = [f"model.head={other}" for other in _CLASSES if kind in _types_with(other)]
        raise ModelError(f"{name!r} is a {kind} model, which has no {head} head", f"set {' or '.join(others)}")
    if head == "causal-lm" and is_encoder(content):
        raise ModelError(
            f"{name!r} is a {kind} model, whose tokens see those after them: it is no causal language model",
            "set model.head=masked-lm or model.head=classification",
        )
    if head != "classification":
        return {}
    own = None
    if has_own_classifier(content):
        own = int(content.get("num_labels") or len(content.get("id2label") or (0, 1)))
    if labels is None and own is None:
        raise ModelError(
            f"{name!r} brings no classification head, so the number of labels must be known",
            "choose a classification task, or call load_model with labels=2",
        )
    if labels is not None and own is not None and labels != own:
        raise ModelError(
            f"the classification head of {name!r} has {own} labels, but the task has {labels}",
            f"choose a task of {own} labels, or a checkpoint without a head",
        )
    # the type only chooses the loss that transformers would compute: logits are plain either way
    return {"num_labels": labels or own, "problem_type": "single_label_classification"}


def check_head_labels(named: Sequence[str], name: str, labels: Sequence[tuple[str, ...]]) -> None:
    """Refuse a checkpoint's own classification head whose output names contradict the order of the labels.

    Args:
        named: the outputs in order; names such as `LABEL_0`, and numbers in order, are ignored.
        labels: all names of each label of the task, in order.

    Raises:
        ModelError: an output has another name, or that of another label; the message says how to rename or reorder.
    """
    plain = [text.casefold().removeprefix("label_") for text in named]
    if plain == [str(number) for number in range(len(plain))]:
        return
    known = [{text.strip().casefold() for text in texts} for texts in labels]
    if all(one in texts for one, texts in zip(plain, known, strict=True)):
        return
    order = [next((place for place, texts in enumerate(known) if one in texts), None) for one in plain]
    others = [f"{texts[0]} ({', '.join(texts[1:])})" if texts[1:] else texts[0] for texts in labels]
    hint = "name each label as the head does, in the head's order, with task.verbalizers={LABEL: NAME, ...}"
    if None not in order and len(set(order)) == len(order):
        wanted = ", ".join(f"{labels[place or 0][0]}: {text}" for place, text in zip(order, named, strict=True))
        hint = f"give the labels in the head's order: task.verbalizers={{{wanted}}}"
    raise ModelError(
        f"the outputs of the classification head of {name!r} are called {', '.join(named)}, and the labels of the task "
        f"in their place {', '.join(others)}: other labels may be meant",
        hint,
    )


def output_names(model: Any, content: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the outputs of a checkpoint's own classification head; empty if it has none.

    Args:
        model: the loaded model, with a classification head.
    """
    if not has_own_classifier(content):
        return ()
    return tuple(str(model.config.id2label.get(n, f"LABEL_{n}")).strip() for n in range(model.config.num_labels))


def has_own_classifier(content: Mapping[str, Any]) -> bool:
    """Whether a checkpoint includes a classification head."""
    return _architecture(content).endswith(_CLASSIFIER)


def auto_class_name(head: Head) -> str:
    """The name of the transformers auto class that loads models with this head."""
    return _CLASSES[head][0]


def head_class(head: Head) -> Any:
    """The transformers auto class that loads models with this head."""
    import transformers

    return getattr(transformers, auto_class_name(head))


def head_layers(head: Head, source: str, **options: Any) -> list[str]:
    """The names of a classifier's layers beside its body, which training moves; empty for other heads."""
    if head != "classification":
        return []
    import transformers

    config = transformers.AutoConfig.from_pretrained(source, **options)
    with torch.device("meta"), torch.random.fork_rng(devices=[]):  # no numbers are drawn
        trusted = bool(options.get("trust_remote_code", False))
        model = head_class(head).from_config(config, trust_remote_code=trusted)
    return [name for name, _ in model.named_children() if name != model.base_model_prefix]


def complete_head(model: Any, missing: Iterable[str], head: Head, name: str, seed: int) -> None:
    """Initialise the parts of a classification head that the checkpoint lacks; refuse a model that lacks anything else.

    Matrices start from N(0, s^2), with s the architecture's initializer range, biases from zero and scales of norms
    from one. The draw depends only on the seed and the parameter's name.

    Raises ModelError if the head of a language model, or a part of the body, is missing.
    """
    own = dict(model.named_parameters(remove_duplicate=False))
    absent = sorted(set(missing) & set(own))
    body = [key for key in absent if key.startswith(f"{model.base_model_prefix}.") and "pooler" not in key.split(".")]
    if body:
        raise ModelError(
            f"the checkpoint of {name!r} lacks {len(body)} of the model's tensors, such as {body[0]!r}",
            "its files are incomplete, or config.json describes another model",
        )
    if absent and head != "classification":
        raise ModelError(
            f"{name!r} brings no {head} head: its checkpoint lacks {absent[0]!r}",
            "set model.head=classification, or choose a checkpoint that has one",
        )
    for key in absent:
        if is_packed(own[key]):
            raise ModelError(
                f"the checkpoint of {name!r} lacks {key!r}, and a quantised model has packed what stands in its place",
                "leave out model.quantization, or choose a checkpoint that has it",
            )
        _init_parameter(own[key], key, model, seed)


@torch.no_grad()
def _init_parameter(parameter: nn.Parameter, name: str, model: Any, seed: int) -> None:
    if name.endswith("bias"):
        parameter.zero_()
    elif parameter.dim() < 2 and "norm" in type(model.get_submodule(name.rpartition(".")[0])).__name__.lower():
        parameter.fill_(1.0)
    else:
        config = model.config.get_text_config()
        spread = next((s for s in (getattr(config, n, None) for n in ("initializer_range", "init_std")) if s), None)
        z = Gaussian().whole(Key(seed, 0), f"head/{name}", tuple(parameter.shape))
        parameter.copy_(z * (_USUAL_SPREAD if spread is None else spread))


def pool_last(model: Any, pad: int) -> None:
    """Let the classification head of a causal model use the last token of a row that is not padding.

    Args:
        model: a model with a classification head; an encoder, which pools differently, is not changed.
    """
    if not is_encoder(model.config.to_dict()):
        model.config.pad_token_id = pad
        model.config.get_text_config().pad_token_id = pad


def is_classifier(model: nn.Module) -> bool:
    """Whether a model has a classification head."""
    return type(model).__name__.endswith(_CLASSIFIER)


def takes(model: nn.Module, argument: str) -> bool:
    """Whether the forward of a model has an argument of this name."""
    return argument in _parameters_of(type(model).forward)


@functools.cache
def _parameters_of(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)


def _architecture(content: Mapping[str, Any]) -> str:
    return str((content.get("architectures") or [""])[0])


def _types_with(head: str) -> Mapping[str, Any]:
    """The model types of transformers that have this head."""
    from transformers.models.auto import modeling_auto

    types: Mapping[str, Any] = getattr(modeling_auto, _CLASSES[head][1])
    return types
