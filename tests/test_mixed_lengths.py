"""Rows score the same beside longer ones as alone, beyond every number of tokens that a model names, or are refused."""

from __future__ import annotations

import pytest
import torch

from conftest import build_tokenizer, review_rows, write_rows
from tiny_architectures import build_tiny
from zofo.errors import ModelError
from zofo.models.loading import quiet_transformers
from zofo.models.padding_check import check_mixed_lengths
from zofo.training import prepare_run, read_config

LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
PHI3 = ("phi3", {"original_max_position_embeddings": 32, "rope_parameters": LONGROPE})
DYNAMIC = ("llama", {"max_position_embeddings": 32, "rope_parameters": {"rope_type": "dynamic", "factor": 4.0}})
SHORT, LONG = (9, 12, 30, 60), (40, 44, 50, 60)  # tokens of rows, of which all or some are longer than 32

pytestmark = pytest.mark.filterwarnings("ignore")


def refuse(model, lengths, longest=None, head="causal-lm"):
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(3, 300, (tokens,), generator=generator).tolist() for tokens in lengths]
    check_mixed_lengths(model, 0, "tiny", head, rows, longest or max(lengths))


def build(kind, settings, head="causal"):
    with quiet_transformers():
        return build_tiny(head, kind, **settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", [PHI3, DYNAMIC], ids=["longrope", "dynamic"])
def test_a_row_that_switches_the_rope_of_its_batch_is_refused(case, dtype):
    model = build(*case).to(dtype)
    with pytest.raises(ModelError) as error:
        refuse(model, SHORT)
    assert "a row of 9 tokens change when one of more than 32 shares its batch (" in error.value.message
    assert "max_position_embeddings=32 in its configuration), and there is one of 60" in error.value.message
    assert error.value.hint.startswith("set task.max_length=32;")
    refuse(model, (9, 12, 32))
    with pytest.raises(ModelError):
        refuse(model, (9, 12), longest=40)  # when all has been generated


def test_rows_that_all_are_long_have_the_same_factors_or_are_refused():
    refuse(build(*PHI3), LONG)
    with pytest.raises(ModelError) as error:  # grows with the longest row
        refuse(build(*DYNAMIC), LONG)
    assert error.value.hint.startswith("set task.max_length=32 (max_position_embeddings in its configuration), or ")


@pytest.mark.parametrize("lengths", [SHORT, LONG])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("mistral", {"sliding_window": 16}),
        ("llama4_text", {"attention_chunk_size": 16}),
        ("gpt_oss", {"sliding_window": 16}),
    ],
)
def test_windows_chunks_and_sparse_attention_that_heed_the_mask_pass(kind, settings, lengths):
    refuse(build(kind, settings), lengths)


@pytest.mark.parametrize("lengths", [SHORT, LONG])
def test_rows_past_the_top_k_of_sparse_attention_are_refused(lengths):
    """A row's own top is taken among what is masked as well, and what ties is taken by its place in the batch."""
    model = build("deepseek_v32", {"index_topk": 16, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1})
    with pytest.raises(ModelError) as error:
        refuse(model, lengths)
    assert "whose scores change when a row of" in error.value.message
    assert error.value.hint.startswith("set task.max_length=16 (index_topk in its configuration), or ")
    refuse(model, (9, 12, 16))


def test_a_model_that_attends_to_fewer_in_a_long_batch_is_refused():
    """Whatever the mechanism: here those of the attention mask, from a number of tokens that only its key names."""
    model = build("llama", {"local_attention": 16})
    attend = model.model.forward

    def few(input_ids, attention_mask, **others):
        if input_ids.shape[1] > 16:
            attention_mask = attention_mask.clone()
            attention_mask[:, -4] = 0
        return attend(input_ids=input_ids, attention_mask=attention_mask, **others)

    model.model.forward = few
    with pytest.raises(ModelError) as error:
        refuse(model, SHORT)
    assert "more than 16 shares its batch (local_attention=16 in its configuration)" in error.value.message
    refuse(model, (9, 12, 16))


def test_a_model_without_such_a_number_in_reach_is_not_asked(monkeypatch):
    model = build("llama", {})
    monkeypatch.setattr(type(model), "forward", None)
    refuse(model, SHORT)
    refuse(model, (9, 9))


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "modernbert", "mpnet", "longformer"])
def test_encoders_that_leave_padding_out_pass(kind):
    refuse(build(kind, {}, "masked"), SHORT, head="masked-lm")


@pytest.mark.parametrize("kind", ["fnet", "convbert", "nystromformer", "funnel"])
def test_an_encoder_that_sees_padding_is_refused(kind):
    with pytest.raises(ModelError) as error:
        refuse(build(kind, {}, "masked"), (9, 12), head="masked-lm")
    assert "whose scores change when a row of 9 tokens is padded on the right" in error.value.message
    assert "BERT" in error.value.hint


def test_a_model_that_remembers_what_it_scored_before_is_refused():
    model = build("big_bird", {"block_size": 16}, "masked")
    model.bert.set_attention_type("block_sparse")  # as loaded: the first short batch ends that for good
    with pytest.raises(ModelError) as error:
        refuse(model, (60, 80, 200), head="masked-lm")
    assert "tokens depend on rows scored before" in error.value.message


def test_long_rows_are_found_before_a_run(tmp_path):
    """The rows of each split, in what it takes from configuration to tokens."""
    tokenizer = build_tokenizer()
    kind, settings = PHI3
    build(kind, {**settings, "vocab_size": max(320, len(tokenizer))}).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = review_rows(12)
    rows[5]["sentence"] = "the film is a joy " * 12
    for split in ("train", "validation"):
        write_rows(tmp_path / f"{split}.jsonl", rows)
    words = [f"model={tmp_path / 'model'}", "task=sst2", f"task.data_dir={tmp_path}"]
    with pytest.raises(ModelError) as error:
        prepare_run(read_config(None, words), splits=["train"])
    assert "task.max_length=32" in error.value.hint
    prepare_run(read_config(None, [*words, "task.max_length=32", "task.truncate=left"]), splits=["train"])
