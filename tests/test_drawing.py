"""What is drawn, against transformers' own processors for the cuts and against plain arithmetic for the rest."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from epigraph.contract import Decoding
from epigraph.engine.base import Request, Sampling
from epigraph.engine.drawing import Draw, draw, draw_together
from epigraph.errors import BadValue

DECODING = Decoding(max_new_tokens=50)


def drawing(decoding: Decoding = DECODING, ends: frozenset[int] = frozenset(), **sampling: Any) -> Draw:
    return Draw(sampling=Sampling(**sampling), decoding=decoding, ends=ends)


def logits(size: int, seed: int = 0, spread: float = 2.0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * spread


def warped(logits_V: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """The probabilities that transformers would draw from."""
    scores = TemperatureLogitsWarper(temperature)(None, logits_V[None].clone())
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    return scores[0].double().softmax(-1)


@pytest.mark.parametrize("size", [12, 2_000])
@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(1.0, 0, 1), (0.7, 5, 1), (1.5, 0, 0.8), (3.0, 600, 0.95)])
def test_tokens_come_as_often_as_transformers_says(size: int, temperature: float, top_k: int, top_p: float) -> None:
    logits_V = logits(size)
    one = drawing(temperature=temperature, top_k=top_k, top_p=top_p, seed=3)
    counts = Counter(one.drawn(logits_V) for _ in range(4_000))
    want_V = warped(logits_V, temperature, top_k, top_p)
    assert all(want_V[token] > 0 for token in counts)
    # Rare ones together, so that the test's own condition holds.
    common = (want_V * 4_000 >= 8).nonzero()[:, 0].tolist()
    got = [counts[x] for x in common]
    want = [float(want_V[x]) * 4_000 for x in common]
    if 4_000 - sum(want) > 8:
        got, want = [*got, 4_000 - sum(got)], [*want, 4_000 - sum(want)]
    assert chisquare(got, [x * sum(got) / sum(want) for x in want]).pvalue > 1e-4


def test_a_share_that_few_tokens_do_not_reach_is_cut_among_all() -> None:
    flat = torch.zeros(5_000) + torch.linspace(0.01, 0, 5_000)
    one = drawing(temperature=1.0, top_p=0.5, seed=0)
    drawn = {one.drawn(flat) for _ in range(3_000)}
    assert 2_000 < max(drawn) < 2_520
    assert len(drawn) > 1_000


def test_what_was_said_loses_its_penalties_before_all_else() -> None:
    logits_V = logits(20)
    one = drawing(presence_penalty=0.5, frequency_penalty=0.25)
    for token in (3, 3, 7):
        one.say(token)
    want = logits_V.clone()
    want[3] -= 0.5 + 2 * 0.25
    want[7] -= 0.5 + 0.25
    assert torch.equal(one.changed(logits_V), want)
    best = int(logits_V.argmax())
    greedy = drawing(presence_penalty=2.0, frequency_penalty=2.0)
    seen = []
    for _ in range(6):
        [drawn] = draw([greedy], logits_V[None])
        assert drawn is not None
        greedy.say(drawn.token)
        seen.append(drawn.token)
    assert seen[0] == best
    assert len(set(seen)) > 3


def test_an_answer_does_not_end_before_it_may() -> None:
    logits_V = torch.zeros(9)
    logits_V[4] = 100
    one = drawing(Decoding(max_new_tokens=9, min_new_tokens=2), frozenset({4}))
    tokens = []
    for _ in range(3):
        [drawn] = draw([one], logits_V[None])
        assert drawn is not None
        one.say(drawn.token)
        tokens.append(drawn.token)
    assert 4 not in tokens[:2]
    assert tokens[2] == 4


def test_rows_draw_each_for_itself_and_a_row_of_no_numbers_draws_nothing() -> None:
    rows = torch.stack([logits(30, seed) for seed in range(4)])
    rows[2, 5] = float("nan")
    draws = [drawing(), drawing(temperature=1.0, seed=1), drawing(), drawing(frequency_penalty=1.0)]
    found = draw(draws, rows)
    assert [x is None for x in found] == [False, False, True, False]
    assert found[0] is not None
    assert found[0].token == int(rows[0].argmax())
    again = drawing(temperature=1.0, seed=1).drawn(rows[1])
    assert found[1] is not None
    assert found[1].token == again


def test_members_are_joined_before_the_token_is_drawn() -> None:
    one, other = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.02, 0.5, 0.48]).log()
    both = torch.stack([one, other])
    geometric = draw_together(drawing(), both, "geometric")
    arithmetic = draw_together(drawing(), both, "arithmetic")
    assert geometric is not None
    assert arithmetic is not None
    # sqrt(.7 * .02) = .12, sqrt(.2 * .5) = .32, sqrt(.1 * .48) = .22; means .36, .35, .29.
    assert (geometric.token, arithmetic.token) == (1, 0)
    assert draw_together(drawing(), both * float("nan"), "geometric") is None


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"top_k": -1}, "top_k is -1"),
        ({"presence_penalty": 2.5}, "presence_penalty is 2.5"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty is nan"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(BadValue, match=words):
        Sampling(**wrong)


def test_requests_that_mean_nothing_are_refused() -> None:
    with pytest.raises(BadValue, match="logprobs is 21"):
        Request(text="a", logprobs=21)
    with pytest.raises(BadValue, match="stop text is empty"):
        Request(text="a", stop=("",))
    with pytest.raises(BadValue, match="with no prefix"):
        Request(text="a", others=(None,))  # type: ignore[arg-type]
