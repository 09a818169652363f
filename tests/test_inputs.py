"""Text to ids: the same in training and serving, whatever the words."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from conftest import tiny_tokenizer
from epigraph.contract import Decoding, TextContract
from epigraph.errors import BadValue
from epigraph.frozen.inputs import Codec, Message, chat_template_hash, pad

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</{{ m['role'] }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WORDS = st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=40)


def codec(**changes: object) -> Codec:
    return Codec(tiny_tokenizer(), TextContract.model_validate(changes))


def chat_codec(**changes: object) -> Codec:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    contract = TextContract.model_validate({"chat_template_hash": chat_template_hash(tokenizer), **changes})
    return Codec(tokenizer, contract)


@given(source=WORDS, target=WORDS)
@settings(max_examples=100, deadline=None)
def test_serving_ids_begin_training_ids(source: str, target: str) -> None:
    made = codec(input_template="say {source} =>", target_template=" {target}", bos=True)
    asked, taught = made.source({"source": source}), made.pair({"source": source}, target)
    assert taught.ids[: len(asked.ids)] == asked.ids
    assert not any(taught.scored[: len(asked.ids)])
    assert all(taught.scored[len(asked.ids) :])
    assert taught.ids[0] == made.tokenizer.bos_token_id
    assert taught.ids[-1] == made.tokenizer.eos_token_id
    assert made.text(taught.ids[len(asked.ids) :]) == target.strip()


@given(
    turns=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3),
)
@settings(max_examples=50, deadline=None)
def test_chat_serving_ids_begin_training_ids(turns: list[tuple[str, str]]) -> None:
    made = chat_codec()
    messages = [
        Message(role=role, content=text)
        for pair in turns
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    taught = made.chat(messages)
    for number in range(len(turns)):
        asked = made.question(messages[: 2 * number + 1])
        assert taught.ids[: len(asked.ids)] == asked.ids
        assert taught.scored[len(asked.ids)]
        assert not taught.scored[len(asked.ids) - 1]
    scored = [token for token, counts in zip(taught.ids, taught.scored, strict=True) if counts]
    assert made.tokenizer.decode(scored) == "".join(answer + "</assistant>" for _, answer in turns)


def test_a_chat_template_that_changed_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    contract = TextContract(chat_template_hash=chat_template_hash(tokenizer))
    tokenizer.chat_template = TEMPLATE + " "
    with pytest.raises(BadValue, match="not the one the contract was made with"):
        Codec(tokenizer, contract)


def test_long_sources_are_shortened_inside_the_template() -> None:
    made = codec(input_template="<{source}>", max_source_tokens=10)
    kept = made.source({"source": "abcdefghijklmnop"})
    assert made.tokenizer.decode(kept.ids) == "<abcdefgh>"
    assert kept.truncated
    assert not made.source({"source": "abcdefgh"}).truncated


def test_a_template_longer_than_the_limit_is_named() -> None:
    with pytest.raises(BadValue, match="the input template alone is longer"):
        codec(input_template="a long template {source}", max_source_tokens=5).source({"source": "x"})


def test_long_targets_keep_their_end_token() -> None:
    made = codec(max_target_tokens=4)
    taught = made.pair({"source": "a"}, "abcdefgh")
    assert taught.truncated
    assert sum(taught.scored) == 4
    assert taught.ids[-1] == made.tokenizer.eos_token_id


def test_stop_strings_cut_answers() -> None:
    made = codec(stop=("##",))
    ids = made.tokenizer("yes## no", add_special_tokens=False).input_ids
    assert made.text(ids) == "yes"


@pytest.mark.parametrize(
    "template", ["{source.__class__}", "{source!r}", "{0}", "{}", "{source", "source}", "{{source}}", "{Source}"]
)
def test_templates_reach_nothing_but_fields(template: str) -> None:
    with pytest.raises(ValidationError):
        TextContract(input_template=template)


@given(source=st.text(max_size=30))
def test_braces_in_the_text_are_text(source: str) -> None:
    assert TextContract(input_template="<{source}>").source_text({"source": source}) == f"<{source}>"


def test_decoding_limits() -> None:
    with pytest.raises(ValidationError):
        Decoding(num_beams=0)
    with pytest.raises(ValidationError):
        Decoding(length_penalty=float("nan"))


def test_padding() -> None:
    ids, mask = pad([[1, 2, 3], [4]], 9, left=True)
    assert ids.tolist() == [[1, 2, 3], [9, 9, 4]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    ids, mask = pad([[1, 2, 3], [4]], 9, left=False)
    assert ids.tolist() == [[1, 2, 3], [4, 9, 9]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
