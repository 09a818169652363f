"""The serving bench without an engine: draws, pairs, tasks on disk, the sample against transformers, tables."""

from __future__ import annotations

import json
import random
import re
import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conftest import save_tiny, tiny_model, tiny_tokenizer
from epigraph.bench import serve_check, serve_engine
from epigraph.bench.serve import PARTS, run
from epigraph.bench.serve_check import check
from epigraph.bench.serve_engine import last_error
from epigraph.bench.serve_job import FULL, QUICK, Pairs
from epigraph.bench.serve_load import TEXT_LENGTHS, Ask, bare, drawn, renamed, texts
from epigraph.bench.serve_local import PARTS as LOCAL_PARTS
from epigraph.bench.serve_tasks import write_adapters, write_prefixes
from epigraph.cli import main
from epigraph.contract import Decoding
from epigraph.engine.shelf import Shelf
from epigraph.errors import BadValue, CannotServe, EngineUnavailable
from epigraph.frozen.generate import generate
from epigraph.frozen.model import FrozenModel
from epigraph.report.performance import read, shown_part, tables
from epigraph.report.serving import SHOW, TITLES
from epigraph.virtual import VirtualTokens

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "benchmarks" / "serving.json"
PAGE = ROOT / "docs" / "performance.md"


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> FrozenModel:
    return FrozenModel.load(str(save_tiny(tmp_path_factory.mktemp("serve") / "tiny")))


def test_zipf_asks_for_the_first_twice_as_often_as_for_the_second() -> None:
    names = [f"p{number}" for number in range(100)]
    seen = Counter(drawn(names, 20_000, "Zipf", random.Random(0)))
    assert seen["p0"] / seen["p1"] == pytest.approx(2, rel=0.1)
    assert seen["p0"] / seen["p9"] == pytest.approx(10, rel=0.2)
    even = Counter(drawn(names, 20_000, "uniform", random.Random(0)))
    assert max(even.values()) < 2 * min(even.values())


def test_texts_are_new_each_time_and_never_a_block_long() -> None:
    rng = random.Random(0)
    made = [*texts(50, 120, rng), *texts(50, 120, rng)]
    assert len(set(made)) == 100
    assert {len(text) for text in made} <= set(range(TEXT_LENGTHS[0], TEXT_LENGTHS[1] + 1))
    assert max(map(len, made)) + FULL.num_virtual_tokens <= serve_engine.BLOCK_SIZE


def test_the_other_side_gets_the_same_texts() -> None:
    asks = [Ask(ids=(5, 6), name="p1"), Ask(ids=(7,), name=None)]
    assert bare(asks) == [Ask(ids=(5, 6)), Ask(ids=(7,))]
    assert renamed(asks, ["a1", "a2"]) == [Ask(ids=(5, 6), name="a1"), Ask(ids=(7,), name="a2")]


def test_sides_of_pairs_take_turns_in_being_first() -> None:
    order: list[str] = []

    def side(name: str, value: float) -> Any:
        return lambda: (order.append(name), value)[1]

    pairs = Pairs()
    for value in (3.0, 8.0, 5.0):
        pairs.add(side("one", value), side("other", 4.0))
    assert order == ["one", "other", "other", "one", "one", "other"]
    found = pairs.found(("mine", "theirs"), "ratio")
    assert found["ratio"] == {"median": 1.25, "low": 0.75, "high": 2.0, "values": [0.75, 2.0, 1.25]}
    assert found["tokens_a_second"]["mine"]["values"] == [3.0, 8.0, 5.0]
    assert found["tokens_a_second"]["theirs"]["values"] == [4.0, 4.0, 4.0]


def test_prefixes_on_disk_are_what_their_claims_say(frozen: FrozenModel, tmp_path: Path) -> None:
    claims = write_prefixes(frozen, tmp_path, 3, 2)
    shelf = Shelf(tmp_path)
    assert [shelf.claim(name) for name in claims] == list(claims.values())
    assert len({claim.content_hash for claim in claims.values()}) == 3


def test_adapters_are_as_large_as_a_prefix(frozen: FrozenModel, tmp_path: Path) -> None:
    """On the tiny Llama a rank is 3 layers of 2 * 64 + 2 * (64 + 32) + 2 * 64 numbers."""
    a_rank = 3 * (4 * 64 + 2 * 96)
    made = write_adapters(frozen, tmp_path, 2, 7 * a_rank)
    assert (made.rank, made.num_numbers) == (8, 8 * a_rank)
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in made.folders.values())
    assert sum(x.numel() for x in first.values()) == made.num_numbers
    assert not any(torch.equal(first[name], second[name]) for name in first)
    config = json.loads((made.folders["a0001"] / "adapter_config.json").read_text())
    assert (config["r"], config["peft_type"]) == (8, "LORA")


