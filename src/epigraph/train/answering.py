"""What a run left, ready to answer: an artifact behind its base, or a baseline in it. One way in for both.

Knows files and models; does not know how anything was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from epigraph import artifact
from epigraph.artifact import Artifact
from epigraph.artifact.value import check_fingerprints
from epigraph.contract import Decoding, TextContract
from epigraph.errors import BadHeader, BadTensor, UnknownVersion
from epigraph.frozen.answers import Head
from epigraph.frozen.ensemble import Ensemble
from epigraph.frozen.inputs import Codec
from epigraph.frozen.model import FrozenModel
from epigraph.methods.base import Foreign, Method
from epigraph.methods.weights import Weights
from epigraph.tasks.base import Example, Task
from epigraph.train import kept
from epigraph.train.baselines import BASELINES
from epigraph.train.build import head_for
from epigraph.train.evaluate import Evaluation, evaluate
from epigraph.train.kept import Kept
from epigraph.train.loss import head_of
from epigraph.tuned import Tuned, load_base
from epigraph.virtual import VirtualTokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Answering:
    """A model that answers as a run taught it; ``name`` is the run's method.

    ``tokens``: what its forwards carry, None for a baseline; ``head``: its classifier; ``fields``: what every row has
    beside its own, which ``codec`` fills in; ``says``: what answers in the model's place, ``foreign``: what decodes
    there; ``tuned``: the artifact, where it is one. The base's own weights are those of the file where
    ``changes_base``.
    """

    name: str
    frozen: FrozenModel
    codec: Codec
    tokens: VirtualTokens | None
    head: Head | None
    fields: Mapping[str, str]
    provenance: Mapping[str, Any]
    says: Callable[[Example], str] | None = None
    foreign: Foreign | None = None
    tuned: Tuned | None = None
    changes_base: bool = False

    @property
    def bare_codec(self) -> Codec:
        """The text contract for the untouched model: without the places of virtual tokens."""
        return Codec(self.frozen.tokenizer, self.contract.without_slots(), self.fields)

    @property
    def contract(self) -> TextContract:
        """The text contract it was trained with."""
        return self.codec.contract

    def evaluate(
        self,
        task: Task,
        examples: Sequence[Example],
        *,
        ensemble: Ensemble | None = None,
        untouched: bool = False,
        decoding: Decoding | None = None,
        only: Collection[str] | None = None,
        batch_size: int = 64,
        advance: Callable[[int], None] = lambda _: None,
    ) -> Evaluation:
        """Ask and score ``examples``, as :func:`epigraph.train.evaluate.evaluate`.

        An ``ensemble`` answers in the artifact's place. ``untouched``: without virtual tokens and their places.
        """
        return evaluate(
            self.frozen,
            self.bare_codec if untouched else self.codec,
            None if untouched else ensemble or self.tokens,
            task,
            examples,
            head=self.head,
            foreign=self.foreign,
            says=self.says,
            decoding=decoding,
            only=only,
            batch_size=batch_size,
            advance=advance,
        )


def open_run(
    path: str | Path,
    *,
    model: str | None = None,
    dtype: str = "float32",
    device: str | torch.device = "cpu",
    allow_base: str | None = None,
) -> Answering:
    """What the run in the folder ``path`` left, or the file ``path``, behind (or in) its base.

    ``model`` is where the base is, when it is not where it was in training. ``allow_base`` admits a base with other
    weights, by its fingerprint. Raises the leaves of :class:`ArtifactError`, and :class:`ModelNotFound`.
    """
    where = Path(path)
    file = kept.find(where)
    if file is None:
        return of_artifact(Tuned.load(where, model=model, dtype=dtype, device=device, allow_base=allow_base))
    content = kept.load(file)
    frozen = load_base(where, content.base_name, model=model, dtype=dtype, device=device)
    return of_kept(frozen, content, allow_base=allow_base)


def contents(path: str | Path) -> Artifact | Kept:
    """What the run in the folder ``path`` left, or the file ``path``, without a model; a baseline without tensors."""
    file = kept.find(Path(path))
    return artifact.load(artifact.find(path)) if file is None else kept.load(file, with_tensors=False)


def of_artifact(tuned: Tuned) -> Answering:
    """An artifact behind its base."""
    return Answering(
        name=tuned.artifact.method,
        frozen=tuned.frozen,
        codec=tuned.codec,
        tokens=tuned.prefix,
        head=tuned.head,
        fields={},
        provenance=tuned.artifact.provenance,
        tuned=tuned,
    )


def of_kept(frozen: FrozenModel, content: Kept, *, allow_base: str | None = None) -> Answering:
    """A baseline in ``frozen``, which is changed for good. Raises :class:`WrongBase`, :class:`WrongTokenizer`,
    :class:`BadHeader` for a configuration that no baseline has, :class:`BadTensor` for tensors that are not its own."""
    check_fingerprints(content, frozen.fingerprint, frozen.tokenizer_fingerprint, allow_base)
    baseline = BASELINES.get(content.method)
    if baseline is None:
        raise UnknownVersion(f"the file is of the baseline {content.method!r}, which this epigraph does not know")
    method = baseline.reopen(frozen, _config(content))
    contract = content.contract
    if any(name.startswith("head.") for name in content.tensors):
        method.head = head_for(frozen, contract)
    _fill(method, content.tensors)
    method.to(frozen.device).requires_grad_(False)
    says = baseline.says
    return Answering(
        name=content.method,
        frozen=frozen,
        codec=Codec(frozen.tokenizer, contract, content.fields),
        tokens=None,
        head=head_of(method),
        fields=content.fields,
        provenance=content.provenance,
        says=None if says is None else lambda example: says(content.fields, example),
        foreign=method.foreign,
        changes_base=baseline.exact,
    )


def kept_tensors(method: Method) -> dict[str, Tensor]:
    """What a kept file holds of a method: the weights by their names in the model, and the head."""
    tensors = {}
    if isinstance(method, Weights):
        tensors = {f"weights.{name}": x.detach() for name, x in method.named.items()}
    if method.head is not None:
        tensors |= {f"head.{name}": x.detach() for name, x in method.head.named_parameters()}
    return tensors


def _config(content: Kept) -> Any:
    try:
        return BASELINES[content.method].config.model_validate({**content.method_config, "name": content.method})
    except ValidationError as wrong:
        raise BadHeader(f"the file's method.config is none of {content.method}: {wrong.errors()[0]['msg']}") from None


def _fill(method: Method, tensors: Mapping[str, Tensor]) -> None:
    live = kept_tensors(method)
    odd = sorted(live.keys() ^ tensors.keys())
    if odd:
        raise BadTensor(f"tensor {odd[0][:80]!r} is {'missing' if odd[0] in live else 'not one of this baseline'}")
    for name, x in live.items():
        if x.shape != tensors[name].shape:
            raise BadTensor(f"tensor {name} is {list(tensors[name].shape)}, expected {list(x.shape)} for this model")
    with torch.no_grad():
        for name, x in live.items():
            x.copy_(tensors[name])
