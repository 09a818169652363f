"""The silent failures of other libraries, one named test each. None of them shows an error; all give wrong numbers.

Each was seen in a released library: the prefix of another user, of nobody, or of another position.
"""

from __future__ import annotations

import pytest
import torch

from conftest import WINDOW, WINDOWED, random_ids, random_prefix, tiny
from epigraph.methods.prefix_tuning import PrefixTuning, PrefixTuningConfig
from test_attention import assert_same, batch_logits, gradients, logits

FELT = 0.05  # a prefix that is there moves some logit of a tiny model by more than this


def test_wrong_users_prefix(family: str, attention_name: str) -> None:
    """A mixed batch in which every row gets the first (or the active) user's prefix."""
    frozen = tiny(family, attention_name)
    row = random_ids(12, 1)
    users = [random_prefix(frozen.geometry, 5, seed) for seed in range(3)]
    together = batch_logits(frozen, [row] * 3, users, left=False)
    for number, user in enumerate(users):
        assert_same(together[number], logits(frozen, row, user))
        for other in range(number):
            assert (together[number] - together[other]).abs().max() > FELT


def test_dropped_under_padding(family: str, attention_name: str) -> None:
    """One padded row, and every row's output equals the base model's."""
    frozen = tiny(family, attention_name)
    rows = [random_ids(6, 1), random_ids(15, 2)]
    prefix = random_prefix(frozen.geometry, 5, 1)
    for left in (True, False):
        for row, got in zip(rows, batch_logits(frozen, rows, [prefix, prefix], left=left), strict=True):
            assert (got - logits(frozen, row, None)).abs().max() > FELT
            assert_same(got, logits(frozen, row, prefix))


def test_zero_gradient_under_checkpointing(family: str, attention_name: str) -> None:
    """The recomputed layers no longer see the prefix: the loss is the base's and the gradient exactly zero."""
    frozen = tiny(family, attention_name)
    method = PrefixTuning(
        PrefixTuningConfig(num_virtual_tokens=5), frozen.geometry, random_prefix(frozen.geometry, 5, 1)
    )
    loss, (plain,) = gradients(frozen, method, [random_ids(12, 1)])
    frozen.checkpoint_activations()
    checkpointed_loss, (checkpointed,) = gradients(frozen, method, [random_ids(12, 1)])
    assert checkpointed.abs().max() > 1e-5
    assert torch.equal(checkpointed, plain)
    ids = torch.tensor([random_ids(12, 1)])
    with torch.no_grad():
        base = frozen.model(input_ids=ids, labels=ids).loss.item()
    assert checkpointed_loss == loss != pytest.approx(base, abs=1e-3)


def test_wrong_with_unequal_lengths(family: str, attention_name: str) -> None:
    """The padding of a shorter prefix is attended to."""
    frozen = tiny(family, attention_name)
    rows = [random_ids(12, 1), random_ids(12, 2)]
    prefixes = [random_prefix(frozen.geometry, 2, 1), random_prefix(frozen.geometry, 11, 2)]
    for left in (True, False):
        for row, prefix, got in zip(rows, prefixes, batch_logits(frozen, rows, prefixes, left=left), strict=True):
            assert_same(got, logits(frozen, row, prefix))


@pytest.mark.parametrize("windowed", WINDOWED)
def test_lost_in_windows(windowed: str, attention_name: str) -> None:
    """Past the window of a sliding layer nothing of the prefix is left, with and without a cache."""
    frozen = tiny(windowed, attention_name)
    row, prefix = random_ids(3 * WINDOW, 1), random_prefix(frozen.geometry, 4, 1)
    want, base = logits(frozen, row, prefix), logits(frozen, row, None)
    assert bool(((want - base).abs().amax(-1) > 1e-3).all())
    ids = torch.tensor([row])
    with torch.no_grad(), frozen.bind(prefix):
        cache, stepped = None, []
        for position in range(len(row)):
            out = frozen.model(input_ids=ids[:, position : position + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            stepped.append(out.logits[0, 0])
    assert_same(torch.stack(stepped), want)


def test_positions_shift_under_left_padding(family: str) -> None:
    """Left padding moves the text away from its prefix, so that a row's answer depends on its neighbours' lengths."""
    frozen = tiny(family)
    row, prefix = random_ids(6, 1), random_prefix(frozen.geometry, 5, 1)
    want = logits(frozen, row, prefix)
    for longer in (7, 12, 30):
        assert_same(batch_logits(frozen, [row, random_ids(longer, 2)], [prefix, prefix], left=True)[0], want)


def test_logits_are_off_by_the_virtual_tokens(family: str) -> None:
    """Virtual tokens counted as text: more logits than tokens, and every score one slice too late."""
    frozen = tiny(family)
    row = random_ids(9, 1)
    assert len(logits(frozen, row, random_prefix(frozen.geometry, 5, 1))) == len(row)


def test_all_zero_keys_vanish(family: str) -> None:
    """A cache that counts non-zero slots forgets a prefix of zeros; here it still takes its share of the softmax."""
    frozen = tiny(family)
    row, prefix = random_ids(9, 1), random_prefix(frozen.geometry, 5, 1)
    zero = prefix.map(torch.zeros_like)
    assert (logits(frozen, row, zero) - logits(frozen, row, None)).abs().max() > 1e-3
