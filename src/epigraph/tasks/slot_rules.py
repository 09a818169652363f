"""How the eight E2E slots are said in words: one rule a way of saying, in the order they are tried.

Data only; :mod:`epigraph.tasks.slots` reads texts by it. The ways were collected from the training texts, and what a
way may stand for was decided by what it stands for there. A text is lower-cased and simplified before (``plain_text``):
no accents, no hyphens, no £, ``isn't`` is ``is not``, ``five`` is ``5``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

CHEAP, LESS, MODERATE, MIDDLE, HIGH, MORE = "cheap", "less than £20", "moderate", "£20-25", "high", "more than £30"
LOW, ONE, AVERAGE, THREE, TOP, FIVE = "low", "1 out of 5", "average", "3 out of 5", "high", "5 out of 5"

# Values of no E2E table, for ways that are surely wrong: another kitchen, 2 stars of 5.
OTHER = "another value"

VALUES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "eatType": ("coffee shop", "pub", "restaurant"),
        "food": ("Chinese", "English", "Fast food", "French", "Indian", "Italian", "Japanese"),
        "priceRange": (CHEAP, LESS, MODERATE, MIDDLE, HIGH, MORE),
        "customer rating": (LOW, ONE, AVERAGE, THREE, TOP, FIVE),
        "area": ("city centre", "riverside"),
        "familyFriendly": ("yes", "no"),
    }
)
# fmt: off
NAMES = (
    "Alimentum", "Aromi", "Bibimbap House", "Blue Spice", "Browns Cambridge", "Clowns", "Cocum", "Cotto",
    "Fitzbillies", "Giraffe", "Green Man", "Loch Fyne", "Midsummer House", "Strada", "Taste of Cambridge",
    "The Cambridge Blue", "The Cricketers", "The Dumpling Tree", "The Eagle", "The Golden Curry",
    "The Golden Palace", "The Mill", "The Olive Grove", "The Phoenix", "The Plough", "The Punter",
    "The Rice Boat", "The Twenty Two", "The Vaults", "The Waterman", "The Wrestlers",
    "Travellers Rest Beefeater", "Wildwood", "Zizzi",
)
# fmt: on
# fmt: off
NEARS = (
    "All Bar One", "Avalon", "Burger King", "Café Adriatic", "Café Brazil", "Café Rouge", "Café Sicilia",
    "Clare Hall", "Crowne Plaza Hotel", "Express by Holiday Inn", "Rainbow Vegetarian Café",
    "Raja Indian Cuisine", "Ranch", "The Bakers", "The Portland Arms", "The Rice Boat", "The Six Bells",
    "The Sorrento", "Yippee Noodle Bar",
)
# fmt: on


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One way to say some values of a slot.

    ``pattern`` is a regular expression over plain text, whole words only; ``values`` are those of the table that it is
    true of; ``example`` is a text that it reads. A mention after a negation stands for the other values of the slot,
    unless the way has its own negation in it (``is_final``). A hint counts where the table has one of its values and
    is nothing elsewhere: coffee may be had in a pub.
    """

    slot: str
    pattern: str
    values: tuple[str, ...]
    example: str
    is_final: bool = False
    is_hint: bool = False


def _rules(slot: str, *rows: tuple[tuple[str, ...], str, str], is_final: bool = False) -> list[Rule]:
    return [Rule(slot=slot, values=x, pattern=y, example=z, is_final=is_final) for x, y, z in rows]


def _hint(slot: str, values: tuple[str, ...], pattern: str, example: str) -> Rule:
    return Rule(slot=slot, values=values, pattern=pattern, example=example, is_hint=True)


# Words that may stand between a noun and its grade: "prices are in the high range", "rated by customers as low".
_LINK = (
    r"(?:(?:range|ranges|ranging|rating|ratings|is|are|was|being|been|be|of|as|at|in|on|to|from|the|a|an|very|quite|"
    r"pretty|fairly|rather|slightly|only|just|considered|by|its|customers?|they|it|side|s|:|#) )*"
)
_PRICE = r"(?:prices?|priced|pricing|costs?|price range|price point|pricerange)"
_RATING = (
    r"(?:rating|ratings|rated|rates|rate|reviews?|reviewed|scores?|scored|feedback|rank|ranked|regarded|satisfaction)"
)
_BEFORE_RATING = (
    r"(?:(?:customers?|costumers?|consumer|user|guest|overall|approval|service|quality|public|star|by|from|local) )*"
)


def _graded(noun: str, between: str, words: str) -> str:
    """``words`` before or after ``noun``."""
    return rf"(?:{words}) (?:in )?{between}{noun}(?: than average)?|{noun} {_LINK}(?:{words})"


