"""Run a command with a Docker engine and the Postgres image available.

    python -m tests.container.engine pytest tests/test_container.py

A running engine is used. Otherwise root may install and start one, which keeps its
files in a temporary directory and ends with the command. If neither is possible, the
command runs all the same and the reason is printed.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from tests.support.wait import eventually

__all__ = ["IMAGE", "unusable"]

IMAGE = "durable-test-postgres:local"
HERE = Path(__file__).parent
NEED = HERE.parents[1] / ".ci" / "need"

os.environ["TESTCONTAINERS_RYUK_DISABLED"] = "true"  # its image is in a registry


def unusable(image: str = IMAGE) -> str | None:
    """Return why no container of this image can run here, or None if it can.

    Nothing is pulled; without an engine this takes a millisecond.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        reason = _ask_engine(image)
        gc.collect()  # where no engine answers, its client leaves sockets behind
    return reason


def _ask_engine(image: str) -> str | None:
    try:
        import docker.errors  # noqa: PLC0415 - not needed where there is no engine
        from testcontainers.core.docker_client import DockerClient  # noqa: PLC0415
    except ImportError as error:
        return f"{error.name} is not installed"
    try:
        client = DockerClient(timeout=3).client
    except docker.errors.DockerException as error:
        root: BaseException = error
        while root.__context__:
            root = root.__context__
        return f"no Docker engine answers: {root}"
    try:
        client.images.get(image)
    except docker.errors.ImageNotFound:
        return f"there is no image {image}"
    except Exception as error:  # noqa: BLE001 - whatever a half-dead engine answers
        return f"the Docker engine does not answer ({error})"
    finally:
        client.close()
    return None


class NoEngine(RuntimeError):
    """There is no engine, or no image, on this machine."""


def main(command: list[str]) -> int:
    """Run the command, with an engine if possible."""
    with contextlib.ExitStack() as stack:
        try:
            if (unusable() or "").startswith("no Docker engine"):
                stack.enter_context(_own_engine())
            if unusable():
                _output([str(HERE / "make-image"), IMAGE])
            environ = os.environ | {"DURABLE_TEST_PG": "container"}
        except NoEngine as reason:
            print(f"\ntestcontainers NOT exercised: {reason}\n", flush=True)
            environ = dict(os.environ)
        return subprocess.run(command, env=environ, check=False).returncode


@contextlib.contextmanager
def _own_engine() -> Iterator[None]:
    """Start a `dockerd` that touches no other one's files, and stop it afterwards."""
    if os.geteuid() != 0:
        raise NoEngine("no Docker engine answers, and only root can start one")
    if not shutil.which("dockerd"):
        _output([str(NEED), "docker.io"])
    with tempfile.TemporaryDirectory(prefix="durable-docker-") as name:
        home = Path(name)
        address = f"unix://{home}/docker.sock"
        options = {"host": address, "data-root": home / "data", "exec-root": home / "x"}
        options |= {"pidfile": home / "pid", "config-file": home / "conf"}
        (home / "conf").write_text("{}")
        with (home / "log").open("wb") as log:
            engine = subprocess.Popen(
                ["dockerd", *(f"--{key}={value}" for key, value in options.items())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        os.environ["DOCKER_HOST"] = address
        try:
            _await_engine(engine, home / "log")
            yield
        finally:
            del os.environ["DOCKER_HOST"]
            engine.terminate()
            engine.wait()


def _await_engine(engine: subprocess.Popen[bytes], log: Path) -> None:
    def settled() -> bool:
        answer = unusable() or ""
        return engine.poll() is not None or not answer.startswith("no Docker engine")

    with contextlib.suppress(AssertionError):
        eventually(settled, deadline=60, what="a Docker engine")
    if reason := unusable():
        if reason.startswith("there is no image"):
            return
        raise NoEngine(f"dockerd did not start: {log.read_text()[-1500:]}")


def _output(command: list[str]) -> None:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise NoEngine(f"{command[0]} failed: {done.stdout.strip()}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
