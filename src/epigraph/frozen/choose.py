"""Which of some answers a model finds likeliest: label words, or a vocabulary that an answer is ranked among.

Knows how candidates are scored; does not know what is right. Legend: B rows, N candidates, V vocabulary.
(Liu et al. 2021, section 3; the restricted vocabulary is LAMA's, Petroni et al. 2019.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from epigraph.errors import BadValue
from epigraph.frozen.answers import Head, answer_logits, row_log_probabilities
from epigraph.frozen.batch import Batch, collate
from epigraph.frozen.generate import Advance, carried_rows, rows_of
from epigraph.frozen.inputs import Codec, Encoded, fill_token
from epigraph.frozen.model import FrozenModel
from epigraph.frozen.rows import Carried
from epigraph.virtual import VirtualTokens


def rank(
    frozen: FrozenModel,
    codec: Codec,
    rows: Sequence[Mapping[str, str]],
    candidates: Sequence[str] | None,
    tokens: Carried,
    *,
    batch_size: int = 64,
    advance: Advance = lambda _: None,
) -> Tensor:
    """``[B, N]`` float32: how likely each candidate is as the answer to each row (fields of the input template).

    None ranks the whole vocabulary of a masked model, of which one token stands at the mask: N is V.
    Candidates of one token each are all scored by one forward pass a row; others take one pass a candidate. Without an
    end token: it is the words that are compared. Raises :class:`BadValue` for no candidates.
    """
    if candidates is not None and not candidates:
        raise BadValue("there are no candidates to choose among, expected one or more")
    num_tokens = frozen.model.config.get_text_config().vocab_size
    ids = [(i,) for i in range(num_tokens)] if candidates is None else [codec.candidate(text) for text in candidates]
    score = _one_pass if all(len(x) == 1 for x in ids) else _pass_each
    order = sorted(range(len(rows)), key=lambda i: -len(codec.source(rows[i]).ids))
    scores_BN = torch.empty(len(rows), len(ids))
    with torch.inference_mode():
        ready = carried_rows(frozen, tokens)
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            scores_BN[numbers] = score(frozen, codec, [rows[i] for i in numbers], ids, rows_of(ready, numbers)).cpu()
            advance(len(numbers))
    return scores_BN


def rank_own(
    frozen: FrozenModel,
    codec: Codec,
    rows: Sequence[Mapping[str, str]],
    candidates: Sequence[Sequence[str]],
    tokens: Carried,
    *,
    batch_size: int = 64,
    advance: Advance = lambda _: None,
) -> list[Tensor]:
    """As :func:`rank` where every row has ``candidates`` of its own: for each row ``[N]`` float32, N its own number.

    One forward pass a candidate, those of all rows in the same batches. Raises :class:`BadValue` for a row without any.
    """
    if not all(candidates):
        raise BadValue("a row has no candidates to choose among, expected one or more")
    pairs = [
        (number, _answering(codec, row, codec.candidate(text)))
        for number, (row, texts) in enumerate(zip(rows, candidates, strict=True))
        for text in texts
    ]
    order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][1].ids))
    scores = torch.empty(len(pairs))
    with torch.inference_mode():
        ready = carried_rows(frozen, tokens)
        for start in range(0, len(order), batch_size):
            some = order[start : start + batch_size]
            batch = collate([pairs[i][1] for i in some], fill_token(frozen.tokenizer)).to(frozen.device)
            scores[some] = row_log_probabilities(frozen, batch, rows_of(ready, [pairs[i][0] for i in some])).cpu()
    advance(len(rows))
    return list(scores.split([len(texts) for texts in candidates]))


def classify(
    frozen: FrozenModel,
    rows: Sequence[Encoded],
    head: Head,
    tokens: VirtualTokens | None,
    *,
    batch_size: int = 64,
    advance: Advance = lambda _: None,
) -> list[Tensor]:
    """For each row ``[W, C]`` float32: log-probabilities of the classes, of the row (W is 1) or of each tagged word."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].ids))
    found = [torch.empty(0)] * len(rows)
    with torch.inference_mode():
        ready = carried_rows(frozen, tokens)
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            batch = collate([rows[i] for i in numbers], fill_token(frozen.tokenizer)).to(frozen.device)
            logs_SC = answer_logits(frozen, batch, ready, head)[0].log_softmax(-1).cpu()
            counts = [sum(rows[number].scored) if head.reads == "tags" else 1 for number in numbers]
            for number, logs_WC in zip(numbers, logs_SC.split(counts), strict=True):
                found[number] = logs_WC
            advance(len(numbers))
    return found


def _answering(codec: Codec, row: Mapping[str, str], ids: Sequence[int]) -> Encoded:
    """The row with these ids as its answer, laid out as in training, without an end token."""
    if codec.contract.layout == "cloze":
        return codec.cloze(row, ids)
    source = codec.source(row)
    if codec.contract.layout == "answer":
        return Encoded(ids=source.ids, scored=source.scored, answer=tuple(ids))
    return Encoded(ids=(*source.ids, *ids), scored=(*source.scored, *[True] * len(ids)))


def _batch(frozen: FrozenModel, codec: Codec, rows: Sequence[Mapping[str, str]], ids: Sequence[int]) -> Batch:
    encoded = [_answering(codec, row, ids) for row in rows]
    return collate(encoded, fill_token(frozen.tokenizer)).to(frozen.device)


def _one_pass(
    frozen: FrozenModel,
    codec: Codec,
    rows: Sequence[Mapping[str, str]],
    ids: Sequence[Sequence[int]],
    tokens: Carried,
) -> Tensor:
    # The first candidate stands for all of them: what is said at its place is asked for every one.
    logits_BV, _ = answer_logits(frozen, _batch(frozen, codec, rows, ids[0]), tokens)
    return logits_BV.float().log_softmax(-1)[:, [x[0] for x in ids]]


def _pass_each(
    frozen: FrozenModel,
    codec: Codec,
    rows: Sequence[Mapping[str, str]],
    ids: Sequence[Sequence[int]],
    tokens: Carried,
) -> Tensor:
    columns = [row_log_probabilities(frozen, _batch(frozen, codec, rows, candidate), tokens) for candidate in ids]
    return torch.stack(columns, dim=1)
