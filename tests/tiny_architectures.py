"""A tiny model of every language architecture of the installed transformers, from its own configuration made small.

Nothing here knows an architecture by name: a configuration's sizes are made small by what they are called, the model
is built on the meta device to count its parameters, and then for real. What cannot be built that way says why.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY, POSITIONS = 320, 256
LARGEST = 2_000_000  # parameters
HEADS = {
    "causal": (transformers.AutoModelForCausalLM, modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    "masked": (transformers.AutoModelForMaskedLM, modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES),
    "encoder": (transformers.AutoModelForTextEncoding, modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES),
}
TYPES = [(head, kind) for head, (_, names) in HEADS.items() for kind in names]

_SMALL = {
    VOCABULARY: """vocab_size unpadded_vocab_size vocab_size_per_layer_input entity_vocab_size pronunciation_vocab_size
        shape_vocab_size""",
    POSITIONS: "max_position_embeddings n_positions n_ctx max_seq_len model_max_length context_length",
    32: """hidden_size d_model n_embd dim emb_dim embedding_size embedding_dim word_embed_proj_dim attention_hidden_size
        lru_width backbone_hidden_size input_embedding_size output_embedding_size true_hidden_size pooler_hidden_size
        ssm_intermediate_size""",
    48: """intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_inner dff dim_ff hidden_dim feed_forward_size
        moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size ffn_hidden_size
        intermediate_size_mlp dense_intermediate_size expert_ffn_hidden_size shared_experts_intermediate_size
        moe_shared_expert_intermediate_size""",
    4: """num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads attention_heads
        num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads linear_num_heads
        linear_num_value_heads index_n_heads mamba_n_heads num_experts num_local_experts n_routed_experts
        moe_num_experts""",
    2: """num_key_value_heads num_kv_heads swa_num_key_value_heads linear_num_key_heads num_query_groups n_group
        num_experts_per_tok num_experts_per_token moe_top_k moe_topk moe_k index_topk
        topk_group""",
    8: """head_dim attention_head_dim linear_key_head_dim linear_value_head_dim d_head v_head_dim qk_nope_head_dim
        qk_rope_head_dim kv_channels rotary_dim index_head_dim dim_head linear_head_dim swa_head_dim
        attention_head_size hidden_size_per_layer_input""",
    16: "q_lora_rank kv_lora_rank o_lora_rank mamba_d_state state_size ssm_state_size",
}
_SIZES = {name: size for size, names in _SMALL.items() for name in names.split()}
_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers")
_LAYERS += ("num_encoder_layers", "num_decoder_layers")
_OFTEN_LEFT_OUT = (
    "head_dim",
    "num_key_value_heads",
    "num_experts_per_tok",
)  # and then derived from sizes that are not those above
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


class NotBuilt(Exception):
    """Why an architecture cannot be built small."""


def tiny_config(kind: str, **settings: Any) -> Any:
    """The default configuration of a model type with small sizes; of one with several parts, all parts."""
    return _small(CONFIG_MAPPING[kind], settings)


def _small(config_class: Any, settings: Mapping[str, Any]) -> Any:
    default = config_class()
    values = default.to_dict()
    small: dict[str, Any] = {}
    for name, value in values.items():
        if name in config_class.sub_configs and isinstance(value, dict):
            small[name] = _small(type(getattr(default, name)), {}).to_dict()
        elif name in _TOKENS:
            small[name] = _TOKENS[name]
        elif name in _LAYERS:
            small[name] = 4 if values.get("layer_types") else 2  # so that there are several types among them
        elif name in _SIZES and (isinstance(value, int) or name in _OFTEN_LEFT_OUT):
            small[name] = _SIZES[name]
    if "n_group" not in values:
        small.pop("topk_group", None)
    if {"expand", "num_heads", "head_dim"} <= small.keys() | {"expand"} & values.keys():  # heads of a state space
        small["num_heads"] = small["hidden_size"] * values["expand"] // small["head_dim"]
    if "kv_lora_rank" in values:  # latent attention has keys for every head
        small["num_key_value_heads"] = small["num_attention_heads"]
    return config_class(**{**small, **settings})


def build_tiny(head: str, kind: str, **settings: Any) -> Any:
    """A model of random weights in evaluation mode, which has made a forward of tokens.

    Raises:
        NotBuilt: says why.
    """
    factory = HEADS[head][0]
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            config = tiny_config(kind, **settings)
            with torch.device("meta"):
                count = sum(p.numel() for p in factory.from_config(config).parameters())
            if count > LARGEST:
                raise NotBuilt(f"{count:,} parameters")
            torch.manual_seed(0)
            model = factory.from_config(config).eval()
            model.config.use_cache = False
            for parameter in model.parameters():  # larger than the usual start, so that outputs differ visibly
                if parameter.dim() > 1 and parameter.is_floating_point():
                    torch.nn.init.normal_(parameter, std=0.15)
            with torch.no_grad():
                model.eval()(
                    input_ids=torch.arange(3, 21).view(2, 9), attention_mask=torch.ones(2, 9, dtype=torch.int64)
                )
    except NotBuilt:
        raise
    except Exception as error:  # as many ways as there are configurations
        first = (str(error).strip() or "no message").splitlines()[0]
        raise NotBuilt(f"{type(error).__name__}: {first[:150]}") from error
    return model
