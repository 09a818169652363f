"""Sound files whose free text is hostile to the screen: shown all the same, and nothing in it acts."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from attacks.make import Raw
from epigraph.cli import main

TEXTS = {
    "a hyperlink in markup": ("base", {"name": "[link=https://evil.example]tiny[/link]"}),
    "markup that is not closed": ("base", {"name": "tiny[/x]"}),
    "data of text": ("provenance", {"data": "x"}),
    "data of nothing": ("provenance", {"data": None}),
    "a task of a list": ("provenance", {"data": {"task": ["a"]}}),
    "escapes in a task": ("provenance", {"data": {"task": "\x1b[2J\x1b]0;pwned\x07"}}),
    "C1 controls and turned text": ("provenance", {"data": {"task": "\x9b2J\u202ecards\u2028"}}),
    "scores of text": ("provenance", {"dev": {"bleu": "[red]99"}}),
    "scores of a list": ("provenance", {"dev": [1, 2]}),
    "a score of 4,000 digits": ("provenance", {"dev": {"bleu": 10**3999}}),
    "escapes in a time": ("provenance", {"created": "\x1b[31m\r\n"}),
    "escapes and markup in a template": ("contract", {"input_template": "\x1b[2J[/x]{source}"}),
}


@pytest.fixture(params=TEXTS)
def hostile(request: pytest.FixtureRequest, tmp_path: Path) -> Raw:
    raw = Raw()
    part, changes = TEXTS[request.param]
    raw.fields[part] |= changes
    raw.write(tmp_path / "x.safetensors")
    return raw


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[Any, str]:
    """Exit code and everything that was printed, in which nothing may act."""
    with pytest.raises(SystemExit) as done:
        main(list(words))
    out, err = capsys.readouterr()
    active = {x for x in out + err if unicodedata.category(x) in {"Cc", "Cf", "Cs", "Zl", "Zp"}} - {"\n"}
    assert active == set()
    return done.value.code, out


def test_inspect_shows_a_hostile_text_and_nothing_acts(
    hostile: Raw, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = said(capsys, "inspect", str(tmp_path / "x.safetensors"))
    assert code == 0
    assert "2 virtual tokens" in out
    code, out = said(capsys, "inspect", str(tmp_path / "x.safetensors"), "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["base"], found["provenance"]) == (hostile.fields["base"], hostile.fields["provenance"])


def test_evaluate_does_not_believe_a_hostile_text(
    hostile: Raw, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(capsys, "evaluate", str(tmp_path / "x.safetensors")) == (2, "")
