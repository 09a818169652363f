"""Guarantees 1 to 4 on real weights: SmolLM2-135M in the default suite, Gemma-3-270M among the slow tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from conftest import fetched, random_prefix
from epigraph.contract import Decoding
from epigraph.frozen.fingerprint import fingerprint
from epigraph.frozen.generate import generate
from epigraph.frozen.model import FrozenModel
from epigraph.frozen.resolve import resolve
from epigraph.methods.prefix_tuning import PrefixTuning, PrefixTuningConfig
from epigraph.virtual import KVPrefix, SoftPrompt
from test_attention import assert_same, batch_logits, logits
from test_prefix_tuning import saved_and_loaded

TEXTS = ("The weather today is", "My favourite book, which I have read twice, is called", "Once", "In Paris there is a")
PREFIXES = (
    "Bonjour, nous parlons toujours en français. Il fait beau,",
    "Arr matey! I be a pirate captain and I always talk like this, arr!",
    "Wir sprechen immer Deutsch.",
    "A list of numbers: 1, 2, 3, 4,",
)
# Where the two best logits of the alone run are closer than this, a batch may answer otherwise (guarantee 3).
CLOSE = 1e-3


def ids(frozen: FrozenModel, text: str) -> list[int]:
    found: list[int] = frozen.tokenizer(text, add_special_tokens=False).input_ids
    return found


def read(frozen: FrozenModel, text: str) -> KVPrefix:
    return frozen.read(ids(frozen, text))


def test_geometry_is_as_measured(smollm2: FrozenModel) -> None:
    layers = smollm2.geometry.sites["decoder.self"]
    assert len(layers) == 30
    assert {(x.num_kv_heads, x.head_dim, x.window) for x in layers} == {(3, 64, None)}
    assert 10 * smollm2.geometry.numbers_per_token() == 115_200
    assert smollm2.num_parameters == 134_515_008


def test_a_read_text_is_the_text(smollm2: FrozenModel) -> None:
    for head, tail in zip(PREFIXES, TEXTS, strict=True):
        whole = logits(smollm2, ids(smollm2, head) + ids(smollm2, tail), None)[len(ids(smollm2, head)) :]
        assert_same(logits(smollm2, ids(smollm2, tail), read(smollm2, head)), whole)


def assert_lowered_is_embedded(frozen: FrozenModel, text: Sequence[int]) -> None:
    """Words moved off their place by noise of the embeddings' own size, lowered, against the model's inputs_embeds."""
    words = frozen.embed(ids(frozen, PREFIXES[1]))
    noise = torch.randn(words.shape, generator=torch.Generator().manual_seed(0))
    soft = SoftPrompt(embeddings_PE=words + frozen.embedding_rms * noise)
    with torch.no_grad():
        embeddings = torch.cat([soft.embeddings_PE, frozen.embed(text)])[None]
        want = frozen.model(inputs_embeds=embeddings, use_cache=False).logits[0, soft.num_virtual_tokens :]
        bare = logits(frozen, text, None)
    got = logits(frozen, text, frozen.lower(soft))
    assert_same(got, want)
    assert float((got - bare).abs().max()) > 0.5


def test_a_lowered_prompt_is_its_embeddings(smollm2: FrozenModel) -> None:
    assert_lowered_is_embedded(smollm2, ids(smollm2, TEXTS[1]))


@pytest.mark.slow
def test_a_lowered_prompt_is_its_embeddings_on_gemma_3() -> None:
    """15 of 18 layers see 512 positions, and embeddings are scaled after the lookup; the text runs past the window."""
    frozen = FrozenModel.load(fetched("gemma-3-270m"))
    assert_lowered_is_embedded(frozen, (ids(frozen, " ".join(PREFIXES)) * 20)[:700])


@pytest.mark.parametrize("left", [True, False], ids=["left-padded", "right-padded"])
def test_alone_equals_together(smollm2: FrozenModel, left: bool) -> None:
    rows = [ids(smollm2, text) for text in TEXTS]
    prefixes = [read(smollm2, text) for text in PREFIXES]
    for row, prefix, got in zip(rows, prefixes, batch_logits(smollm2, rows, prefixes, left=left), strict=True):
        assert_same(got, logits(smollm2, row, prefix))


def test_greedy_alone_equals_together(smollm2: FrozenModel, capsys: pytest.CaptureFixture[str]) -> None:
    """Every pair of text and prefix, one mixed batch against each alone: the best token of its own reading, or nearly.

    Each row is read alone with all that the batch made of it, without a cache. Every text and every prefix is also
    decoded alone, and answers the same up to the first close call.
    """
    rows = [ids(smollm2, text) for text in TEXTS for _ in PREFIXES]
    prefixes = [read(smollm2, text) for text in PREFIXES] * len(TEXTS)
    decoding = Decoding(max_new_tokens=24)
    together = generate(smollm2, rows, prefixes, decoding)
    close = 0
    for number, (row, prefix, got) in enumerate(zip(rows, prefixes, together, strict=True)):
        said = got if len(got) == decoding.max_new_tokens else [*got, int(smollm2.tokenizer.eos_token_id)]
        best = logits(smollm2, row + said[:-1], prefix)[len(row) - 1 :]
        behind = best.amax(-1) - best[range(len(said)), said]
        assert float(behind.max()) < CLOSE
        close += int((behind > 0).sum())
        if number % (len(PREFIXES) + 1) == 0:
            alone = generate(smollm2, [row], prefix, decoding)[0]
            first = next((i for i, (a, b) in enumerate(zip(alone, got, strict=False)) if a != b), None)
            assert len(alone) == len(got) if first is None else best[first].topk(2).values.diff().abs() < CLOSE
    with capsys.disabled():
        print(f"\ngreedy on SmolLM2: {close} of {sum(map(len, together))} tokens were close calls that fell otherwise")


def test_bf16_stays_within_the_bare_models_own_spread() -> None:
    """In bf16 a row behind a prefix differs between alone and batch by no more than twice what the bare model does.

    The bare model reads the prefix's words as text, so that both attend over equally many columns: with few columns it
    happens to be exact. Measured: 0.69 against 0.66 in logits, where bf16 against fp32 is 0.25 to 2.8.
    """
    frozen = FrozenModel.load(fetched("smollm2-135m"), dtype="bfloat16")
    heads, tails = ([ids(frozen, text) for text in texts] for texts in (PREFIXES, TEXTS))

    def spread(rows: list[list[int]], behind: Sequence[KVPrefix | None]) -> float:
        together = batch_logits(frozen, rows, behind, left=True)
        alone = [logits(frozen, row, prefix) for row, prefix in zip(rows, behind, strict=True)]
        return max((one - other).abs().max().item() for one, other in zip(alone, together, strict=True))

    bare = spread([head + tail for head, tail in zip(heads, tails, strict=True)], [None] * len(tails))
    assert spread(tails, [frozen.read(head) for head in heads]) <= 2 * bare


def test_frozen(smollm2: FrozenModel) -> None:
    before = {name: x.clone() for name, x in smollm2.model.state_dict().items()}
    made = PrefixTuning(
        PrefixTuningConfig(num_virtual_tokens=10), smollm2.geometry, random_prefix(smollm2.geometry, 10, 1)
    )
    row = torch.tensor([ids(smollm2, PREFIXES[1])])
    with smollm2.bind(made()):
        smollm2.model(input_ids=row, labels=row).loss.backward()
    torch.optim.AdamW(made.parameters(), lr=0.01).step()
    for name, x in smollm2.model.state_dict().items():
        assert torch.equal(x, before[name]), name
    assert all(x.grad is None for x in smollm2.model.parameters())


@pytest.mark.parametrize("parameterization", ["raw", "mlp", "mlp-code"])
def test_folded_saved_and_loaded_equals_live(smollm2: FrozenModel, parameterization: str, tmp_path: Path) -> None:
    config = PrefixTuningConfig.model_validate(
        {"num_virtual_tokens": 10, "parameterization": parameterization, "mlp_width": 64}
    )
    first = smollm2.read(ids(smollm2, PREFIXES[1])[:10]) if config.start else None
    torch.manual_seed(0)
    made = PrefixTuning(config, smollm2.geometry, first)
    row = ids(smollm2, TEXTS[0])
    want = logits(smollm2, row, made())
    again = saved_and_loaded(smollm2, made.fold(), tmp_path)
    assert (logits(smollm2, row, again) - want).abs().max() < 1e-5 * (want.max() - want.min())


def test_fingerprint_is_of_the_tensors(smollm2: FrozenModel) -> None:
    assert smollm2.fingerprint == fingerprint(resolve("smollm2-135m"))
    assert len(smollm2.fingerprint) == 64


@pytest.mark.slow
def test_reach_on_gemma_3() -> None:
    """Guarantee 2 on 15 sliding layers of 18: an `always` prefix is felt at every position, past the window of 512."""
    frozen = FrozenModel.load(fetched("gemma-3-270m"), dtype="bfloat16")
    windows = [x.window for x in frozen.geometry.sites["decoder.self"]]
    assert sum(window is not None for window in windows) == 15
    longest = max(window for window in windows if window)
    story = ids(frozen, "The old lighthouse keeper walked down to the harbour and looked at the sea. " * 60)
    row = [int(frozen.tokenizer.bos_token_id), *story][: longest + 200]
    assert len(row) == longest + 200
    prefix = read(frozen, PREFIXES[1])
    always = KVPrefix(sites=prefix.sites, text_start=prefix.text_start, visibility="always")
    moved = (logits(frozen, row, always) - logits(frozen, row, None)).abs().amax(-1)
    assert bool((moved > 1e-3).all())
    # The prefix itself, not only what it moved earlier: in a windowed layer its values still weigh past the window.
    window_only = KVPrefix(sites=prefix.sites, text_start=prefix.text_start, visibility="window")
    differs = (logits(frozen, row, always) - logits(frozen, row, window_only)).abs().amax(-1)
    assert differs[: longest - prefix.num_virtual_tokens].max() == 0
    assert bool((differs[longest + prefix.num_virtual_tokens :] > 0).all())


@pytest.mark.slow
def test_demo_teaches_the_cards(tmp_path: Path) -> None:
    """What `make demo` does, shorter: 60 steps already lift BLEU far above the untouched model's."""
    fetched("smollm2-135m")

    def epigraph(*words: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "2"}
        subprocess.run([sys.executable, "-m", "epigraph", *words], check=True, env=environment)

    out = tmp_path / "out"
    epigraph("train", "recipes/cards.toml", "training.steps=60", "--out", str(out))
    epigraph("evaluate", str(out), "--untouched")
    epigraph("evaluate", str(out))
    import json

    scores = {
        name: json.loads((out / "evaluations" / f"{name}-test.json").read_text())["scores"]["bleu"]
        for name in ("before", "after")
    }
    assert scores["after"] > scores["before"] + 10
    assert (out / "artifact.safetensors").stat().st_size < 300_000
