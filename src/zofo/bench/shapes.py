"""Models with random weights, to measure memory and time of a shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from zofo.embedded import EMBEDDED_MODELS
from zofo.models.loading import quiet_transformers

SHAPES: dict[str, dict[str, int]] = {
    "llama-300m": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 16, "heads": 16, "groups": 4},
    "llama-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "heads": 32, "groups": 8},
}
"""Llama models by name, with the vocabulary of SmolLM2: 0.3 and 1.1 billion parameters; the second has the layers of
Llama-3.2-1B."""
_TOKENIZER = "smollm2-135m"


def random_model(shape: str, folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write a model of a shape, with seeded random weights, and a tokenizer, as a transformers folder.

    Args:
        shape: a key of `SHAPES`.
        folder: a new folder.
        dtype: dtype of the weights.
    """
    import transformers

    sizes: dict[str, Any] = dict(SHAPES[shape])
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(EMBEDDED_MODELS[_TOKENIZER]()))
    config = transformers.LlamaConfig(
        num_attention_heads=sizes.pop("heads"),
        num_key_value_heads=sizes.pop("groups"),
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
        **sizes,
    )
    generator = torch.Generator().manual_seed(0)
    with quiet_transformers(), torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    with quiet_transformers(), torch.no_grad():
        model.to_empty(device="cpu").tie_weights()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=config.initializer_range, generator=generator)
            else:  # of a norm
                parameter.fill_(1.0)
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
