"""Tiny models of any family as folders, rows as files, and the command in this process. It knows no test."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from epigraph.cli import main
from families import tiny_family


def save_family(family: str, folder: Path) -> Path:
    """The tiny model of that family and its tokenizer, as what loads models by name takes them."""
    frozen = tiny_family(family)
    frozen.model.save_pretrained(folder)
    frozen.tokenizer.save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    """The rows as JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def call(*words: object) -> int:
    """The command's exit code."""
    with pytest.raises(SystemExit) as done:
        main([str(word) for word in words])
    assert isinstance(done.value.code, int)
    return done.value.code


def printed(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What the command prints, which must end well."""
    capsys.readouterr()
    code = call(*words)
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line of a user's mistake."""
    capsys.readouterr()
    code = call(*words)
    out, err = capsys.readouterr()
    assert (code, out) == (2, ""), err
    assert err.startswith("epigraph: ")
    assert err.count("\n") == 1
    return err.strip()