def test_a_model_without_such_layers_is_said(tmp_path: Path) -> None:
    other = FrozenModel(tiny_model("gpt2"), tiny_tokenizer(), name="a tiny GPT-2")
    with pytest.raises(
        BadValue, match="a tiny GPT-2 has no layers named q_proj, k_proj, v_proj, o_proj; leave the part lora out"
    ):
        write_adapters(other, tmp_path, 1, 100)


@pytest.fixture(scope="module")
def answered(frozen: FrozenModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Shelf, list[Ask], list[list[int]]]:
    """Five requests, one of them to the bare model, and what transformers says, each text alone."""
    folder = tmp_path_factory.mktemp("answered")
    names = [*write_prefixes(frozen, folder, 4, 3), None]
    shelf = Shelf(folder)
    asks = [Ask(ids=ids, name=name) for ids, name in zip(texts(5, 120, random.Random(0)), names, strict=True)]
    decoding = Decoding(max_new_tokens=6)
    said = [generate(frozen, [x.ids], tokens_of(shelf, x), decoding)[0] for x in asks]
    assert {len(ids) for ids in said} == {6}, "one of them ended"
    return shelf, asks, said


def tokens_of(shelf: Shelf, ask: Ask) -> VirtualTokens | None:
    return None if ask.name is None else shelf.open(ask.name).artifact.tokens


def test_right_answers_are_counted(frozen: FrozenModel, answered: tuple[Shelf, list[Ask], list[list[int]]]) -> None:
    found = check(frozen, *answered, 16)
    assert (found["sampled"], found["equal"], found["but_for_a_tie"]) == (5, 5, 0)
    assert found["distinct"] > 1


def test_an_engine_goes_on_past_the_end_token(
    frozen: FrozenModel, answered: tuple[Shelf, list[Ask], list[list[int]]]
) -> None:
    """With the fourth token of an answer as the end token, what stands behind it is nobody's business."""
    shelf, asks, said = answered
    first, end = said[0][:3], said[0][3]
    assert end not in first
    before, frozen.tokenizer.eos_token = frozen.tokenizer.eos_token, frozen.tokenizer.convert_ids_to_tokens(end)
    try:
        assert check(frozen, shelf, asks[:1], [[*first, end, 7, 7]], 16)["equal"] == 1
        with pytest.raises(CannotServe, match="1 of 1 answers"):
            check(frozen, shelf, asks[:1], [[*first, end + 1, 7, 7]], 16)
    finally:
        frozen.tokenizer.eos_token = before


