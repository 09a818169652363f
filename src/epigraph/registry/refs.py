"""How prefixes and their versions are written and looked up: names, references, aliases. It knows no database."""

from __future__ import annotations

import re
from dataclasses import dataclass

from epigraph.errors import BadName, BadValue, PrefixNotFound
from epigraph.names import PART, check_part

MAX_PAGE = 1000
MAX_WORDS = 500

_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_DIGITS = re.compile(r"[0-9]+")
_REF = re.compile(rf"(?:(?P<tenant>{PART})/)?(?P<name>{PART})(?:@(?P<wanted>{PART}))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """A version that somebody asks for: by its number, or by an alias."""

    number: int | None = None
    alias: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ref:
    """A reference, taken apart."""

    tenant: str
    name: str
    wanted: str


def parse_ref(ref: str, reader: str, latest: str) -> Ref | None:
    """``tenant/name@3``, ``tenant/name@alias``, ``tenant/name``, or ``name`` among the reader's own; None for else."""
    found = _REF.fullmatch(ref)
    if found is None:
        return None
    return Ref(tenant=found["tenant"] or reader, name=found["name"], wanted=found["wanted"] or latest)


def parse_wanted(wanted: str | int) -> Wanted | None:
    """The version that a number or an alias means, None for what can be neither."""
    said = str(wanted)
    if _NUMBER.fullmatch(said):
        return Wanted(number=int(said))
    if _DIGITS.fullmatch(said) or not re.fullmatch(PART, said):
        return None
    return Wanted(alias=said)


def parse_prefix(prefix: str) -> tuple[str, str]:
    """Tenant and name of ``tenant/name``, as a page ends with it; two empty words for an empty one.

    Raises :class:`BadValue` for what no page ends with.
    """
    if not prefix:
        return "", ""
    found = _REF.fullmatch(prefix)
    if found is None or found["tenant"] is None or found["wanted"] is not None:
        raise BadValue(f"a page begins after {prefix[:200]!r}, expected the 'next' of the page before")
    return found["tenant"], found["name"]


def is_name(*names: str) -> bool:
    """Whether all of them could be names; what is none goes into no query, as databases differ in what they take."""
    return all(re.fullmatch(PART, name) for name in names)


def check_alias(alias: str) -> None:
    """Raise :class:`BadName` for what could be taken for a version's number, or is no name at all."""
    check_part("the alias", alias)
    if _DIGITS.fullmatch(alias):
        raise BadName(f"the alias is {alias[:200]!r}, which is a version's number; expected a letter or '_' in it")


def check_words(what: str, words: str) -> None:
    """Raise :class:`BadValue` for words that are too long to be kept, or that cannot be printed."""
    if len(words) > MAX_WORDS or not words.isprintable():
        raise BadValue(f"{what} is {words[:60]!r}, expected at most {MAX_WORDS} characters that can be printed")


def check_limit(limit: int) -> None:
    """Raise :class:`BadValue` for a page of a size that there is not."""
    if not 1 <= limit <= MAX_PAGE:
        raise BadValue(f"a page of {limit} was asked for, expected 1 to {MAX_PAGE}")


def not_found(reader: str, ref: str) -> PrefixNotFound:
    """The same words for what is not there, what was deleted, and what is somebody else's."""
    return PrefixNotFound(
        f"no prefix {ref[:200]!r} that tenant {reader[:200]!r} may use; look at the list of its prefixes"
    )
