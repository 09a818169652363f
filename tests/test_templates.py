"""Templates: what stands where for every kind of model, and what no row can put there."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from conftest import tiny_tokenizer
from epigraph.contract import Layout, Mask, Slots, TextContract, Words, pieces_of
from epigraph.errors import BadValue
from epigraph.frozen.inputs import FIRST_SLOT, Codec, Encoded

# Tokenizers of the four kinds, small enough to count by hand.

LETTERS = [chr(x) for x in range(33, 127)]
WORD_PIECES = [
    "the",
    "capital",
    "of",
    "france",
    "is",
    "paris",
    "lyon",
    "yes",
    "no",
    "not",
    "who",
    "##ly",
    "new",
    "york",
]


def bert() -> PreTrainedTokenizerFast:
    """WordPiece, lower case; no start and end tokens but [CLS] and [SEP]."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORD_PIECES, *LETTERS, *(f"##{x}" for x in LETTERS)]
    made = Tokenizer(models.WordPiece({x: i for i, x in enumerate(dict.fromkeys(names))}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special, mask_token="[MASK]")


def roberta() -> PreTrainedTokenizerFast:
    """Byte-level, where a blank is told from none; also what a BART has."""
    names = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġp", "Ġl", "<mask>"]
    made = Tokenizer(models.BPE({x: i for i, x in enumerate(names)}, [("Ġ", "p"), ("Ġ", "l")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special, unk_token="<unk>", mask_token="<mask>")


def t5() -> PreTrainedTokenizerFast:
    """Unigram, whose vocabulary holds the special tokens as the likeliest of words, as T5's does."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    sentinels = [("<extra_id_0>", 0.0), ("<extra_id_1>", 0.0)]
    made = Tokenizer(models.Unigram([*special, ("▁", -2.0), *((x, -4.0) for x in LETTERS), *sentinels], unk_id=2))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **names, extra_special_tokens=[name for name, _ in sentinels])


TOKENIZERS = {"gpt": tiny_tokenizer, "bert": bert, "roberta": roberta, "t5": t5}


def codec(kind: str, **changes: object) -> Codec:
    return Codec(TOKENIZERS[kind](), TextContract.model_validate(changes))


def tokens(made: Codec, row: Encoded) -> list[str]:
    """The row as a reader sees it: P0, P1 ... for virtual tokens."""
    names = made.tokenizer.convert_ids_to_tokens
    return [f"P{x - FIRST_SLOT}" if x >= FIRST_SLOT else names(x) for x in row.ids]


def scored(made: Codec, row: Encoded) -> list[str]:
    return [token for token, counts in zip(tokens(made, row), row.scored, strict=True) if counts]


# The language


@pytest.mark.parametrize(
    ("template", "pieces"),
    [
        ("", []),
        ("  ", [Words(text="  ")]),
        (" {source} ", [Words(text=" {source} ")]),
        ("{3}", [Slots(first=0, count=3)]),
        ("{3} {source} {2}", [Slots(first=0, count=3), Words(text=" {source}"), Slots(first=3, count=2)]),
        ("{1} {2}", [Slots(first=0, count=1), Slots(first=1, count=2)]),
        ("a [MASK]", [Words(text="a"), Mask(after_blank=True)]),
        ("a[MASK].", [Words(text="a"), Mask(after_blank=False), Words(text=".")]),
        ("{3} [MASK] {3}", [Slots(first=0, count=3), Mask(after_blank=True), Slots(first=3, count=3)]),
        ("{source}\n{1}", [Words(text="{source}\n"), Slots(first=0, count=1)]),
        ("a {1}\n{1} ", [Words(text="a"), Slots(first=0, count=1), Words(text="\n"), Slots(first=1, count=1)]),
        ("[mask] [MASK", [Words(text="[mask] [MASK")]),
    ],
)
def test_a_template_is_read_into_its_pieces(template: str, pieces: list[object]) -> None:
    assert list(pieces_of(template)) == pieces


marks = st.lists(st.sampled_from(["a", " ", "  ", "\n", "{source}", "{1}", "{12}", "[MASK]"]), max_size=8)


@given(parts=marks)
@settings(max_examples=300, deadline=None)
def test_pieces_lose_nothing_but_blanks_and_number_slots_in_order(parts: list[str]) -> None:
    template = "".join(parts)
    pieces = pieces_of(template)
    slots = [piece for piece in pieces if isinstance(piece, Slots)]
    assert [x.count for x in slots] == [int(x[1:-1]) for x in parts if x in ("{1}", "{12}")]
    assert [x.first for x in slots] == [sum(x.count for x in slots[:number]) for number in range(len(slots))]
    back = [x.text if isinstance(x, Words) else f"{{{x.count}}}" if isinstance(x, Slots) else "[MASK]" for x in pieces]
    assert "".join(back).replace(" ", "") == template.replace(" ", "")
    if len(pieces) > 1:
        assert not any(x.text.endswith(" ") for x in pieces[:-1] if isinstance(x, Words))
        assert not any(isinstance(x, Words) and not x.text.strip(" ") for x in pieces)


def test_what_a_contract_says_of_its_template() -> None:
    contract = TextContract(input_template="{3} {source} {4} [MASK]")
    assert (contract.num_slots, contract.is_placed, contract.has_mask) == (7, True, True)
    plain = TextContract()
    assert (plain.num_slots, plain.is_placed, plain.has_mask) == (0, False, False)
    assert contract.source_text({"source": "x"}) == "{3} x {4} [MASK]"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input_template": "{0}"}, "virtual tokens are numbers like {3}"),
        ({"input_template": "{007}"}, "virtual tokens are numbers like {3}"),
        ({"input_template": "{99999999}"}, "more than 65536 virtual tokens"),
        ({"input_template": "{" + "9" * 4000 + "}"}, "more than 65536 virtual tokens"),
        ({"input_template": "{65536} {1}"}, "more than 65536 virtual tokens"),
        ({"input_template": "[MASK] {source} [MASK]"}, "stands 2 times, expected at most once"),
        ({"target_template": "{3}{target}"}, "a target has the one field {target}, got {3}"),
        ({"target_template": "[MASK]"}, "belongs into input_template"),
        ({"layout": "cloze"}, "needs [MASK] in input_template"),
        ({"layout": "label"}, "needs labels"),
        ({"layout": "tags"}, "needs labels"),
        ({"layout": "label", "labels": ["a"], "input_template": "{source} [MASK]"}, "says no words"),
        ({"layout": "tags", "labels": ["a"], "input_template": "{text}"}, "needs {source}, the words to tag, once"),
        ({"layout": "tags", "labels": ["a"], "input_template": "{source}{source}"}, "once in input_template"),
        ({"input_template": "{1} [MASK] {source}"}, "reads nothing behind [MASK]"),
        ({"input_template": "{source} [MASK] {1}"}, "reads nothing behind [MASK]"),
        ({"pooling": "mean"}, "pooling = 'mean' is for layout = 'label'"),
        ({"labels": ["a", "b"], "label_words": ["x"]}, "1 label_words for 2 labels"),
        ({"label_words": ["x"]}, "1 label_words for 0 labels"),
        ({"labels": ["a", " a"]}, "'a' stands there twice"),
        ({"labels": ["a", " "]}, "is blank"),
        ({"labels": ["a", "b"], "label_words": ["x", "x"]}, "'x' stands there twice"),
        ({"labels": [str(x) for x in range(1025)]}, "at most 1024 items"),
        ({"labels": ["x" * 257]}, "at most 256 characters"),
        ({"chat_template_hash": "a" * 64, "input_template": "{3}{source}"}, "conversations have the layout"),
        ({"chat_template_hash": "a" * 64, "layout": "answer"}, "conversations have the layout"),
    ],
)
def test_contracts_that_make_no_sense(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TextContract.model_validate(changes)
    assert words in str(caught.value)


def test_the_limits_themselves_are_allowed() -> None:
    assert TextContract(input_template="{65535} {1}").num_slots == 65_536
    assert TextContract(labels=tuple(str(x) for x in range(1024))).layout == "continuation"


# Continuation


@pytest.mark.parametrize("kind", ["gpt", "roberta"])
@given(source=st.text(max_size=30) | st.sampled_from(["</s>", "<s> a", "[MASK] {3}"]))
@settings(max_examples=60, deadline=None)
def test_a_plain_template_gives_the_ids_it_always_gave(kind: str, source: str) -> None:
    """Special tokens in a row too: contracts of the first kind must not change under the artifacts that have them."""
    made = codec(kind, input_template=" <{source}> ", target_template=" {target} ")
    text = made.tokenizer
    before = text(f" <{source}> ", add_special_tokens=False).input_ids
    after = [*text(f" {source} ", add_special_tokens=False).input_ids, text.eos_token_id]
    assert list(made.source({"source": source}).ids) == before
    taught = made.pair({"source": source}, source)
    assert (list(taught.ids), list(taught.scored)) == (before + after, [False] * len(before) + [True] * len(after))
    assert not taught.answer


def test_slots_stand_in_the_text_of_a_decoder() -> None:
    made = codec("gpt", input_template="{2} {source} {1} is [MASK] .", bos=True)
    asked = made.source({"source": "ab"})
    assert tokens(made, asked) == ["<s>", "P0", "P1", " ", "a", "b", "P2", " ", "i", "s"]
    taught = made.pair({"source": "ab"}, "c")
    assert tokens(made, taught)[len(asked.ids) :] == [" ", "c", "</s>"] == scored(made, taught)
    assert made.tokenizer.convert_ids_to_tokens(made.candidate("c")) == [" ", "c"]


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        ("{source} [MASK]", "{target}", " c"),
        ("{source} [MASK]", " {target}", " c"),
        ("{source}[MASK]", "{target}", "c"),
    ],
)
def test_the_blank_before_the_mask_is_said_once_with_the_answer(source: str, target: str, said: str) -> None:
    made = codec("gpt", input_template=source, target_template=target, eos=False)
    assert made.tokenizer.decode(made.candidate("c")) == said
    taught = made.pair({"source": "ab"}, "c")
    assert "".join(tokens(made, taught)) == f"ab{said}"


def test_slots_do_not_count_among_source_tokens() -> None:
    """What is left of a text must not depend on the number of virtual tokens."""
    bare = codec("gpt", input_template="{source}\n", max_source_tokens=6, bos=True)
    placed = codec("gpt", input_template="{50}{source}\n{7}", max_source_tokens=6, bos=True)
    fields = {"source": "abcdefgh"}
    assert [x for x in placed.source(fields).ids if x < FIRST_SLOT] == list(bare.source(fields).ids)
    assert placed.source(fields).truncated
    assert len(placed.source(fields).ids) == 6 + 57
    assert not placed.source({"source": "abcd"}).truncated
    both = codec("gpt", input_template="{2}{source}", max_source_tokens=6, bos=True, ends_source=True)
    assert tokens(both, both.source(fields)) == ["<s>", "P0", "P1", *"abcd", "</s>"]
    with pytest.raises(BadValue, match="the input template alone is longer"):
        codec("gpt", input_template="{2}much too long{source}", max_source_tokens=4).source(fields)


# Encoder-decoder


def test_an_encoder_reads_the_source_and_a_decoder_says_the_target() -> None:
    made = codec("t5", layout="answer", input_template="{2}{source}", ends_source=True)
    taught = made.pair({"source": "ab"}, "cd")
    assert tokens(made, taught) == ["P0", "P1", "▁", "a", "b", "</s>"]
    assert not any(taught.scored)
    assert made.tokenizer.convert_ids_to_tokens(taught.answer) == ["▁", "c", "d", "</s>"]
    assert made.text(taught.answer) == "cd"
    assert codec("t5", layout="answer", eos=False).pair({"source": "ab"}, "cd").answer == taught.answer[:-1]


def test_a_mask_is_a_sentinel_where_there_is_one() -> None:
    template = "{1} a [MASK] b {source}"
    made = codec("t5", layout="answer", input_template=template, target_template="<extra_id_0> {target}")
    taught = made.pair({"source": "c"}, "d")
    assert tokens(made, taught) == ["P0", "▁", "a", "<extra_id_0>", "▁", "b", "▁", "c"]
    assert made.tokenizer.convert_ids_to_tokens(taught.answer) == ["<extra_id_0>", "▁", "d", "</s>"]
    assert made.text(taught.answer) == "d"
    assert not any(taught.scored)
    bart = codec("roberta", layout="answer", input_template="a [MASK] b", bos=True, ends_source=True)
    assert tokens(bart, bart.source({})) == ["<s>", "a", "<mask>", "Ġ", "b", "</s>"]
    # A decoder's target begins a text of its own: no blank before it.
    assert bart.tokenizer.decode(bart.candidate("pa")) == "pa"


def test_long_targets_of_a_decoder_keep_their_end_token() -> None:
    made = codec("t5", layout="answer", max_target_tokens=4)
    taught = made.pair({"source": "a"}, "bcdefg")
    assert made.tokenizer.convert_ids_to_tokens(taught.answer) == ["▁", "b", "c", "</s>"]
    assert taught.truncated


# Cloze


def test_a_cloze_has_a_mask_for_every_token_of_the_answer() -> None:
    made = codec("bert", layout="cloze", input_template="{2} [MASK] {1} {source} {1}", bos=True, ends_source=True)
    fields = {"source": "The capital of France"}
    words = ["the", "capital", "of", "france"]
    for answer, ids in (("paris", ["paris"]), ("new york", ["new", "york"])):
        taught = made.pair(fields, answer)
        masks = ["[MASK]"] * len(ids)
        assert tokens(made, taught) == ["[CLS]", "P0", "P1", *masks, "P2", *words, "P3", "[SEP]"]
        assert scored(made, taught) == masks
        assert made.tokenizer.convert_ids_to_tokens(taught.answer) == ids
        assert taught == made.cloze(fields, answer) == made.cloze(fields, made.candidate(answer))
        assert made.text(taught.answer) == answer
    asked = made.source(fields)
    assert scored(made, asked) == ["[MASK]"]
    assert not asked.answer


def test_a_cloze_says_the_blank_with_the_word() -> None:
    made = codec("roberta", layout="cloze", input_template="{source} is [MASK].")
    assert made.tokenizer.convert_ids_to_tokens(made.candidate("pa")) == ["Ġp", "a"]
    taught = made.pair({"source": "x"}, "pa")
    assert tokens(made, taught) == ["x", "Ġ", "i", "s", "<mask>", "<mask>", "."]
    apart = codec("roberta", layout="cloze", input_template="{source} is[MASK].")
    assert apart.tokenizer.convert_ids_to_tokens(apart.candidate("pa")) == ["p", "a"]


def test_what_is_left_of_a_cloze_does_not_depend_on_the_answer() -> None:
    made = codec("roberta", layout="cloze", input_template="{source}[MASK]", max_source_tokens=5)
    rows = [made.cloze({"source": "abcdefgh"}, answer) for answer in ("x", "xyz")]
    assert [[x for x in tokens(made, row) if x != "<mask>"] for row in rows] == [list("abcde")] * 2


def test_answers_that_cannot_be_said_are_named() -> None:
    made = codec("bert", layout="cloze", input_template="{source} [MASK]", max_target_tokens=2)
    with pytest.raises(BadValue, match="the answer '' has 0 tokens, expected 1 to 2"):
        made.candidate("")
    with pytest.raises(BadValue, match=r"'new york new' has 3 tokens, expected 1 to 2; .* raise max_target_tokens"):
        made.candidate("new york new")
    with pytest.raises(BadValue, match="has no tokens to say at the mask"):
        made.pair({"source": "x"}, " ")
    assert made.pair({"source": "x"}, "new york new").truncated


# Labels

ENTAILMENT = {"labels": ("entailment", "not_entailment"), "label_words": ("Yes", "No")}


@pytest.mark.parametrize("kind", ["gpt", "bert", "roberta", "t5"])
def test_a_label_is_said_as_its_word_and_read_back_as_the_label(kind: str) -> None:
    layout = {"gpt": "continuation", "t5": "answer"}.get(kind, "cloze")
    made = codec(kind, layout=layout, input_template="{source}? {1} [MASK].", **ENTAILMENT)
    taught = made.pair({"source": "a"}, "entailment")
    said = (
        [x for x, counts in zip(taught.ids, taught.scored, strict=True) if counts] if kind == "gpt" else taught.answer
    )
    assert made.tokenizer.decode(said, skip_special_tokens=True).strip().lower() == "yes"
    assert made.text(said) == "entailment"
    assert made.text(made.candidate("not_entailment")) == "not_entailment"
    assert made.text(made._filler.ids("maybe")) == "maybe"
    for ask in (made.candidate, lambda x: made.pair({"source": "a"}, x)):
        with pytest.raises(BadValue, match="'Yes' is no label, expected one of 'entailment', 'not_entailment'"):
            ask("Yes")


def test_labels_without_words_are_said_as_they_are() -> None:
    made = codec("gpt", labels=("ab", "c"))
    assert made.tokenizer.decode(made.candidate("ab")) == "ab"
    assert made.text(made.candidate("c")) == "c"


def test_label_words_that_are_the_same_tokens_are_refused() -> None:
    with pytest.raises(BadValue, match="the labels 'a' and 'b' are the same tokens; give other label_words"):
        codec("bert", layout="cloze", input_template="[MASK]", labels=("a", "b"), label_words=("Yes", "yes"))


def test_a_label_head_is_given_the_number_of_the_label() -> None:
    made = codec("bert", layout="label", input_template="{1} {source}", bos=True, ends_source=True, **ENTAILMENT)
    taught = made.pair({"source": "Paris"}, "not_entailment")
    assert tokens(made, taught) == ["[CLS]", "P0", "paris", "[SEP]"]
    assert taught.answer == (1,)
    assert not any(taught.scored)
    with pytest.raises(BadValue, match="is no label"):
        made.pair({"source": "Paris"}, "No")


def test_a_tag_head_is_given_one_label_for_every_word() -> None:
    made = codec(
        "bert", layout="tags", input_template="who: {source} .", labels=("O", "LOC"), bos=True, ends_source=True
    )
    taught = made.pair({"source": "the  newly Paris"}, "O O LOC")
    assert tokens(made, taught) == ["[CLS]", "who", ":", "the", "new", "##ly", "paris", ".", "[SEP]"]
    assert scored(made, taught) == ["the", "new", "paris"]
    assert taught.answer == (0, 0, 1)
    assert made.source({"source": "the  newly Paris"}).scored == taught.scored
    for tags, words in (("O O", "2 tags for 3 words"), ("O O PER", "'PER' is no label, expected one of 'O', 'LOC'")):
        with pytest.raises(BadValue, match=words):
            made.pair({"source": "the newly Paris"}, tags)
    with pytest.raises(BadValue, match=r"makes nothing of the word '\\x00', which is to get a tag"):
        made.pair({"source": "the \x00"}, "O O")


def test_tags_are_cut_with_their_words() -> None:
    made = codec("bert", layout="tags", labels=("O", "LOC"), max_source_tokens=4)
    taught = made.pair({"source": "the newly newly paris"}, "LOC O LOC O")
    assert tokens(made, taught) == ["the", "new", "##ly"]
    assert taught.answer == (1, 0)
    assert taught.truncated


@pytest.mark.parametrize("template", ["{source}", "{1}{source}", "{1} {source}", "a {source}", "a{source} b"])
def test_tagged_words_are_the_words_of_the_text(template: str) -> None:
    """Tokenised apart or together, the ids are the same, where words do not run together."""
    fields = {"source": "lp p pl"}
    tagged = codec("roberta", layout="tags", input_template=template, labels=("O",))
    label = codec("roberta", layout="label", input_template=template, labels=("O",))
    assert tagged.source(fields).ids == label.source(fields).ids
    assert sum(tagged.source(fields).scored) == 3


# What tokenizers lack


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("gpt", {"layout": "cloze", "input_template": "[MASK]"}, "the tokenizer has no mask token"),
        ("gpt", {"layout": "answer", "input_template": "[MASK]"}, "the tokenizer has no mask token"),
        ("bert", {}, "it has none; set eos = false"),
    ],
)
def test_a_tokenizer_without_the_token_is_named(kind: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BadValue, match=words):
        codec(kind, **changes)


def test_edges_that_a_tokenizer_lacks_are_named() -> None:
    with pytest.raises(BadValue, match="starts with the tokenizer's start token, but it has none; set bos = false"):
        codec("t5", layout="answer", bos=True).source({"source": "a"})
    bare = tiny_tokenizer()
    bare.eos_token = None
    made = Codec(bare, TextContract(layout="label", labels=("a",), ends_source=True))
    with pytest.raises(BadValue, match="set ends_source = false"):
        made.source({"source": "a"})


# What a row cannot do

LAYOUTS: dict[str, dict[str, object]] = {
    "gpt": {"input_template": "{2}a{source}b{1}"},
    "bert": {"layout": "cloze", "input_template": "{2} {source} [SEP] [MASK] {1} .", "bos": True, "ends_source": True},
    "roberta": {"layout": "cloze", "input_template": "{2}[{source}]{1}</s> is [MASK]", "bos": True},
    "t5": {"layout": "answer", "input_template": "{2}<{source}>{1} [MASK] ?", "ends_source": True},
}
SPELLINGS = ["[MASK]", "<mask>", "{1}", "{source}", "<extra_id_0>", "<extra_id_1>", "</s>", "<s>", "[SEP]", "[CLS]"]
SPELLINGS += [
    "MASK",
    "/s",
    "extra_id_0",
    "<<s>s>",
    "[[MASK]MASK]",
    "[mask]",
    "<pad>",
    " ",
    "<",
    "[",
    "a",
    str(FIRST_SLOT),
]
hostile = st.lists(st.sampled_from(SPELLINGS) | st.text(max_size=3), max_size=5).map("".join)


def frame(made: Codec, row: Encoded) -> list[str]:
    """What is in a row beside text: virtual tokens and special ones, but for unknown characters."""
    special = {*made.tokenizer.all_special_tokens} - {made.tokenizer.unk_token}
    return [x for x in tokens(made, row) if x in special or (x.startswith("P") and x[1:].isdecimal())]


@pytest.mark.parametrize("kind", LAYOUTS)
@given(source=hostile)
@example(source="[MASK]{3}")
@example(source="MASK")
@example(source="/s")
@settings(max_examples=150, deadline=None)
def test_no_row_can_hold_a_mask_a_slot_or_a_special_token(kind: str, source: str) -> None:
    made = codec(kind, **LAYOUTS[kind])
    row = made.source({"source": source})
    assert frame(made, row) == frame(made, made.source({"source": "a"}))
    assert made.tokenizer.mask_token_id not in made.candidate(f"x{source}")


@pytest.mark.parametrize("kind", LAYOUTS)
@given(source=st.text(alphabet="abc p<[", max_size=12))
@settings(max_examples=100, deadline=None)
def test_a_row_is_its_pieces_tokenised_apart(kind: str, source: str) -> None:
    """The slow twin, by hand: cut the filled template where its own marks stand, and call the tokenizer on the rest."""
    made = codec(kind, **LAYOUTS[kind])
    text = made.tokenizer
    pieces = {
        "gpt": ["P0", "P1", f"a{source}b", "P2"],
        "bert": ["[CLS]", "P0", "P1", f" {source}", "[SEP]", "[MASK]", "P2", " .", "[SEP]"],
        "roberta": ["<s>", "P0", "P1", f"[{source}]", "P2", "</s>", " is", "<mask>"],
        "t5": ["P0", "P1", f"<{source}>", "P2", "<extra_id_0>", " ?", "</s>"],
    }[kind]
    expected = [
        token
        for piece in pieces
        for token in ([piece] if piece in text.all_special_tokens or piece[:1] == "P" else text.tokenize(piece))
    ]
    assert tokens(made, made.source({"source": source})) == expected


def test_a_special_token_in_a_row_is_read_as_it_is_spelt() -> None:
    made = codec("bert", layout="label", labels=("a",), input_template="{source}.")
    asked = tokens(made, made.source({"source": "a [MASK][SEP]"}))
    assert " ".join(asked) == "a [ m ##a ##s ##k ] [ s ##e ##p ] ."
    made = codec("roberta", layout="label", labels=("a",), input_template="{source}.")
    assert tokens(made, made.source({"source": "a<mask></s>b"})) == [*"a<mask></s>b", "."]
    made = codec("t5", layout="label", labels=("a",), input_template="{source}")
    assert "".join(tokens(made, made.source({"source": "a</s>b"}))) == "▁a<▁/s>b"


def test_blanks_around_special_tokens_of_the_template_are_those_around_slots() -> None:
    made = codec("roberta", layout="label", labels=("a",), input_template="{source} </s> </s> b</s> ")
    assert tokens(made, made.source({"source": "a"})) == ["a", "</s>", "</s>", "Ġ", "b", "</s>"]


def test_a_special_token_that_cannot_be_broken_is_named() -> None:
    made = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "\u2588": 2}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", mask_token="\u2588")
    filled = Codec(tokenizer, TextContract(layout="cloze", input_template="{source}[MASK]"))
    assert filled.source({"source": "a"}).ids == (1, 2)
    with pytest.raises(BadValue, match="a field holds '\u2588', a special token of the tokenizer, which is no text"):
        filled.source({"source": "a\u2588"})


# The page

ROW = re.compile(r"^\| `(\w+)` \| `([^`]+)` \| `([^`]+)`, `([^`]+)` \| (.+?) \| (.+?) \|$", re.MULTILINE)
PAGE = (Path(__file__).parents[1] / "docs" / "templates.md").read_text(encoding="utf-8")


def shown(made: Codec, ids: Sequence[int]) -> str:
    """Ids as the page writes them: virtual and special tokens by name, words in quotation marks."""
    special, kind = {*made.tokenizer.all_special_tokens}, made.tokenizer.cls_token
    parts: list[str] = []
    for is_text, names in groupby(
        tokens(made, Encoded(ids=tuple(ids), scored=())), lambda x: x not in special and not x[1:].isdecimal()
    ):
        words = list(names)
        parts += [f'"{("" if kind is None else " ").join(words)}"'.replace("\u2581", " ")] if is_text else words
    return " ".join(parts)


def test_the_page_has_an_example_of_every_layout() -> None:
    assert {layout for layout, *_ in ROW.findall(PAGE)} == set(get_args(Layout))


@pytest.mark.parametrize(("layout", "template", "source", "target", "read", "answer"), ROW.findall(PAGE))
def test_the_examples_of_the_page_are_right(
    layout: str, template: str, source: str, target: str, read: str, answer: str
) -> None:
    kind = {"continuation": "gpt", "answer": "t5"}.get(layout, "bert")
    names = {"label": ["HUM"], "tags": ["O", "LOC"]}.get(layout, [])
    is_bert = kind == "bert"
    made = codec(kind, layout=layout, input_template=template, bos=is_bert, ends_source=kind != "gpt", labels=names)
    taught = made.pair({"source": source}, target)
    asked = len(made.source({"source": source}).ids)
    assert shown(made, taught.ids if kind != "gpt" else taught.ids[:asked]) == html.unescape(read).replace("\xa0", " ")
    said = taught.ids[asked:] if kind == "gpt" else taught.answer
    given = " ".join(names[x] for x in said) if names else shown(made, said)
    assert given == html.unescape(answer).replace("\xa0", " ")
