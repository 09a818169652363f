"""A model's name as a client gives it, into versions of prefixes that the caller may use and the engine can serve.

Every request looks into the catalogue anew; it knows contracts and fingerprints, and no text.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

from epigraph.contract import TextContract
from epigraph.engine.base import Base
from epigraph.engine.shelf import Shelf
from epigraph.errors import (
    BadValue,
    ContentMismatch,
    PrefixNotFound,
    RequestTooLarge,
    StoreUnavailable,
    UserError,
    WrongBase,
    WrongTokenizer,
)
from epigraph.registry import Registry, Version

_MOST_CONTRACTS = 4_096
_DIGITS = 12
JOINS = "+"


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """What answers: versions together, or none, which is the bare model. ``contract`` is the first one's."""

    versions: tuple[Version, ...] = ()
    contract: TextContract | None = None

    @property
    def ids(self) -> str:
        """The resolved ids, as the header says them; empty for the bare model."""
        return JOINS.join(x.id for x in self.versions)

    @property
    def num_virtual_tokens(self) -> int:
        """Of the longest member: they answer side by side."""
        return max((x.num_virtual_tokens for x in self.versions), default=0)


class Chooser:
    """Resolves names against ``registry`` for an engine that runs ``base``. Its methods block: call them aside."""

    def __init__(self, registry: Registry, base: Base, max_members: int) -> None:
        self._registry = registry
        self._base = base
        self._max_members = max_members
        self._shelf = Shelf(registry.store_address)
        self._contracts: OrderedDict[tuple[str, str], TextContract] = OrderedDict()
        self._lock = Lock()

    def choose(self, tenant: str, model: str) -> Chosen:
        """What ``model`` means to ``tenant``.

        Raises :class:`PrefixNotFound` in the same words for what is not there and what is not the tenant's,
        :class:`BadValue`, :class:`RequestTooLarge`, :class:`WrongBase`, :class:`WrongTokenizer`, and what reading the
        artifact raises.
        """
        if model == self._base.name:
            return Chosen()
        names = model.split(JOINS)
        if len(names) > self._max_members:
            raise RequestTooLarge(
                f"the model joins {len(names)} prefixes, this server takes {self._max_members}; name fewer"
            )
        if self._base.name in names:
            raise BadValue(f"the model joins {self._base.name}, the base, expected prefixes; leave it out")
        versions = tuple(self._registry.resolve(tenant, name) for name in names)
        for version in versions:
            self.check_base(version)
        return Chosen(versions=versions, contract=self._contract(versions[0]))

    def check_base(self, version: Version) -> None:
        """Raise :class:`WrongBase` or :class:`WrongTokenizer` unless the engine's model is the one, or admitted."""
        base, got = self._base, version.base_fingerprint
        if got != base.fingerprint and got not in self._registry.admitted(base.fingerprint):
            raise WrongBase(
                f"{version.id} was trained for {version.base_name} ({got[:_DIGITS]}), this server runs {base.name} "
                f"({base.fingerprint[:_DIGITS]}); ask a server of its base"
            )
        if version.tokenizer_fingerprint != base.tokenizer_fingerprint:
            raise WrongTokenizer(
                f"{version.id} was trained with the tokenizer {version.tokenizer_fingerprint[:_DIGITS]}, this server's "
                f"{base.name} has {base.tokenizer_fingerprint[:_DIGITS]}; ask a server of its base"
            )

    def behind(self, versions: Sequence[Version], wrong: Exception) -> Exception:
        """What is behind ``wrong``, in which reading ``versions`` ended: whoever reads cannot tell a store that is away
        from a file that was deleted, and the catalogue can."""
        if not versions or (isinstance(wrong, UserError) and not isinstance(wrong, PrefixNotFound)):
            return wrong
        try:
            for version in versions:
                self._check_there(version)
            self._registry.check()
        except UserError as told:
            return told
        if isinstance(wrong, PrefixNotFound):
            ids = JOINS.join(x.id for x in versions)
            return StoreUnavailable(f"the bytes of {ids} were not found; run `epigraph registry verify`")
        return wrong

    def _check_there(self, version: Version) -> None:
        try:
            self._registry.get(version.tenant, version.name, version.number)
        except PrefixNotFound:
            raise PrefixNotFound(f"{version.id} was deleted; name another") from None

    def _contract(self, version: Version) -> TextContract:
        """A version never changes, so neither does what is remembered of it; whether it is there was asked before."""
        key = (version.id, version.content_hash)
        with self._lock:
            if key in self._contracts:
                self._contracts.move_to_end(key)
                return self._contracts[key]
        contract = self._read(version)
        with self._lock:
            self._contracts[key] = contract
            while len(self._contracts) > _MOST_CONTRACTS:
                self._contracts.popitem(last=False)
        return contract

    def _read(self, version: Version) -> TextContract:
        try:
            opened = self._shelf.open(version.prefix, str(version.number))
        except Exception as wrong:
            told = self.behind((version,), wrong)
            if told is wrong:
                raise
            raise told from wrong
        if opened.content_hash != version.content_hash:
            raise ContentMismatch(f"the bytes of {version.id} are not those that were pushed; push it again")
        return opened.artifact.contract
