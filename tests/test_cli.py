"""The command, as a user runs it: from rows to answers, and one clear line for every mistake (exit code 2)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import epigraph
from conftest import tiny_model, tiny_tokenizer
from epigraph.cli import main
from epigraph.errors import BadValue

SUMS = [{"source": f"{a}+{b}", "target": str(a + b)} for a in range(6) for b in range(6)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }};{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_rows(tmp_path_factory.mktemp("rows") / "sums.jsonl", SUMS)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def trained(model: str, rows: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    with pytest.raises(SystemExit) as done:
        main(train_words(model, rows, out, "--json"))
    assert done.value.code == 0
    return out


def train_words(model: str, rows: str, out: Path | None, *more: str) -> list[str]:
    where = [] if out is None else ["--out", str(out)]
    flags = ["--num-virtual-tokens", "4", "--steps", "30", "--batch-size", "6", "--precision", "fp32", "--lr", "0.03"]
    return ["train", "--model", model, "--data", rows, *flags, *where, *more]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as done:
        main(list(words))
    out, err = capsys.readouterr()
    assert isinstance(done.value.code, int)
    return done.value.code, out, err


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a user's mistake."""
    code, out, err = run(capsys, *words)
    assert code == 2, err
    assert out == ""
    assert err.startswith("epigraph: ")
    assert "Traceback" not in err
    return err.strip()


def test_training_writes_its_folder(trained: Path, model: str) -> None:
    names = {path.name for path in trained.iterdir()}
    assert names == {"artifact.safetensors", "recipe.json", "steps.jsonl", "summary.json"}
    steps = [json.loads(line) for line in (trained / "steps.jsonl").read_text().splitlines()]
    losses = [step["loss"] for step in steps if "loss" in step]
    assert len(losses) == 30
    assert losses[-1] < losses[0]
    recipe = json.loads((trained / "recipe.json").read_text())
    assert recipe["training"]["lr"] == 0.03
    assert recipe["method"]["initial"] == "text"
    assert recipe["text"]["input_template"] == "{source}\n"
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["artifact_bytes"] == (trained / "artifact.safetensors").stat().st_size
    assert summary["stored_numbers"] == 4 * 3 * 2 * 2 * 16


def test_a_recipe_written_by_a_run_runs_again(trained: Path, model: str, rows: str, tmp_path: Path) -> None:
    """Same recipe, same seed, same file: content hashes are equal."""
    with pytest.raises(SystemExit):
        main(train_words(model, rows, tmp_path / "again"))
    hashes = [
        json.loads((folder / "summary.json").read_text())["content_hash"] for folder in (trained, tmp_path / "again")
    ]
    tensors = [folder / "artifact.safetensors" for folder in (trained, tmp_path / "again")]
    from safetensors.torch import load_file

    first, second = (load_file(path) for path in tensors)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert len(hashes[0]) == 64


def test_evaluate_prints_json_and_keeps_a_record(trained: Path, rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "evaluate", str(trained), "--data", rows, "--precision", "fp32", "--json")
    assert code == 0
    found = json.loads(out)
    assert 0 <= found["scores"]["bleu"] <= 100
    assert found["num_examples"] == len(SUMS)
    assert "bleu" in found["intervals"]
    assert "bleu" in found["variants"]
    kept = json.loads((trained / "evaluations" / "after-test.json").read_text())
    assert kept["scores"] == found["scores"]
    assert len(kept["examples"]) == len(SUMS)
    code, out, _ = run(capsys, "evaluate", str(trained), "--data", rows, "--untouched", "--json", "--num-beams", "2")
    assert json.loads(out)["decoding"]["num_beams"] == 2


