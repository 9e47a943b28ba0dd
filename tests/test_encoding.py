"""From text to tokens: boundaries by offsets, when one sequence is enough, truncation, refusals."""

from __future__ import annotations

import pytest
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from conftest import build_tokenizer
from zofo.errors import DataError, ModelError
from zofo.tasks import Example, check_token_ids, encode, encode_masked, encode_texts
from zofo.training.data_report import unusual_notes

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


def test_candidates_that_cut_the_prompt_differently_are_scored_from_the_same_place(tokenizer):
    """Both candidates are one token long, but only one of them swallows the end of the prompt."""
    encoded = encode_one(tokenizer, "a joy from st", ("art", " bad"))
    assert encoded.scored == (1, 2)
    assert not encoded.joined
    assert not shares_a_prompt(encoded)
    assert pieces(tokenizer, encoded) == [("a joy from", " start"), ("a joy from", " st bad")]
    assert encode_one(tokenizer, "a joy from st", (" bad", "art")).prompt == encoded.prompt  # whichever is right


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


# the prompt does not know the answer


def merging() -> transformers.PreTrainedTokenizerFast:
    """`: C` and two line breaks are one token each, as some tokenizers have them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "C"), (":", "ĠC"), ("Ġ", "A"), ("Ċ", "Ċ")]
    vocabulary = {token: number for number, token in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n+(?!\S)|\n|[^\n]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<s>", "</s>"])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("prompt", ["Which? Answer:", "Which?\n\n", "Which?\n", "Which? "])
@pytest.mark.parametrize("answer", [" C", " A", "C", "A", "\nC", "\n\nA", ": C"])
def test_a_prompt_is_the_same_whatever_its_answer_is(prompt, answer):
    own = merging()
    alone = tuple(own(prompt)["input_ids"])
    encoded = encode_one(own, prompt, (answer,))
    assert encoded.prompt == alone == encode_one(own, prompt, ("",)).prompt
    assert own.decode(encoded.rows[0]) == prompt + answer
    assert encoded.joined == (list(encoded.rows[0]) == own(prompt + answer)["input_ids"])


def test_a_prompt_with_candidates_is_the_same_whichever_is_right():
    own = merging()
    examples = [Example("Which? Answer:", (" A", " C"), (gold,)) for gold in (0, 1)]
    first, second = encode(own, examples)
    assert first.prompt == second.prompt == tuple(own("Which? Answer")["input_ids"])
    assert [own.decode(row[-n:]) for row, n in zip(first.rows, first.scored, strict=True)] == [": A", ": C"]


def metaspace() -> transformers.PreTrainedTokenizerFast:
    """A tokenizer that puts a space before every text, with bytes for what it does not know, as Llama 2 has it."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghijklmnopqrstuvwxyz:.?"]
    merges = [("▁", "a"), ("▁", "g"), ("o", "n"), ("▁", "▁")]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, *("".join(pair) for pair in merges)])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    core.add_special_tokens(["<unk>", "<s>", "</s>"])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@pytest.mark.parametrize(
    ("prompt", "answer"), [("is it:", " good"), ("is it: ", "good"), ("o", "n"), ("is\n\n", "good"), ("é ", " é")]
)
def test_a_space_that_a_tokenizer_puts_before_a_text_is_not_put_before_an_answer(prompt, answer):
    own = metaspace()
    encoded = encode_one(own, prompt, (answer,))
    assert list(encoded.prompt) == own(prompt)["input_ids"]
    assert own.decode(encoded.rows[0], skip_special_tokens=True) == " " + prompt + answer


def test_rows_whose_prompt_would_be_cut_by_the_answer_are_counted(tokenizer):
    examples = [Example("It was ", ("great",), (0,), where=f"rows.jsonl:{n}") for n in (10, 3)]
    examples.append(Example("It was", (" great",), (0,), where="rows.jsonl:5"))
    (note,) = unusual_notes(tokenizer, encode(tokenizer, examples))
    assert note.startswith("2 of 3 rows have a prompt whose last tokens would be others if the answer stood behind it")
    assert "ends with a word or a colon" in note
    assert note.endswith("the first is rows.jsonl:3")


