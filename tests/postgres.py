"""A PostgreSQL server in a folder of its own, for tests: started, killed and started again. It knows no table."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

_STARTED_S = 60
# Who may run it where the tests are run by root, which it refuses.
_USERS = ("postgres", "nobody")


def missing() -> str:
    """Why no server can be started here, empty where one can."""
    if program("postgres") is None or program("initdb") is None:
        return "PostgreSQL (postgres, initdb) is not installed; on Debian: apt install postgresql"
    if os.geteuid() == 0 and (shutil.which("setpriv") is None or _user() is None):
        return "PostgreSQL does not run as root, and there is no setpriv, or no user postgres or nobody, to run it as"
    return ""


def program(name: str) -> str | None:
    """Where a program of PostgreSQL is; Debian keeps them out of PATH."""
    beside = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)
    return shutil.which(name) or (str(beside[0]) if beside else None)


class Postgres:
    """One server on a free port of 127.0.0.1, its data below ``folder``; everybody on the machine may log in."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._data = folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        if os.geteuid() == 0:
            user = _user()
            assert user is not None
            os.chown(folder, user.pw_uid, user.pw_gid)
        options = ["--no-sync", "--auth=trust", "--username=epigraph", "--encoding=UTF8", "--locale=C.UTF-8"]
        command = [*_as_user(), str(program("initdb")), *options, f"--pgdata={self._data}"]
        subprocess.run(command, check=True, capture_output=True, cwd="/")

    def start(self) -> None:
        """Start, or start again; returns once it answers."""
        options = {"port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": ""}
        # A process that is killed loses nothing that it gave to the kernel, and no test takes the power away.
        options["fsync"] = "off"
        told = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        command = [*_as_user(), str(program("postgres")), "-D", str(self._data), *told]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", start_new_session=True)
        ends = time.monotonic() + _STARTED_S
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < ends, "PostgreSQL did not start"
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL to the server and all that it started, as when a machine goes."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        # Its children hold the port and the shared memory until the kernel has taken them away.
        time.sleep(0.1)
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def stop(self) -> None:
        """End it, with whatever it still had to put in order."""
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def database(self, name: str, template: str = "template0") -> str:
        """The address of a new database, a copy of another, by default of an empty one."""
        with psycopg.connect(self._address("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')  # type: ignore[call-overload]
        return self._address(name)

    def _address(self, name: str) -> str:
        return f"postgresql://epigraph:a-secret-password@127.0.0.1:{self.port}/{name}"

    def _answers(self) -> bool:
        try:
            psycopg.connect(self._address("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def running() -> Iterator[Postgres]:
    """A server that has been started, and is gone afterwards with all its data."""
    # Not pytest's folder: those above it are closed to other users.
    with tempfile.TemporaryDirectory(prefix="epigraph-postgres-", ignore_cleanup_errors=True) as folder:
        server = Postgres(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _user() -> pwd.struct_passwd | None:
    for name in _USERS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None


def _as_user() -> list[str]:
    if os.geteuid() != 0:
        return []
    user = _user()
    assert user is not None
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--"]