def test_generate_from_words_and_from_stdin(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    options = ["--max-new-tokens", "5"]
    alone = [run(capsys, "generate", str(trained), text, *options)[1] for text in ("1+2", "4+4")]
    monkeypatch.setattr("sys.stdin", io.StringIO("1+2\n\n4+4\n"))
    assert run(capsys, "generate", str(trained), *options)[1] == "".join(alone)
    monkeypatch.setattr("sys.stdin", io.StringIO("1+2\n"))
    found = json.loads(run(capsys, "generate", str(trained), "-", *options, "--json")[1])
    assert found == {"source": "1+2", "text": alone[0].strip()}


def test_inspect_and_report(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "inspect", str(trained), "--json")
    assert code == 0
    assert json.loads(out)["num_virtual_tokens"] == 4
    assert run(capsys, "inspect", str(trained))[0] == 0
    code, out, _ = run(capsys, "report", str(trained))
    assert code == 0
    assert "<html" in (trained / "report.html").read_text()


def test_dry_run_says_the_cost_and_writes_nothing(
    model: str, rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, *train_words(model, rows, tmp_path / "out", "--dry-run", "--json"))
    assert code == 0
    found = json.loads(out)
    assert found["rows"] == len(SUMS)
    assert found["steps"] == 30
    assert found["truncated_rows"] == 0
    assert found["scored_tokens"] == sum(len(row["target"]) + 1 for row in SUMS)
    assert found["peak_memory_bytes"] > 0
    assert found["seconds"] > 0
    assert not (tmp_path / "out").exists()


def test_a_chat_file_trains_and_answers(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chats = [
        {"messages": [{"role": "user", "content": row["source"]}, {"role": "assistant", "content": row["target"]}]}
        for row in SUMS
    ]
    rows = write_rows(tmp_path / "chat.jsonl", chats)
    out = tmp_path / "out"
    assert run(capsys, *train_words(model, rows, out))[0] == 0
    assert json.loads((out / "recipe.json").read_text())["text"]["chat_template_hash"]
    assert run(capsys, "generate", str(out), "1+1", "--max-new-tokens", "4")[0] == 0
    assert run(capsys, "evaluate", str(out), "--data", rows)[0] == 0


def test_csv_and_development_rows(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sums.csv"
    path.write_text("source,target\n" + "".join(f"{row['source']},{row['target']}\n" for row in SUMS))
    out = tmp_path / "out"
    assert run(capsys, *train_words(model, str(path), out, "--dev", str(path), "training.dev_metric=bleu"))[0] == 0
    steps = [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]
    scored = [step["dev"] for step in steps if "dev" in step]
    assert len(scored) == 5
    assert all({"loss", "bleu"} <= set(dev) for dev in scored)


def test_a_missing_model(rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = fails(capsys, *train_words("no-such-model", rows, tmp_path / "out"))
    assert "no-such-model" in line
    assert "\n" not in line
    assert not (tmp_path / "out").exists()


def test_an_unknown_key(model: str, rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = fails(capsys, *train_words(model, rows, tmp_path / "out", "training.stepz=4"))
    assert line == "epigraph: unknown key training.stepz; did you mean training.steps?"


def test_an_unknown_metric_to_choose_by(
    model: str, rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = fails(capsys, *train_words(model, rows, tmp_path / "out", "training.dev_metric=blue"))
    assert line == "epigraph: training.dev_metric: got 'blue', expected one of loss, bleu, chrf, exact_match"
    line = fails(capsys, *train_words(model, rows, tmp_path / "out", "training.patience=2"))
    assert "needs development rows" in line


def test_an_artifact_says_nothing_of_the_machine(trained: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, "inspect", str(trained), "--json")[1]
    held = (trained / "artifact.safetensors").read_bytes()
    assert str(Path(model).parent).encode() not in held
    assert json.loads(found)["base"]["name"] == Path(model).name
    assert json.loads(found)["provenance"]["data"]["file"] == "sums.jsonl"


def test_an_artifact_on_its_own_is_told_where_its_base_is(
    trained: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((trained / "artifact.safetensors").read_bytes())
    assert "--model" in fails(capsys, "generate", str(alone), "1+1")
    there = run(capsys, "generate", str(alone), "1+1", "--model", model, "--max-new-tokens", "4")
    assert there[:2] == run(capsys, "generate", str(trained), "1+1", "--max-new-tokens", "4")[:2]


def test_rows_of_its_own_are_not_a_task_of_that_name(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "give --data FILE or --task NAME" in fails(capsys, "evaluate", str(trained))


def test_an_unknown_flag_and_no_out(model: str, rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--stepz" in fails(capsys, "train", "--stepz", "4")
    assert "--out is missing" in fails(capsys, *train_words(model, rows, None))


def test_bad_rows_are_told_all_at_once(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "bad.jsonl"
    rows.write_text('{"source": "a", "target": "b"}\n{"source": 7, "target": "b"}\nnot json\n{"source": "a"}\n')
    line = fails(capsys, *train_words(model, str(rows), tmp_path / "out"))
    assert "3 bad rows" in line
    for number in (2, 3, 4):
        assert f"bad.jsonl:{number}:" in line
    assert not (tmp_path / "out").exists()


def test_another_base_is_refused(trained: Path, rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tiny_model("llama")
    with torch.no_grad():
        next(other.parameters()).add_(0.01)
    other.save_pretrained(tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    words = ("generate", str(trained), "1+1", "--max-new-tokens", "3", "--model", str(tmp_path / "other"))
    line = fails(capsys, *words)
    assert "\n" not in line
    assert "--allow-base" in line
    from epigraph.frozen.fingerprint import fingerprint
    from epigraph.frozen.resolve import resolve

    running = fingerprint(resolve(str(tmp_path / "other")))
    assert run(capsys, *words, "--allow-base", running)[0] == 0
    fails(capsys, *words, "--allow-base", "0" * 64)


def test_a_run_is_not_written_over(trained: Path, model: str, rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained / "artifact.safetensors").read_bytes()
    assert "--overwrite" in fails(capsys, *train_words(model, rows, trained))
    assert (trained / "artifact.safetensors").read_bytes() == before


def test_overwriting_takes_the_old_scores_away(
    model: str, rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(capsys, *train_words(model, rows, out))[0] == 0
    assert run(capsys, "evaluate", str(out), "--data", rows)[0] == 0
    assert list((out / "evaluations").iterdir())
    first = (out / "artifact.safetensors").read_bytes()
    assert "no-such-file" in fails(
        capsys,
        *train_words(model, rows, out, "--overwrite", "method.initial=document", "method.initial_path=no-such-file"),
    )
    assert (out / "artifact.safetensors").read_bytes() == first
    assert run(capsys, *train_words(model, rows, out, "--overwrite", "--seed", "9"))[0] == 0
    assert not list((out / "evaluations").iterdir())
    assert (out / "artifact.safetensors").read_bytes() != first


def test_no_artifact_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("inspect", "evaluate", "generate"):
        line = fails(capsys, command, str(tmp_path / "nothing"))
        assert "\n" not in line


def test_help_is_quick_and_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for command in ("models", "data", "train", "evaluate", "generate", "inspect", "report"):
        assert command in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("evaluate DIR --data ROWS --limit 0", "--limit is 0, expected 1 or more"),
        ("evaluate DIR --data ROWS --limit -1", "--limit is -1, expected 1 or more"),
        ("evaluate DIR --data ROWS --batch-size 0", "--batch-size is 0, expected 1 or more"),
        ("evaluate DIR --data ROWS --task cards", "got both --data and --task, expected one of them"),
        (
            "evaluate DIR --data ROWS --split dev",
            "got --split dev with --data, expected no --split: all rows of the file are evaluated",
        ),
        ("generate DIR 1+1 --batch-size 0", "--batch-size is 0, expected 1 or more"),
        ("generate DIR 1+1 --temperature -1", "--temperature is -1.0, expected 0 (the likeliest) or more"),
        ("generate DIR 1+1 --temperature nan", "--temperature is nan, expected 0 (the likeliest) or more"),
        ("generate DIR 1+1 --top-p 0", "--top-p is 0.0, expected more than 0 and at most 1"),
        ("generate DIR 1+1 --top-p 1.5", "--top-p is 1.5, expected more than 0 and at most 1"),
        ("train --epochs two", "--epochs: got 'two', expected a valid number; see `epigraph train --help`"),
        ("models path", "Missing argument 'name'; see `epigraph models path --help`"),
    ],
)
def test_flags_that_do_not_fit(
    words: str, said: str, trained: Path, rows: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fails(capsys, *words.replace("DIR", str(trained)).replace("ROWS", rows).split()) == f"epigraph: {said}"


def test_nothing_to_answer(trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("\n \n"))
    assert "stdin was empty" in fails(capsys, "generate", str(trained))
    assert "the text is empty" in fails(capsys, "generate", str(trained), " ")


def test_python_is_told_what_generate_takes(trained: Path) -> None:
    tuned = epigraph.load(str(trained))
    with pytest.raises(BadValue, match=r"texts is one text, '1\+1', expected a list of texts; write \[text\]"):
        tuned.generate("1+1")
    with pytest.raises(BadValue, match="batch_size is 0, expected 1 or more"):
        tuned.generate(["1+1"], batch_size=0)


@pytest.mark.parametrize("parameterization", ["raw", "residual", "mlp"])
def test_prompt_tuning_from_rows_to_answers(
    model: str, rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], parameterization: str
) -> None:
    """Trained, stored as embeddings, evaluated, inspected; and one prompt starts from another (SPoT)."""
    out = tmp_path / "prompt"
    flags = ["--method", "prompt-tuning", "--parameterization", parameterization, "--lr", "0.05"]
    code, printed, err = run(capsys, *train_words(model, rows, out, "--json"), *flags, "method.mlp_width=16")
    assert code == 0, err
    summary = json.loads(printed)
    assert (summary["method"], summary["stored_numbers"]) == ("prompt-tuning", 4 * 64)
    steps = [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]
    assert steps[-1]["loss"] < steps[0]["loss"]
    code, printed, err = run(capsys, "evaluate", str(out), "--data", rows, "--precision", "fp32", "--json")
    assert code == 0, err
    assert json.loads(printed)["num_examples"] == len(SUMS)
    code, printed, err = run(capsys, "inspect", str(out), "--json")
    assert code == 0, err
    assert (json.loads(printed)["kind"], json.loads(printed)["num_numbers"]) == ("soft", 4 * 64)
    spot = ["method.initial=artifact", f"method.initial_path={out}"]
    flags = ["--method", "prompt-tuning", *spot]
    code, _, err = run(capsys, *train_words(model, rows, tmp_path / "from"), *flags)
    assert code == 0, err
    first = json.loads((tmp_path / "from" / "steps.jsonl").read_text().splitlines()[0])
    assert first["loss"] < steps[0]["loss"]


def test_a_prompt_does_not_start_from_keys_and_values(
    trained: Path, model: str, rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--method", "prompt-tuning", "method.initial=artifact", f"method.initial_path={trained}"]
    answer = fails(capsys, *train_words(model, rows, tmp_path / "from"), *flags)
    assert "holds keys and values, expected embeddings to start from" in answer


def test_adafactor_trains(model: str, rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--method", "prompt-tuning", "training.optimizer=adafactor", "training.schedule=constant"]
    code, _, err = run(capsys, *train_words(model, rows, tmp_path / "out"), *flags, "--lr", "0.3")
    assert code == 0, err
    steps = [json.loads(line) for line in (tmp_path / "out" / "steps.jsonl").read_text().splitlines()]
    assert steps[-1]["loss"] < 0.9 * steps[0]["loss"]
