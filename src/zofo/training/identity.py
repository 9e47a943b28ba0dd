"""Everything that determines a result, as one record: written when a run begins, and compared whenever it is used."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from zofo.backbone import Backbone, fingerprint, selected
from zofo.config import read_json_object
from zofo.errors import DamagedRunError, RunError, ZofoError, error_context, truncate_repr
from zofo.models import LoadedModel, quantized_as
from zofo.noise import Gaussian
from zofo.retired_keys import OF_TASK_FILES
from zofo.tasks import Example, Split, Task
from zofo.trees import format_yaml

_NOT_OF_THE_MODEL = (  # keys of config.json that say where a model lies, who wrote it, or how it is run here
    "_name_or_path",
    "_model_name_or_path",
    "name_or_path",
    "_commit_hash",
    "_from_model_config",
    "architectures",
    "auto_map",
    "dtype",
    "torch_dtype",
    "use_cache",
    "id2label",
    "label2id",
)
_VERSION = "transformers_version"
_LONGEST = 200  # characters of a text that a message can show
_NOT_COMPARED = ("where", "own", "positive")  # of an example: for messages, in other texts, or of its score alone
_NOT_OF_TOKENS = ("example", "untrained")  # of an example in tokens: its text, and what is said of it


@dataclass(frozen=True)
class Identity:
    """Everything that determines a result, by content. Hashes are SHA-256; None means not recorded.

    Args:
        model_hash: hash of the initial weights.
        buffers: hash of the checkpoint's other tensors.
        model_config: config.json of the model, without paths, versions and dtypes.
        generation_config: generation_config.json, for a task that generates texts.
        tokenizer: hash of tokenizer.json, the special tokens, and everything else that determines tokenisation.
        chat_template: hash of the chat template.
        task: hash of the content of task.yaml.
        rows: hash of each split, as rendered.
        tokens: hash of each split, as encoded.
        objective: name of the objective.
        stream: version of the noise stream.
        start: hash of the trained model that the run starts from.
        configuration: configuration of the run, without its folder.
    """

    model_hash: str | None = None
    buffers: str | None = None
    model_config: Mapping[str, Any] | None = None
    generation_config: Mapping[str, Any] | None = None
    tokenizer: str | None = None
    chat_template: str | None = None
    task: str | None = None
    rows: Mapping[str, str] | None = None
    tokens: Mapping[str, str] | None = None
    objective: str | None = None
    stream: int | None = None
    start: str | None = None
    configuration: Mapping[str, Any] | None = None

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Identity:
        """Parse the parts of an identity from JSON, which may have others; those that an older version did not record
        are None.

        Raises RunError for a part that is neither a hash nor a group of keys.
        """
        kinds: dict[str, type] = dict.fromkeys((field.name for field in fields(cls)), str)
        kinds |= {**dict.fromkeys((*_KEYED, "rows", "tokens"), dict), "stream": int}
        found = {name: content[name] for name in kinds if content.get(name) is not None}
        for name, value in found.items():
            if not isinstance(value, kinds[name]):
                raise DamagedRunError(f"its {name!r} cannot be {str(value)[:40]!r}")
        return cls(**found)

    @classmethod
    def load(cls, file: Path) -> Identity:
        """Read the identity from a run's environment.json.

        Raises RunError if it is damaged or lacks the hash of the weights, which every version has recorded.
        """
        content = read_json_object(file)
        with error_context(repr(str(file)), RunError):
            found = cls.read(content)
            if found.model_hash is None:
                raise DamagedRunError("it lacks 'model_hash'")
        return found

    def as_dict(self) -> dict[str, Any]:
        """The known parts, as JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def of_model(self) -> Identity:
        """The parts that belong to the base model."""
        return Identity(**{name: getattr(self, name) for name in MODEL})

    @property
    def note(self) -> str:
        """A note about parts that an older version did not record; empty if there are none."""
        unknown = [_TITLES.get(name, name) for name in _ALWAYS if getattr(self, name) is None]
        return f"not compared, since an older version did not write it down: {', '.join(unknown)}" if unknown else ""


MODEL = ("model_hash", "buffers", "model_config", "generation_config", "tokenizer", "chat_template")
_KEYED = ("model_config", "generation_config", "configuration")
_ALWAYS = ("model_hash", "buffers", "model_config", "tokenizer", "task", "rows", "tokens", "configuration")
_TITLES = {
    "model_hash": "weights",
    "model_config": "config.json",
    "generation_config": "generation_config.json",
    "tokenizer": "tokenizer (tokenizer.json and special tokens)",
    "chat_template": "chat template",
    "task": "task.yaml",
    "stream": "version of the noise stream",
    "start": "run that it starts from",
}  # of those that are called otherwise in messages