# control tokens that a row spells


def test_control_tokens_of_a_template_are_tokens_and_those_of_a_row_are_text(with_bos):
    own = ("is </s> a word ?", "it is <s> here")
    ordinary = Example("<s>is it a word ?</s>\n", (" yes",), (0,))
    spelt = Example(f"<s>{own[0]}</s>\n", (f" {own[1]}",), (0,), own=own, ends=True)
    (plain,), (one,) = encode(with_bos, [ordinary]), encode(with_bos, [spelt])
    for token in (1, 2):
        assert one.prompt.count(token) == plain.prompt.count(token)
    assert with_bos.decode(one.rows[0]) == f"<s><s>{own[0]}</s>\n {own[1]}</s>"
    assert one.rows[0][-1] == 2
    assert one.rows[0].count(2) == 2


def test_a_row_that_spells_nothing_else_than_a_token_of_the_template_is_refused(tokenizer):
    both = Example("</s> ends </s>", (" yes",), (0,), where="train.jsonl:7", own=("</s>",))
    with pytest.raises(DataError, match=r"train.jsonl:7: a column holds '</s>' and nothing else, which cannot be told"):
        encode(tokenizer, [both])
    (one,) = encode(tokenizer, [Example("what ends </s>", (" yes",), (0,), own=("</s>",))])
    assert 2 not in one.rows[0]


def test_a_tokenizer_that_makes_control_tokens_of_text_is_refused():
    core = Tokenizer(models.WordLevel({"a": 0, "[END]": 1, "[UNK]": 2}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens(["[END]"])
    own = transformers.PreTrainedTokenizerFast(tokenizer_object=core, eos_token="[END]", unk_token="[UNK]")
    with pytest.raises(DataError, match=r"train.jsonl:7: the text holds '\[END\]', of which the tokenizer makes"):
        encode(own, [Example("a [END]", (" a",), (0,), where="train.jsonl:7", own=("a [END]",))])


def test_a_mask_or_a_separator_that_a_row_spells_is_text():
    masked = with_mask()
    (one,) = encode_masked(masked, [Example("what is [MASK] ?", (" bad", " good"), (0,), own=("what is [MASK] ?",))])
    assert one.tokens.count(masked.mask_token_id) == 1
    assert one.tokens[one.place] == masked.mask_token_id
    (head,) = encode_texts(masked, [Example("", ("a", "b"), texts=("</s> ends", "<s>"), own=("</s> ends", "<s>"))])
    assert head.tokens.count(2) == 0
    assert head.tokens.count(1) == 1  # which begins the text


def test_a_token_that_the_model_has_no_embedding_for_is_named(tokenizer):
    own = build_tokenizer()
    size = len(own)
    own.add_tokens(["<sep>"])
    examples = [Example("a joy", (" yes",), (0,)), Example("a <sep> joy", (" yes",), (0,), where="train.jsonl:7")]
    encoded = encode(own, examples)
    check_token_ids(encoded, own, size + 1)
    with pytest.raises(DataError, match=rf"train.jsonl:7: the text holds the token '<sep>' \({size}\)") as caught:
        check_token_ids(encoded, own, size)
    assert f"the model has {size} embeddings; 1 of 2 rows" in caught.value.message
    head = encode_texts(own, [Example("", ("a", "b"), texts=("a <sep>",), where="train.jsonl:7")])
    with pytest.raises(DataError, match=r"train.jsonl:7"):
        check_token_ids(head, own, size)


def test_an_end_that_the_tokenizer_does_not_have_is_refused():
    own = build_tokenizer()
    own.eos_token = None
    with pytest.raises(ModelError, match=r"train.jsonl:7: .* its tokenizer has no eos_token"):
        encode(own, [Example("a", (" yes",), (0,), ends=True, where="train.jsonl:7")])


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
