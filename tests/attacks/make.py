"""Hostile and broken artifact files, one function each; ``python -m attacks.make FOLDER`` in tests/ writes them all.

Nothing here uses the writer that is under test: bytes are put together from docs/format.md, and an attack that is not
about the content hash carries a right one, so that the check it aims at must catch it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import socket
import struct
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from epigraph.errors import (
    ArtifactError,
    BadHeader,
    BadTensor,
    ContentMismatch,
    NotAnArtifact,
    TooLarge,
    Truncated,
    UnknownVersion,
)

Make = Callable[[Path], None]
ATTACKS: dict[str, tuple[type[ArtifactError], Make]] = {}
KEYS, VALUES = "decoder.self.000.keys", "decoder.self.000.values"
SOFT = "soft.embeddings"
ONE, NAN, INFINITY, LARGEST = (struct.pack("<f", x) for x in (1.0, float("nan"), float("inf"), 3.4028e38))


def caught_as(error: type[ArtifactError]) -> Callable[[Make], Make]:
    """Register an attack with the one error that must catch it."""

    def register(make: Make) -> Make:
        ATTACKS[make.__name__] = (error, make)
        return make

    return register


def header() -> dict[str, Any]:
    """A sound epigraph header without its content hash: two layers, [P, K, H] = [2, 1, 3], the second layer absent."""
    layer = {"num_kv_heads": 1, "head_dim": 3, "window": None}
    return {
        "format_version": 1,
        "kind": "kv",
        "geometry": {
            "sites": {"decoder.self": [dict(layer), dict(layer)]},
            "embedding_dim": 8,
            "position_kind": "rotary",
            "max_positions": 128,
        },
        "text_start": 2,
        "visibility": "always",
        "num_virtual_tokens": 2,
        "base": {"name": "tiny", "fingerprint": "a" * 64},
        "tokenizer": {"fingerprint": "b" * 64},
        "contract": {"input_template": "{source}\n", "bos": False},
        "method": {"name": "prefix-tuning", "config": {}},
        "provenance": {"seed": 0},
        "also_allowed_bases": [],
        "extra": {},
    }


def canonical(fields: Any) -> str:
    return json.dumps(fields, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


@dataclass
class Raw:
    """An artifact in parts, every one of which an attack may change before :meth:`write`."""

    fields: dict[str, Any] = field(default_factory=header)
    tensors: dict[str, tuple[str, list[int], bytes]] = field(
        default_factory=lambda: {KEYS: ("F32", [2, 1, 3], ONE * 6), VALUES: ("F32", [2, 1, 3], ONE * 6)}
    )
    table: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    content_hash: str | None = None
    value: str | None = None
    tail: bytes = b""

    def right_hash(self) -> str:
        """The slow twin of ``header.content_hash``, straight from section 5 of docs/format.md."""
        pieces = [_framed(canonical(self.fields))]
        for name in sorted(self.tensors):
            dtype, shape, data = self.tensors[name]
            sides = ",".join(str(x) for x in shape)
            pieces += [_framed(f'["{name}","{dtype}",[{sides}]]'), data]
        return hashlib.sha256(b"".join(pieces)).hexdigest()

    def text(self) -> str:
        if self.value is None:
            return canonical(self.fields | {"content_hash": self.content_hash or self.right_hash()})
        return self.value

    def outer(self) -> dict[str, Any]:
        table: dict[str, Any] = {"__metadata__": {"epigraph": self.text()} | self.metadata}
        end = 0
        for name, (dtype, shape, data) in self.tensors.items():
            table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
            end += len(data)
        return table | self.table

    def to_bytes(self) -> bytes:
        return container(
            json.dumps(self.outer()).encode(), b"".join(x for _, _, x in self.tensors.values()) + self.tail
        )

    def write(self, path: Path) -> None:
        path.write_bytes(self.to_bytes())


def soft() -> Raw:
    """A sound file of the other kind: a soft prompt of [P, E] = [2, 8]."""
    fields = header() | {"kind": "soft"}
    del fields["text_start"], fields["visibility"]
    return Raw(fields=fields, tensors={SOFT: ("F32", [2, 8], ONE * 16)})


def infix() -> Raw:
    """A sound file with both: embeddings that the model reads, and what is added to its keys and values there."""
    raw = Raw()
    raw.fields |= {"visibility": "answer", "text_start": 0}
    raw.fields["contract"]["input_template"] = "{source}{2}\n"
    raw.tensors |= soft().tensors
    return raw


def container(text: bytes, data: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _framed(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _with(path: Path, *keys: str | int, value: Any) -> None:
    """A sound file but for one value of the epigraph header, which the content hash covers."""
    raw = Raw()
    place: Any = raw.fields
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    raw.write(path)


# Something else


@caught_as(NotAnArtifact)
def pickle_of_protocol_4(path: Path) -> None:
    """A pickle that would create a file beside itself if anything unpickled it."""

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (path.with_suffix(".pwned"),))

    path.write_bytes(pickle.dumps(Payload(), protocol=4))


@caught_as(NotAnArtifact)
def pickle_of_protocol_2(path: Path) -> None:
    """An old pickle, as early checkpoints are."""
    path.write_bytes(pickle.dumps({"keys": [1.0] * 20}, protocol=2))


@caught_as(NotAnArtifact)
def pickle_of_protocol_0(path: Path) -> None:
    """The oldest pickle, which is text and has no magic number: a call of os.system and nothing else."""
    path.write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")


@caught_as(NotAnArtifact)
def pickle_behind_a_length(path: Path) -> None:
    """A pickle whose first eight bytes are the length of a small header."""
    path.write_bytes(struct.pack("<Q", 40) + pickle.dumps({"keys": [1.0] * 20}, protocol=4))


@caught_as(NotAnArtifact)
def zip_archive(path: Path) -> None:
    """A zip archive with a pickle in it, as torch.save writes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"keys": 1}))
    path.write_bytes(buffer.getvalue())


@caught_as(NotAnArtifact)
def gguf_model(path: Path) -> None:
    """The beginning of a GGUF model, version 3."""
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))


@caught_as(NotAnArtifact)
def gzip_archive(path: Path) -> None:
    """A sound artifact, but compressed."""
    path.write_bytes(gzip.compress(Raw().to_bytes()))


