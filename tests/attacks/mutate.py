"""Changes to artifact files for the fuzzer, most of them made by something that knows the format; and its seeds."""

from __future__ import annotations

import copy
import json
import math
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attacks.make import (
    ATTACKS,
    INFINITY,
    KEYS,
    LARGEST,
    NAN,
    ONE,
    SOFT,
    VALUES,
    Raw,
    canonical,
    container,
    infix,
    soft,
)

LARGEST_SEED = 1 << 14
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 1.0, -0.0, 1e308, 1 << 20, 1 << 40, 1 << 63, 1 << 64, "", "x", "kv", "F16", "BF16",
    "\x1b[2J", "\u202e", "\U0001f600", "a" * 64, "x" * 5000, "{source}", "{", "decoder.cross", "window", [], {}, [0],
    {"a": 0}, [[]] * 40, {"shape": [1], "dtype": "F32"}, {"num_kv_heads": 1, "head_dim": 3, "window": None},
)  # fmt: skip


BYTES = {"F32": 4, "F16": 2, "BF16": 2}
CONTRACTS: tuple[dict[str, Any], ...] = (
    {"bos": True, "eos": False},
    {"chat_template_hash": "c" * 64},
    {"stop": ["\n", "##"]},
    {"decoding": {"num_beams": 4, "length_penalty": -0.5}},
    {"max_source_tokens": 1, "max_target_tokens": 1_000_000},
)


# Changes that know the format


def parsed(data: bytes) -> Raw | None:
    """The file in parts that can be changed, where it is near enough to an artifact to have them."""
    try:
        (length,) = struct.unpack_from("<Q", data)
        table = json.loads(data[8 : 8 + length])
        fields = json.loads(table.pop("__metadata__")["epigraph"])
        content_hash = fields.pop("content_hash", None)
        body = data[8 + length :]
        tensors = {
            name: (str(row["dtype"]), list(row["shape"]), body[slice(*row["data_offsets"])])
            for name, row in table.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError):
        return None
    return Raw(fields=fields, tensors=tensors, content_hash=content_hash)


def mutated(data: bytes, most: int, seed: int, by_bytes: Callable[[bytes, int], bytes]) -> bytes:
    """``data`` changed: as bytes, or as an artifact whose other parts are put right again."""
    chance = random.Random(seed)
    raw = parsed(data) if chance.random() < 0.7 else None
    if raw is None:
        return by_bytes(data, most)
    try:
        if chance.random() < 0.9:
            raw.content_hash = None
        for _ in range(chance.choice((0, 1, 1, 1, 2, 4))):
            _keep_sound(raw, chance)
        for _ in range(chance.choice((0, 0, 1, 1, 2))):
            chance.choice((_change_fields, _change_fields, _change_tensors, _change_numbers, _change_rows))(raw, chance)
        made = raw.to_bytes() if chance.random() < 0.9 else _respelt(raw, chance, by_bytes)
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError, struct.error):
        return by_bytes(data, most)
    return made if len(made) <= most else by_bytes(data, most)


