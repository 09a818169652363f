"""Attention mass: the weights that text gives virtual tokens, against softmax(QK) by hand; command and pictures."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from conftest import WINDOW, random_ids, random_prefix, save_tiny, tiny, tiny_tokenizer
from epigraph import artifact
from epigraph.errors import BadValue, CannotLower
from epigraph.frozen.mass import Mass, attention_mass
from epigraph.frozen.model import FrozenModel
from epigraph.report.mass import described, joined, mass_png, mass_svg
from epigraph.report.page import write_report
from epigraph.report.records import MassRecord, SiteMass
from epigraph.virtual import KVPrefix, LayerKV, SoftPrompt
from test_cli import fails, run, train_words, write_rows
from test_neighbours import prompt_of, saved

ROWS = [random_ids(9, 1), random_ids(4, 2)]
SITE = "decoder.self"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("model")))


def by_hand(frozen: FrozenModel, prefix: KVPrefix, layer: int, ids: list[int]) -> Tensor:
    """``[N, T, P + T]``: softmax(QK) of one layer of the tiny Llama, from what its projections give."""
    attention = frozen.model.model.layers[layer].self_attn
    seen: dict[str, Tensor] = {}
    hooks = [
        getattr(attention, name).register_forward_hook(lambda _, __, x, name=name: seen.update({name: x[0]}))
        for name in ("q_proj", "k_proj")
    ]
    with torch.no_grad(), frozen.bind(prefix):
        frozen.model(input_ids=torch.tensor([ids]), use_cache=False)
    for hook in hooks:
        hook.remove()
    query, key = (x.unflatten(1, (-1, 16)).transpose(0, 1)[None] for x in (seen["q_proj"], seen["k_proj"]))
    positions = torch.arange(len(ids))[None] + prefix.text_start
    query, key = apply_rotary_pos_emb(query, key, *frozen.model.model.rotary_emb(query, positions))
    kv = prefix.sites["decoder.self"][layer]
    assert kv is not None
    keys_NCH = torch.cat([kv.keys_PKH.transpose(0, 1), key[0]], dim=1).repeat_interleave(2, dim=0)
    scores_NTC = query[0] @ keys_NCH.transpose(1, 2) / 4
    hidden_TC = torch.ones(scores_NTC.shape[1:], dtype=torch.bool).triu(prefix.num_virtual_tokens + 1)
    return scores_NTC.masked_fill(hidden_TC, -torch.inf).softmax(-1)


@pytest.mark.parametrize("layer", [0, 2])
def test_mass_is_softmax_by_hand(layer: int) -> None:
    frozen = tiny("llama", "eager")
    prefix = random_prefix(frozen.geometry, 3, 1)
    mass = attention_mass(frozen, prefix, ROWS).sites[SITE]
    # Each of the 13 text tokens counts the same, whichever row it is in.
    weights_QC = torch.cat([by_hand(frozen, prefix, layer, ids).mean(0)[:, :3] for ids in ROWS])
    assert len(weights_QC) == 13
    assert torch.allclose(mass.virtual_LP[layer].float(), weights_QC.mean(0), atol=1e-5)
    assert float(mass.text_L[layer]) == pytest.approx(1 - float(weights_QC.sum(1).mean()), abs=1e-5)


def test_a_value_moves_the_output_by_its_mass(family: str) -> None:
    """The other slow twin, past all weights: values moved by a constant move what attention gives by as much."""
    frozen = tiny(family, "eager")
    prefix, ids = random_prefix(frozen.geometry, 3, 1), ROWS[0]
    mass = attention_mass(frozen, prefix, [ids]).sites[SITE]
    names = {"gpt2": "attn.c_proj", "opt": "attn.out_proj", "gpt-neox": "attention.dense"}
    name = names.get(family, "attn.o_proj")
    (inner,) = [x for path, x in frozen.model.named_modules() if ".0." in path and path.endswith(name)]
    for number in range(3):
        layers = list(prefix.sites["decoder.self"])
        assert layers[0] is not None
        values_PKH = layers[0].values_PKH.clone()
        values_PKH[number] += 1
        layers[0] = LayerKV(keys_PKH=layers[0].keys_PKH, values_PKH=values_PKH)
        moved = KVPrefix(sites={"decoder.self": tuple(layers)}, text_start=prefix.text_start)
        given: list[Tensor] = []
        hook = inner.register_forward_pre_hook(lambda _, args, given=given: given.append(args[0]))
        for one in (prefix, moved):
            with torch.no_grad(), frozen.bind(one):
                frozen.model(input_ids=torch.tensor([ids]), use_cache=False)
        hook.remove()
        assert float((given[1] - given[0]).mean()) == pytest.approx(float(mass.virtual_LP[0, number]), abs=1e-5)


def test_each_layer_adds_up_and_rows_count_by_their_tokens(family: str) -> None:
    frozen = tiny(family, "eager")
    prefix = random_prefix(frozen.geometry, 5, 1)
    both, first, second = (attention_mass(frozen, prefix, rows) for rows in (ROWS, ROWS[:1], ROWS[1:]))
    assert (both.num_rows, both.num_tokens) == (2, 13)
    site = both.sites[SITE]
    assert site.virtual_LP.shape == (3, 5)
    assert torch.allclose(site.virtual_LP.sum(1) + site.text_L, torch.ones(3).double(), atol=1e-6)
    mixed = (9 * first.sites[SITE].virtual_LP + 4 * second.sites[SITE].virtual_LP) / 13
    assert torch.allclose(site.virtual_LP, mixed, atol=1e-6)


def test_a_soft_prompt_is_lowered_first(family: str) -> None:
    frozen = tiny(family, "eager")
    prompt = prompt_of(frozen, [20, 30, 40], noise=0.3)
    soft, lowered = (attention_mass(frozen, one, ROWS).sites[SITE] for one in (prompt, frozen.lower(prompt)))
    assert torch.equal(soft.virtual_LP, lowered.virtual_LP)
    with pytest.raises(CannotLower, match="stand in the text's template"):
        attention_mass(frozen, SoftPrompt(embeddings_PE=prompt.embeddings_PE, placed=True), ROWS)


def test_hidden_virtual_tokens_have_no_mass() -> None:
    """Of 20 text tokens the first ones see virtual token 2 through a window of 8; a layer without any sees none."""
    frozen = tiny("mistral", "eager")
    always, window = (random_prefix(frozen.geometry, 3, 1, visibility) for visibility in ("always", "window"))
    one, ids = attention_mass(frozen, always, [random_ids(20, 3)]).sites[SITE], random_ids(20, 3)
    near = attention_mass(frozen, window, [ids]).sites[SITE]
    assert bool((near.virtual_LP < one.virtual_LP).all())
    # Positions 3 + t with t < WINDOW - 1 see position 2: those are the queries, cut out.
    few = attention_mass(frozen, window, [ids[: WINDOW - 1]]).sites[SITE]
    assert float(near.virtual_LP[0, 2] * 20) == pytest.approx(float(few.virtual_LP[0, 2] * (WINDOW - 1)), abs=1e-5)
    layers = (None, *always.sites["decoder.self"][1:])
    gone = attention_mass(frozen, KVPrefix(sites={"decoder.self": layers}, text_start=3), [ids]).sites[SITE]
    assert gone.virtual_LP[0].tolist() == [0, 0, 0]
    assert float(gone.text_L[0]) == pytest.approx(1, abs=1e-6)


def test_an_infix_is_seen_by_the_last_token_alone() -> None:
    frozen = tiny("llama", "eager")
    made = random_prefix(frozen.geometry, 3, 1)
    infix = KVPrefix(sites=made.sites, text_start=3, visibility="answer")
    site = attention_mass(frozen, infix, ROWS[:1]).sites[SITE]
    last = by_hand(frozen, made, 0, ROWS[0]).mean(0)[-1, :3]
    assert torch.allclose(site.virtual_LP[0].float(), last / 9, atol=1e-5)


def encoder_decoder() -> PreTrainedModel:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=120, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_decoder_layers=3, num_heads=4,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=2,
    )  # fmt: skip
    return T5ForConditionalGeneration(config).eval()


def test_an_encoder_decoder_has_three_sites() -> None:
    frozen = FrozenModel(encoder_decoder(), tiny_tokenizer(), name="tiny-t5", attention_name="eager")
    made = random_prefix(frozen.geometry, 3, 1)
    mass = attention_mass(frozen, KVPrefix(sites=made.sites, text_start=0), ROWS)
    shapes = {site: tuple(one.virtual_LP.shape) for site, one in mass.sites.items()}
    assert shapes == {"encoder.self": (2, 3), "decoder.self": (3, 3), "decoder.cross": (3, 3)}
    for one in mass.sites.values():
        assert torch.allclose(one.virtual_LP.sum(1) + one.text_L, torch.ones(len(one.text_L)).double(), atol=1e-5)
        assert float(one.virtual_LP.min()) > 0
    only = attention_mass(frozen, KVPrefix(sites={"decoder.cross": made.sites["decoder.cross"]}, text_start=0), ROWS)
    assert set(only.sites) == {"decoder.cross"}


def test_bad_input_is_refused() -> None:
    frozen = tiny("llama", "sdpa")
    prefix = random_prefix(frozen.geometry, 3, 1)
    with pytest.raises(BadValue) as caught:
        attention_mass(frozen, prefix, ROWS)
    assert str(caught.value) == (
        "attention is 'sdpa', which keeps its weights to itself, expected 'eager'; load the model with "
        "attention_name='eager'"
    )
    for rows, got in (([], "none"), ([[5], []], "one without tokens")):
        with pytest.raises(BadValue, match=f"texts: got {got}, expected one or more, each of one token or more"):
            attention_mass(tiny("llama", "eager"), prefix, rows)


# The pictures


def site_mass(virtual: list[list[float]]) -> SiteMass:
    return SiteMass.model_validate({"virtual": virtual, "text": [1 - sum(row) for row in virtual]})


def record(*sites: SiteMass, **changes: Any) -> MassRecord:
    names = ("decoder.self", "decoder.cross")
    said = {"content_hash": "0" * 64, "base": "tiny", "texts": "rows.txt", "num_texts": 2, "num_tokens": 13}
    return MassRecord.model_validate({**said, "sites": dict(zip(names, sites, strict=False)), **changes})


def test_the_picture_is_dark_where_the_mass_is() -> None:
    """Of twenty layers and two virtual tokens, the last five give the second one most of what they have."""
    virtual = [[0.01, 0.01]] * 15 + [[0.01, 0.6]] * 5
    png = mass_png(record(site_mass(virtual)))
    assert png == mass_png(record(site_mass(virtual)))
    pixels = matplotlib.image.imread(io.BytesIO(png))[..., :3].mean(-1)
    height, width = pixels.shape
    lower, upper = pixels[height // 2 :, width // 5 : -width // 4], pixels[: height // 2, width // 5 : -width // 4]
    assert (lower < 0.2).mean() > 0.1
    assert (upper < 0.2).mean() < 0.01
    right = lower[:, lower.shape[1] // 2 :]
    assert (right < 0.2).sum() == pytest.approx((lower < 0.2).sum(), rel=0.1)
    taller = matplotlib.image.imread(io.BytesIO(mass_png(record(site_mass(virtual), site_mass(virtual)))))
    assert taller.shape[0] == pytest.approx(2 * height, abs=2)


def test_the_page_has_a_cell_for_each_share() -> None:
    svg = mass_svg(SITE, site_mass([[0.04, 0.16], [0.64, 0.0]]))
    opacities = [float(x.split('"')[0]) for x in svg.split('fill-opacity="')[1:]]
    assert opacities == [0.25, 0.5, 1, 0]
    assert "virtual tokens get 42.0 % of the text" in svg
    assert described(SITE, site_mass([[0.04, 0.16], [0.64, 0.0]])).endswith("virtual token 0 gets most of it (34.0 %)")


def test_many_virtual_tokens_share_a_cell() -> None:
    wide = site_mass([[1 / 5_000] * 5_000] * 2)
    size, rows = joined(wide)
    assert size == 3
    assert [sum(row) for row in rows] == [pytest.approx(1)] * 2
    assert mass_svg(SITE, wide).count("<rect") < 4_000
    assert joined(site_mass([[0.1, 0.2]]))[0] == 1


# The command


@pytest.fixture(scope="module")
def trained(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from epigraph.cli import main
    from test_cli import SUMS

    folder = tmp_path_factory.mktemp("run")
    with pytest.raises(SystemExit) as done:
        main([*train_words(base, write_rows(folder / "sums.jsonl", SUMS), folder / "out"), "--steps", "2", "--json"])
    assert done.value.code == 0
    return folder / "out"


def expected(run_folder: Path, base: str, texts: list[str]) -> Mass:
    there = artifact.load(artifact.find(run_folder))
    frozen = FrozenModel.load(base, attention_name="eager")
    return attention_mass(frozen, there.tokens, [frozen.tokenizer(f"{text}\n").input_ids for text in texts])


def test_from_a_run_to_its_report(base: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("1+2\n\n3+44\n")
    words = ["inspect", str(trained), "--mass", "--texts", str(texts)]
    code, printed, err = run(capsys, *words, "--picture", str(trained / "mass.png"), "--json")
    assert code == 0, err
    found = json.loads(printed)["mass"]
    want = expected(trained, base, ["1+2", "3+44"])
    assert found["sites"][SITE]["virtual"] == want.sites[SITE].virtual_LP.tolist()
    assert found["sites"][SITE]["text"] == want.sites[SITE].text_L.tolist()
    assert (found["texts"], found["num_texts"], found["num_tokens"]) == ("texts.txt", 2, 9)
    assert json.loads((trained / "mass.json").read_text()) == found
    assert (trained / "mass.png").read_bytes().startswith(b"\x89PNG")
    code, printed, _ = run(capsys, *words)
    percent = 100 * want.sites[SITE].text_L[0]
    assert f"│ {percent:.0f}" in printed.split("Mass at decoder.self, in %")[1].splitlines()[4]
    page = write_report(trained).read_text()
    assert "What the text looks at" in page
    assert "tokens of texts.txt" in page
    told = found | {"content_hash": "1" * 64}
    (trained / "mass.json").write_text(json.dumps(told))
    page = write_report(trained).read_text()
    assert "was measured on another artifact: it is left out" in page
    assert 'class="mass"' not in page
    (trained / "mass.json").unlink()
    assert "What the text looks at" not in write_report(trained).read_text()


def test_a_report_refuses_a_mass_that_is_none(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crooked = {"virtual": [[0.1, 0.2], [0.3]], "text": [0.7, 0.7]}
    for sites in ({}, {"decoder.self": crooked}, {"elsewhere": {"virtual": [[0.1]], "text": [0.9]}}):
        whole = record(site_mass([[0.1]])).model_dump(mode="json") | {"sites": sites}
        (trained / "mass.json").write_text(json.dumps(whole))
        assert "mass.json: sites" in fails(capsys, "report", str(trained))
    (trained / "mass.json").unlink()


def test_without_texts_a_sample_or_the_tasks_own(
    base: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed, err = run(capsys, "inspect", str(trained), "--mass", "--json")
    assert code == 0, err
    assert json.loads(printed)["mass"]["texts"] == "a sample sentence"
    frozen = FrozenModel.load(base)
    prompt = prompt_of(frozen, [40, 50])
    path = saved(frozen, tmp_path / "x.safetensors", prompt, data={"task": "cards"})
    code, printed, err = run(capsys, "inspect", path, "--mass", "--neighbours", "--json", "--model", base)
    assert code == 0, err
    found = json.loads(printed)
    assert found["mass"]["texts"] == "the first 8 test rows of cards"
    assert found["mass"]["num_texts"] == 8
    assert len(found["neighbours"]["tokens"]) == 2


def test_flags_and_files_in_the_way(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(trained)
    for flag in ("--texts", "--picture"):
        assert fails(capsys, "inspect", path, flag, "x.png") == (
            f"epigraph: got {flag} 'x.png' without --mass, which it is for; add --mass"
        )
    assert "expected a name that ends in .png" in fails(capsys, "inspect", path, "--mass", "--picture", "x.svg")
    before = (trained / "summary.json").read_bytes()
    line = fails(capsys, "inspect", path, "--mass", "--picture", str(trained / "summary.png"))
    assert line.endswith("choose another name for the picture, mass.png for instance")
    assert (trained / "summary.json").read_bytes() == before
    assert "cannot read" in fails(capsys, "inspect", path, "--mass", "--texts", str(tmp_path / "none.txt"))
    (tmp_path / "empty.txt").write_text("\n \n")
    line = fails(capsys, "inspect", path, "--mass", "--texts", str(tmp_path / "empty.txt"))
    assert "has no line with text, expected one source a line" in line
