"""From text to tokens: boundaries by offsets, when one sequence is enough, truncation, refusals."""

from __future__ import annotations

import pytest
from tokenizers import normalizers, processors

from conftest import build_tokenizer
from zofo.errors import DataError
from zofo.tasks import Example, encode, encode_masked, encode_texts

REVIEW = "the film is a joy from start to finish ."


@pytest.fixture(scope="module")
def with_bos():
    return build_tokenizer(bos=True)


def encode_one(tokenizer, prompt, candidates, **options):
    return encode(tokenizer, [Example(prompt, tuple(candidates), (0,), where="train.jsonl:7")], **options)[0]


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


def test_a_candidate_without_a_token_before_it_is_predicted_from_the_beginning(tokenizer, with_bos):
    """`o` + `n` is one token, which nothing is left to predict from; the token that begins a text is enough."""
    assert len(tokenizer.tokenize("on")) == 1
    for one in (tokenizer, with_bos):
        encoded = encode_one(one, "o", ("n", " bad"))
        assert [row[0] for row in encoded.rows] == [1, 1]
        assert encoded.scored[0] == 1
    nothing_begins = build_tokenizer()
    nothing_begins.bos_token = None
    nothing_begins.eos_token = None
    with pytest.raises(DataError, match=r"train.jsonl:7: the candidate 'n' has no token before it"):
        encode_one(nothing_begins, "o", ("n", " bad"))


def test_a_candidate_without_a_token_is_refused():
    stripping = build_tokenizer()
    stripping.backend_tokenizer.normalizer = normalizers.Replace("*", "")
    with pytest.raises(DataError, match=r"train.jsonl:7: the candidate '\*' has no token of its own"):
        encode_one(stripping, "It was", (" bad", "*"))


def test_no_examples_are_no_error(tokenizer):
    assert encode(tokenizer, []) == []


# models that see both sides, and heads


def with_mask(prefix: bool = True):
    own = build_tokenizer(bos=prefix)
    own.add_special_tokens({"mask_token": "[MASK]"})
    return own


def asked(*candidates: str, prompt: str = "a joy . It was", ending: str = " .", gold: int = 0) -> Example:
    return Example(prompt, candidates, (gold,), ending=ending, where="rows.jsonl:7")


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("ending", [" .", "", " , and so on"])
def test_the_mask_stands_in_the_candidates_place(prefix, ending):
    own = with_mask(prefix)
    (one,) = encode_masked(own, [asked(" terrible", " great", ending=ending, gold=1)])
    assert one.tokens[one.place] == own.mask_token_id
    assert [own.decode([target]) for target in one.targets] == [" terrible", " great"]
    for target, candidate in zip(one.targets, (" terrible", " great"), strict=True):
        whole = (*one.tokens[: one.place], target, *one.tokens[one.place + 1 :])
        assert list(whole) == own(f"a joy . It was{candidate}{ending}")["input_ids"]
    assert (one.gold, one.length) == (1, len(one.tokens))


@pytest.mark.parametrize(
    ("candidates", "named"),
    [
        ((" terrible", " not to be missed"), "' not to be missed' is 4 tokens of this model, not one"),
        ((" great film", " bad"), "' great film' is 2 tokens"),
        ((" terrible", " xyzzy"), "' xyzzy' is "),
    ],
)
def test_label_words_of_several_tokens_are_refused(candidates, named):
    with pytest.raises(DataError, match="one token") as caught:
        encode_masked(with_mask(), [asked(*candidates)])
    assert f"rows.jsonl:7: the candidate {named}" in caught.value.message or named in caught.value.message
    assert "choose other verbalizers" in caught.value.hint


def test_label_words_that_are_the_same_token_are_refused():
    own = with_mask()
    own.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(DataError, match=r"rows.jsonl:7: two candidates are the same token"):
        encode_masked(own, [asked(" great", " Great")])


@pytest.mark.parametrize("prefix", [True, False])
def test_a_long_text_with_a_mask_loses_its_oldest_tokens(prefix):
    own = with_mask(prefix)
    example = asked(" terrible", " great", prompt="it drags on and on and nobody laughed . It was")
    (whole,) = encode_masked(own, [example])
    limit = whole.length - 4
    with pytest.raises(DataError, match=f"rows.jsonl:7: the text has {whole.length} tokens .* the limit is {limit}"):
        encode_masked(own, [example], limit)
    (cut,) = encode_masked(own, [example], limit, truncate=True)
    head = int(prefix)
    assert cut.tokens == (*whole.tokens[:head], *whole.tokens[head + 4 :])
    assert cut.place == whole.place - 4
    assert cut.tokens[cut.place] == own.mask_token_id
    assert cut.targets == whole.targets
    (kept,) = encode_masked(own, [example], whole.length, truncate=True)
    assert kept == whole
    # every token of the prompt may go, but neither the mask nor what follows it
    least = whole.length - (whole.place - head)
    (last,) = encode_masked(own, [example], least, truncate=True)
    assert last.place == head
    with pytest.raises(DataError, match="the limit is"):
        encode_masked(own, [example], least - 1, truncate=True)


LONG = "it drags on and on and nobody laughed and it drags on"


def text(*texts: str) -> Example:
    return Example("", ("no", "yes"), (1,), texts=texts, where="rows.jsonl:7")


def test_a_text_for_a_head_is_the_row_itself():
    own = build_tokenizer(bos=True)
    (one,) = encode_texts(own, [text("a joy")])
    assert list(one.tokens) == own("a joy")["input_ids"]
    assert (one.gold, one.length) == (1, len(one.tokens))
    (pair,) = encode_texts(own, [text("a joy", "dull")])  # no token to put between: line by line
    assert list(pair.tokens) == own("a joy\ndull")["input_ids"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_long_text_for_a_head_loses_its_oldest_tokens(side):
    own = build_tokenizer(bos=True)
    own.truncation_side = side
    (whole,) = encode_texts(own, [text(LONG)])
    limit = whole.length - 3
    with pytest.raises(DataError, match=f"rows.jsonl:7: the text has {whole.length} tokens .* the limit is {limit}"):
        encode_texts(own, [text(LONG)], limit)
    (cut,) = encode_texts(own, [text(LONG)], limit, truncate=True)
    assert cut.tokens == (whole.tokens[0], *whole.tokens[4:])
    assert own.truncation_side == side
    (kept,) = encode_texts(own, [text(LONG)], whole.length, truncate=True)
    assert kept == whole


def test_the_longer_text_of_a_pair_is_cut():
    own = build_tokenizer()
    own.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    own.sep_token = "</s>"
    own.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    (whole,) = encode_texts(own, [text(LONG, "a joy")])
    second = own("a joy", add_special_tokens=False)["input_ids"]
    assert list(whole.tokens[-len(second) - 1 : -1]) == second
    assert sum(whole.types) == len(second) + 1
    (cut,) = encode_texts(own, [text(LONG, "a joy")], whole.length - 5, truncate=True)
    assert cut.tokens == (whole.tokens[0], *whole.tokens[6:])
    assert sum(cut.types) == len(second) + 1


def test_a_text_without_a_token_is_refused():
    with pytest.raises(DataError, match=r"rows.jsonl:7: the text has no token"):
        encode_texts(build_tokenizer(), [text("")])