def _price(words: str) -> str:
    return _graded(_PRICE, r"(?:(?:range|in|on|menu|food|meal|level|of|the) )*", words)


def _rating(words: str) -> str:
    return _graded(_RATING, _BEFORE_RATING, words)


# A grade is true of its numbers. Numbers of stars are true of their grade, sums of money only of themselves: that is
# how the training texts use them.
_CHEAP, _MEDIUM, _DEAR, _NOT_DEAR = (CHEAP, LESS), (MODERATE, MIDDLE), (HIGH, MORE), (CHEAP, LESS, MODERATE, MIDDLE)
_BAD, _MEAN, _GOOD, _NOT_BAD = (LOW, ONE), (AVERAGE, THREE), (TOP, FIVE), (AVERAGE, THREE, TOP, FIVE)
_OF_FIVE = r"(?: stars?)? (?:(?:out )?of |out |/ |to |on )(?:a )?(?:possible )?5(?: stars?)?"
# "An average rating of 5" says nothing of average.
_MEAN_OF = r"(?:average (?:(?:customer )?(?:ratings?|review|score) )?(?:of |is |: )?)?(?:a )?"
_MEAN_PRICE = r"(?:averag(?:e|es|ing) (?:price (?:range )?|cost )?(?:of |is |no )?)?"
_ABOVE = r"(?:above|higher than|better than|more than) (?:the )?average"
_BELOW = r"(?:below|lower than|cheaper than|less than) (?:the )?average"
_CHILD = r"(?:famil(?:y|ies)|child(?:ren)?s?|kids?|kiddies|toddlers|youngsters|little ones|all ages|all the ages)"
_GAP = r"(?:(?!and\b|but\b|is\b|are\b|with\b|it\b|has\b|while\b)\w+ )"

