"""PEFT's methods as opponents: its own modules and forward; from the same first values, our losses and answers."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from epigraph.bench.peers import prefix_of
from epigraph.bench.sides import inputs
from epigraph.contract import Decoding
from epigraph.errors import BadValue
from epigraph.frozen.batch import Batch, collate
from epigraph.frozen.generate import generate
from epigraph.frozen.inputs import fill_token
from epigraph.frozen.model import FrozenModel
from epigraph.methods import initial
from epigraph.methods.base import flatten
from epigraph.methods.weights import Weights
from epigraph.train.answering import open_run
from epigraph.train.baselines.peft_peers import CONFIGS, Peer
from epigraph.train.build import make_method
from epigraph.train.loss import token_losses
from epigraph.train.prepare import Prepared, prepare
from epigraph.train.recipe_file import check_recipe
from folders import call, refused, save_family, write_rows

SUMS = [{"source": f"{a}+{b} is" + " so" * (a % 3), "target": str(a + b)} for a in range(4) for b in range(4)]
PROMPTS = [[5, 6, 7, 8, 9], [5, 6], [9, 8, 7, 6]]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "sums.jsonl", SUMS)


@pytest.fixture(scope="module", params=["llama", "gpt2", "qwen3"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family(request.param, tmp_path_factory.mktemp("models") / request.param)


def prepared(base: Path, rows: Path, method: str, **more: object) -> Prepared:
    return prepare(
        check_recipe(
            {
                "model": str(base),
                "data": {"train": str(rows)},
                "method": {"name": method, "num_virtual_tokens": 4, **more},
                "training": {"steps": 3, "precision": "fp32"},
            }
        )
    )


def made(ready: Prepared) -> tuple[Weights, Peer]:
    method = make_method(ready)
    assert isinstance(method, Weights)
    assert isinstance(method.foreign, Peer)
    return method, method.foreign


def batch_of(ready: Prepared) -> Batch:
    return collate(ready.rows[:5], fill_token(ready.frozen.tokenizer))


def moved(method: Weights) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for x in method.parameters():
            x.add_(torch.randn(x.shape, generator=generator) * 0.3)


@pytest.mark.parametrize("name", CONFIGS)
def test_losses_are_those_of_peft_around_a_plain_model(base: Path, rows: Path, name: str) -> None:
    import peft

    ready = prepared(base, rows, name)
    method, peer = made(ready)
    moved(method)
    ours = peer.losses(batch_of(ready)).mean()
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = peer.model.peft_config["default"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(plain, type(config)(**{k: v for k, v in config.to_dict().items() if k in KEPT}))
    theirs.prompt_encoder.load_state_dict(peer.model.prompt_encoder.state_dict())
    want = theirs.eval()(**inputs(batch_of(ready))).loss
    torch.testing.assert_close(ours, want, rtol=1e-5, atol=1e-6)
    ours.backward()
    assert all(x.grad is not None and bool(x.grad.abs().sum() > 0) for x in method.parameters())
    assert [x for x in ready.frozen.model.parameters() if x.grad is not None and x.requires_grad is False] == []


KEPT = ("task_type", "num_virtual_tokens", "encoder_hidden_size")


def test_the_same_prefix_in_our_seam_gives_the_same_losses_and_answers(base: Path, rows: Path) -> None:
    """So that what differs between PEFT's runs and ours is how a prefix starts and is trained, not how it is used."""
    ready = prepared(base, rows, "peft-prefix")
    method, peer = made(ready)
    moved(method)
    like = initial.zero(ready.frozen.geometry, 4)
    prefix = prefix_of(peer.model, like, ready.frozen)
    ours = token_losses(ready.frozen, batch_of(ready), prefix)
    torch.testing.assert_close(peer.losses(batch_of(ready)), ours, rtol=1e-4, atol=1e-5)
    decoding = Decoding(max_new_tokens=6, min_new_tokens=6)
    theirs = peer.generate(PROMPTS, decoding, batch_size=8, advance=lambda _: None)
    assert theirs == generate(ready.frozen, PROMPTS, prefix, decoding)
    assert theirs != generate(ready.frozen, PROMPTS, None, decoding)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_prompt_alone_is_answered_as_among_others(base: Path, rows: Path, name: str) -> None:
    method, peer = made(prepared(base, rows, name))
    moved(method)
    decoding = Decoding(max_new_tokens=6, min_new_tokens=6)
    together = peer.generate(PROMPTS, decoding, batch_size=8, advance=lambda _: None)
    assert together == [
        peer.generate([prompt], decoding, batch_size=8, advance=lambda _: None)[0] for prompt in PROMPTS
    ]


def test_the_first_values_of_a_text_are_ours(base: Path, rows: Path) -> None:
    ready = prepared(base, rows, "peft-prefix", initial="text", initial_text="add the two numbers")
    method, _ = made(ready)
    ids = ready.frozen.tokenizer("add the two numbers", add_special_tokens=False).input_ids
    want = flatten(initial.from_text(ready.frozen.read, ids, 4))
    assert flat(method).shape == want.shape
    torch.testing.assert_close(flat(method), want, rtol=1e-4, atol=1e-5)


def flat(method: Weights) -> Tensor:
    [embedding] = method.named.values()
    return embedding.detach()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_run_learns_is_kept_and_answers_again(rows: Path, name: str, tmp_path: Path) -> None:
    base = save_family("llama", tmp_path / "llama")
    out = tmp_path / "run"
    call("train", "--model", base, "--data", rows, "--method", name, "--num-virtual-tokens", 4, "--steps", 20,
         "--lr", 0.03, "--precision", "fp32", "--out", out)  # fmt: skip
    opened = open_run(out)
    ready = prepared(base, rows, name)
    before, _ = made(ready)
    assert isinstance(opened.foreign, Peer)
    assert isinstance(before.foreign, Peer)
    with torch.no_grad():
        assert opened.foreign.losses(batch_of(ready)).mean() < before.foreign.losses(batch_of(ready)).mean()
    task, examples = ready.task, ready.task.load("train")
    first = opened.evaluate(task, examples).predictions
    assert first == open_run(out).evaluate(task, examples).predictions
    assert len(set(first)) > 1 or first[0]


def test_what_it_cannot_do_is_refused(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = save_family("t5", tmp_path / "t5")
    said = refused(capsys, "train", "--model", base, "--data", rows, "--method", "peft-prefix", "--out", tmp_path / "x")
    assert "compared on causal decoders" in said
    with pytest.raises(BadValue, match="initial = 'text' is for peft-prefix"):
        check_recipe({"data": {"task": "cards"}, "method": {"name": "peft-prompt", "initial": "text"}})


def test_the_frozen_model_stays_ours(base: Path, rows: Path) -> None:
    """PEFT's wrapping leaves the base bare for everybody else."""
    ready = prepared(base, rows, "peft-prefix")
    bare = FrozenModel.load(str(base))
    made(ready)
    decoding = Decoding(max_new_tokens=5)
    assert generate(ready.frozen, PROMPTS, None, decoding) == generate(bare, PROMPTS, None, decoding)
