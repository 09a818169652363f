"""A catalogue of a million prefixes beside one of a thousand: how long lookups, pages and pushes take.

Rows are made in bulk, not by pushes, and have no bytes in the store. SQLite in a file, and PostgreSQL where --postgres
names an empty database. Run: ``python benchmarks/registry.py --json FILE [--postgres URL] [--prefixes 1000000]``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sqlalchemy import insert, text

from epigraph import artifact
from epigraph.artifact import Artifact
from epigraph.contract import TextContract
from epigraph.errors import PrefixNotFound
from epigraph.registry import Quotas, Registry, schema
from epigraph.virtual import Geometry, KVPrefix, LayerGeometry, LayerKV

# One large tenant, and many small ones.
LARGE_SHARE, PER_TENANT, BATCH = 0.5, 1000, 5000
ROUNDS = 5


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--json", type=Path, required=True)
    asked.add_argument("--postgres", default="")
    asked.add_argument("--prefixes", type=int, default=1_000_000)
    asked.add_argument("--lookups", type=int, default=5000)
    given = asked.parse_args()
    record: dict[str, Any] = {"machine": machine(), "prefixes": given.prefixes, "lookups": given.lookups}
    with tempfile.TemporaryDirectory() as folder:
        places = {"SQLite": lambda size: str(Path(folder) / f"{size}.sqlite")}
        if given.postgres:
            places["PostgreSQL"] = lambda _: given.postgres
        for kind, place in places.items():
            # PostgreSQL is filled up from the smaller to the larger.
            for size in (1000, given.prefixes):
                record.setdefault(kind, {})[str(size)] = measure(place(size), Path(folder), size, given.lookups)
                given.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(table(record))


def table(record: dict[str, Any]) -> str:
    """The record as Markdown: milliseconds, the median and the 99th of a hundred in the quietest of five rounds."""
    sizes = [(kind, size) for kind in ("SQLite", "PostgreSQL") if kind in record for size in record[kind]]
    lines = ["| ms, median / p99 | " + " | ".join(f"{kind}, {int(size):,}" for kind, size in sizes) + " |"]
    lines.append("|---" * (len(sizes) + 1) + "|")
    for what in record[sizes[0][0]][sizes[0][1]]:
        cells = (record[kind][size][what] for kind, size in sizes)
        lines.append(f"| {what} | " + " | ".join(f"{x['p50']:.2f} / {x['p99']:.2f}" for x in cells) + " |")
    return "\n".join(lines) + "\n"


def machine() -> dict[str, Any]:
    return {"cores": os.cpu_count(), "python": platform.python_version(), "when": datetime.now(UTC).date().isoformat()}


def measure(catalogue: str, folder: Path, size: int, lookups: int) -> dict[str, Any]:
    """Milliseconds of each kind of call, on a catalogue with ``size`` prefixes."""
    chance = random.Random(0)
    source = saved(folder)
    with Registry.open(catalogue, folder / f"store-{Path(catalogue).stem}") as registry:
        began = time.monotonic()
        tenants = filled(registry, size)
        print(f"{registry._database.label}: {size:,} prefixes in {time.monotonic() - began:.0f} s", file=sys.stderr)
        each = min(PER_TENANT, (size - int(size * LARGE_SHARE)) // len(tenants[1:]))
        names = [f"{chance.choice(tenants[1:])}/name-{chance.randrange(each):07d}" for _ in range(lookups)]
        large = [f"large/name-{chance.randrange(int(size * LARGE_SHARE)):07d}" for _ in range(lookups)]
        _, secret = registry.tenants.make_key("large", scopes={"use"})
        ends = [f"large/name-{int(size * LARGE_SHARE * k / 100):07d}" for k in range(100)]
        registry.tenants.set_quotas("large", Quotas(prefixes=10**9))
        return {
            "lookup of a small tenant's": timed(lambda ref: registry.resolve(ref.partition("/")[0], ref), names),
            "lookup of the large tenant's": timed(lambda ref: registry.resolve("large", f"{ref}@1"), large),
            "lookup of what is not there": timed(lambda ref: missing(registry, ref), names),
            "key": timed(registry.tenants.who, [secret] * lookups),
            "first page of 100": timed(lambda _: registry.list("large"), ends),
            "pages all along the list": timed(lambda after: registry.list("large", after=after), ends),
            "search that finds nothing": timed(lambda _: registry.list("large", search="zzz"), ends[:5]),
            "push": timed(lambda k: registry.push("large", f"new-{size}-{k}", source), list(range(100))),
            "delete": timed(lambda k: registry.delete("large", f"new-{size}-{k}"), list(range(100))),
        }


def missing(registry: Registry, ref: str) -> None:
    with contextlib.suppress(PrefixNotFound):
        registry.resolve("large", f"{ref}-x")


def timed(call: Callable[[Any], object], given: Sequence[Any]) -> dict[str, float]:
    """Milliseconds of ``call`` on each of ``given``, in five rounds: the median of all, and the 99th of a hundred in
    the quietest round and in the loudest, as other work on the machine comes and goes."""
    rounds = [sorted(map(partial(milliseconds, call), given[k::ROUNDS])) for k in range(ROUNDS)]
    every = sorted(x for took in rounds for x in took)
    high = sorted(took[int(len(took) * 0.99)] for took in rounds)
    return {"p50": every[len(every) // 2], "p99": high[0], "p99_loudest": high[-1], "calls": len(every)}


def milliseconds(call: Callable[[Any], object], given: Any) -> float:
    began = time.perf_counter()
    call(given)
    return 1000 * (time.perf_counter() - began)


def filled(registry: Registry, size: int) -> list[str]:
    """The tenants, with ``size`` prefixes of one version each, half of them the first tenant's."""
    num_large = int(size * LARGE_SHARE)
    num_small = max(1, (size - num_large) // PER_TENANT)
    tenants = ["large", *(f"small-{n:04d}" for n in range(num_small))]
    with registry._database.writing() as connection:
        for table in (schema.aliases, schema.versions, schema.prefixes, schema.api_keys, schema.tenants):
            connection.execute(table.delete())
        connection.execute(insert(schema.tenants), [tenant_row(n, name) for n, name in enumerate(tenants, 1)])
    owners = [(1, n) for n in range(num_large)] + [(2 + n % num_small, n // num_small) for n in range(size - num_large)]
    for rows in batches(list(enumerate(owners, 1))):
        with registry._database.writing() as connection:
            connection.execute(insert(schema.prefixes), [prefix_row(*row) for row in rows])
            connection.execute(insert(schema.versions), [version_row(n) for n, _ in rows])
            connection.execute(
                insert(schema.aliases), [{"prefix_id": n, "alias": "latest", "number": 1} for n, _ in rows]
            )
    with registry._database.writing() as connection:
        if not registry._database.is_sqlite:
            for name in ("tenants", "prefixes"):
                connection.execute(text(f"SELECT setval('{name}_id_seq', (SELECT max(id) FROM {name}))"))
        connection.execute(text("ANALYZE"))
    return tenants


def batches(rows: list[Any]) -> Iterator[list[Any]]:
    return (rows[begin : begin + BATCH] for begin in range(0, len(rows), BATCH))


def tenant_row(number: int, name: str) -> dict[str, Any]:
    return {"id": number, "name": name, "folded": name, "num_prefixes": 0, "num_bytes": 0, "created": datetime.now(UTC)}


def prefix_row(number: int, owner: tuple[int, int]) -> dict[str, Any]:
    tenant_id, which = owner
    told = {"id": number, "tenant_id": tenant_id, "name": f"name-{which:07d}"}
    return {**told, "last_number": 1, "num_kept": 1, "num_ready": 1}


def version_row(prefix_id: int) -> dict[str, Any]:
    hashes = ("content_hash", "file_hash", "base_fingerprint", "tokenizer_fingerprint", "geometry")
    told: dict[str, Any] = dict.fromkeys(hashes, f"{prefix_id:064x}")
    told |= {"prefix_id": prefix_id, "number": 1, "state": schema.READY, "num_bytes": 230_000, "is_chat": False}
    told |= {"num_virtual_tokens": 10, "base_name": "smollm2-135m", "method": "prefix-tuning", "kind": "kv"}
    provenance = {"data": {"task": "e2e", "rows": 500}, "seed": 0, "versions": {"torch": "2.13.0"}, "steps": 200}
    scores = {"test": {"bleu": 57.7, "nist": 7.1, "rouge_l": 60.2}}
    return told | {"created": datetime.now(UTC), "created_by": "a-key", "provenance": provenance, "scores": scores}


def saved(folder: Path) -> Path:
    """An artifact as large as ten virtual tokens of SmolLM2-135M are, in bf16."""
    layers = tuple(LayerKV(keys_PKH=torch.randn(10, 3, 64), values_PKH=torch.randn(10, 3, 64)) for _ in range(30))
    geometry = Geometry(
        sites={"decoder.self": (LayerGeometry(num_kv_heads=3, head_dim=64),) * 30},
        embedding_dim=576,
        position_kind="rotary",
    )
    content = Artifact(
        tokens=KVPrefix(sites={"decoder.self": layers}, text_start=10, visibility="always"),
        geometry=geometry,
        contract=TextContract(),
        base_name="smollm2-135m",
        base_fingerprint="b" * 64,
        tokenizer_fingerprint="c" * 64,
        method="prefix-tuning",
        method_config={},
        provenance={},
    )
    path = folder / "one.safetensors"
    if not path.exists():
        artifact.save(content, path, dtype=torch.bfloat16)
    return path


if __name__ == "__main__":
    main()
