"""What `inspect --mass` measures, and on which texts: as tables, and as a picture with its record beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epigraph.cli import show
from epigraph.errors import BadRows, BadValue, CannotWrite, DataError, OutputExists
from epigraph.files import write_whole
from epigraph.report.mass import mass_png
from epigraph.report.records import MassRecord, read_mass

if TYPE_CHECKING:
    from epigraph.frozen.inputs import Encoded
    from epigraph.tuned import Tuned

NUM_TEXTS = 8
NUM_COLUMNS = 10
SAMPLE = "The Vaults is a pub by the river, and it is open every day."


def measure(tuned: Tuned, found: Mapping[str, Any], texts: Path | None) -> dict[str, Any]:
    """The record of one measurement: ``sites`` by name, each with ``virtual`` (layers x virtual tokens) and ``text``,
    shares from 0 to 1."""
    from epigraph.frozen.mass import attention_mass

    rows, where = _from_file(tuned, texts) if texts is not None else _by_default(tuned, found["provenance"])
    mass = attention_mass(tuned.frozen, tuned.artifact.tokens, [row.ids for row in rows])
    return {
        "content_hash": found["content_hash"],
        "base": tuned.frozen.name,
        "texts": where,
        "num_texts": mass.num_rows,
        "num_tokens": mass.num_tokens,
        "sites": {
            site: {"virtual": one.virtual_LP.tolist(), "text": one.text_L.tolist()} for site, one in mass.sites.items()
        },
    }


def _from_file(tuned: Tuned, path: Path) -> tuple[list[Encoded], str]:
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as wrong:
        raise BadValue(f"--texts: cannot read {path}: {wrong}; give a file of UTF-8 lines") from None
    if not lines:
        raise BadValue(f"--texts: {path} has no line with text, expected one source a line; add some")
    return [tuned.encode(line) for line in lines], path.name


def _by_default(tuned: Tuned, provenance: Mapping[str, Any]) -> tuple[list[Encoded], str]:
    """The first test rows of the task it was trained on, where that is a known one whose data are here; else a sample
    sentence in the contract's template."""
    from epigraph.tasks.catalogue import find_named
    from epigraph.train.evaluate import question

    data = provenance.get("data")
    name = data.get("task") if isinstance(data, dict) else None
    try:
        task = find_named(str(name))
        rows = [question(tuned.codec, example) for example in task.load("test")[:NUM_TEXTS]]
        return rows, f"the first {len(rows)} test rows of {task.name}"
    except DataError:
        return [tuned.encode(SAMPLE)], "a sample sentence"


def check_picture(path: Path) -> None:
    """Raise :class:`BadValue` for a picture that is no PNG, :class:`OutputExists` where its record would lie on
    another file."""
    if path.suffix.lower() != ".png":
        raise BadValue(f"--picture is {str(path)!r}, expected a name that ends in .png")
    record = path.with_suffix(".json")
    try:
        read_mass(record)
    except BadRows:
        raise OutputExists(
            f"{record} is there and is not what --mass writes, which would lie there beside {path.name}; "
            "choose another name for the picture, mass.png for instance"
        ) from None


def write_picture(path: Path, record: Mapping[str, Any]) -> None:
    """The heat map at ``path``, and the record beside it, with the ending .json."""
    read = MassRecord.model_validate(record)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path.with_suffix(".json"), [json.dumps(record, ensure_ascii=False).encode("utf-8", "replace")])
        write_whole(path, [mass_png(read)])
    except OSError as wrong:
        raise CannotWrite(f"cannot write {path}: {wrong.strerror or wrong}; choose another --picture") from None


def summary(record: Mapping[str, Any]) -> dict[str, str]:
    """The measurement in a few lines."""
    return {
        "mass over": f"{record['texts']}, {record['num_tokens']:,} tokens",
        **{
            f"to virtual, {site}": _percent(_mean_virtual(one)) + " %, the mean over layers"
            for site, one in _sites(record)
        },
    }


def print_tables(record: Mapping[str, Any]) -> None:
    """Percent by layer and virtual token, so many virtual tokens side by side as a terminal holds."""
    for site, one in _sites(record):
        count = len(one["virtual"][0])
        for start in range(0, max(count, 1), NUM_COLUMNS):
            numbers = range(start, min(start + NUM_COLUMNS, count))
            rows = [
                (str(layer), *(_percent(shares[number]) for number in numbers), _percent(text))
                for layer, (shares, text) in enumerate(zip(one["virtual"], one["text"], strict=True))
            ]
            show.print_rows(f"Mass at {site}, in %", ("layer", *map(str, numbers), "text"), rows)


def _sites(record: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield from record["sites"].items()


def _mean_virtual(one: Mapping[str, Sequence[Sequence[float]]]) -> float:
    return sum(map(sum, one["virtual"])) / len(one["virtual"])


def _percent(share: float) -> str:
    """Three characters where they are enough."""
    percent = 100 * share
    return f"{percent:.0f}" if percent >= 9.95 else f"{percent:.1f}"
