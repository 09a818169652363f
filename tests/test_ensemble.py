"""An ensemble answers what its members' distributions, averaged by hand, would answer; a vote is counted honestly.

The slow twin: one model a member, whole forwards without a cache, one prompt at a time, one token at a time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import random_ids, random_prefix, save_tiny, tiny
from epigraph import artifact
from epigraph.cli import main
from epigraph.contract import Decoding
from epigraph.errors import BadValue, ContractMismatch, GeometryMismatch, WrongBase
from epigraph.frozen.ensemble import (
    JOININGS,
    MEANS,
    Ensemble,
    Mean,
    answer_log_probability,
    generate_ensemble,
    generate_majority,
)
from epigraph.frozen.generate import generate
from epigraph.frozen.model import FrozenModel
from epigraph.tuned import Tuned
from epigraph.virtual import SoftPrompt, VirtualTokens

GREEDY = Decoding(max_new_tokens=7)
PROMPTS = [random_ids(n, 10 + n) for n in (5, 12, 3, 9, 5)]


def soft(frozen: FrozenModel, num_virtual_tokens: int, seed: int) -> SoftPrompt:
    generator = torch.Generator().manual_seed(seed)
    shape = (num_virtual_tokens, frozen.geometry.embedding_dim)
    return SoftPrompt(embeddings_PE=frozen.embedding_rms * torch.randn(shape, generator=generator))


def mixed(frozen: FrozenModel) -> list[VirtualTokens]:
    """Members of different lengths and kinds."""
    return [random_prefix(frozen.geometry, 6, 1), soft(frozen, 3, 2)]


def next_logits(frozen: FrozenModel, tokens: VirtualTokens, ids: Sequence[int]) -> Tensor:
    """``[V]``: what one member says next, a soft prompt by the model's own ``inputs_embeds``."""
    with torch.no_grad():
        if isinstance(tokens, SoftPrompt):
            embeddings = torch.cat([tokens.embeddings_PE, frozen.embed(ids)])[None]
            return frozen.model(inputs_embeds=embeddings, use_cache=False).logits[0, -1].double()
        with frozen.bind(tokens):
            return frozen.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double()


def by_hand(
    models: Sequence[FrozenModel], members: Sequence[VirtualTokens], prompt: list[int], decoding: Decoding, mean: str
) -> list[int]:
    new: list[int] = []
    while len(new) < decoding.max_new_tokens:
        each = [next_logits(model, x, prompt + new) for model, x in zip(models, members, strict=True)]
        for logits in each:
            if len(new) < decoding.min_new_tokens:
                logits[2] = -math.inf
        shares = torch.stack([logits.softmax(-1) for logits in each])
        joined = shares.log().mean(0) if mean == "geometric" else shares.mean(0)
        token = int(joined.argmax())
        if token == 2:
            break
        new.append(token)
    return new


@pytest.mark.parametrize("mean", MEANS)
def test_an_ensemble_is_its_members_averaged_by_hand(family: str, mean: Mean) -> None:
    frozen = tiny(family)
    members = mixed(frozen)
    got = generate_ensemble(frozen, PROMPTS, members, GREEDY, mean=mean, batch_size=6)
    twins = [tiny(family), tiny(family)]
    assert got == [by_hand(twins, members, prompt, GREEDY, mean) for prompt in PROMPTS]
    alone = [generate(frozen, PROMPTS, member, GREEDY) for member in members]
    assert got not in alone


@pytest.mark.parametrize("mean", MEANS)
def test_an_early_end_is_forbidden_to_each_member(mean: Mean) -> None:
    """The head's row for the end token is turned to what members say, so that greedy answers would end at once."""
    decoding = Decoding(max_new_tokens=6, min_new_tokens=4)
    frozen, twin = tiny("llama"), tiny("llama")
    members = mixed(frozen)
    for one in (frozen, twin):
        head = one.model.get_output_embeddings().weight
        with torch.no_grad():
            head[2] = head.max(0).values + 1
    got = generate_ensemble(frozen, PROMPTS, members, decoding, mean=mean)
    assert got == [by_hand([twin, twin], members, prompt, decoding, mean) for prompt in PROMPTS]
    free = generate_ensemble(frozen, PROMPTS, members, GREEDY, mean=mean)
    assert min(map(len, got)) >= 4 > min(map(len, free))


