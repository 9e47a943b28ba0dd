"""From text to tokens: boundaries by offsets, when one sequence is enough, truncation, refusals."""

from __future__ import annotations

import pytest
from tokenizers import normalizers, processors

from conftest import build_tokenizer
from zofo.errors import DataError
from zofo.tasks import Example, encode

REVIEW = "the film is a joy from start to finish ."


@pytest.fixture(scope="module")
def with_bos():
    return build_tokenizer(bos=True)


def encode_one(tokenizer, prompt, candidates, **options):
    return encode(tokenizer, [Example(prompt, tuple(candidates), 0, "train.jsonl:7")], **options)[0]


def pieces(tokenizer, encoded):
    """For each candidate, the text of the tokens that are scored and of those before."""
    split = [len(row) - scored for row, scored in zip(encoded.rows, encoded.scored, strict=True)]
    return [
        (tokenizer.decode(row[:at]), tokenizer.decode(row[at:])) for row, at in zip(encoded.rows, split, strict=True)
    ]


def shares_a_prompt(encoded):
    """Whether every candidate is one token after the same tokens, so that one sequence scores them all."""
    return set(encoded.scored) == {1} and len({row[:-1] for row in encoded.rows}) == 1


def test_a_word_after_a_space_is_scored_alone(tokenizer):
    encoded = encode_one(tokenizer, f"{REVIEW} It was", (" terrible", " great"))
    assert shares_a_prompt(encoded)
    assert encoded.scored == (1, 1)
    assert pieces(tokenizer, encoded) == [(f"{REVIEW} It was", " terrible"), (f"{REVIEW} It was", " great")]
    assert encoded.length == len(encoded.rows[0])


def test_a_token_merged_across_the_boundary_belongs_to_the_candidate(tokenizer):
    """` st` + `art` is one token of this tokenizer, and so is ` st` + `ory`."""
    assert tokenizer.tokenize(" start") == ["Ġstart"]
    assert tokenizer.tokenize(" story") == ["Ġstory"]
    encoded = encode_one(tokenizer, "a joy from st", ("art", "ory"))
    assert pieces(tokenizer, encoded) == [("a joy from", " start"), ("a joy from", " story")]
    assert shares_a_prompt(encoded)


def test_one_sequence_is_not_enough_when_candidates_cut_the_prompt_differently(tokenizer):
    """Both candidates are one token long, but only one of them swallows the end of the prompt."""
    encoded = encode_one(tokenizer, "a joy from st", ("art", " bad"))
    assert encoded.scored == (1, 1)
    assert encoded.rows[0][:-1] != encoded.rows[1][:-1]
    assert not shares_a_prompt(encoded)
    assert pieces(tokenizer, encoded) == [("a joy from", " start"), ("a joy from st", " bad")]


def test_one_sequence_is_not_enough_for_longer_candidates(tokenizer):
    encoded = encode_one(tokenizer, f"{REVIEW} It was", (" great", " terrible bad"))
    assert encoded.scored == (1, 2)
    assert not shares_a_prompt(encoded)
    assert [scored for _, scored in pieces(tokenizer, encoded)] == [" great", " terrible bad"]


def test_a_trailing_space_of_the_prompt_goes_with_the_word_it_merges_with(tokenizer):
    encoded = encode_one(tokenizer, "It was ", ("great", "terrible"))
    assert pieces(tokenizer, encoded) == [("It was", " great"), ("It was", " terrible")]
    assert shares_a_prompt(encoded)


def test_two_spaces_at_the_boundary_leave_one_with_the_prompt(tokenizer):
    encoded = encode_one(tokenizer, "It was ", (" great", " terrible"))
    assert pieces(tokenizer, encoded) == [("It was ", " great"), ("It was ", " terrible")]


@pytest.mark.parametrize("text", ["ein schöner Film 🙂", "映画は楽しい", "naïve …", "a\u0301 🤷🏽‍♀️"])
def test_offsets_count_characters_not_bytes(tokenizer, text):
    encoded = encode_one(tokenizer, text, (" great", " terrible"))
    assert pieces(tokenizer, encoded) == [(text, " great"), (text, " terrible")]


