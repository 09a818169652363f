"""The prefixes as vLLM's front end knows them: found, checked once, and remembered until their files change.

It holds contracts and soft prompts, no keys and values; what it refuses never reaches the engine.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import torch

from epigraph import artifact
from epigraph.artifact import Artifact
from epigraph.artifact.value import check_fingerprints
from epigraph.contract import Decoding
from epigraph.engine.claim import Claim, check_id
from epigraph.engine.lowered import lower_artifact
from epigraph.engine.servable import refuse_unservable, refuse_unservable_contract
from epigraph.engine.shelf import Opened, Shelf, claim_to
from epigraph.errors import BadValue, CannotServe, UserError
from epigraph.frozen.identity import Identity
from epigraph.frozen.inputs import Codec
from epigraph.frozen.model import FrozenModel
from epigraph.virtual import SoftPrompt

_MOST_KNOWN = 4_096
_ZEROS = "0" * 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """A prefix that was found good. ``claim`` names no tenant yet; ``soft`` is the artifact of a soft prompt."""

    stamp: str
    claim: Claim
    codec: Codec
    soft: Artifact | None

    @property
    def placed(self) -> SoftPrompt | None:
        """The virtual tokens that stand in the text, or None where they are keys and values in front of it."""
        tokens = None if self.soft is None else self.soft.tokens
        return tokens if isinstance(tokens, SoftPrompt) and tokens.placed else None


class Lowerer:
    """Makes keys and values of soft prompts: each once, one at a time, into ``folder``, which lies below ``root``.

    The frozen model is loaded when the first one is made. Raises :class:`BadValue` for a folder that is elsewhere.
    """

    def __init__(self, model: str, folder: Path, root: Path, allow_base: str | None = None) -> None:
        try:
            self._below = folder.resolve().relative_to(root.resolve()).as_posix()
        except ValueError:
            raise BadValue(
                f"lower_into is {folder}, expected a folder inside {root}, from which the engine serves"
            ) from None
        self._folder = folder
        self._model = model
        self._allow_base = allow_base
        self._frozen: FrozenModel | None = None
        self._making: dict[str, asyncio.Task[None]] = {}
        self._one_at_a_time = asyncio.Lock()

    async def prefix_of(self, content_hash: str, content: Artifact) -> str:
        """The prefix id of the keys and values that stand for ``content``. Raises what :func:`lower_artifact` does."""
        if not self._path(content_hash).exists():
            if content_hash not in self._making:
                self._making[content_hash] = asyncio.create_task(self._make(content_hash, content))
            # Shielded: others wait for it, too, when the request that came first is cancelled.
            await asyncio.shield(self._making[content_hash])
        return content_hash if self._below == "." else f"{self._below}/{content_hash}"

    async def _make(self, content_hash: str, content: Artifact) -> None:
        try:
            async with self._one_at_a_time:
                await asyncio.to_thread(self._write, content_hash, content)
        finally:
            del self._making[content_hash]

    def _write(self, content_hash: str, content: Artifact) -> None:
        if self._frozen is None:
            self._frozen = FrozenModel.load(self._model)
        made = lower_artifact(content, self._frozen, content_hash, self._allow_base)
        self._folder.mkdir(parents=True, exist_ok=True)
        artifact.save(made, self._path(content_hash), dtype=torch.float32)

    def _path(self, content_hash: str) -> Path:
        return self._folder / f"{content_hash}.safetensors"


class Prefixes:
    """The prefixes of ``shelf`` for one base. A prefix that is known costs a look at its file's stamp."""

    def __init__(
        self, shelf: Shelf, base: Identity, *, allow_base: str | None = None, lowerer: Lowerer | None = None
    ) -> None:
        self.shelf = shelf
        self._base = base
        self._allow_base = allow_base
        self._lowerer = lowerer
        self._known: OrderedDict[tuple[str, str], Known] = OrderedDict()
        self._lock = Lock()

    async def get(self, prefix: str, version: str = "") -> Known:
        """The prefix as it is now. Raises :class:`PrefixNotFound`, :class:`BadClaim`, :class:`CannotServe`,
        :class:`WrongBase`, :class:`WrongTokenizer`, and what reading an artifact raises."""
        check_id(prefix, version)
        known = await asyncio.to_thread(self._look, prefix, version)
        if known.soft is None or known.placed is not None:
            return known
        if self._lowerer is None:
            raise CannotServe(
                f"the virtual tokens of prefix {known.claim.label} are embeddings, the engine serves keys and values; "
                "make them with epigraph lower ARTIFACT --out FILE, or start the engine with lower_into"
            )
        made = await self._lowerer.prefix_of(known.claim.content_hash, known.soft)
        return await asyncio.to_thread(self._look, made, "")

    def why(self, claim: Claim) -> str:
        """What is wrong with the prefix of a request that the engine gave up on."""
        try:
            content = self.shelf.open_claimed(claim)
            self._check(content)
            refuse_unservable(content.tokens, content.geometry)
        except UserError as wrong:
            return str(wrong)
        return "nothing is wrong with its prefix; see the engine's log"

    def _look(self, prefix: str, version: str) -> Known:
        stamp = self.shelf.stamp(prefix, version)
        with self._lock:
            known = self._known.get((prefix, version))
            if known is not None and known.stamp == stamp:
                self._known.move_to_end((prefix, version))
                return known
        known = self._opened(self.shelf.open(prefix, version), stamp, prefix, version)
        with self._lock:
            self._known[prefix, version] = known
            while len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)
        return known

    def _opened(self, opened: Opened, stamp: str, prefix: str, version: str) -> Known:
        content = opened.artifact
        self._check(content)
        refuse_unservable_contract(content.contract.model_copy(update={"decoding": Decoding()}))
        is_soft = isinstance(content.tokens, SoftPrompt)
        if not (is_soft and content.geometry.is_causal):
            refuse_unservable(content.tokens, content.geometry)
        return Known(
            stamp=stamp,
            claim=claim_to(opened, prefix, version),
            codec=Codec(self._base.tokenizer, content.contract),
            soft=content if is_soft else None,
        )

    def _check(self, content: Artifact) -> None:
        base = self._base
        check_fingerprints(
            content, base.fingerprint, base.tokenizer_fingerprint, self._allow_base, content.allowed_bases
        )