def test_the_two_means_are_two_functions(family: str) -> None:
    frozen = tiny(family)
    prompts = [random_ids(6, seed) for seed in range(16)]
    one, other = (generate_ensemble(frozen, prompts, mixed(frozen), GREEDY, mean=mean) for mean in MEANS)
    assert one != other


@pytest.mark.parametrize("mean", JOININGS)
@pytest.mark.parametrize("kind", ["prefix", "soft"])
def test_copies_of_one_artifact_answer_as_it_does(family: str, mean: Any, kind: str) -> None:
    frozen = tiny(family)
    one: VirtualTokens = random_prefix(frozen.geometry, 4, 3) if kind == "prefix" else soft(frozen, 4, 3)
    ensemble = Ensemble(members=(one,) * 3, mean=mean)
    assert ensemble.generate(frozen, PROMPTS, str, GREEDY) == generate(frozen, PROMPTS, one, GREEDY)


@pytest.mark.parametrize("mean", JOININGS)
def test_an_answer_does_not_depend_on_its_neighbours(family: str, mean: Any) -> None:
    frozen = tiny(family)
    ensemble = Ensemble(members=(*mixed(frozen), random_prefix(frozen.geometry, 9, 5)), mean=mean)
    done: list[int] = []
    together = ensemble.generate(frozen, PROMPTS, str, GREEDY, batch_size=100, advance=done.append)
    alone = [ensemble.generate(frozen, [prompt], str, GREEDY)[0] for prompt in PROMPTS]
    assert together == alone
    assert sum(done) == len(PROMPTS)
    few: list[int] = []
    assert ensemble.generate(frozen, PROMPTS, str, GREEDY, batch_size=1, advance=few.append) == together
    assert few == [1] * len(PROMPTS)


def test_the_order_of_members_does_not_change_a_mean() -> None:
    frozen = tiny("qwen3")
    members = mixed(frozen)
    for mean in MEANS:
        there, back = (generate_ensemble(frozen, PROMPTS, x, GREEDY, mean=mean) for x in (members, members[::-1]))
        assert there == back


def answers_of(frozen: FrozenModel, members: Sequence[VirtualTokens]) -> list[list[list[int]]]:
    return [generate(frozen, PROMPTS, member, GREEDY) for member in members]


def test_the_majority_wins_whatever_its_place() -> None:
    """Two of three members agree because they are one; the third says something else."""
    frozen = tiny("llama")
    one, other = mixed(frozen)
    agreed, outvoted = answers_of(frozen, [one, other])
    assert all(x != y for x, y in zip(agreed, outvoted, strict=True))
    for members in ([one, other, one], [other, one, one], [one, one, other]):
        assert generate_majority(frozen, PROMPTS, members, GREEDY, str) == agreed


def test_votes_are_counted_by_text_not_by_ids() -> None:
    """Three members, three different answers; where two of them read alike they win against any probability."""
    frozen = tiny("llama")
    members = [random_prefix(frozen.geometry, 4, seed) for seed in (1, 2, 3)]
    first, second, third = (answers[0] for answers in answers_of(frozen, members))
    assert len({tuple(x) for x in (first, second, third)}) == 3
    for alike in ([second, third], [first, third], [first, second]):
        [won] = generate_majority(
            frozen, PROMPTS[:1], members, GREEDY, lambda ids, alike=alike: "same" if ids in alike else str(ids)
        )
        assert won == alike[0]


def slow_score(frozen: FrozenModel, prompt: list[int], answer: list[int], members: Sequence[VirtualTokens]) -> float:
    """Over members and tokens, each token by a forward of its own."""
    ended = answer if len(answer) == GREEDY.max_new_tokens else [*answer, 2]
    said = [
        float(next_logits(frozen, member, prompt + ended[:number]).log_softmax(-1)[token])
        for member in members
        for number, token in enumerate(ended)
    ]
    return sum(said) / len(said)


def test_a_tie_goes_to_the_likelier_answer(family: str) -> None:
    """Two members that differ are always a tie; both of them win somewhere, and the order of members is no matter."""
    frozen = tiny(family)
    members = mixed(frozen)
    prompts = [random_ids(6, seed) for seed in range(12)]
    each = [generate(frozen, prompts, member, GREEDY) for member in members]
    expected = [
        max(tied, key=lambda ids, prompt=prompt: slow_score(frozen, prompt, ids, members))
        for prompt, tied in zip(prompts, zip(*each, strict=True), strict=True)
    ]
    assert generate_majority(frozen, prompts, members, GREEDY, str) == expected
    assert generate_majority(frozen, prompts, members[::-1], GREEDY, str) == expected
    assert expected not in each