@pytest.mark.parametrize("number", [2, 4])
def test_a_wrong_answer_is_not_recorded_but_for_a_tie(
    number: int,
    frozen: FrozenModel,
    answered: tuple[Shelf, list[Ask], list[list[int]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the second best token is said, and another than that: the first is a tie where logits are near enough."""
    shelf, asks, said = answered
    ids, tokens = [*asks[number].ids, *said[number][:3]], tokens_of(shelf, asks[number])
    with frozen.bind(tokens):
        best = frozen.model(input_ids=torch.tensor([ids])).logits[0, -1].topk(3)
    assert best.indices[0] == said[number][3]
    second, third = ([*said[:number], [*said[number][:3], int(x), 0, 0], *said[number + 1 :]] for x in best.indices[1:])
    with pytest.raises(CannotServe, match="1 of 5 answers of the engine are not what transformers says"):
        check(frozen, shelf, asks, second, 16)
    monkeypatch.setattr(serve_check, "TIE", float(best.values[0] - best.values[1]) + 1e-3)
    found = check(frozen, shelf, asks, second, 16)
    assert (found["equal"], found["but_for_a_tie"]) == (4, 1)
    with pytest.raises(CannotServe, match="1 of 5 answers"):
        check(frozen, shelf, asks, third, 16)


def test_the_first_error_of_a_log_is_the_cause(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    log.write_text("(Worker) INFO started\n(Worker) ERROR ValueError: max_loras is 3\nRuntimeError: see above\n")
    assert last_error(log) == "ValueError: max_loras is 3"
    log.write_text("nothing is wrong\n")
    assert last_error(log) is None


def test_the_page_shows_the_record() -> None:
    pasted = runpy.run_path(str(ROOT / "docs" / "paste_tables.py"))["pasted"]
    page, record = PAGE.read_text(encoding="utf-8"), read(RECORD)
    assert list(record["parts"]) == list(PARTS) == re.findall("<!-- serving: (?!machine)([a-z_]+) -->", page)
    assert all(shown_part(name, part) in page for name, part in record["parts"].items())
    assert pasted(page, record, "serving") == page
    record["parts"]["own_prefixes"]["ratio_vs_bare"]["median"] += 1
    assert pasted(page, record, "serving") != page


def test_the_record_is_shown_with_its_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["bench", "show", str(RECORD), "--pictures", str(tmp_path)])
    assert done.value.code == 0
    assert capsys.readouterr().out == tables(read(RECORD)) + "\n"
    assert (tmp_path / "serving-cost.png").read_bytes().startswith(b"\x89PNG")


def words(path: Path) -> str:
    """A page as running text, without its tables."""
    return " ".join(re.sub(r"^\|.*$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE).split())


def test_sentences_about_serving_say_what_the_record_does() -> None:
    parts, page = read(RECORD)["parts"], words(PAGE)
    own, curve, small = parts["own_prefixes"], parts["num_prefixes"], parts["small_cache"]
    seconds, loras = parts["first_token"]["seconds"], parts["lora"]["max_loras"]
    ratio, same = (own[name] for name in ("ratio_vs_bare", "bare_vs_bare"))
    assert same["low"] < ratio["median"] < same["high"], "64 prefixes cost nothing that could be told from it"
    assert ratio["median"] > 0.96
    for number, lost, share in (("1000", "a quarter", 1 / 4), ("256", "a seventh", 1 / 7)):
        assert 1 - curve["uniform"][number]["ratio_vs_bare"]["median"] == pytest.approx(share, abs=0.005), lost
    one, most = curve["uniform"]["1"], curve["Zipf"]["1000"]
    held = {name: [x[name] / 1e9 for x in (one, most)] for name in ("resident_bytes", "held_bytes")}
    grown = {name: f"{last - first:.2f} GB" for name, (first, last) in held.items()}
    assert f"grew by {grown['resident_bytes']}, {grown['held_bytes']} of it" in page
    assert f"{most['ratio_vs_bare']['low']:.2f}, is not explained" in page
    assert f"{one['ratio_vs_bare']['low']:.2f} to {one['ratio_vs_bare']['high']:.2f} at the first point" in page
    bare = small["tokens_a_second"]["bare"]
    assert f"from {bare['values'][0]:.0f} to {bare['values'][-1]:.0f} tokens a second" in page
    assert "are {:.2f}, {:.2f} and {:.2f}".format(*small["ratio_vs_bare"]["values"]) in page
    assert small["held_bytes"] == small["cache_bytes"]
    # As a reader of the table counts.
    rounded = {how: round(1000 * x["median"]) for how, x in seconds.items()}
    more = {how: x - rounded["bare"] for how, x in rounded.items()}
    assert f"held takes {more['seen']} milliseconds longer" in page
    assert f"never seen {more['never seen']}, and the look at a file {more['seen, file looked at again']}" in page
    faster = {name: f"{x['prefixes_vs_adapters']['median']:.2f}" for name, x in loras.items()}
    assert f"prefixes are {faster['64']} times as fast; with room for 8, {faster['8']} times" in page
    beside = loras["8"]["adapters"]["tokens_a_second"]["bare"]
    assert f"had {beside['low']:.0f} to {beside['high']:.0f} tokens" in page


def test_other_pages_say_the_same_numbers() -> None:
    parts = read(RECORD)["parts"]
    ratio, same = (f"{parts['own_prefixes'][name]['median']:.3f}" for name in ("ratio_vs_bare", "bare_vs_bare"))
    some, many = (f"{parts['num_prefixes']['uniform'][x]['ratio_vs_bare']['median']:.2f}" for x in ("256", "1000"))
    bare, new, held = (
        round(1000 * parts["first_token"]["seconds"][x]["median"]) for x in ("bare", "never seen", "seen")
    )
    readme, vllm, changes = (words(ROOT / x) for x in ("README.md", "docs/vllm.md", "CHANGELOG.md"))
    for page in (readme, vllm, changes):
        assert f"{ratio} times the bare model's tokens a second" in page
        assert re.search(rf"bare against bare (gives )?{same}", page)
        assert "two requests in three for" in page
    assert f"never seen, it was {many} times" in readme
    assert f"comes {new - bare} ms later" in readme
    assert f"over 256 it is {some}, over 1,000, two requests in three for one never seen, {many};" in vllm
    assert f"takes {new} ms behind a prefix never seen, {held} behind one that is held, {bare} behind none" in vllm
    assert f"for a new one: {many}" in changes


def drawn_again(record: dict[str, Any]) -> dict[tuple[str, str], list[list[str]]]:
    """Whom the curve's requests were for, a list for each round: the draws are of a fixed seed."""
    sizes, rng = record["settings"], random.Random(0)
    names = [f"p{number}" for number in range(max(sizes["num_prefixes"]))]

    def a_round(draw: str, number: str) -> list[str]:
        asked = drawn(names[: int(number)], sizes["curve_requests"], draw, rng)
        # The texts of that round are drawn by the same generator.
        texts(len(asked), 49_152, rng)
        return asked

    points = [(draw, number) for draw, part in record["parts"]["num_prefixes"].items() for number in part]
    return {point: [a_round(*point) for _ in range(sizes["curve_pairs"])] for point in points}


def test_how_many_prefixes_of_the_curve_were_new() -> None:
    """Drawn again they give the record's counts, and what the page says of each round."""
    record, page = read(RECORD), words(PAGE)
    curve, held = record["parts"]["num_prefixes"], set[str]()
    new, asked_for_new = dict[tuple[str, str], list[int]](), dict[tuple[str, str], int]()
    for (draw, number), rounds in drawn_again(record).items():
        strangers = [[x for x in asked if x not in held.union(*rounds[:i])] for i, asked in enumerate(rounds)]
        new[draw, number] = [len(set(x)) for x in strangers]
        asked_for_new[draw, number] = sum(map(len, strangers))
        held.update(*rounds)
        assert curve[draw][number]["asked_for"] == len(set[str]().union(*rounds))
        assert curve[draw][number]["held_bytes"] == len(held) * curve["uniform"]["1"]["held_bytes"]
    assert asked_for_new["uniform", "1000"] == 3 * 128 * 2 / 3, "two requests in three"
    assert "{}, {} and {} prefixes were new".format(*new["uniform", "1000"]) in page
    assert "and {}, {} and {}: each".format(*new["uniform", "256"]) in page
    assert "their 1,000 prefixes {}, {} and {} were new".format(*new["Zipf", "1000"]) in page
    longer = sorted(x for number in ("256", "1000") for x in _longer(curve["uniform"][number], new["uniform", number]))
    middle = f"{(longer[2] + longer[3]) / 2:.0f}"
    assert f"took {longer[0]:.0f} to {longer[-1]:.0f} milliseconds longer for each, {middle} in the middle" in page


def _longer(point: dict[str, Any], new: list[int]) -> list[float]:
    """Milliseconds that a round took longer than the bare model's beside it, for each prefix new to it."""
    sides = [[128 * 12 / x for x in side["values"]] for side in point["tokens_a_second"].values()]
    return [1000 * (mine - theirs) / number for mine, theirs, number in zip(*sides, new, strict=True)]


def test_adapters_that_do_not_run_are_told_of() -> None:
    shown = SHOW["lora"]({"rank": 1, "numbers": 115_200, "max_loras": {"64": {"error": "vLLM ended: no room"}}})
    assert "| 64 | does not run |" in shown
    assert shown.endswith("115,200 numbers each. max_loras 64: vLLM ended: no room.")


def test_every_part_has_a_table_and_a_title() -> None:
    assert list(TITLES) == list(SHOW) == [*PARTS, *(name for name in LOCAL_PARTS if name not in PARTS)]


def test_quick_sizes_are_of_the_same_kind() -> None:
    assert QUICK.in_flight == QUICK.curve_requests == max(QUICK.num_prefixes) == max(QUICK.adapters) == 8
    assert FULL.in_flight <= max(FULL.num_prefixes)
    assert FULL.held_prefixes < max(FULL.num_prefixes)


def test_vllm_that_is_not_there_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_engine, "find_spec", lambda _: None)
    with pytest.raises(EngineUnavailable, match=r"vLLM is not installed.*pip install vllm") as raised:
        run(tmp_path / "record.json", ["own_prefixes"], model="smollm2-135m")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--part", "speed"], "--part is 'speed', expected one of own_prefixes, num_prefixes"),
        (["--engine", "other"], "--engine is 'other', expected vllm"),
    ],
)
def test_wrong_flags(flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["bench", "serve", "--json", str(tmp_path / "record.json"), *flags])
    assert done.value.code == 2
    assert said in capsys.readouterr().err