RULES: Sequence[Rule] = (
    *_rules(
        "eatType",
        (("coffee shop",), r"coffees? (?:shops?|houses?|bars?)|cafes?", "a café"),
        (("pub",), r"pubs?|public houses?", "a public house"),
        (("restaurant",), r"restaurants?|restuarant|restaraunt", "a restaurant"),
    ),
    _hint("eatType", ("coffee shop",), r"coffees?", "good coffee"),
    *_rules(
        "food",
        (("Fast food",), r"fast foods?|(?:ham ?)?burgers?|(?:french )?fries|junk food|american", "burgers and fries"),
        (("Chinese",), r"chinese|chines", "Chinese dishes"),
        (("English",), r"english|british|fish and chips", "a British menu"),
        (("Indian",), r"indian|curry|curries", "a curry"),
        (("Italian",), r"italian|pasta|spaghetti|pizzas?|lasagna", "pasta"),
        (("Japanese",), r"japanese|sushi|sashimi|ramen", "sushi"),
        (("Chinese", "Japanese"), r"asian|oriental", "Asian cuisine"),
        (("French",), r"french|(?:wines?|cheeses?)(?: ,)?(?: \w+){0,2} (?:wines?|cheeses?)", "wine and cheese"),
        (
            (OTHER,),
            r"mexican|thai|greek|spanish|korean|vietnamese|turkish|german|lebanese|mediterranean|moroccan|caribbean|"
            r"brazilian|portuguese|tapas|tacos|kebabs?",
            "Thai food",
        ),
    ),
    *_rules(
        "customer rating",
        ((OTHER,), rf"{_MEAN_OF}(?:[024]|\d \. \d){_OF_FIVE}|[24] stars?", "4 out of 5"),
        (_BAD, rf"{_MEAN_OF}1{_OF_FIVE}|1 stars?", "one star"),
        (_MEAN, rf"{_MEAN_OF}3{_OF_FIVE}|3 stars?", "three out of five stars"),
        (_GOOD, rf"{_MEAN_OF}5{_OF_FIVE}|{_MEAN_OF}5 stars?", "five stars"),
    ),
    *_rules(
        "priceRange",
        (
            (LESS,),
            rf"{_MEAN_PRICE}(?:less tha[nt]|less then|less|under|below|up to|lower than|cheaper than) 20|"
            r"20 (?:or|and) (?:less|under|below)",
            "under £20",
        ),
        (
            (MORE,),
            rf"{_MEAN_PRICE}(?:more tha[nt]|more then|over|above|upwards of|at least|greater than|higher than) 30|"
            r"30 (?:or|and) (?:more|over|up|above|higher)|30 (?:plus|\+)",
            "over £30",
        ),
        ((MIDDLE,), rf"{_MEAN_PRICE}(?:between )?20 (?:to |and |or |through )?25", "between £20 and £25"),
        (_DEAR, _price(rf"{_ABOVE}|high(?:er|ly)?|highest|premium"), "a high price range"),
        (_CHEAP, _price(rf"{_BELOW}|low|lower|lowest|small|cheap"), "low prices"),
        (
            _MEDIUM,
            _price(
                r"moderate(?:ly)?|medium|mid|middle|average(?:ly)?|averaged|mid range|mid level|normal|modest(?:ly)?"
            ),
            "prices are moderate",
        ),
        (_NOT_DEAR, _price(r"reasonabl[ey]|fair(?:ly)?|decent|ok|good|well|great"), "reasonably priced"),
    ),
    *_rules(
        "customer rating",
        (_BAD, _rating(rf"{_BELOW}|low|lower|lowest|lowly|poor(?:ly)?|bad(?:ly)?|terrible|1"), "poorly rated"),
        (
            _MEAN,
            _rating(
                r"average(?:ly)?|mediocre|decent(?:ly)?|moderate(?:ly)?|medium|ok|fair|reasonabl[ey]|mixed|so so|3"
            ),
            "average reviews",
        ),
        (
            _GOOD,
            _rating(
                rf"{_ABOVE}|high(?:ly)?|higher|highest|excellent(?:ly)?|great|top|outstanding|superb|best|perfect|5"
            ),
            "highly rated",
        ),
        (_NOT_BAD, _rating(r"good|well|positive(?:ly)?|favou?rabl[ey]|nice(?:ly)?"), "good ratings"),
    ),
    *_rules(
        "priceRange",
        (
            _MEDIUM,
            r"moderate(?:ly)? expensive|(?:mid|middle|medium|moderate)(?: level)? budget",
            "moderately expensive",
        ),
        (_DEAR, r"expensive(?:ly)?|pric[e]?y|costly|upscale|high end|high cost", "expensive"),
        (_CHEAP, r"inexpensive(?:ly)?|chea?e?p(?:er|ly)?|budget|bargain|low cost", "cheap"),
        (_NOT_DEAR, r"affordabl[ey]|reasonabl[ey]|(?:good )?value(?: for money)?", "affordable"),
        (_MEDIUM, r"moderate(?:ly)?|mid (?:range|level)|(?:middle|medium) range", "mid-range"),
    ),
    _hint(
        "customer rating",
        _MEAN,
        r"(?<!above )(?<!below )(?<!than )average(?! (?:of|spend|bill|meal)\b)",
        "an average place",
    ),
    *_rules(
        "area",
        (("riverside",), r"river ?sides?|river(?: ?bank| ?front)?|water ?(?:front|side)", "by the river"),
        (
            (),
            r"(?:north|south|east|west|outside|out)(?: side)?(?: of)?(?: the)? (?:city|town)(?: cent(?:re|er))?",
            "north of the city centre",
        ),
        (
            ("city centre",),
            r"(?:city|town|cities)(?: s)? (?:cent(?:re|er)s?|central)|cent(?:re|er|ral|rally)|downtown|inner city|"
            r"(?:heart|middle) of (?:the )?(?:city|town)|in (?:the )?(?:city|town)(?: cent(?:re|er))?",
            "in the centre of town",
        ),
    ),
    *_rules(
        "familyFriendly",
        (("yes",), rf"{_CHILD} and adults?|adults? and {_CHILD}|adults alike|adult supervision", "children and adults"),
        (
            ("no",),
            r"(?:not|no|non|none|never|nor|neither|un|without|discourag\w+|prohibit\w*|excludes?) "
            rf"{_GAP}{{0,4}}?{_CHILD}"
            rf"(?: ?friendly| oriented)?(?: (?:and|or|with|of) (?:\w+ )?{_CHILD})?",
            "not a place for children",
        ),
        (
            ("no",),
            rf"{_CHILD}(?: ?friendly)? (?:: )?(?:is |are |should |do |does |can |may |would )*"
            r"(?:no|not|never|unfriendly|un friendly|prohibited|banned|discouraged)",
            "children are not welcome",
        ),
        (("no",), rf"{_CHILD} free|leave the {_CHILD}", "child-free"),
        (("no",), r"adults?(?: only)?|adult s|grown ups?|over 18s?|18 plus|mature", "adults only"),
        is_final=True,
    ),
    *_rules("familyFriendly", (("yes",), rf"{_CHILD}(?: ?friendly)?", "kid-friendly"), is_final=True),
)