def title_of(part: str) -> str:
    """The name of a part in messages."""
    name, _, split = part.partition(".")
    base = "of the base model" if name == "model_hash" else ""
    return " ".join(filter(None, (split, _TITLES.get(name, name), base)))


def model_hash(loaded: LoadedModel) -> str:
    """SHA-256 of all weights of a freshly loaded model.

    For a quantised one also of the constants that unpack its weights, wherever they are stored.
    """
    named = selected(loaded.model)
    if quantized_as(loaded.model) is None:
        return Backbone(loaded.model, Gaussian(), list(named)).fingerprint()
    state = loaded.model.state_dict(keep_vars=True).items()
    return fingerprint({**{name: tensor for name, tensor in state if isinstance(tensor, torch.Tensor)}, **named})


def model_identity(loaded: LoadedModel, generates: bool = True) -> Identity:
    """The identity of a freshly loaded model, before anything is attached to it; `generates`: whether it writes
    texts."""
    model, tokenizer = loaded.model, loaded.tokenizer
    parameters = {id(parameter) for parameter in model.parameters()}
    state = model.state_dict(keep_vars=True).items()
    settings = getattr(model, "generation_config", None)
    return Identity(
        model_hash=model_hash(loaded),
        buffers=fingerprint(
            {n: tensor for n, tensor in state if isinstance(tensor, torch.Tensor) and id(tensor) not in parameters}
        ),
        model_config=_model_keys(model.config.to_dict()),
        generation_config=_model_keys(settings.to_diff_dict()) if generates and settings is not None else None,
        tokenizer=content_hash(_tokenizer_content(tokenizer)),
        chat_template=content_hash(tokenizer.chat_template),
    )