def test_the_score_of_an_answer_is_that_of_its_tokens_one_by_one(family: str) -> None:
    frozen = tiny(family)
    members = mixed(frozen)
    answer = [*random_ids(4, 6), 2]
    want = slow_score(frozen, PROMPTS[1], answer[:-1], members)
    got = answer_log_probability(frozen, PROMPTS[1], answer, [frozen.lower(x) for x in members])
    assert got == pytest.approx(want, abs=1e-4)
    assert got != pytest.approx(answer_log_probability(frozen, PROMPTS[1], answer[:-1], members), abs=1e-3)
    with pytest.raises(BadValue, match="has no tokens"):
        answer_log_probability(frozen, PROMPTS[1], [], members)


def test_what_cannot_be_averaged_is_refused() -> None:
    frozen = tiny("llama")
    members = mixed(frozen)
    with pytest.raises(BadValue, match="num_beams is 3, expected 1: the members of an ensemble are averaged token by"):
        generate_ensemble(frozen, PROMPTS, members, Decoding(num_beams=3))
    with pytest.raises(BadValue, match=r"mean is 'harmonic', expected one of geometric, arithmetic$"):
        generate_ensemble(frozen, PROMPTS, members, GREEDY, mean="harmonic")  # type: ignore[arg-type]
    with pytest.raises(BadValue, match="was trained to stand alone before the text"):
        Ensemble(members=tuple(members), mean="concatenate")  # type: ignore[arg-type]
    with pytest.raises(BadValue, match="the ensemble has no members"):
        Ensemble(members=())
    with pytest.raises(GeometryMismatch):
        generate_ensemble(frozen, PROMPTS, [members[0], SoftPrompt(embeddings_PE=torch.zeros(2, 9))], GREEDY)


def test_a_vote_may_use_beams() -> None:
    frozen = tiny("llama")
    one, other = mixed(frozen)
    decoding = Decoding(max_new_tokens=7, num_beams=3)
    got = generate_majority(frozen, PROMPTS, [one, other, one], decoding, str)
    assert got == generate(frozen, PROMPTS, one, decoding)
    assert got != generate(frozen, PROMPTS, one, GREEDY)


# Artifacts and the command

SUMS = [{"source": f"{a}+{b}", "target": str(a + b)} for a in range(4) for b in range(4)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in SUMS))
    return path


