"""Load a tokenizer: its tokens are those of its tokenizer.json, and its padding token is one that the model has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from zofo.errors import ModelError

_SPECIAL_TOKENS = ("add_bos_token", "add_eos_token")  # what a tokenizer_config.json may rightly say
_PROBES = (
    "first\n\nsecond\n third\r\n\n\tfourth",
    " a  b   c ",
    "12345 1,000.50 7 2024-01-02",
    "It's what they're; don't you'll WE'VE",
    "naïve ÉTÉ a\u0301 ﬁ Ⅷ ½ İ ß",
    "映画は楽しい 한국어 ไทย हिन्दी עברית 🤷🏽‍♀️",
    "def f(x):\n    return {x['a']: \"b\"}  # c\n",
    "CamelCase snake_case http://a.b/c?d=e ...!!! -- ``''",
)


def read_tokenizer(source: str, name: str, **options: Any) -> Any:
    """A fast tokenizer whose tokens are those of its `tokenizer.json`.

    The class in `tokenizer_config.json` may build another normalizer or pre-tokenizer than the file has. Then the file
    is read without that class.

    Args:
        source: a folder, or a Hub id.
        options: `revision` and `trust_remote_code`.

    Raises:
        ModelError: it has no character offsets, or its tokens differ from those of its file either way.
    """
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
    if not tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer of {name!r} gives no character offsets", "choose a model with a fast tokenizer"
        )
    path = _file(source, "tokenizer.json", options.get("revision"))
    if path is None or not (differing := _difference(tokenizer, path, source, options)):
        return tokenizer
    named = type(tokenizer).__name__
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(source, **options)
    if differing := _difference(tokenizer, path, source, options):
        raise ModelError(
            f"the tokenizer of {name!r} writes {differing!r} in other tokens than its tokenizer.json, as {named} and "
            "as PreTrainedTokenizerFast",
            "remove tokenizer_class and added_tokens_decoder from tokenizer_config.json, or save the tokenizer anew",
        )
    return tokenizer


def _file(source: str, file: str, revision: str | None) -> Path | None:
    """A file of a folder or of a Hub repository; None if there is none."""
    from transformers.utils import cached_file

    found = cached_file(
        source,
        file,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


def _difference(tokenizer: Any, path: Path, source: str, options: dict[str, Any]) -> str:
    """The first probe text that a tokenizer encodes differently than its file; "" if there is none.

    Special tokens around a text are compared unless tokenizer_config.json itself says which are added.
    """
    own = Tokenizer.from_file(str(path))
    own.no_padding()
    own.no_truncation()
    config = _file(source, "tokenizer_config.json", options.get("revision"))
    said = json.loads(config.read_text(encoding="utf-8")) if config is not None else {}
    special = not any(said.get(key) is not None for key in _SPECIAL_TOKENS)
    added = " x ".join(token.content for token in own.get_added_tokens_decoder().values())
    for probe in (*_PROBES, added):
        expected = own.encode(probe, add_special_tokens=special).ids
        if tokenizer(probe, add_special_tokens=special, verbose=False)["input_ids"] != expected:
            return probe
    return ""


def embeddings_of(model: Any) -> int:
    """The number of tokens for which a model has embeddings and logits."""
    sizes = []
    for layer_of in (model.get_input_embeddings, model.get_output_embeddings):
        try:
            weight = getattr(layer_of(), "weight", None)
        except NotImplementedError:  # of a model that says nothing about its layers
            continue
        if weight is not None:
            sizes.append(len(weight))
    return min(sizes, default=int(model.config.get_text_config().vocab_size))


def complete_padding(tokenizer: Any, embeddings: int, name: str) -> None:
    """Give a tokenizer a padding token that the model has; any will do, since padding is masked.

    Args:
        tokenizer: its `pad_token` is set if it has none, or one beyond the embeddings.
        embeddings: number of tokens of the model.

    Raises:
        ModelError: there is no token to pad with.
    """
    known = [tokenizer.pad_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.bos_token]
    usable = [token for token in known if token and tokenizer.convert_tokens_to_ids(token) < embeddings]
    if not usable:
        raise ModelError(
            f"the tokenizer of {name!r} has no token to pad with: no pad_token, eos_token or unk_token"
            + (f" below the model's {embeddings} embeddings" if any(known) else ""),
            "name one as pad_token in its tokenizer_config.json",
        )
    if tokenizer.pad_token != usable[0]:
        tokenizer.pad_token = usable[0]