def _respelt(raw: Raw, chance: random.Random, by_bytes: Callable[[bytes, int], bytes]) -> bytes:
    """The header's text changed letter by letter, the lengths around it right."""
    text = raw.text()
    raw.value = by_bytes(text.encode(), len(text) + 64).decode("utf-8", "replace")
    outer = json.dumps(raw.outer()).encode()
    if chance.random() < 0.3:
        outer = by_bytes(outer, len(outer) + 64)
    return container(outer, b"".join(data for _, _, data in raw.tensors.values()))


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in ``value``."""
    found: list[tuple[Any, Any]] = []
    level = [value]
    while level:
        inside = [(x, key) for x in level for key in (x if isinstance(x, dict) else range(len(x)))]
        found += inside
        level = [x[key] for x, key in inside if isinstance(x[key], (dict, list))]
    return found


def _keep_sound(raw: Raw, chance: random.Random) -> None:
    """Another sound artifact, so that a later change meets a state that no seed has."""
    fields = raw.fields
    sites = fields["geometry"]["sites"]
    match chance.randrange(9):
        case 0:
            fields |= {"kind": "kv", "text_start": 2, "visibility": chance.choice(("always", "window"))}
        case 7:
            fields["kind"] = "soft"
            fields.pop("text_start", None)
            fields.pop("visibility", None)
        case 1:
            fields["num_virtual_tokens"] = chance.randrange(1, 5)
        case 2:
            layers = sites[chance.choice(sorted(sites))]
            layers.append(dict(layers[0]) | {"window": chance.choice((None, 1, 8))})
        case 3:
            sites[chance.choice(("decoder.self", "decoder.cross", "encoder.self"))] = [
                {"num_kv_heads": chance.randrange(1, 3), "head_dim": chance.randrange(1, 5), "window": None}
            ]
        case 4:
            fields["extra"][chance.choice(("head", "a.b", "scale"))] = {
                "dtype": chance.choice(tuple(BYTES)),
                "shape": [chance.randrange(1, 3) for _ in range(chance.randrange(9))],
            }
        case 5:
            fields["geometry"] |= {
                "position_kind": chance.choice(("rotary", "absolute", "none")),
                "max_positions": None,
            }
        case 6:
            fields["contract"] |= copy.deepcopy(chance.choice(CONTRACTS))
        case _:
            fields["provenance"][chance.choice("abc")] = copy.deepcopy(chance.choice(ODD))
    _refill(raw, chance)


def _refill(raw: Raw, chance: random.Random) -> None:
    """The tensors that the header now asks for, some layers left without; ValueError where they would be large."""
    fields, dtype = raw.fields, chance.choice(tuple(BYTES))

    def zeros(shape: list[int], dtype: str) -> tuple[str, list[int], bytes]:
        # Other changes may have left a text here, and a text times a number can be as large as all memory.
        if not all(type(x) is int and 0 <= x < LARGEST_SEED for x in shape) or math.prod(shape) > LARGEST_SEED:
            raise ValueError(shape)
        return dtype, shape, bytes(math.prod(shape) * BYTES[dtype])

    raw.tensors = {}
    is_soft = fields["kind"] == "soft"
    if is_soft:
        raw.tensors[SOFT] = zeros([fields["num_virtual_tokens"], fields["geometry"]["embedding_dim"]], dtype)
    for site, layers in fields["geometry"]["sites"].items():
        for number, layer in enumerate(layers):
            if is_soft or (number and chance.random() < 0.3):
                continue
            shape = [fields["num_virtual_tokens"], layer["num_kv_heads"], layer["head_dim"]]
            for kind in ("keys", "values"):
                raw.tensors[f"{site}.{number:03d}.{kind}"] = zeros(shape, dtype)
    for name, x in fields["extra"].items():
        raw.tensors[f"extra.{name}"] = zeros(x["shape"], x["dtype"])


def _change_fields(raw: Raw, chance: random.Random) -> None:
    places = _places(raw.fields)
    where, key = chance.choice(places)
    match chance.randrange(6):
        case 0:
            where[key] = copy.deepcopy(chance.choice(ODD))
        case 1:
            del where[key]
        case 2:
            other, name = chance.choice(places)
            where[key] = json.loads(canonical(other[name]))
        case 3 if isinstance(where, dict):
            where[chance.choice(("x", "", "shape", "encoder.self", "decoder.cross", "head", str(key) * 2))] = where[key]
        case 4 if isinstance(where[key], int):
            where[key] += chance.choice((-1, 1, 1 << 31))
        case _:
            times = chance.choice((1, 2, 70, 1100))
            # Again and again, this would grow past all memory before it is a file.
            where[key] = [where[key]] * (times if times * len(canonical(where[key])) < LARGEST_SEED else 1)


def _change_tensors(raw: Raw, chance: random.Random) -> None:
    name = chance.choice(sorted(raw.tensors))
    dtype, shape, data = raw.tensors[name]
    match chance.randrange(6):
        case 0:
            del raw.tensors[name]
        case 1:
            raw.tensors[chance.choice((name + "x", name.replace("000", "001"), "extra.head", "../x"))] = raw.tensors[
                name
            ]
        case 2:
            raw.tensors[name] = (chance.choice(("F32", "F16", "BF16", "F64", "I8", "")), shape, data)
        case 3:
            raw.tensors[name] = (dtype, [*shape[: chance.randrange(4)], chance.choice((0, 1, 3, 1 << 20))], data)
        case 4:
            raw.tensors[name] = (dtype, shape, data * chance.choice((0, 2, 3)))
        case _:
            raw.tensors = dict(chance.sample(sorted(raw.tensors.items()), len(raw.tensors)))


def _change_numbers(raw: Raw, chance: random.Random) -> None:
    name = chance.choice(sorted(raw.tensors))
    dtype, shape, data = raw.tensors[name]
    number = chance.choice((NAN, INFINITY, LARGEST, bytes(4), chance.randbytes(4)))
    at = 4 * chance.randrange(len(data) // 4 + 1)
    raw.tensors[name] = (dtype, shape, data[:at] + number + data[at + 4 :])


def _change_rows(raw: Raw, chance: random.Random) -> None:
    """Offsets that the tensors do not have."""
    name = chance.choice(sorted(raw.tensors))
    dtype, shape, data = raw.tensors[name]
    begin, end = chance.choice((0, 8, len(data))), chance.choice((0, len(data), 2 * len(data), 1 << 62, -1))
    raw.table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


# Seeds


def write_seeds(folder: Path) -> int:
    """Sound files of several kinds and every attack that is a small file; how many."""
    for name, raw in _sound().items():
        raw.write(folder / name)
    for name, (_, make) in ATTACKS.items():
        path = folder / name
        make(path)
        if path.is_symlink() or not path.is_file() or path.stat().st_size > LARGEST_SEED:
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    (folder / "target.safetensors").unlink()
    return sum(1 for _ in folder.iterdir())


def _sound() -> dict[str, Raw]:
    half, extra, sites = Raw(), Raw(), Raw()
    half.tensors = {name: ("BF16", [2, 1, 3], b"\x80\x3f" * 6) for name in (KEYS, VALUES)}
    extra.fields["extra"] = {"head": {"dtype": "F16", "shape": [2, 2]}, "scale": {"dtype": "F32", "shape": []}}
    extra.tensors |= {"extra.head": ("F16", [2, 2], b"\x00\x3c" * 4), "extra.scale": ("F32", [], ONE)}
    layers = sites.fields["geometry"]["sites"]["decoder.self"]
    sites.fields["geometry"]["sites"]["decoder.cross"] = layers
    sites.tensors |= {name.replace("self", "cross"): x for name, x in sites.tensors.items()}
    return {
        "sound": Raw(),
        "sound_half": half,
        "sound_extra": extra,
        "sound_sites": sites,
        "sound_soft": soft(),
        "sound_infix": infix(),
    }
