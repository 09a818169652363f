"""Text to ids: the same in training and serving, whatever the words."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from conftest import tiny_tokenizer
from epigraph.contract import Decoding, TextContract
from epigraph.errors import BadValue
from epigraph.frozen.inputs import FIRST_SLOT, Codec, Message, chat_template_hash, pad

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


def test_only_fields_that_are_read_are_cut_and_another_when_one_is_not_enough() -> None:
    made = codec(input_template="<{source}|{question}>", max_source_tokens=9)
    unread = made.source({"source": "abcdefgh", "question": "ij", "note": "n" * 50})
    assert made.tokenizer.decode(unread.ids) == "<abcd|ij>"
    both = made.source({"source": "abcdefghijkl", "question": "klmnopqrstu"})
    assert made.tokenizer.decode(both.ids) == "<|klmnop>"
    assert unread.truncated
    assert both.truncated


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
    "template",
    [
        "{source.__class__}",
        "{source!r}",
        "{0}",
        "{03}",
        "{\u0663}",
        "{-1}",
        "{}",
        "{source",
        "source}",
        "{{source}}",
        "{Source}",
    ],
)
def test_templates_reach_nothing_but_fields(template: str) -> None:
    with pytest.raises(ValidationError):
        TextContract(input_template=template)


# What template languages, shells and terminals act on; none of it may mean anything here.
ACTIVE = ["{", "}", "{{", "}}", "{source}", "{target}", "{secret}", "{source!r}", "{source:>99999999}", "{source[0]}"]
ACTIVE += ["{3}", "{12}", "{65536}", "{99999999}", "{03}", "[MASK]", "{3} [MASK]", "[MASK]{source}"]
ACTIVE += ["{source.__class__}", "{0}", "{}", "%(source)s", "%s", "$source", "${source}", "{% if x %}", "{{ source }}"]
ACTIVE += [
    "\\1",
    "\\g<1>",
    "\\",
    "\x00",
    "\x1b[2J",
    "\x9b",
    "\u202e",
    "\ud800",
    "\n",
    "source",
    " ",
    "\U0001f600",
    "x" * 3000,
]
wild = st.lists(st.sampled_from(ACTIVE) | st.text(max_size=6), max_size=6).map("".join)


def by_hand(template: str, fields: dict[str, str]) -> str:
    """The slow twin of filling: one pass from left to right, what is filled in is never looked at again."""
    made, rest = "", template
    while "{" in rest:
        before, _, rest = rest.partition("{")
        name, _, rest = rest.partition("}")
        made += before + (f"{{{name}}}" if name.isdecimal() else fields[name])
    return made + rest


# What a template is refused with, one of them each time.
REFUSALS = ("fields are names in braces", "at most 4096 characters", "unicode", "[MASK] stands", "more than 65536")
REFUSALS += ("reads nothing behind [MASK]",)


@given(template=wild, source=wild)
@settings(max_examples=500, deadline=None)
def test_any_template_is_refused_or_filled_literally(template: str, source: str) -> None:
    try:
        contract = TextContract(input_template=template)
    except ValidationError as refused:
        said = str(refused)
        assert any(words in said for words in REFUSALS)
        return
    fields = {"source": source, "target": "t"}
    try:
        made = contract.source_text(fields)
    except KeyError as missing:
        name = missing.args[0]
        assert "{" + name + "}" in template
        return
    assert made == by_hand(template, fields)


@given(template=wild, target=wild)
@settings(max_examples=300, deadline=None)
def test_a_target_template_has_no_field_but_the_target(template: str, target: str) -> None:
    try:
        contract = TextContract(target_template=template)
    except ValidationError:
        return
    assert contract.target_text(target) == by_hand(template, {"target": target})


@given(source=wild)
@settings(max_examples=300, deadline=None)
def test_what_is_active_elsewhere_is_text_in_a_source(source: str) -> None:
    assert TextContract(input_template="<{source}>").source_text({"source": source}) == f"<{source}>"
    assert TextContract(target_template="{target}|{target}").target_text(source) == f"{source}|{source}"


@given(template=wild, source=wild)
@settings(max_examples=200, deadline=None)
@example(template="{source}", source="\ud800")
@example(template="x" * 60, source="a")
@example(template="{secret}", source="a")
@example(template="{source}{3}b", source="{3}[MASK]")
@example(template="{source} [MASK]", source="x" * 60)
def test_any_template_makes_ids_or_a_named_error(template: str, source: str) -> None:
    """Through the tokenizer: a row, or a mistake in one line that says what to do."""
    try:
        made = codec(input_template=template, max_source_tokens=50).source({"source": source})
    except ValidationError:
        return
    except BadValue as mistake:
        said = str(mistake)
        assert said.isprintable()
        assert "use an artifact or a template" in said or "raise it" in said or "not valid Unicode" in said
        return
    num_slots = TextContract(input_template=template).num_slots
    assert sorted(x for x in made.ids if x >= FIRST_SLOT) == list(range(FIRST_SLOT, FIRST_SLOT + num_slots))
    assert 0 <= len(made.ids) - num_slots <= 50
    assert len(made.scored) == len(made.ids)


@pytest.mark.parametrize("text", ["\ud800", "a\udcffb" * 100])
def test_half_a_character_is_named(text: str) -> None:
    """As a shell passes bytes that are not UTF-8."""
    with pytest.raises(BadValue, match=r"not valid Unicode: half a character at place \d; give UTF-8 text"):
        codec().source({"source": text})
    with pytest.raises(BadValue, match="not valid Unicode"):
        codec().pair({"source": "x"}, text)
    with pytest.raises(BadValue, match="not valid Unicode"):
        chat_codec().question([Message(role="user", content=text)])


def test_a_field_that_no_row_has_is_named() -> None:
    with pytest.raises(BadValue, match=r"asks for the field 'password', the row has source; use an artifact"):
        codec(input_template="{source} {password}").source({"source": "x"})


@pytest.mark.parametrize("template", ["{secret}", "{target}{source}", "{target} {x}"])
def test_another_field_in_a_target_is_refused(template: str) -> None:
    with pytest.raises(ValidationError, match="a target has the one field"):
        TextContract(target_template=template)


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
