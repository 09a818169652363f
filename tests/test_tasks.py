"""Tasks by name, own files as tasks, draws and hashes."""

from __future__ import annotations

import ast
import gzip
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import epigraph.tasks
from epigraph.contract import TextContract
from epigraph.errors import BadRows, BadValue, DataNotFound, TaskNotFound, TooFewExamples
from epigraph.tasks.base import Example, Turn
from epigraph.tasks.catalogue import PROBES, TASKS, data_hash, draw_pairs, find, find_named, own_data

EXAMPLES = [
    Example(source="one", references=tuple("abcdefgh")),
    Example(source="two", references=("i",)),
    Example(source="three", references=("j",)),
]
needs_data = pytest.mark.skipif(not os.environ.get("EPIGRAPH_DATA"), reason="EPIGRAPH_DATA is unset: no E2E files here")


def rows_file(file: Path, *rows: dict[str, object]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


# Every relation reads the same files: tests/test_probing.py looks at all of them at once.
NAMES = [*(x for x in TASKS if x not in PROBES), "lama-P19"]


@pytest.mark.parametrize("name", NAMES)
def test_every_task_is_what_it_says(name: str) -> None:
    task = find(name)
    assert task.name == name
    assert "test" in task.splits
    assert task.headline in task.better_when_higher
    assert not task.is_chat
    contract = TextContract(input_template=task.input_template, target_template=task.target_template)
    fields = {x: x for x in re.findall(r"\{([a-z][a-z0-9_]*)\}", task.input_template)}
    assert "source" in fields
    assert "{" not in contract.source_text(fields)
    assert contract.target_text("t") == "t"


@needs_data
@pytest.mark.parametrize("name", NAMES)
def test_every_task_scores_its_own_answers_by_its_headline(name: str) -> None:
    task = find(name)
    try:
        rows = task.load("test")[:8]
    except DataNotFound as error:
        pytest.skip(str(error))
    scores = task.score([x.references[0] for x in rows], rows, {task.headline})
    assert {*scores.values, *scores.missing} == {task.headline}


@pytest.mark.parametrize("name", ["mine.toml", "cards+mine.toml", "xyz"])
def test_what_a_file_says_it_was_trained_on_names_no_file(name: str, tmp_path: Path) -> None:
    """An artifact comes from anybody, and a task of one's own reads files and asks hubs."""
    (tmp_path / "mine.toml").write_text("")
    with pytest.raises(TaskNotFound, match="which is no task of the catalogue; say what to ask it with"):
        find_named(str(tmp_path / name) if name == "mine.toml" else name)
    assert find_named("cards").name == "cards"


def test_the_catalogue_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        TASKS["mine"] = TASKS["e2e"]  # type: ignore[index]


def test_an_unknown_task_is_told_the_nearest() -> None:
    with pytest.raises(TaskNotFound, match="got no task 'card', did you mean cards; see `epigraph data list`"):
        find("card")
    with pytest.raises(TaskNotFound, match=r"no task 'xyz', expected one of cards, e2e, webnlg, ... \(\d+ in all\)"):
        find("xyz")
    with pytest.raises(TaskNotFound, match="task e2e has no split 'validation', expected one of train, dev, test"):
        find("e2e").load("validation")


@needs_data
def test_e2e_is_the_published_set() -> None:
    task = find("e2e")
    train, dev, test = (task.load(split) for split in task.splits)
    assert (len(train), sum(len(x.references) for x in train)) == (4_862, 42_061)
    assert (len(dev), sum(len(x.references) for x in dev)) == (547, 4_672)
    assert len(test) > 500
    assert dev[0].source == "name : Alimentum | area : city centre | family friendly : no"
    assert dev[0].references[0].startswith("There is a place in the city centre")
    assert not {x.source for x in train} & {x.source for x in dev}
    assert all(Path(file).is_file() for file in task.files.values())


def test_cards_come_with_the_package() -> None:
    task = find("cards")
    for split in task.splits:
        examples = task.load(split)
        assert len(examples) > 20
        assert all(x.source and x.references for x in examples)
        assert Path(task.files[split]).is_file()


def test_e2e_is_looked_for_in_two_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPIGRAPH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("EPIGRAPH_DATA", raising=False)
    with pytest.raises(DataNotFound) as caught:
        find("e2e").load("dev")
    assert str(caught.value) == (
        "got no file e2e/dev.jsonl.gz: EPIGRAPH_DATA is unset, and it was never fetched to "
        f"{tmp_path}/home/data/e2e; run `epigraph data fetch e2e`"
    )
    monkeypatch.setenv("EPIGRAPH_DATA", str(tmp_path / "own"))
    with pytest.raises(DataNotFound, match=f"EPIGRAPH_DATA is {tmp_path}/own, which lacks e2e/dev.jsonl.gz"):
        find("e2e").load("dev")
    for folder, source in (("home/data", "fetched"), ("own", "own")):
        (tmp_path / folder / "e2e").mkdir(parents=True)
        row = gzip.compress(json.dumps({"source": source, "references": ["r"]}).encode())
        (tmp_path / folder / "e2e" / "dev.jsonl.gz").write_bytes(row)
        assert find("e2e").load("dev")[0].source == source
        assert find("e2e").files == {"dev": str(tmp_path / folder / "e2e" / "dev.jsonl.gz")}


def test_own_files_are_a_task(tmp_path: Path) -> None:
    train = rows_file(tmp_path / "train.jsonl", {"source": "s", "target": "t"})
    dev = tmp_path / "dev.csv"
    dev.write_text("source,target\na,b\n")
    task = own_data(train, dev, None, "mine")
    assert task.name == "mine"
    assert set(task.splits) == set(task.files) == {"train", "dev"}
    assert task.load("dev") == [Example(source="a", references=("b",))]
    assert not task.is_chat
    task.load("train").clear()
    assert len(task.load("train")) == 1
    with pytest.raises(TaskNotFound, match="task mine has no split 'test'"):
        task.load("test")


def test_own_conversations_are_a_chat_task(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    chat = rows_file(tmp_path / "chat.jsonl", {"messages": turns})
    plain = rows_file(tmp_path / "plain.jsonl", {"source": "s", "target": "t"})
    assert own_data(chat, None, chat, "mine").is_chat
    with pytest.raises(BadRows, match=r"plain.jsonl: got plain rows, expected chat rows as in .*chat.jsonl"):
        own_data(chat, plain, None, "mine")
    with pytest.raises(BadRows, match=r"chat.jsonl: got chat rows, expected plain rows as in .*plain.jsonl"):
        own_data(plain, None, chat, "mine")


def test_own_bad_rows_are_said_before_anything_is_loaded(tmp_path: Path) -> None:
    good = rows_file(tmp_path / "train.jsonl", {"source": "s", "target": "t"})
    with pytest.raises(BadRows, match="1 bad row in"):
        own_data(good, rows_file(tmp_path / "dev.jsonl", {"source": 1, "target": "t"}), None, "mine")


def test_the_draw_is_the_same_everywhere() -> None:
    assert "".join(x.references[0] for x in draw_pairs(EXAMPLES, 10, seed=0)) == "dhfciejbga"
    assert "".join(x.references[0] for x in draw_pairs(EXAMPLES, 10, seed=1)) == "jiadfegchb"
    assert draw_pairs(EXAMPLES, 4, seed=1) == draw_pairs(EXAMPLES, 10, seed=1)[:4]


def test_every_pair_is_as_likely_as_any_other() -> None:
    draws = [x for seed in range(4_000) for x in draw_pairs(EXAMPLES, 3, seed)]
    counts = Counter(x.references[0] for x in draws)
    assert set(counts) == set("abcdefghij")
    # 1,200 expected each, standard deviation 29.
    assert all(1_050 < count < 1_350 for count in counts.values())
    assert {x.source for x in draws if x.references == ("i",)} == {"two"}


def test_no_pair_is_drawn_twice_and_no_limit_keeps_the_order() -> None:
    drawn = draw_pairs(EXAMPLES, 10, seed=5)
    assert sorted(x.references[0] for x in drawn) == list("abcdefghij")
    everything = draw_pairs(EXAMPLES, None, seed=5)
    assert "".join(x.references[0] for x in everything) == "abcdefghij"
    assert all(len(x.references) == 1 for x in everything)


def test_a_draw_keeps_the_turns() -> None:
    turns = (Turn(role="user", content="u"), Turn(role="assistant", content="a"))
    assert draw_pairs([Example(source="u", references=("a",), turns=turns)], 1, seed=0)[0].turns == turns


def test_a_draw_that_cannot_be_is_refused() -> None:
    with pytest.raises(TooFewExamples, match="got a limit of 11 pairs, expected 10 or fewer: 3 examples have no more"):
        draw_pairs(EXAMPLES, 11, seed=0)
    with pytest.raises(BadValue, match="got a limit of 0 pairs, expected 1 or more"):
        draw_pairs(EXAMPLES, 0, seed=0)


def test_the_hash_is_of_everything_and_of_the_order() -> None:
    assert data_hash(EXAMPLES) == "9bdf0b67ce08b39f7d864dee27f06e36612216356da4279b6566a1f94a4dd3e1"
    turns = (Turn(role="user", content="u"),)
    others = [
        EXAMPLES[::-1],
        EXAMPLES[:2],
        [*EXAMPLES[:2], Example(source="three", references=("k",))],
        [*EXAMPLES[:2], Example(source="threé", references=("j",))],
        [*EXAMPLES[:2], Example(source="three", references=("j",), turns=turns)],
        [Example(source="one", references=("ab", "cdefgh")), *EXAMPLES[1:]],
    ]
    assert len({data_hash(x) for x in [EXAMPLES, *others]}) == 1 + len(others)


def test_tasks_import_only_errors_home_files_and_each_other() -> None:
    folder = Path(epigraph.tasks.__file__).parent
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [x.name for x in node.names] if isinstance(node, ast.Import) else []
            ours = [x for x in names if x.split(".")[0] == "epigraph"]
            assert all(
                x in ("epigraph.errors", "epigraph.home", "epigraph.files") or x.startswith("epigraph.tasks")
                for x in ours
            ), (
                file,
                ours,
            )


def test_no_torch_is_imported() -> None:
    code = "import sys, epigraph.tasks.catalogue; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
