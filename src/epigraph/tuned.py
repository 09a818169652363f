"""An artifact at work: the frozen base it was trained for, checked, and the text contract it was trained with."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch

from epigraph import artifact
from epigraph.artifact import Artifact
from epigraph.contract import Decoding, TextContract
from epigraph.errors import BadValue, ContractMismatch, GeometryMismatch, ModelNotFound
from epigraph.frozen.answers import Head
from epigraph.frozen.ask import ask
from epigraph.frozen.classes import width_at_mask
from epigraph.frozen.ensemble import Ensemble, Joining
from epigraph.frozen.inputs import Codec, Encoded, Message
from epigraph.frozen.model import FrozenModel

Text = str | Mapping[str, str] | Sequence[Mapping[str, str]]


def _base_beside(path: Path) -> str | None:
    """Where a run's folder says that its base was. A hint, and no more: the base is checked by its fingerprint."""
    if (path / "base" / "config.json").is_file():
        return str(path / "base")
    try:
        said = json.loads((path / "recipe.json").read_text(encoding="utf-8"))["model"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return said if isinstance(said, str) else None


def load_base(
    path: Path,
    base_name: str,
    *,
    model: str | None = None,
    dtype: str = "float32",
    attention_name: str = "sdpa",
    device: str | torch.device = "cpu",
) -> FrozenModel:
    """The base of what lies at ``path``: ``model``, else where the run says it was, else what it was called.

    Which weights it has is not looked at. Raises :class:`ModelNotFound` and what :meth:`FrozenModel.load` raises.
    """
    name = model or _base_beside(path) or base_name
    try:
        return FrozenModel.load(name, dtype=dtype, attention_name=attention_name, device=device)
    except ModelNotFound as missing:
        if model is not None:
            raise
        raise ModelNotFound(f"{missing} (the artifact's base; say where it is with --model)") from None


class Tuned:
    """A frozen model and one artifact for it.

    ``prefix`` is the artifact's virtual tokens as a forward carries them: keys and values, or embeddings for the slots
    of the text; ``head`` its classifier, or None.
    """

    def __init__(self, frozen: FrozenModel, content: Artifact, *, allow_base: str | None = None) -> None:
        """Raises :class:`WrongBase`, :class:`WrongTokenizer` or :class:`GeometryMismatch` when they do not fit."""
        content.check_base(frozen.geometry, frozen.fingerprint, frozen.tokenizer_fingerprint, allow_base=allow_base)
        self.frozen = frozen
        self.artifact = content
        with torch.no_grad():
            self.prefix = frozen.carried(content.tokens).to(frozen.device)
        self.head = _head(content, frozen)
        self.codec = Codec(frozen.tokenizer, content.contract)

    @property
    def bare_codec(self) -> Codec:
        """The text contract for the untouched model: without the places of virtual tokens."""
        return Codec(self.frozen.tokenizer, self.artifact.contract.without_slots())

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        model: str | None = None,
        dtype: str = "float32",
        attention_name: str = "sdpa",
        device: str | torch.device = "cpu",
        allow_base: str | None = None,
    ) -> Self:
        """The artifact at ``path`` (a file, or the folder a run wrote) behind its base model.

        ``model`` is where the base is, when it is not where it was in training. ``allow_base`` admits a base with
        other weights, by its fingerprint.
        """
        content = artifact.load(artifact.find(Path(path)))
        frozen = load_base(
            Path(path), content.base_name, model=model, dtype=dtype, attention_name=attention_name, device=device
        )
        return cls(frozen, content, allow_base=allow_base)

    def ensemble(self, *others: str | Path, mean: Joining = "geometric", allow_base: str | None = None) -> Ensemble:
        """This artifact and those at ``others``, files or folders of runs, to be asked together (docs/ensembles.md).

        Raises :class:`WrongBase`, :class:`WrongTokenizer`, :class:`GeometryMismatch` or :class:`ContractMismatch` for
        an artifact that does not go with this one; ``allow_base`` as in :meth:`load`.
        """
        members = [self.prefix]
        for path in others:
            content = artifact.load(artifact.find(Path(path)))
            check_contract(path, content.contract, self.artifact.contract)
            members.append(Tuned(self.frozen, content, allow_base=allow_base).prefix)
        return Ensemble(members=tuple(members), mean=mean)

    def generate(
        self,
        texts: Sequence[Text],
        *,
        ensemble: Ensemble | None = None,
        decoding: Decoding | None = None,
        batch_size: int = 32,
        advance: Callable[[int], None] = lambda _: None,
        **options: Any,
    ) -> list[str]:
        """One answer a text, in order. A text is a source for the contract's input template, or a mapping with all the
        fields that the template names; for a chat contract a list of ``{"role", "content"}`` turns (a plain string is
        one user turn). ``options`` go to transformers' ``generate``: ``do_sample=True, temperature=0.7``, say; an
        ``ensemble``, which answers in this artifact's place, takes none. Raises :class:`BadValue` for what is no list
        of texts.
        """
        if isinstance(texts, str):
            raise BadValue(f"texts is one text, {texts[:40]!r}, expected a list of texts; write [text]")
        if batch_size < 1:
            raise BadValue(f"batch_size is {batch_size}, expected 1 or more")
        if ensemble is not None:
            _refuse_options(options)
        return ask(
            self.frozen,
            self.codec,
            [self.encode(text) for text in texts],
            [_fields(text) for text in texts if isinstance(text, str | Mapping)],
            ensemble or self.prefix,
            head=self.head,
            decoding=decoding,
            batch_size=batch_size,
            advance=advance,
            **options,
        ).texts

    def encode(self, text: Text) -> Encoded:
        """The ids that ask for an answer to ``text``, the same as in training."""
        return encoded(self.codec, text)