@caught_as(NotAnArtifact)
def web_page(path: Path) -> None:
    """The page that a hub sends instead of a file that needs a login."""
    path.write_bytes(b"<!DOCTYPE html><html><body>Sign in</body></html>")


@caught_as(NotAnArtifact)
def git_lfs_pointer(path: Path) -> None:
    """What a clone without Git LFS leaves."""
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 238416\n")


@caught_as(NotAnArtifact)
def json_text(path: Path) -> None:
    """A JSON file, its brace where a length should be."""
    path.write_bytes(json.dumps(header()).encode())


@caught_as(NotAnArtifact)
def zeros(path: Path) -> None:
    """A file of zeros, as a crash of a file system leaves."""
    path.write_bytes(bytes(4096))


@caught_as(NotAnArtifact)
def plain_model(path: Path) -> None:
    """A sound safetensors file of a model."""
    table = {"__metadata__": {"format": "pt"}, "wte.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    path.write_bytes(container(json.dumps(table).encode(), ONE))


@caught_as(NotAnArtifact)
def peft_adapter(path: Path) -> None:
    """A sound safetensors file of a PEFT prompt, without metadata at all."""
    table = {"prompt_embeddings": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    path.write_bytes(container(json.dumps(table).encode(), ONE))


@caught_as(NotAnArtifact)
def folder(path: Path) -> None:
    """A folder with the right extension."""
    path.mkdir()


@caught_as(NotAnArtifact)
def symbolic_link(path: Path) -> None:
    """A link to a sound artifact: it could be turned elsewhere between a check and a use."""
    target = path.with_name("target.safetensors")
    Raw().write(target)
    path.symlink_to(target)


@caught_as(NotAnArtifact)
def link_to_itself(path: Path) -> None:
    """A link that never ends."""
    path.symlink_to(path)


@caught_as(NotAnArtifact)
def named_pipe(path: Path) -> None:
    """A pipe without a writer: opening it the plain way would wait for ever."""
    os.mkfifo(path)


@caught_as(NotAnArtifact)
def unix_socket(path: Path) -> None:
    """A socket with the right extension."""
    with socket.socket(socket.AF_UNIX) as made:
        # By its short name: the path of a socket may have 107 bytes.
        here = os.open(path.parent, os.O_RDONLY)
        try:
            made.bind(f"/proc/self/fd/{here}/{path.name}")
        finally:
            os.close(here)


@caught_as(NotAnArtifact)
def nothing(path: Path) -> None:
    """No file at all."""


# Lengths


@caught_as(Truncated)
def empty(path: Path) -> None:
    """A file of no bytes."""
    path.write_bytes(b"")


@caught_as(Truncated)
def cut_in_the_length(path: Path) -> None:
    """Five of the eight bytes of the length."""
    path.write_bytes(Raw().to_bytes()[:5])


@caught_as(Truncated)
def cut_in_the_header(path: Path) -> None:
    """Half of a header."""
    path.write_bytes(Raw().to_bytes()[:300])


@caught_as(Truncated)
def cut_in_the_tensors(path: Path) -> None:
    """The last byte is missing, as after a broken download."""
    path.write_bytes(Raw().to_bytes()[:-1])


@caught_as(Truncated)
def trailing_byte(path: Path) -> None:
    """One byte more than the tensors need: room for a second file that other programs see."""
    Raw(tail=b"\0").write(path)


@caught_as(Truncated)
def zip_behind_a_sound_file(path: Path) -> None:
    """A sound artifact that unzip would open as well: an archive with a pickle stands behind the tensors."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"keys": 1}))
    Raw(tail=buffer.getvalue()).write(path)


@caught_as(Truncated)
def second_artifact_behind_the_first(path: Path) -> None:
    """Two sound artifacts in one file."""
    path.write_bytes(Raw().to_bytes() * 2)


@caught_as(TooLarge)
def header_of_4_gib(path: Path) -> None:
    """A length that would make a careless reader allocate 4 GiB."""
    path.write_bytes(container(b"{}", b"", length=1 << 32))


@caught_as(TooLarge)
def header_of_2_to_the_64(path: Path) -> None:
    """A length that is negative for a reader with signed numbers."""
    path.write_bytes(container(b"{}", b"", length=(1 << 64) - 1))


@caught_as(BadHeader)
def header_of_no_bytes(path: Path) -> None:
    """A header of length zero before a brace."""
    path.write_bytes(container(b"{}", b"", length=0))


@caught_as(TooLarge)
def file_of_5_gib(path: Path) -> None:
    """A sound file made 5 GiB long with a hole that takes no disk."""
    Raw().write(path)
    os.truncate(path, 5 << 30)


# The safetensors header


@caught_as(BadHeader)
def outer_not_json(path: Path) -> None:
    """A brace and then nothing that is JSON."""
    path.write_bytes(container(b"{nonsense", ONE))


@caught_as(BadHeader)
def outer_not_utf8(path: Path) -> None:
    """A byte that UTF-8 does not have."""
    path.write_bytes(container(b'{"\xff":1}', ONE))


@caught_as(BadHeader)
def outer_overlong_utf8(path: Path) -> None:
    """A quotation mark written in two bytes, which some decoders let through."""
    path.write_bytes(container(b'{"\xc0\xa2":1}', ONE))


@caught_as(NotAnArtifact)
def outer_with_a_mark(path: Path) -> None:
    """A byte-order mark before the brace, which some parsers skip."""
    path.write_bytes(container(b"\xef\xbb\xbf" + json.dumps(Raw().outer()).encode(), ONE * 12))


@caught_as(BadHeader)
def outer_with_more_behind(path: Path) -> None:
    """A second JSON object behind the first, still inside the header."""
    path.write_bytes(container(json.dumps(Raw().outer()).encode() + b'{"a": 1}', ONE * 12))


@caught_as(BadHeader)
def outer_in_utf16(path: Path) -> None:
    """The header in two bytes a character, its first byte a brace all the same."""
    path.write_bytes(container(json.dumps(Raw().outer()).encode("utf-16-le"), ONE * 12))


def _with_row(path: Path, row: str) -> None:
    """A sound file with one more row in its table, given as JSON."""
    path.write_bytes(container(f'{json.dumps(Raw().outer())[:-1]}, "more": {row}}}'.encode(), ONE * 12))


def _filled(piece: str, num_bytes: int) -> str:
    """A JSON list of ``piece``, again and again."""
    return "[" + ",".join([piece] * (num_bytes // (len(piece) + 1))) + "]"


@caught_as(TooLarge)
def header_bomb_of_objects(path: Path) -> None:
    """Nearly 4 MiB of empty objects, each forty times as large in memory."""
    _with_row(path, _filled("{}", (4 << 20) - 2000))


@caught_as(TooLarge)
def header_bomb_of_nests(path: Path) -> None:
    """Nearly 4 MiB of objects in objects in objects."""
    _with_row(path, _filled('{"a":{"b":{"c":[0]}}}', (4 << 20) - 2000))


@caught_as(TooLarge)
def header_bomb_of_numbers(path: Path) -> None:
    """A shape of two million sides, every one of them wrong."""
    _with_row(path, f'{{"dtype": "F32", "data_offsets": [0, 0], "shape": {_filled("-1", (4 << 20) - 2000)}}}')


@caught_as(BadHeader)
def header_bomb_within_the_limits(path: Path) -> None:
    """As many objects as the limit on brackets and commas lets through."""
    _with_row(path, _filled("{}", 480_000))


@caught_as(BadHeader)
def header_bomb_of_one_string(path: Path) -> None:
    """Nearly 4 MiB of one character in a row of the table, for a message that quotes what it found."""
    _with_row(path, f'{{"dtype": "{"F" * 4_000_000}", "shape": "", "data_offsets": 0}}')


@caught_as(TooLarge)
def outer_deep(path: Path) -> None:
    """A million brackets, to exhaust the stack of a recursive parser."""
    path.write_bytes(container(b'{"a":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}", b""))


@caught_as(BadHeader)
def outer_key_twice(path: Path) -> None:
    """The same tensor twice with other offsets: two parsers could read two different prefixes."""
    raw = Raw()
    text = json.dumps(raw.outer())
    twice = text[:-1] + f', "{KEYS}": {{"dtype": "F32", "shape": [2, 1, 3], "data_offsets": [24, 48]}}}}'
    path.write_bytes(container(twice.encode(), ONE * 12))


@caught_as(BadHeader)
def outer_key_twice_in_disguise(path: Path) -> None:
    """The same tensor twice, the second time with an escape in its name."""
    disguised = KEYS.replace("e", "\\u0065", 1)
    twice = (
        json.dumps(Raw().outer())[:-1] + f', "{disguised}": {{"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}}}'
    )
    path.write_bytes(container(twice.encode(), ONE * 12))


@caught_as(NotAnArtifact)
def metadata_null(path: Path) -> None:
    """Metadata of nothing."""
    outer = Raw().outer() | {"__metadata__": None}
    path.write_bytes(container(json.dumps(outer).encode(), ONE * 12))


@caught_as(BadHeader)
def metadata_twice(path: Path) -> None:
    """Two metadata objects, one harmless."""
    text = json.dumps(Raw().outer())
    path.write_bytes(container(('{"__metadata__": {"format": "pt"}, ' + text[1:]).encode(), ONE * 12))


@caught_as(BadHeader)
def metadata_with_more(path: Path) -> None:
    """A second metadata key, which no hash covers."""
    Raw(metadata={"format": "pt"}).write(path)


@caught_as(BadHeader)
def metadata_not_a_string(path: Path) -> None:
    """The epigraph header as an object instead of a string."""
    Raw(metadata={"epigraph": header()}).write(path)


@caught_as(BadHeader)
def overlapping_tensors(path: Path) -> None:
    """Keys and values share their bytes."""
    Raw(table={VALUES: {"dtype": "F32", "shape": [2, 1, 3], "data_offsets": [0, 24]}}).write(path)


@caught_as(BadHeader)
def hole_between_tensors(path: Path) -> None:
    """Eight bytes that belong to no tensor."""
    Raw(table={VALUES: {"dtype": "F32", "shape": [2, 1, 3], "data_offsets": [32, 56]}}, tail=bytes(8)).write(path)


@caught_as(BadHeader)
def offsets_backwards(path: Path) -> None:
    """A tensor that ends before it begins."""
    Raw(table={VALUES: {"dtype": "F32", "shape": [2, 1, 3], "data_offsets": [24, 0]}}).write(path)


@caught_as(BadHeader)
def offsets_negative(path: Path) -> None:
    """A tensor that begins in the header."""
    Raw(table={KEYS: {"dtype": "F32", "shape": [2, 1, 3], "data_offsets": [-24, 0]}}).write(path)


@caught_as(BadHeader)
def shape_negative(path: Path) -> None:
    """Two negative sides whose product is the right number of numbers."""
    Raw(table={KEYS: {"dtype": "F32", "shape": [-2, -1, 3], "data_offsets": [0, 24]}}).write(path)


@caught_as(BadHeader)
def offsets_of_three(path: Path) -> None:
    """A begin, an end and one more."""
    Raw(table={KEYS: {"dtype": "F32", "shape": [2, 1, 3], "data_offsets": [0, 24, 24]}}).write(path)


@caught_as(BadHeader)
def offsets_not_whole(path: Path) -> None:
    """Offsets with a decimal point."""
    Raw(table={KEYS: {"dtype": "F32", "shape": [2, 1, 3], "data_offsets": [0.0, 24.0]}}).write(path)


@caught_as(Truncated)
def offsets_past_the_end(path: Path) -> None:
    """A tensor that ends 2^62 bytes after the file."""
    Raw(table={VALUES: {"dtype": "F32", "shape": [2, 1, 3], "data_offsets": [24, 1 << 62]}}).write(path)


@caught_as(BadHeader)
def table_row_with_more(path: Path) -> None:
    """A row of the table with a key that safetensors does not have."""
    row = {"dtype": "F32", "shape": [2, 1, 3], "data_offsets": [0, 24], "file": "/etc/passwd"}
    Raw(table={KEYS: row}).write(path)


@caught_as(TooLarge)
def table_row_of_a_million(path: Path) -> None:
    """A table that has a list of a million numbers where a row should be."""
    Raw(table={KEYS: [0] * 1_000_000}).write(path)


@caught_as(TooLarge)
def many_tensors(path: Path) -> None:
    """Forty thousand empty tensors."""
    row = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    Raw(table={f"t{number}": row for number in range(40_000)}).write(path)


# The epigraph header


@caught_as(BadHeader)
def value_not_json(path: Path) -> None:
    """The epigraph header is a word."""
    Raw(value="hello").write(path)


@caught_as(BadHeader)
def value_a_list(path: Path) -> None:
    """The epigraph header is a list."""
    Raw(value="[]").write(path)


@caught_as(BadHeader)
def value_with_spaces(path: Path) -> None:
    """The right header, but not in canonical form."""
    raw = Raw()
    Raw(value=json.dumps(json.loads(raw.text()))).write(path)


@caught_as(BadHeader)
def value_unsorted(path: Path) -> None:
    """The right keys in another order, so that one content would have two texts."""
    fields = json.loads(Raw().text())
    Raw(value=json.dumps(dict(reversed(fields.items())), separators=(",", ":"))).write(path)


@caught_as(BadHeader)
def value_escaped(path: Path) -> None:
    """The right header with one letter written as an escape."""
    Raw(value=Raw().text().replace('"tiny"', '"\\u0074iny"')).write(path)


@caught_as(BadHeader)
def value_with_minus_zero(path: Path) -> None:
    """A number that has two texts."""
    Raw(value=Raw().text().replace('"seed":0', '"seed":-0')).write(path)


@caught_as(BadHeader)
def value_key_twice(path: Path) -> None:
    """The base's name twice."""
    Raw(value=Raw().text().replace('"name":"tiny"', '"name":"tiny","name":"other"')).write(path)


@caught_as(TooLarge)
def value_deep(path: Path) -> None:
    """Provenance of 40,000 levels."""
    Raw(value=Raw().text().replace('{"seed":0}', '{"a":' * 40_000 + "0" + "}" * 40_000)).write(path)


@caught_as(TooLarge)
def value_a_little_deep(path: Path) -> None:
    """Provenance of 40 levels, which any parser takes."""
    value: Any = 0
    for _ in range(40):
        value = [value]
    _with(path, "provenance", "deep", value=value)


@caught_as(TooLarge)
def value_of_256_kib(path: Path) -> None:
    """Provenance that is bigger than the prefix."""
    _with(path, "provenance", "log", value="x" * (1 << 18))


@caught_as(BadHeader)
def value_with_nan(path: Path) -> None:
    """A number that JSON does not have."""
    Raw(value=Raw().text().replace('"seed":0', '"seed":NaN')).write(path)


@caught_as(BadHeader)
def value_with_infinity(path: Path) -> None:
    """A number that becomes infinite when it is read."""
    Raw(value=Raw().text().replace('"seed":0', '"seed":1e999')).write(path)


@caught_as(BadHeader)
def value_with_endless_integer(path: Path) -> None:
    """An integer of 100,000 digits, which takes quadratic time to convert."""
    Raw(value=Raw().text().replace('"seed":0', '"seed":' + "9" * 100_000)).write(path)


@caught_as(BadHeader)
def value_with_lone_surrogate(path: Path) -> None:
    """Half a character, which cannot be printed or encoded."""
    Raw(value=Raw().text().replace('"seed":0', '"seed":"\\ud800"')).write(path)


@caught_as(UnknownVersion)
def version_2(path: Path) -> None:
    """A file from the future, with a key that this version does not know."""
    raw = Raw()
    raw.fields |= {"format_version": 2, "soft_prompt": {}}
    raw.write(path)


@caught_as(UnknownVersion)
def version_of_4000_digits(path: Path) -> None:
    """A version that fills the screen of whoever reads the message."""
    _with(path, "format_version", value=int("9" * 4000))


@caught_as(BadHeader)
def version_as_text(path: Path) -> None:
    """A version in quotation marks."""
    _with(path, "format_version", value="1")


@caught_as(BadHeader)
def version_with_a_point(path: Path) -> None:
    """A version that equals 1 and is not an integer."""
    _with(path, "format_version", value=1.0)


@caught_as(BadHeader)
def version_true(path: Path) -> None:
    """A version that equals 1 in Python and is not 1."""
    _with(path, "format_version", value=True)


@caught_as(BadHeader)
def version_0(path: Path) -> None:
    """A version that never was."""
    _with(path, "format_version", value=0)


@caught_as(BadHeader)
def kind_soft_with_a_text_start(path: Path) -> None:
    """A soft prompt that says where text starts, which follows from its length."""
    _with(path, "kind", value="soft")


@caught_as(BadHeader)
def kind_soft_with_a_visibility_of_null(path: Path) -> None:
    """A key that a soft prompt does not have, with the value that a reader may take for its absence."""
    raw = soft()
    raw.fields["visibility"] = None
    raw.write(path)


@caught_as(BadHeader)
def kind_kv_with_a_text_start_of_null(path: Path) -> None:
    """Keys and values that leave the position of the text open."""
    _with(path, "text_start", value=None)


@caught_as(BadHeader)
def kind_of_tomorrow(path: Path) -> None:
    """A kind that version 1 does not have."""
    _with(path, "kind", value="adapter")


@caught_as(BadHeader)
def soft_longer_than_the_positions(path: Path) -> None:
    """As many virtual tokens as the model has positions."""
    raw = soft()
    raw.fields["geometry"]["max_positions"] = 2
    raw.write(path)


@caught_as(BadTensor)
def soft_without_embeddings(path: Path) -> None:
    """A soft prompt with no tensor, so nothing would stand in front of the text."""
    raw = soft()
    raw.tensors = {"extra.head": raw.tensors.pop(SOFT)}
    raw.fields["extra"] = {"head": {"dtype": "F32", "shape": [2, 8]}}
    raw.write(path)


@caught_as(BadTensor)
def soft_of_another_width(path: Path) -> None:
    """Embeddings that are narrower than the model's."""
    raw = soft()
    raw.tensors[SOFT] = ("F32", [2, 7], ONE * 14)
    raw.write(path)


@caught_as(BadTensor)
def soft_with_keys_and_values(path: Path) -> None:
    """Both kinds in one file, which leaves open which is meant."""
    raw = soft()
    raw.tensors |= Raw().tensors
    raw.write(path)


@caught_as(BadTensor)
def keys_and_values_with_embeddings(path: Path) -> None:
    """Both kinds in one file, the other way round."""
    raw = Raw()
    raw.tensors |= soft().tensors
    raw.write(path)


@caught_as(BadTensor)
def infix_without_embeddings(path: Path) -> None:
    """Places in the text with nothing for the model to read there."""
    raw = infix()
    del raw.tensors[SOFT]
    raw.write(path)


@caught_as(BadTensor)
def infix_of_more_embeddings(path: Path) -> None:
    """More embeddings than keys and values to add to what is made of them."""
    raw = infix()
    raw.tensors[SOFT] = ("F32", [3, 8], ONE * 24)
    raw.write(path)


@caught_as(BadTensor)
def infix_of_embeddings_alone(path: Path) -> None:
    """Nothing to add in any layer, so that the kind is a lie."""
    raw = infix()
    raw.tensors = {SOFT: raw.tensors[SOFT]}
    raw.write(path)


@caught_as(BadHeader)
def infix_that_everyone_sees(path: Path) -> None:
    """Added to what the model made of the places before it was made."""
    raw = infix()
    raw.fields["visibility"] = "always"
    raw.write(path)


@caught_as(BadTensor)
def soft_not_a_number(path: Path) -> None:
    """Embeddings with one number that is none."""
    raw = soft()
    raw.tensors[SOFT] = ("F32", [2, 8], ONE * 15 + NAN)
    raw.write(path)


@caught_as(BadHeader)
def unknown_key(path: Path) -> None:
    """A key that version 1 does not have, with a name that would colour the terminal."""
    _with(path, "\x1b[31mevil", value=1)


@caught_as(TooLarge)
def many_unknown_keys(path: Path) -> None:
    """Twenty thousand keys that version 1 does not have."""
    raw = Raw()
    raw.fields |= {str(number): 0 for number in range(20_000)}
    raw.write(path)


@caught_as(BadHeader)
def missing_key(path: Path) -> None:
    """No text_start: a reader that guessed it would compute another function."""
    raw = Raw()
    del raw.fields["text_start"]
    raw.write(path)


@caught_as(BadHeader)
def number_as_text(path: Path) -> None:
    """A number in quotation marks, which a lenient reader would convert."""
    _with(path, "num_virtual_tokens", value="2")


@caught_as(BadHeader)
def contract_of_lenient_types(path: Path) -> None:
    """A truth value that a lenient reader would take from a word."""
    _with(path, "contract", "bos", value="yes")


@caught_as(BadHeader)
def contract_that_reaches(path: Path) -> None:
    """A template that would read attributes if it were filled by str.format."""
    _with(path, "contract", "input_template", value="{source.__class__.__init__.__globals__}")


@caught_as(TooLarge)
def contract_of_many_tokens(path: Path) -> None:
    """A contract that asks the server for a billion tokens."""
    _with(path, "contract", "decoding", value={"max_new_tokens": 1_000_000_000})


@caught_as(BadHeader)
def contract_that_formats(path: Path) -> None:
    """A template that str.format would fill with a gigabyte of blanks."""
    _with(path, "contract", "input_template", value="{source:>1000000000}")


@caught_as(BadHeader)
def contract_that_indexes(path: Path) -> None:
    """A template that would look into what it is given."""
    _with(path, "contract", "input_template", value="{source[0]}")


@caught_as(BadHeader)
def contract_that_converts(path: Path) -> None:
    """A template that would call repr."""
    _with(path, "contract", "input_template", value="{source!r}")


@caught_as(BadHeader)
def contract_of_jinja(path: Path) -> None:
    """A template that runs Python where Jinja fills it outside a sandbox."""
    _with(path, "contract", "input_template", value="{{ cycler.__init__.__globals__.os.popen('id').read() }}")


@caught_as(BadHeader)
def contract_with_a_chat_template(path: Path) -> None:
    """A chat template of the file's own, where only the hash of the tokenizer's may stand."""
    _with(path, "contract", "chat_template", value="{{ messages }}")


@caught_as(BadHeader)
def contract_of_another_target(path: Path) -> None:
    """A target template that asks for a field which no target has."""
    _with(path, "contract", "target_template", value="{secret}")


@caught_as(TooLarge)
def contract_of_long_template(path: Path) -> None:
    """A template of 4,097 characters."""
    _with(path, "contract", "input_template", value="x" * 4097)


@caught_as(TooLarge)
def contract_of_many_stops(path: Path) -> None:
    """Seventeen stop texts, each looked for in every answer."""
    _with(path, "contract", "stop", value=["x"] * 17)


@caught_as(BadHeader)
def contract_of_empty_stop(path: Path) -> None:
    """A stop text of no characters, which every answer begins with."""
    _with(path, "contract", "stop", value=[""])


@caught_as(BadHeader)
def contract_of_negative_lengths(path: Path) -> None:
    """A source of minus one token: a slice that cuts from the other end."""
    _with(path, "contract", "max_source_tokens", value=-1)


@caught_as(TooLarge)
def contract_of_many_beams(path: Path) -> None:
    """A decoding of a thousand beams."""
    _with(path, "contract", "decoding", value={"num_beams": 1000})


@caught_as(BadHeader)
def template_of_no_slots(path: Path) -> None:
    """A place for no virtual tokens."""
    _with(path, "contract", "input_template", value="{0}{source}")


@caught_as(TooLarge)
def template_of_many_slots(path: Path) -> None:
    """A template of fifteen characters that a loop over its places would not survive."""
    _with(path, "contract", "input_template", value="{9999999999999}")


@caught_as(TooLarge)
def template_of_many_numbers(path: Path) -> None:
    """Each number is allowed, their sum is not."""
    _with(path, "contract", "input_template", value="{60000}{60000}{source}")


@caught_as(TooLarge)
def template_of_a_long_number(path: Path) -> None:
    """A number of 4,000 digits, which takes long to read as one."""
    _with(path, "contract", "input_template", value="{" + "9" * 4000 + "}")


@caught_as(BadHeader)
def template_of_two_masks(path: Path) -> None:
    """Two places for the one answer."""
    _with(path, "contract", "input_template", value="[MASK] {source} [MASK]")


@caught_as(BadHeader)
def template_of_more_slots_than_tokens(path: Path) -> None:
    """Places for three virtual tokens where two are stored: the third would be read from behind their end."""
    raw = soft()
    raw.fields["contract"]["input_template"] = "{2}{source}{1}"
    raw.write(path)


@caught_as(BadHeader)
def template_of_fewer_slots_than_tokens(path: Path) -> None:
    """A place for one virtual token where two are stored: the second would do nothing, and nobody would notice."""
    raw = soft()
    raw.fields["contract"]["input_template"] = "{source}{1}"
    raw.write(path)


@caught_as(BadHeader)
def template_of_slots_for_keys_and_values(path: Path) -> None:
    """Places in the text for what does not stand in the text."""
    _with(path, "contract", "input_template", value="{2}{source}")


@caught_as(BadHeader)
def template_of_slots_for_a_target(path: Path) -> None:
    """Virtual tokens in what the model is to say."""
    _with(path, "contract", "target_template", value="{target}{2}")


@caught_as(BadHeader)
def template_of_a_row_that_is_not_read(path: Path) -> None:
    """The row behind the mask, where a decoder does not look: every row would be asked the same."""
    _with(path, "contract", "input_template", value="x [MASK] {source}")


@caught_as(BadHeader)
def contract_of_another_layout(path: Path) -> None:
    """A layout that version 1 does not have."""
    _with(path, "contract", "layout", value="eval")


@caught_as(TooLarge)
def contract_of_many_labels(path: Path) -> None:
    """A label more than there may be."""
    _with(path, "contract", "labels", value=[str(number) for number in range(1025)])


@caught_as(BadHeader)
def contract_of_labels_that_are_one(path: Path) -> None:
    """Two labels that nobody can tell from each other in an answer."""
    _with(path, "contract", "labels", value=["yes", "yes "])


@caught_as(BadHeader)
def contract_of_fewer_words_than_labels(path: Path) -> None:
    """Two labels and a word for one of them."""
    _with(path, "contract", value={"labels": ["yes", "no"], "label_words": ["ja"]})


@caught_as(BadHeader)
def fingerprint_of_capitals(path: Path) -> None:
    """A fingerprint that is equal only where letters' case is forgotten."""
    _with(path, "base", "fingerprint", value="A" * 64)


@caught_as(BadHeader)
def fingerprint_with_a_line_break(path: Path) -> None:
    """A fingerprint with a line break behind it, which a careless pattern lets through."""
    _with(path, "base", "fingerprint", value="a" * 64 + "\n")


@caught_as(BadHeader)
def fingerprint_short(path: Path) -> None:
    """A fingerprint of twelve digits, of which many bases could be made."""
    _with(path, "base", "fingerprint", value="a" * 12)


@caught_as(BadHeader)
def base_name_with_escapes(path: Path) -> None:
    """A base name that clears the terminal of whoever reads the error message."""
    _with(path, "base", "name", value="\x1b[2Jtiny")


@caught_as(BadHeader)
def base_name_with_a_line_break(path: Path) -> None:
    """A base name that writes a second line into a log."""
    _with(path, "base", "name", value="tiny\nepigraph: all is well")


@caught_as(BadHeader)
def base_name_backwards(path: Path) -> None:
    """A base name that shows its letters in another order than they have."""
    _with(path, "base", "name", value="tiny\u202ekcart")


@caught_as(TooLarge)
def base_name_long(path: Path) -> None:
    """A base name of 257 characters."""
    _with(path, "base", "name", value="x" * 257)


@caught_as(BadHeader)
def method_name_with_nul(path: Path) -> None:
    """A method name that ends early where C reads it."""
    _with(path, "method", "name", value="prefix-tuning\0")


@caught_as(BadHeader)
def site_with_path(path: Path) -> None:
    """A site whose name climbs out of a folder."""
    _with(path, "geometry", "sites", "../decoder.self", value=header()["geometry"]["sites"]["decoder.self"])


@caught_as(BadTensor)
def tensor_name_with_path(path: Path) -> None:
    """A tensor whose name is a path, for a reader that unpacks to files."""
    raw = Raw()
    raw.tensors["../../../etc/cron.d/epigraph"] = ("F32", [1], ONE)
    raw.write(path)


@caught_as(BadTensor)
def tensor_name_with_escapes(path: Path) -> None:
    """A tensor whose name would retitle the terminal."""
    raw = Raw()
    raw.tensors["\x1b]0;pwned\x07"] = ("F32", [1], ONE)
    raw.tensors = dict(sorted(raw.tensors.items()))
    raw.write(path)


@caught_as(BadHeader)
def extra_name_of_dots(path: Path) -> None:
    """An extra tensor with an empty part in its name."""
    _with(path, "extra", value={"head..weight": {"dtype": "F32", "shape": [1]}})


@caught_as(BadHeader)
def extra_name_with_path(path: Path) -> None:
    """An extra tensor whose name climbs out of a folder."""
    raw = Raw()
    raw.fields["extra"] = {"../../head": {"dtype": "F32", "shape": [1]}}
    raw.tensors["extra.../../head"] = ("F32", [1], ONE)
    raw.write(path)


@caught_as(BadHeader)
def text_starts_past_the_positions(path: Path) -> None:
    """Text that starts where the model has no positions."""
    _with(path, "text_start", value=128)


@caught_as(BadHeader)
def text_starts_before_zero(path: Path) -> None:
    """Text that starts at a negative position."""
    _with(path, "text_start", value=-1)


@caught_as(TooLarge)
def text_starts_beyond_all_positions(path: Path) -> None:
    """Text that starts at 2^41 in a model without a table of positions."""
    raw = Raw()
    raw.fields["geometry"]["max_positions"] = None
    raw.fields["text_start"] = 1 << 41
    raw.write(path)


@caught_as(BadHeader)
def window_negative(path: Path) -> None:
    """A window of minus one position."""
    _with(path, "geometry", "sites", "decoder.self", 0, "window", value=-1)


@caught_as(BadHeader)
def head_dim_negative(path: Path) -> None:
    """Heads of width minus three, one of them minus one: the product is right."""
    raw = Raw()
    for layer in raw.fields["geometry"]["sites"]["decoder.self"]:
        layer |= {"num_kv_heads": -1, "head_dim": -3}
    raw.write(path)


@caught_as(TooLarge)
def head_dim_huge(path: Path) -> None:
    """Heads of width 2^62."""
    _with(path, "geometry", "sites", "decoder.self", 0, "head_dim", value=1 << 62)


@caught_as(BadHeader)
def visibility_unknown(path: Path) -> None:
    """A visibility that a lenient reader would take for its default."""
    _with(path, "visibility", value="sometimes")


@caught_as(BadHeader)
def site_unknown(path: Path) -> None:
    """A site that no model has."""
    _with(path, "geometry", "sites", "vision.self", value=[])


@caught_as(BadHeader)
def site_without_layers(path: Path) -> None:
    """A model without layers."""
    _with(path, "geometry", "sites", "decoder.self", value=[])


@caught_as(TooLarge)
def many_layers(path: Path) -> None:
    """1,025 layers."""
    _with(path, "geometry", "sites", "decoder.self", value=header()["geometry"]["sites"]["decoder.self"][:1] * 1025)


@caught_as(TooLarge)
def many_wrong_layers(path: Path) -> None:
    """Thirty thousand layers that are each wrong in four ways, to drown the reader in its own messages."""
    _with(path, "geometry", "sites", "decoder.self", value=[{"a": 0}] * 30_000)


@caught_as(TooLarge)
def many_layers_over_two_sites(path: Path) -> None:
    """Six hundred layers at each of two sites."""
    raw = Raw()
    layers = raw.fields["geometry"]["sites"]["decoder.self"][:1] * 600
    raw.fields["geometry"]["sites"] = {"decoder.self": layers, "encoder.self": layers}
    raw.write(path)


@caught_as(TooLarge)
def many_wrong_bases(path: Path) -> None:
    """A hundred thousand allowed bases that are numbers: a hundred thousand messages."""
    _with(path, "also_allowed_bases", value=[0] * 100_000)


@caught_as(BadHeader)
def some_wrong_bases(path: Path) -> None:
    """Eight thousand allowed bases that are numbers, as many wrong values as the limit lets through."""
    _with(path, "also_allowed_bases", value=[0] * 8_000)


@caught_as(TooLarge)
def many_extras(path: Path) -> None:
    """Sixty-five extra tensors."""
    _with(path, "extra", value={f"x{number}": {"dtype": "F32", "shape": [1]} for number in range(65)})


@caught_as(BadHeader)
def virtual_tokens_negative(path: Path) -> None:
    """Minus two virtual tokens."""
    _with(path, "num_virtual_tokens", value=-2)


@caught_as(BadHeader)
def virtual_tokens_with_a_point(path: Path) -> None:
    """2.0 virtual tokens."""
    _with(path, "num_virtual_tokens", value=2.0)


@caught_as(BadHeader)
def provenance_a_list(path: Path) -> None:
    """Provenance that is no object."""
    _with(path, "provenance", value=[1, 2])


@caught_as(TooLarge)
def many_virtual_tokens(path: Path) -> None:
    """Two to the 40 virtual tokens in a file of 48 bytes."""
    _with(path, "num_virtual_tokens", value=1 << 40)


@caught_as(BadHeader)
def no_virtual_tokens(path: Path) -> None:
    """A prefix of zero virtual tokens, which would serve the bare base."""
    raw = Raw(tensors={KEYS: ("F32", [0, 1, 3], b""), VALUES: ("F32", [0, 1, 3], b"")})
    raw.fields["num_virtual_tokens"] = 0
    raw.write(path)


# The tensors


@caught_as(BadTensor)
def half_a_layer(path: Path) -> None:
    """Keys without values."""
    raw = Raw()
    del raw.tensors[VALUES]
    raw.write(path)


@caught_as(BadTensor)
def no_layer(path: Path) -> None:
    """A header with geometry and no tensors, which would serve the bare base."""
    Raw(tensors={}).write(path)


@caught_as(BadTensor)
def layer_past_the_geometry(path: Path) -> None:
    """A third layer in a model of two."""
    raw = Raw()
    raw.tensors |= {name.replace("000", "002"): raw.tensors[name] for name in (KEYS, VALUES)}
    raw.write(path)


@caught_as(BadTensor)
def layer_written_otherwise(path: Path) -> None:
    """The first layer under a second spelling of its number."""
    raw = Raw()
    raw.tensors |= {name.replace("000", "0"): raw.tensors[name] for name in (KEYS, VALUES)}
    raw.write(path)


@caught_as(BadTensor)
def stranger(path: Path) -> None:
    """A tensor that the header does not list."""
    raw = Raw()
    raw.tensors["extra.head"] = ("F32", [1], ONE)
    raw.write(path)


@caught_as(BadTensor)
def extra_missing(path: Path) -> None:
    """A listed extra tensor that is not there."""
    _with(path, "extra", value={"head": {"dtype": "F32", "shape": [1]}})


@caught_as(BadTensor)
def extra_misshapen(path: Path) -> None:
    """An extra tensor of another shape than listed."""
    raw = Raw()
    raw.fields["extra"] = {"head": {"dtype": "F32", "shape": [2]}}
    raw.tensors["extra.head"] = ("F32", [1], ONE)
    raw.write(path)


def _with_extra(path: Path, shape: list[int], dtype: str, data: bytes) -> None:
    raw = Raw()
    raw.fields["extra"] = {"head": {"dtype": dtype, "shape": shape}}
    raw.tensors["extra.head"] = (dtype, shape, data)
    raw.write(path)


@caught_as(TooLarge)
def extra_of_many_sides(path: Path) -> None:
    """An extra tensor of nine sides."""
    raw = Raw()
    raw.fields["extra"] = {"head": {"dtype": "F32", "shape": [1] * 9}}
    raw.write(path)


@caught_as(BadHeader)
def extra_of_no_numbers(path: Path) -> None:
    """An extra tensor of zero numbers."""
    _with_extra(path, [0], "F32", b"")


@caught_as(BadTensor)
def extra_that_overflows(path: Path) -> None:
    """An extra tensor of 2^160 numbers in four bytes."""
    _with_extra(path, [1 << 20] * 8, "F32", ONE)


@caught_as(BadTensor)
def not_a_number_in_an_extra(path: Path) -> None:
    """One NaN in an extra tensor."""
    _with_extra(path, [1], "F32", NAN)


@caught_as(BadTensor)
def shape_transposed(path: Path) -> None:
    """The right number of numbers in the wrong shape."""
    raw = Raw()
    raw.tensors[KEYS] = ("F32", [3, 1, 2], ONE * 6)
    raw.write(path)


@caught_as(BadTensor)
def shape_of_another_length(path: Path) -> None:
    """Keys of two virtual tokens and values of three."""
    raw = Raw()
    raw.tensors[VALUES] = ("F32", [3, 1, 3], ONE * 9)
    raw.write(path)


@caught_as(BadTensor)
def shape_that_lies(path: Path) -> None:
    """A shape of six numbers over the bytes of two: a reader without bounds would read on."""
    raw = Raw()
    raw.tensors[KEYS] = ("F32", [2, 1, 3], ONE * 2)
    raw.write(path)


@caught_as(BadTensor)
def shape_that_overflows(path: Path) -> None:
    """Sides whose product is zero in 64 bits."""
    raw = Raw()
    raw.tensors[KEYS] = ("F32", [1 << 32, 1 << 32, 3], ONE * 6)
    raw.write(path)


@caught_as(BadTensor)
def dtype_of_objects(path: Path) -> None:
    """A dtype that names Python objects."""
    raw = Raw()
    raw.tensors |= {name: ("O", [2, 1, 3], ONE * 6) for name in (KEYS, VALUES)}
    raw.write(path)


@caught_as(BadTensor)
def dtype_of_doubles(path: Path) -> None:
    """A dtype that safetensors has and version 1 does not."""
    raw = Raw()
    raw.tensors |= {name: ("F64", [2, 1, 3], ONE * 12) for name in (KEYS, VALUES)}
    raw.write(path)


@caught_as(BadTensor)
def dtypes_mixed(path: Path) -> None:
    """Keys in F32, values in F16."""
    raw = Raw()
    raw.tensors[VALUES] = ("F16", [2, 1, 3], bytes(12))
    raw.write(path)


def _with_number(path: Path, number: bytes) -> None:
    raw = Raw()
    raw.tensors[VALUES] = ("F32", [2, 1, 3], ONE * 5 + number)
    raw.write(path)


@caught_as(BadTensor)
def not_a_number(path: Path) -> None:
    """One NaN: every text of every user in the batch would be lost."""
    _with_number(path, NAN)


@caught_as(BadTensor)
def infinite(path: Path) -> None:
    """One infinity."""
    _with_number(path, INFINITY)


@caught_as(BadTensor)
def infinite_below(path: Path) -> None:
    """One infinity below zero."""
    _with_number(path, struct.pack("<f", float("-inf")))


@caught_as(BadTensor)
def not_a_number_with_a_message(path: Path) -> None:
    """A signalling NaN with a payload, which a comparison with NaN's usual bits misses."""
    _with_number(path, bytes.fromhex("efbeadff"))


def _in_16_bits(path: Path, dtype: str, last: bytes) -> None:
    raw = Raw()
    raw.tensors = {name: (dtype, [2, 1, 3], bytes(10) + last) for name in (KEYS, VALUES)}
    raw.write(path)


@caught_as(BadTensor)
def not_a_number_in_f16(path: Path) -> None:
    """One NaN in half precision."""
    _in_16_bits(path, "F16", struct.pack("<e", float("nan")))


@caught_as(BadTensor)
def infinite_in_bf16(path: Path) -> None:
    """One infinity in bfloat16."""
    _in_16_bits(path, "BF16", bytes.fromhex("807f"))


@caught_as(BadTensor)
def infinite_when_rounded(path: Path) -> None:
    """A finite float32 that becomes infinite in a model that runs in bfloat16."""
    _with_number(path, LARGEST)


# The content


@caught_as(ContentMismatch)
def number_changed(path: Path) -> None:
    """One bit of one value flipped."""
    data = bytearray(Raw().to_bytes())
    data[-2] ^= 1
    path.write_bytes(bytes(data))


@caught_as(ContentMismatch)
def header_changed(path: Path) -> None:
    """Another visibility under the old hash."""
    raw = Raw()
    old = raw.right_hash()
    raw.fields["visibility"] = "window"
    raw.content_hash = old
    raw.write(path)


@caught_as(ContentMismatch)
def base_changed(path: Path) -> None:
    """Another base under the old hash, to pass for an artifact of that base."""
    raw = Raw()
    old = raw.right_hash()
    raw.fields["base"]["fingerprint"] = "c" * 64
    raw.content_hash = old
    raw.write(path)


@caught_as(ContentMismatch)
def keys_and_values_swapped(path: Path) -> None:
    """The bytes of keys and values exchanged by the table alone."""
    raw = Raw()
    raw.tensors[VALUES] = ("F32", [2, 1, 3], ONE * 5 + bytes(4))
    raw.table = {
        KEYS: {"dtype": "F32", "shape": [2, 1, 3], "data_offsets": [24, 48]},
        VALUES: {"dtype": "F32", "shape": [2, 1, 3], "data_offsets": [0, 24]},
    }
    raw.write(path)


@caught_as(ContentMismatch)
def shape_folded(path: Path) -> None:
    """The same bytes as half as many virtual tokens of twice the width, under the old hash."""
    raw = Raw()
    old = raw.right_hash()
    raw.fields["num_virtual_tokens"] = 1
    for layer in raw.fields["geometry"]["sites"]["decoder.self"]:
        layer["head_dim"] = 6
    raw.tensors = {name: (dtype, [1, 1, 6], data) for name, (dtype, _, data) in raw.tensors.items()}
    raw.content_hash = old
    raw.write(path)


def main(where: Path) -> None:
    """Write every attack to ``where``, in a folder of its error."""
    for name, (error, make) in ATTACKS.items():
        path = where / error.__name__ / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