@pytest.fixture(scope="module")
def runs(base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A prefix and a soft prompt, trained by the command on the same rows."""
    prefix, prompt = (tmp_path_factory.mktemp("runs") / name for name in ("prefix", "prompt"))
    train(base, rows, prefix, "--num-virtual-tokens", "3", "--lr", "0.03")
    train(base, rows, prompt, "--num-virtual-tokens", "5", "--method", "prompt-tuning", "--seed", "2")
    return prefix, prompt


def train(base: Path, rows: Path, out: Path, *more: str) -> None:
    flags = ["--steps", "8", "--batch-size", "8", "--precision", "fp32", "--out", str(out), *more]
    with pytest.raises(SystemExit) as done:
        main(["train", "--model", str(base), "--data", str(rows), *flags])
    assert done.value.code == 0


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as done:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert isinstance(done.value.code, int)
    return done.value.code, out, err


def fails(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("epigraph: ")
    return err.strip()


@pytest.mark.parametrize("mean", JOININGS)
def test_evaluate_with_others(
    runs: tuple[Path, Path], rows: Path, mean: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix, prompt = runs
    words = ["evaluate", prefix, "--with", prompt, "--data", rows, "--precision", "fp32"]
    code, out, err = run(capsys, *words, "--mean", mean, "--max-new-tokens", "4", "--json")
    assert code == 0, err
    said = json.loads(out)
    hashes = [artifact.inspect(artifact.find(folder))["content_hash"] for folder in runs]
    assert said["ensemble"] == {"mean": mean, "members": hashes}
    assert len(set(hashes)) == 2
    kept = json.loads((prefix / "evaluations" / "ensemble-test.json").read_text())
    assert kept["name"] == "ensemble"
    assert kept["ensemble"] == said["ensemble"]
    tuned = Tuned.load(prefix)
    ensemble = tuned.ensemble(prompt, mean=mean)  # type: ignore[arg-type]
    texts = [row["source"] for row in SUMS]
    want = tuned.generate(texts, ensemble=ensemble, decoding=Decoding(max_new_tokens=4))
    assert [x["prediction"] for x in kept["examples"]] == want


def test_the_record_does_not_take_the_place_of_the_artifacts_own_and_the_report_shows_it(
    runs: tuple[Path, Path], rows: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    prefix, prompt = runs
    words = ["evaluate", prefix, "--data", rows, "--precision", "fp32", "--max-new-tokens", "4"]
    for more in ([], ["--untouched"], ["--with", prompt, "--with", prompt]):
        assert run(capsys, *words, *more)[0] == 0
    records = {path.name: json.loads(path.read_text()) for path in (prefix / "evaluations").glob("*.json")}
    assert set(records) == {"before-test.json", "after-test.json", "ensemble-test.json"}
    assert len(records["ensemble-test.json"]["ensemble"]["members"]) == 3
    assert records["ensemble-test.json"]["ensemble"]["mean"] == "geometric"
    assert "ensemble" not in records["after-test.json"]
    code, _, err = run(capsys, "report", prefix, "--out", tmp_path / "page.html")
    assert code == 0, err
    page = (tmp_path / "page.html").read_text()
    assert ">ensemble<" in page
    assert ">after<" in page


def test_generate_with_others(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    prefix, prompt = runs
    tuned = Tuned.load(prefix)
    for mean in JOININGS:
        code, out, err = run(
            capsys, "generate", prefix, "2+2", "--with", prompt, "--mean", mean, "--max-new-tokens", "5"
        )
        assert code == 0, err
        want = tuned.generate(["2+2"], ensemble=tuned.ensemble(prompt, mean=mean), decoding=Decoding(max_new_tokens=5))
        assert out == f"{want[0]}\n"


def test_flags_that_do_not_go_together(
    runs: tuple[Path, Path], rows: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    prefix, prompt = runs
    evaluate = ["evaluate", prefix, "--data", rows, "--precision", "fp32"]
    pair = ["--with", prompt]
    assert "--mean is 'best', expected one of geometric, arithmetic, majority" in fails(
        capsys, *evaluate, *pair, "--mean", "best"
    )
    assert "none to have another beside it" in fails(capsys, *evaluate, *pair, "--mean", "concatenated")
    assert "got --mean arithmetic without --with" in fails(capsys, *evaluate, "--mean", "arithmetic")
    assert "got both --untouched and --with" in fails(capsys, *evaluate, *pair, "--untouched")
    assert "num_beams is 2, expected 1" in fails(capsys, *evaluate, *pair, "--num-beams", "2")
    assert "does not exist" in fails(capsys, *evaluate, "--with", tmp_path / "nowhere")
    assert "got --temperature 0.5 with --with, expected 0" in fails(
        capsys, "generate", prefix, "2+2", *pair, "--temperature", "0.5"
    )


def test_sampling_an_ensemble_is_refused(runs: tuple[Path, Path]) -> None:
    tuned = Tuned.load(runs[0])
    with pytest.raises(BadValue, match="got do_sample for an ensemble, expected none"):
        tuned.generate(["2+2"], ensemble=tuned.ensemble(runs[1]), do_sample=True)


def test_members_that_do_not_go_together_are_refused(
    runs: tuple[Path, Path], base: Path, rows: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other_words, other_decoding = tmp_path / "words", tmp_path / "decoding"
    train(base, rows, other_words, "--num-virtual-tokens", "3", "text.input_template={source} = ")
    tuned = Tuned.load(runs[0])
    with pytest.raises(ContractMismatch, match=r"its text contract has input_template '\{source\} = ', expected"):
        tuned.ensemble(other_words)
    assert "cannot join the ensemble" in fails(capsys, "generate", runs[0], "2+2", "--with", other_words)
    own = artifact.load(artifact.find(runs[1]))
    changed = {"contract": own.contract.model_copy(update={"decoding": Decoding(max_new_tokens=3)})}
    artifact.save(copied(own, changed), other_decoding)
    assert len(tuned.ensemble(other_decoding).members) == 2
    foreign = tmp_path / "foreign"
    artifact.save(copied(own, {"base_fingerprint": "0" * 64}), foreign)
    with pytest.raises(WrongBase):
        tuned.ensemble(foreign)
    assert len(tuned.ensemble(foreign, allow_base=tuned.frozen.fingerprint).members) == 2


def copied(own: artifact.Artifact, changes: dict[str, Any]) -> artifact.Artifact:
    from dataclasses import replace

    return replace(own, **changes)