def encoded(codec: Codec, text: Text) -> Encoded:
    """The ids that ask for an answer to ``text``. Raises :class:`BadValue` for one that the contract is not for."""
    if codec.contract.is_chat:
        if isinstance(text, Mapping):
            raise BadValue("the artifact was trained on conversations, got fields; give a string or turns")
        turns = [{"role": "user", "content": text}] if isinstance(text, str) else text
        return codec.question([_message(turn) for turn in turns])
    if not isinstance(text, str | Mapping):
        raise BadValue("the artifact was trained on plain text, got a conversation; give a string")
    return codec.source(_fields(text))


def _message(turn: Mapping[str, str]) -> Message:
    try:
        return Message(role=turn["role"], content=turn["content"])
    except KeyError as missing:
        raise BadValue(f"a turn has no {missing}, expected role and content") from None


def _fields(text: str | Mapping[str, str]) -> Mapping[str, str]:
    return {"source": text} if isinstance(text, str) else text


def _head(content: Artifact, frozen: FrozenModel) -> Head | None:
    """The artifact's classifier; raises :class:`GeometryMismatch` where it does not fit the labels and the model."""
    contract = content.contract
    if contract.layout not in ("label", "tags"):
        return None
    is_at_mask = contract.pooling == "mask"
    width = width_at_mask(frozen) if is_at_mask else frozen.model.config.hidden_size
    shapes = {"head.weight": [len(contract.labels), width]}
    if not is_at_mask:
        shapes["head.bias"] = [len(contract.labels)]
    for name, want in shapes.items():
        got = list(content.extra[name].shape) if name in content.extra else "missing"
        if got != want:
            raise GeometryMismatch(f"the artifact's {name} is {got}, expected {want} (labels, width of {frozen.name})")
    reads = "tags" if contract.layout == "tags" else contract.pooling
    weight, *bias = (content.extra[name].float().to(frozen.device) for name in shapes)
    return Head(weight_CD=weight, bias_C=bias[0] if bias else None, reads=reads)


def check_contract(path: str | Path, other: TextContract, own: TextContract) -> None:
    """Raise :class:`ContractMismatch` unless members of an ensemble see the same ids.

    The first one's decoding is used, so that the others' does not count.
    """
    for name in TextContract.model_fields:
        got, expected = getattr(other, name), getattr(own, name)
        if name != "decoding" and got != expected:
            raise ContractMismatch(
                f"{path} cannot join the ensemble: its text contract has {name} {got!r}, expected {expected!r} as in "
                "the first artifact; members must be trained on one task with the same text settings"
            )


def _refuse_options(options: Mapping[str, Any]) -> None:
    if options:
        raise BadValue(
            f"got {', '.join(options)} for an ensemble, expected none: its members must take the same token, "
            "so it decodes greedily; leave sampling out"
        )