def test_special_tokens_around_the_text_are_neither_lost_nor_scored(with_bos):
    closing = build_tokenizer(bos=True)
    closing.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    for tokenizer in (with_bos, closing):
        encoded = encode_one(tokenizer, "It was", (" great", " terrible bad"))
        assert all(row[0] == 1 and 2 not in row for row in encoded.rows)
        assert encoded.scored == (1, 2)


def test_truncation_from_the_left_keeps_bos_and_the_candidate(with_bos, tokenizer):
    for chosen, head in ((with_bos, [1]), (tokenizer, [])):
        whole = encode_one(chosen, f"{REVIEW} It was", (" great", " terrible bad"))
        cut = encode_one(chosen, f"{REVIEW} It was", (" great", " terrible bad"), limit=8, truncate=True)
        for before, after, scored in zip(whole.rows, cut.rows, cut.scored, strict=True):
            dropped = whole.length - 8  # the same for every candidate, so that all follow the same prompt
            assert len(after) == len(before) - dropped
            assert list(after[: len(head)]) == head
            assert after[len(head) :] == before[len(head) + dropped :]
            assert scored in (1, 2)
        assert cut.scored == whole.scored


def test_rows_within_the_limit_are_left_alone(tokenizer):
    whole = encode_one(tokenizer, f"{REVIEW} It was", (" great", " terrible"))
    for truncate in (False, True):
        assert encode_one(
            tokenizer, f"{REVIEW} It was", (" great", " terrible"), limit=whole.length, truncate=truncate
        ) == (whole)


def test_a_longer_text_is_refused_with_file_line_and_both_lengths(tokenizer):
    length = encode_one(tokenizer, f"{REVIEW} It was", (" great", " terrible")).length
    with pytest.raises(DataError) as refused:
        encode_one(tokenizer, f"{REVIEW} It was", (" great", " terrible"), limit=length - 1)
    assert "train.jsonl:7" in refused.value.message
    assert f"{length} tokens" in refused.value.message
    assert f"limit is {length - 1}" in refused.value.message
    assert "task.truncate=left" in refused.value.hint


def test_truncation_never_cuts_into_the_candidate(tokenizer):
    with pytest.raises(DataError, match="train.jsonl:7"):
        encode_one(tokenizer, "It was", (" great", " bad" * 9), limit=8, truncate=True)
    with pytest.raises(DataError, match="train.jsonl:7"):  # would leave nothing to predict the candidate from
        encode_one(tokenizer, "It was", (" great", " bad" * 8), limit=8, truncate=True)


def test_candidates_with_the_same_tokens_are_refused():
    lower = build_tokenizer()
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(DataError, match=r"train.jsonl:7: the candidates ' great' and ' Great' have the same tokens"):
        encode_one(lower, "it was", (" bad", " great", " Great"))


def test_a_candidate_without_a_token_before_it_is_refused(tokenizer, with_bos):
    """`o` + `n` is one token, which nothing is left to predict from; a BOS token is enough."""
    assert len(tokenizer.tokenize("on")) == 1
    with pytest.raises(DataError, match=r"train.jsonl:7: the candidate 'n' has no token before it"):
        encode_one(tokenizer, "o", ("n", " bad"))
    encoded = encode_one(with_bos, "o", ("n", " bad"))
    assert [row[0] for row in encoded.rows] == [1, 1]
    assert encoded.scored[0] == 1


def test_a_candidate_without_a_token_is_refused():
    stripping = build_tokenizer()
    stripping.backend_tokenizer.normalizer = normalizers.Replace("*", "")
    with pytest.raises(DataError, match=r"train.jsonl:7: the candidate '\*' has no token of its own"):
        encode_one(stripping, "It was", (" bad", "*"))


def test_no_examples_are_no_error(tokenizer):
    assert encode(tokenizer, []) == []
