"""Slot errors: sentences by hand for every slot and every kind of error, and the tables they are read against."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epigraph.tasks.slot_rules import NAMES, NEARS, OTHER, RULES, VALUES, Rule
from epigraph.tasks.slots import ERRORS, SLOTS, parse_table, plain_text, score_slots, slot_errors

FULL = {
    "name": "The Lantern",
    "eatType": "pub",
    "food": "Italian",
    "priceRange": "cheap",
    "customer rating": "average",
    "area": "riverside",
    "familyFriendly": "no",
    "near": "Old Bridge Café",
}
SENTENCE = (
    "The Lantern is a cheap Italian pub by the river, near the Old Bridge Café. "
    "It has an average customer rating and is not family-friendly."
)
SOURCE = (
    "name : The Lantern | Type : pub | food : Italian | price : cheap | customer rating : average | "
    "area : riverside | family friendly : no | near : Old Bridge Café"
)


def errors(text: str, **slots: str) -> dict[str, str]:
    """What the text gets wrong of these slots; ``customer_rating`` is the customer rating."""
    table = {name.replace("_", " "): value for name, value in slots.items()}
    return {slot: error for slot, error in slot_errors(table, text).items() if slot in table or error == "added"}


# Tables


def test_a_table_is_read_by_its_e2e_names() -> None:
    assert parse_table(SOURCE) == FULL
    assert set(FULL) == set(SLOTS)
    assert parse_table(" name : Zizzi ") == {"name": "Zizzi"}


@pytest.mark.parametrize("source", ["", "hello", "name:Zizzi", "name : ", "name : Zizzi | colour : red", "1+1 | 2"])
def test_other_sources_are_no_table(source: str) -> None:
    assert parse_table(source) is None


@given(st.text(max_size=60))
def test_any_text_is_read(text: str) -> None:
    found = slot_errors(FULL, text)
    assert set(found) <= set(SLOTS)
    assert set(found.values()) <= set(ERRORS)
    assert plain_text(plain_text(text)) == plain_text(text)


# All at once


def test_a_sentence_that_says_all_of_it_has_no_error() -> None:
    assert slot_errors(FULL, SENTENCE) == {}


def test_nothing_said_is_everything_missing() -> None:
    assert slot_errors(FULL, "") == dict.fromkeys(SLOTS, "missing")


def test_a_bare_table_makes_every_fact_an_addition() -> None:
    added = dict.fromkeys(set(SLOTS) - {"name", "near"}, "added")
    assert slot_errors({"name": "The Lantern", "near": "Old Bridge Café"}, SENTENCE) == added


@pytest.mark.parametrize(
    ("said", "instead", "slot"),
    [
        ("a cheap Italian pub", "a cheap Italian coffee shop", "eatType"),
        ("Italian", "French", "food"),
        ("a cheap", "an expensive", "priceRange"),
        ("average customer", "high customer", "customer rating"),
        ("by the river", "in the city centre", "area"),
        ("is not family", "is family", "familyFriendly"),
        ("The Lantern", "The Waterman", "name"),
        ("the Old Bridge Café", "the Crowne Plaza Hotel", "near"),
    ],
)
def test_each_slot_can_be_wrong_alone(said: str, instead: str, slot: str) -> None:
    assert said in SENTENCE
    assert slot_errors(FULL, SENTENCE.replace(said, instead)) == {slot: "wrong"}


@pytest.mark.parametrize(
    ("said", "slot"),
    [
        (" pub", "eatType"),
        (" Italian", "food"),
        (" cheap", "priceRange"),
        ("has an average customer rating and ", "customer rating"),
        (" by the river", "area"),
        (" and is not family-friendly", "familyFriendly"),
        ("The Lantern", "name"),
        (", near the Old Bridge Café", "near"),
    ],
)
def test_each_slot_can_be_missing_alone(said: str, slot: str) -> None:
    assert said in SENTENCE
    assert slot_errors(FULL, SENTENCE.replace(said, "")) == {slot: "missing"}


@pytest.mark.parametrize(
    ("more", "slot"),
    [
        (" There is a coffee shop in it.", "eatType"),
        (" It also serves Thai food.", "food"),
        (" Some dishes are expensive.", "priceRange"),
        (" Others rate it 5 out of 5.", "customer rating"),
        (" It is in the centre of the city.", "area"),
        (" Kids are welcome.", "familyFriendly"),
        (" It belongs to The Waterman.", "name"),
        (" It is not far from Burger King.", "near"),
    ],
)
def test_another_value_beside_the_right_one_is_an_addition(more: str, slot: str) -> None:
    assert slot_errors(FULL, SENTENCE + more) == {slot: "added"}


# Slot by slot: what is affirmed


@pytest.mark.parametrize(
    ("slot", "value", "text"),
    [
        ("eatType", "coffee shop", "A coffee-shop."),
        ("eatType", "coffee shop", "It is a cosy café."),
        ("eatType", "coffee shop", "Have a coffee there."),
        ("eatType", "pub", "One of two pubs."),
        ("eatType", "pub", "A public house."),
        ("eatType", "restaurant", "This Restaurant is nice."),
        ("food", "Chinese", "chinese dishes"),
        ("food", "English", "British food"),
        ("food", "Fast food", "A fast-food place"),
        ("food", "Fast food", "They have burgers and French fries."),
        ("food", "French", "Wine and cheese."),
        ("food", "Indian", "A good curry."),
        ("food", "Italian", "Pasta and pizza."),
        ("food", "Japanese", "Sushi."),
        ("food", "Japanese", "Asian cuisine."),
        ("priceRange", "cheap", "It is inexpensive."),
        ("priceRange", "cheap", "The prices are low."),
        ("priceRange", "cheap", "A low-priced menu."),
        ("priceRange", "cheap", "Its price range is very low."),
        ("priceRange", "cheap", "Affordable food."),
        ("priceRange", "cheap", "It is not expensive."),
        ("priceRange", "less than £20", "Meals are under £20."),
        ("priceRange", "less than £20", "less than 20 pounds"),
        ("priceRange", "less than £20", "A cheap place."),
        ("priceRange", "less than £20", "£20 or less"),
        ("priceRange", "£20-25", "It costs £20-£25."),
        ("priceRange", "£20-25", "between 20 and 25 pounds"),
        ("priceRange", "£20-25", "average prices"),
        ("priceRange", "moderate", "It is moderately priced."),
        ("priceRange", "moderate", "a mid-range place"),
        ("priceRange", "moderate", "Prices are in the moderate range."),
        ("priceRange", "moderate", "It is not cheap."),
        ("priceRange", "more than £30", "over £30 a head"),
        ("priceRange", "more than £30", "£30 and above"),
        ("priceRange", "more than £30", "The price range is high."),
        ("priceRange", "high", "Expensive."),
        ("priceRange", "high", "Higher than average prices."),
        ("priceRange", "high", "A high-end place."),
        ("customer rating", "low", "It has a low customer rating."),
        ("customer rating", "low", "poorly rated by customers"),
        ("customer rating", "low", "Customers rate it 1 out of 5."),
        ("customer rating", "1 out of 5", "a one-star place"),
        ("customer rating", "1 out of 5", "Rated 1 out of 5 stars."),
        ("customer rating", "1 out of 5", "It is not highly rated."),
        ("customer rating", "average", "Its ratings are average."),
        ("customer rating", "average", "Customers rate The Lantern as average."),
        ("customer rating", "average", "three stars"),
        ("customer rating", "average", "An average place."),
        ("customer rating", "3 out of 5", "an average rating of 3 out of 5"),
        ("customer rating", "3 out of 5", "It got three out of five stars."),
        ("customer rating", "high", "It is highly rated."),
        ("customer rating", "high", "excellent reviews"),
        ("customer rating", "high", "The customer rating is high."),
        ("customer rating", "5 out of 5", "A 5-star pub."),
        ("customer rating", "5 out of 5", "An average customer rating of 5 out of 5."),
        ("customer rating", "5 out of 5", "five of five"),
        ("area", "city centre", "in the center of the city"),
        ("area", "city centre", "Centrally located."),
        ("area", "city centre", "It is downtown."),
        ("area", "riverside", "on the banks of the river"),
        ("area", "riverside", "In Riverside."),
        ("area", "riverside", "It is not in the city centre."),
        ("familyFriendly", "yes", "A kid-friendly place."),
        ("familyFriendly", "yes", "It welcomes families."),
        ("familyFriendly", "yes", "Children are welcome."),
        ("familyFriendly", "yes", "Bring the whole family."),
        ("familyFriendly", "yes", "For children and adults alike."),
        ("familyFriendly", "yes", "It isn't cheap, but it is child friendly."),
        ("familyFriendly", "no", "A non-family-friendly place."),
        ("familyFriendly", "no", "It isn't kid friendly."),
        ("familyFriendly", "no", "It is not suitable for young children."),
        ("familyFriendly", "no", "Children are not welcome."),
        ("familyFriendly", "no", "No kids allowed."),
        ("familyFriendly", "no", "Family friendly: no."),
        ("familyFriendly", "no", "Adults only."),
        ("familyFriendly", "no", "They don't cater for families with children."),
        ("name", "Travellers Rest Beefeater", "travellers rest beefeater is here"),
        ("name", "The Cricketers", "Cricketers is here."),
        ("near", "Café Rouge", "It is close to Cafe Rouge."),
        ("near", "Crowne Plaza Hotel", "by the Crown Plaza Hotel"),
        ("near", "The Bakers", "near Bakers' shop"),
    ],
)
def test_it_is_said(slot: str, value: str, text: str) -> None:
    assert slot not in slot_errors({"name": "The Lantern", slot: value}, text)


# Slot by slot: what is wrong or made up


@pytest.mark.parametrize(
    ("slot", "value", "text"),
    [
        ("eatType", "pub", "It is a restaurant."),
        ("eatType", "pub", "This is not a pub."),
        ("food", "Italian", "It serves Greek food."),
        ("food", "Italian", "It doesn't serve Italian food."),
        ("food", "French", "They sell French fries."),
        ("priceRange", "cheap", "It is not cheap."),
        ("priceRange", "cheap", "less than £20"),
        ("priceRange", "moderate", "£20-25"),
        ("priceRange", "£20-25", "more than £30"),
        ("priceRange", "high", "The prices are low."),
        ("customer rating", "high", "It is not highly rated."),
        ("customer rating", "average", "4 out of 5"),
        ("customer rating", "5 out of 5", "1 out of 5 stars"),
        ("customer rating", "3 out of 5", "2 stars"),
        ("area", "city centre", "by the river"),
        ("area", "city centre", "It is not in the city centre."),
        ("familyFriendly", "yes", "It is not a place for the family."),
        ("familyFriendly", "no", "It is child friendly."),
        ("name", "The Lantern", "The Golden Palace is here."),
        ("near", "The Bakers", "It is near Burger King."),
    ],
)
def test_it_is_wrong(slot: str, value: str, text: str) -> None:
    assert slot_errors({slot: value}, text).get(slot) == "wrong"


@pytest.mark.parametrize(
    ("slot", "value", "text"),
    [
        ("eatType", "restaurant", "They have good coffee."),
        ("food", "Italian", "It doesn't serve Chinese food."),
        ("priceRange", "cheap", "It has a low customer rating."),
        ("customer rating", "low", "The price is low."),
        ("customer rating", "high", "It has high prices."),
        ("customer rating", "5 out of 5", "The average bill is £30."),
        ("area", "riverside", "It is north of the city centre."),
        ("familyFriendly", "no", "It isn't cheap, nor is it highly rated."),
        ("eatType", "coffee shop", "It is near Café Rouge."),
        ("food", "Indian", "It is near Raja Indian Cuisine."),
        ("name", "The Lantern", "It is nice."),
        ("near", "The Bakers", "It is near a bakery."),
    ],
)
def test_it_is_missing(slot: str, value: str, text: str) -> None:
    assert slot_errors({slot: value}, text).get(slot) == "missing"


def test_what_is_added_to_a_bare_table() -> None:
    for slot, text in {
        "eatType": "a restaurant",
        "food": "Mexican food",
        "priceRange": "low prices",
        "customer rating": "well reviewed",
        "area": "near the river",
        "familyFriendly": "for adults",
        "near": "close to The Sorrento",
    }.items():
        assert slot_errors({"name": "Zizzi"}, f"Zizzi, {text}") == {slot: "added"}
    # A venue is known by its capitals: a ranch is no Ranch.
    assert slot_errors({"name": "Zizzi"}, "Zizzi, near a ranch, no Chinese food, good coffee") == {}


def test_grades_go_with_their_noun() -> None:
    slots = {"priceRange": "high", "customer rating": "low"}
    assert errors("A high price range but a low customer rating.", priceRange="high", customer_rating="low") == {}
    assert errors("Low prices and a high customer rating.", priceRange="high", customer_rating="low") == dict.fromkeys(
        slots, "wrong"
    )
    assert errors("The rating is low and the price range is high.", priceRange="high", customer_rating="low") == {}


def test_one_venue_inside_the_other() -> None:
    table = {"name": "The Mill", "near": "The Mill Road Deli"}
    assert slot_errors(table, "The Mill is near The Mill Road Deli.") == {}
    assert slot_errors(table, "Find it near The Mill Road Deli.") == {"name": "missing"}


def test_values_of_no_e2e_table_are_looked_for_as_they_are() -> None:
    assert slot_errors({"food": "Ethiopian"}, "Ethiopian dishes") == {}
    assert slot_errors({"food": "Ethiopian"}, "Chinese dishes") == {"food": "wrong"}
    assert slot_errors({"name": "?!"}, "The ?! is here.") == {}
    assert slot_errors({"name": "?!"}, "It is here.") == {"name": "missing"}


# The rules


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.slot}: {rule.example}")
def test_every_rule_reads_its_example(rule: Rule) -> None:
    assert rule.slot in VALUES
    assert set(rule.values) <= {*VALUES[rule.slot], OTHER}
    assert re.search(rf"\b(?:{rule.pattern})(?!\w)", plain_text(rule.example))
    for value in set(rule.values) - {OTHER}:
        assert rule.slot not in slot_errors({rule.slot: value}, rule.example)
    for value in set(VALUES[rule.slot]) - set(rule.values):
        error = "missing" if rule.is_hint or not rule.values else "wrong"
        assert slot_errors({rule.slot: value}, rule.example).get(rule.slot) == error


def test_every_value_can_be_said_and_every_venue_is_found() -> None:
    for slot, values in VALUES.items():
        for value in values:
            text = f"{slot} is {value}" if slot in ("priceRange", "customer rating") else value
            text = {"yes": "family friendly", "no": "not family friendly"}.get(value, text)
            assert slot_errors({slot: value}, text) == {}, (slot, value)
    for venue in {*NAMES, *NEARS}:
        assert "added" in slot_errors({}, f"We saw {venue} today.").values()
        assert "added" not in slot_errors({"near": venue}, f"We saw {venue} today.").values()


# Scores


def test_rates_are_per_slot_of_the_tables() -> None:
    sources = [SOURCE, "name : The Lantern | Type : pub", "name : The Lantern | food : Indian"]
    texts = [SENTENCE, "The Lantern is a cheap restaurant.", "It is near Burger King."]
    scores = score_slots(texts, sources)
    # 12 slots; second text: pub is wrong, cheap is added; third: name and food missing, near added.
    want = {"ser": 5 / 12, "ser_missing": 2 / 12, "ser_wrong": 1 / 12, "ser_added": 2 / 12}
    assert scores.values == pytest.approx({name: 100 * x for name, x in want.items()})
    assert set(scores.intervals) == set(scores.variants) == set(want)
    low, high = scores.intervals["ser"]
    assert low == 0 < scores.values["ser"] < high
    assert scores.num_examples == 3
    assert score_slots(texts, sources, {"ser"}).values == {"ser": scores.values["ser"]}


def test_other_sources_have_no_slot_error_rate() -> None:
    scores = score_slots(["a", "b"], [SOURCE, "Cats purr."])
    assert scores.values == {}
    assert set(scores.missing) == {"ser", "ser_missing", "ser_wrong", "ser_added"}
    assert scores.missing["ser"] == (
        "row 2 is no E2E table (name : X | Type : Y | ...), and slots are read from those only"
    )