def _model_keys(content: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a transformers model as JSON, with the version that has read it."""
    import transformers

    kept: dict[str, Any] = _without(json.loads(json.dumps(content, default=str)))
    return {**kept, _VERSION: transformers.__version__}


def _without(content: Any) -> Any:
    if isinstance(content, str) and (len(content) > _LONGEST or not content.isprintable()):
        return content_hash(content)
    if not isinstance(content, dict):
        return content
    return {key: _without(value) for key, value in content.items() if key not in (*_NOT_OF_THE_MODEL, _VERSION)}


def _tokenizer_content(tokenizer: Any) -> dict[str, Any]:
    """Everything that determines tokenisation; padding and truncation are set for each call."""
    core = json.loads(tokenizer.backend_tokenizer.to_str(), object_hook=_said)
    core = {key: value for key, value in core.items() if key not in ("padding", "truncation")}
    longest = tokenizer.model_max_length
    return {
        "core": core,
        "special": {key: str(value) for key, value in sorted(tokenizer.special_tokens_map.items())},
        "longest": None if longest is None or longest > 1 << 30 else int(longest),
        "tidies": bool(getattr(tokenizer, "clean_up_tokenization_spaces", None)),
    }


def _said(content: dict[str, Any]) -> dict[str, Any]:
    """Without values that are off, which another version may not write."""
    return {key: value for key, value in content.items() if value is not None and value is not False}


def split_identity(
    examples: Mapping[Split, Sequence[Example]], encoded: Mapping[Split, Sequence[Any]] | None = None
) -> Identity:
    """The identity of some splits, as text and, if available, as tokens."""
    return Identity(
        rows={split: rows_hash(rows) for split, rows in examples.items()},
        tokens=None if encoded is None else {split: tokens_hash(rows) for split, rows in encoded.items()},
    )


def rows_hash(rows: Sequence[Example]) -> str:
    """SHA-256 of the content and order of rows; fields that later versions add to a row do not change it."""
    digest = hashlib.sha256()
    known = [(field.name, field.default) for field in fields(Example) if field.name not in _NOT_COMPARED]
    for row in rows:
        values = ((name, getattr(row, name), default) for name, default in known)
        content = {name: value for name, value, default in values if value != default}
        digest.update(json.dumps(content, sort_keys=True).encode() + b"\n")
    return f"sha256:{digest.hexdigest()}"


def tokens_hash(encoded: Sequence[Any]) -> str:
    """SHA-256 of encoded examples, including which tokens are scored, and their order.

    Fields that later versions add to an example do not change it while they have their default.
    """
    digest = hashlib.sha256()
    for one in encoded:
        for field in fields(one):
            value = getattr(one, field.name)
            if field.name in _NOT_OF_TOKENS or value == field.default:
                continue
            if field.default is not MISSING:
                _add(digest, field.name)
            _add(digest, value)
    return f"sha256:{digest.hexdigest()}"


def _add(digest: Any, value: Any) -> None:
    """Hash whole numbers and texts, alone or in nested tuples, so that different structures differ."""
    if isinstance(value, str):
        digest.update(b"s" + array("q", (len(value.encode()),)).tobytes() + value.encode())
    elif not isinstance(value, tuple):
        digest.update(b"n" + array("q", (int(value),)).tobytes())
    elif value and isinstance(value[0], tuple | str):
        digest.update(b"t" + array("q", (len(value),)).tobytes())
        for part in value:
            _add(digest, part)
    else:
        digest.update(b"r" + array("q", (len(value), *value)).tobytes())


def content_hash(content: Any) -> str:
    """SHA-256 of plain data in order."""
    return f"sha256:{hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()}"


def task_content_of(task: Task) -> dict[str, Any]:
    """The content of a task's file."""
    return task.model_dump(by_alias=True, exclude_none=True)


def task_text(task: Task) -> str:
    """The text of a task's file."""
    return format_yaml(task_content_of(task))


def task_hash(task: Task) -> str:
    """SHA-256 of a task; a new option with its default does not change it."""
    then = {now: key for key, now in OF_TASK_FILES.items()}  # hashes are older than the names of today
    content = task.model_dump(mode="json", exclude_defaults=True)
    return content_hash({then.get(key, key): value for key, value in content.items()})


def changes(began: Identity, now: Identity) -> dict[str, str]:
    """The differences between two identities, by part (`model_hash`, `rows.train`), with the keys of a group, if any.

    Parts that either lacks are not compared, nor are tokens whose difference is explained by the rows or the tokenizer.
    """
    found: dict[str, str] = {}
    for name in (field.name for field in fields(Identity)):
        was, new = getattr(began, name), getattr(now, name)
        if was is None or new is None:
            continue
        if name in ("rows", "tokens"):
            found |= {f"{name}.{split}": "" for split in new if split in was and was[split] != new[split]}
        elif name in _KEYED:
            found |= {name: keys} if (keys := _changed_keys(was, new)) else {}
        elif was != new:
            found[name] = "" if str(was).startswith("sha256:") else f"is {new!r}, and %s {was!r}"  # for whose it was
    explained = [part for part in found if "tokenizer" in found or part.replace("tokens", "rows") in found]
    return {part: keys for part, keys in found.items() if not part.startswith("tokens.") or part not in explained}


def _changed_keys(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first keys with different values, and both values; empty if there are none.

    A key that one of them lacks is ignored if they were read by different versions of transformers.
    """
    same = was.get(_VERSION) == now.get(_VERSION)
    found = [
        f"{key} was {truncate_repr(old)}, and is {truncate_repr(new)}"
        for key, (new, old) in differences(now, was)
        if key != _VERSION and (same or (old is not None and new is not None))
    ]
    more = f", and {len(found) - _MOST} more" if len(found) > _MOST else ""
    return f"{'; '.join(found[:_MOST])}{more}"


_MOST = 4  # keys of one message


def said(found: Mapping[str, str], run: str, model: str = "", task: str = "", verb: str = "began with") -> str:
    """The differences from `changes` in sentences: `run` `verb` one thing, now there are `model` and `task`."""
    sentences = []
    if of_model := [part for part in MODEL if part in found]:
        what = ", ".join(
            f"its {_TITLES.get(part, part)}" + (f" ({found[part]})" if found[part] else "") for part in of_model
        )
        sentences.append(f"the model {model!r} is not the one that {run} {verb}: {what}")
    for name, title in (("rows", "rows"), ("tokens", "tokens of the rows")):
        splits = [part.partition(".")[2] for part in found if part.startswith(f"{name}.")]
        if splits:
            sentences.append(f"the {' and '.join(splits)} {title} of the task {task!r} are not those that {run} {verb}")
    for part in ("task", "objective", "stream", "start"):
        if part in found:
            values = found[part].replace("%s", f"{run} {verb}")
            sentences.append(f"the {_TITLES.get(part, part)} " + (values or f"is not the one that {run} {verb}"))
    return "; ".join(sentences)


def check_unchanged(
    began: Identity,
    now: Identity,
    run: str,
    hints: Mapping[str, str],
    *,
    model: str = "",
    task: str = "",
    verb: str = "began with",
    error: type[ZofoError] = RunError,
) -> None:
    """Raise an error that lists all differences between two identities, worded by `said`.

    `hints` say what to type next, by the first difference: `model`, `rows`, `objective`; "" for any other.
    """
    found = changes(began, now)
    if not found:
        return
    first = next(iter(found))
    kind = "model" if first in MODEL else first.partition(".")[0]
    raise error(said(found, run, model, task, verb), hints.get(kind, hints[""]))


def differences(given: Any, saved: Any, at: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """The dotted keys for which two configurations differ, with both values."""
    if isinstance(given, dict) and isinstance(saved, dict):
        for key in dict.fromkeys([*given, *saved]):
            yield from differences(given.get(key), saved.get(key), f"{at}.{key}" if at else str(key))
    elif given != saved:
        yield at, (given, saved)
