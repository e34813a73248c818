"""A recorded response is the same at every replay, and requested once.

The other side is a real server on this machine, which records its requests.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import httpx
import psycopg
import pytest

from durable import (
    AsyncDurable,
    BadStatus,
    InvalidArgument,
    RecordedResponse,
    ResponseTooLarge,
    Retry,
    SyncTaskContext,
    TaskContext,
    TaskFailed,
    task,
)
from tests.support.clock import Clock
from tests.support.processes import Processes
from tests.support.working import working

BINARY = bytes(range(256))


ANSWERS: dict[str, tuple[str, bytes]] = {
    "json": ("application/json", b'{"n": 0}'),
    "binary": ("application/octet-stream", BINARY),
    "latin": ("text/plain; charset=latin-1", "für".encode("latin-1")),
    "large": ("text/plain", b"x" * 5_000),
    "zip": ("text/plain", gzip.compress(b"plain")),
}


class Handler(BaseHTTPRequestHandler):
    """Responds depending on the path; records method, path, headers and body."""

    asked: ClassVar[list[dict[str, Any]]] = []
    broken: ClassVar[int] = 0

    def answer(self) -> None:
        number = self.note()
        what = self.path.strip("/").partition("?")[0]
        kind, body = ANSWERS.get(what, ("text/plain", f"answer {number}".encode()))
        more = {"zip": ("Content-Encoding", "gzip"), "redirect": ("Location", "/json")}
        self.send_response(self.status(what))
        self.send_header("Content-Type", kind)
        self.send_header("X-Twice", "a")
        self.send_header("X-Twice", "b")
        if what in more:
            self.send_header(*more[what])
        if what != "endless":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        with contextlib.suppress(OSError):  # until the client disconnects
            while what == "endless":
                self.wfile.write(b"x")
                time.sleep(0.01)

    def note(self) -> int:
        length = int(self.headers.get("content-length", 0))
        said = self.rfile.read(length).decode()
        headers = {key.lower(): value for key, value in self.headers.items()}
        self.asked.append(
            {"method": self.command, "path": self.path, "body": said, **headers}
        )
        return len(self.asked) - 1

    def status(self, what: str) -> int:
        if what == "broken" and Handler.broken > 0:
            Handler.broken -= 1
            return 503
        return 302 if what == "redirect" else 200

    do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815 - as it is called

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    """The URL of a server that runs as long as the test."""
    Handler.asked.clear()
    Handler.broken = 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def described(found: RecordedResponse) -> list[Any]:
    return [found.status_code, found.headers["X-TWICE"], found.text, found.is_success]


@task
async def errands(url: str, ctx: TaskContext) -> list[Any]:
    first = await ctx.http.get("get", f"{url}/json", params={"q": "1"})
    second = await ctx.http.post("post", f"{url}/text", json={"a": 1})
    await ctx.sleep_for("nap", 60)
    return [first.json(), described(second)]


@task
def errands_sync(url: str, ctx: SyncTaskContext) -> list[Any]:
    first = ctx.http.get("get", f"{url}/json", params={"q": "1"})
    second = ctx.http.post("post", f"{url}/text", json={"a": 1})
    ctx.sleep_for("nap", 60)
    return [first.json(), described(second)]


@pytest.mark.parametrize("kind", [errands, errands_sync])
async def test_requests_once_and_returns_the_same_at_every_replay(
    dsn: str, url: str, clock: Clock, kind: Any
) -> None:
    async with working(dsn, kind) as (app, worker):
        handle = await app.spawn(kind, url)
        await worker.drain()
        clock.advance(61)
        await worker.drain()
        assert await handle.result(10) == [{"n": 0}, [200, "a, b", "answer 1", True]]
    get, post = Handler.asked
    assert (get["method"], get["path"]) == ("GET", "/json?q=1")
    assert "idempotency-key" not in get
    assert (post["method"], json.loads(post["body"])) == ("POST", {"a": 1})
    assert post["idempotency-key"] == f"{handle.task_id}/post"


async def recorded(dsn: str, url: str, **asked: Any) -> list[RecordedResponse]:
    """Return what a task gets for requests by path, on its first run."""

    @task
    async def ask(_: None, ctx: TaskContext) -> list[RecordedResponse]:
        return [
            await ctx.http.get("ask", f"{url}/{path}", **options)
            for path, options in asked.items()
        ]

    async with working(dsn, ask) as (app, worker):
        handle = await app.spawn(ask)
        await worker.drain()
        return await handle.result(10)


async def test_keeps_the_body_unchanged(dsn: str, url: str) -> None:
    found = await recorded(dsn, url, binary={}, latin={}, zip={}, json={})
    binary, latin, zipped, plain = found
    assert (binary.content, binary.is_base64) == (BINARY, True)
    assert (latin.text, latin.content) == ("für", b"f\xfcr")
    assert (zipped.text, zipped.is_base64) == ("plain", False)
    assert plain.json() == {"n": 0}


async def test_does_not_store_the_query(
    dsn: str, db: psycopg.Connection, url: str
) -> None:
    (found,) = await recorded(dsn, url, json={"params": {"api_key": "secret"}})
    assert (found.url, Handler.asked[0]["path"]) == (
        f"{url}/json",
        "/json?api_key=secret",
    )
    saved = db.execute("select value::text from durable.checkpoints").fetchall()
    assert "secret" not in str(saved)
    (found,) = await recorded(dsn, f"{url}/", **{"text?page=2": {}})
    assert found.url.endswith("/text?page=2")


async def test_follows_redirects_if_enabled(dsn: str, url: str) -> None:
    (found,) = await recorded(dsn, url, redirect={})
    assert (found.status_code, found.headers["location"]) == (302, "/json")
    (found,) = await recorded(dsn, url, redirect={"follow_redirects": True})
    assert (found.url, found.status_code) == (f"{url}/json", 200)


async def test_stores_nothing_of_the_request(
    dsn: str, db: psycopg.Connection, url: str
) -> None:
    secret = "swordfish"  # noqa: S105 - what must not be stored
    with_user = url.replace("//", f"//ada:{secret}@")
    hidden = {"Authorization": secret, "X-Key": secret}
    (found,) = await recorded(dsn, with_user, json={"headers": hidden})
    assert found.url == f"{url}/json"
    assert secret in str(Handler.asked)
    rows = db.execute("select c::text from durable.checkpoints as c").fetchall()
    assert rows
    assert secret not in str(rows)


async def test_refuses_a_body_that_is_too_large(dsn: str, url: str) -> None:
    @task(max_attempts=5, retry=Retry.fixed(0))
    async def ask(caught: bool, ctx: TaskContext) -> str:  # noqa: FBT001 - params
        try:
            await ctx.http.get("ask", f"{url}/large", max_bytes=4_999, max_attempts=3)
        except ResponseTooLarge as error:
            if caught:
                return str(error)
            raise
        return "not reached"

    async with working(dsn, ask) as (app, worker):
        caught, raised = await app.spawn_many(ask, [True, False])
        await worker.drain()
        assert "4,999" in await caught.result(10)
        with pytest.raises(TaskFailed, match="5,000 bytes") as failed:
            await raised.result(10)
        assert failed.value.error.type == "ResponseTooLarge"
    assert len(Handler.asked) == 2  # it is not retried
    (found,) = await recorded(dsn, url, large={"max_bytes": 5_000})
    assert found.content == b"x" * 5_000


async def test_retries_with_the_same_idempotency_key(
    dsn: str, url: str, clock: Clock
) -> None:
    @task
    async def ask(_: None, ctx: TaskContext) -> str:
        options: dict[str, Any] = {"raise_for_status": True, "retry": Retry.fixed(9)}
        here = ctx.scope("für")
        found = await here.http.post("ask", f"{url}/broken", **options, max_attempts=3)
        return found.text

    Handler.broken = 2
    async with working(dsn, ask) as (app, worker):
        handle = await app.spawn(ask)
        for _ in range(3):
            await worker.drain()
            clock.advance(10)
        assert await handle.result(10) == "answer 2"
    assert {asked["idempotency-key"] for asked in Handler.asked} == {
        f"{handle.task_id}/f%C3%BCr/ask"
    }


async def test_raises_the_same_bad_status_at_every_replay(
    dsn: str, url: str, clock: Clock
) -> None:
    @task
    async def ask(_: None, ctx: TaskContext) -> list[Any]:
        try:
            await ctx.http.get("ask", f"{url}/broken", raise_for_status=True)
        except BadStatus as error:
            await ctx.sleep_for("nap", 60)
            found = await ctx.http.delete("other", f"{url}/x", idempotency_header=False)
            assert found.raise_for_status() is found
            return [error.status_code, error.method, error.url, str(error)]
        return []

    Handler.broken = 1
    async with working(dsn, ask) as (app, worker):
        handle = await app.spawn(ask)
        await worker.drain()
        clock.advance(61)
        await worker.drain()
        where = f"{url}/broken"
        said = f"GET {where} answered 503"
        assert await handle.result(10) == [503, "GET", where, said]
    assert len(Handler.asked) == 2
    assert "idempotency-key" not in Handler.asked[1]


async def test_times_out(dsn: str, url: str) -> None:
    """Also where data keeps arriving without an end."""

    @task(max_attempts=1)
    async def ask(_: None, ctx: TaskContext) -> None:
        await ctx.http.get("ask", f"{url}/endless", timeout=0.5)

    async with working(dsn, ask) as (app, worker):
        handle = await app.spawn(ask)
        await worker.drain()
        with pytest.raises(TaskFailed) as failed:
            await handle.result(10)
    assert failed.value.error.type == "ReadTimeout"


async def test_accepts_the_applications_own_client(dsn: str, url: str) -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text=request.headers["x-mine"])

    transport = httpx.MockTransport(answer)
    mine = httpx.AsyncClient(transport=transport, headers={"x-mine": "yes"})

    @task
    async def ask(_: None, ctx: TaskContext) -> str:
        return (await ctx.http.using(mine).put("ask", f"{url}/x")).text

    async with mine, working(dsn, ask) as (app, worker):
        handle = await app.spawn(ask)
        await worker.drain()
        assert await handle.result(10) == "yes"
    assert not Handler.asked


@pytest.mark.parametrize(
    ("options", "meant"),
    [
        ({"header": {}}, "headers"),
        ({"max_bytes": -1}, "max_bytes"),
        ({"max_bytes": 9 * 1024 * 1024}, "max_bytes"),
        ({"max_bytes": True}, "max_bytes"),
        ({"timeout": -1}, "timeout"),
        ({"max_attempts": 0}, "max_attempts"),
    ],
)
async def test_refuses_an_invalid_option_before_anything_is_sent(
    dsn: str, url: str, options: dict[str, Any], meant: str
) -> None:
    @task(non_retryable=(InvalidArgument,))
    async def ask(_: None, ctx: TaskContext) -> None:
        await ctx.http.get("ask", url, **options)

    async with working(dsn, ask) as (app, worker):
        handle = await app.spawn(ask)
        await worker.drain()
        with pytest.raises(TaskFailed, match=meant):
            await handle.result(10)
    assert not Handler.asked


WORKER = """
import asyncio
from durable import AsyncDurable
from tests.test_http import payment
asyncio.run(AsyncDurable(tasks=[payment]).run_worker(lease=1, poll=0.05))
"""


@task
async def payment(url: str, ctx: TaskContext) -> str:
    return (await ctx.http.post("pay", f"{url}/pay", json={"amount": 7})).text


@pytest.mark.parametrize(("point", "times"), [("before", 2), ("after", 1)])
async def test_repeats_a_request_with_the_same_key_only_if_killed_before_the_save(
    dsn: str, url: str, processes: Processes, point: str, times: int
) -> None:
    async with AsyncDurable(dsn, tasks=[payment]) as app:
        handle = await app.spawn(payment, url)
        mortal = {"DURABLE_FAILPOINT": f"kill=flush#1:{point}"}
        assert processes.python("-c", WORKER, env=mortal).wait() == -9
        assert len(Handler.asked) == 1
        async with app.worker(poll=0.05):
            assert await handle.result(30) == f"answer {times - 1}"
        assert (await handle.snapshot()).attempt == 2
    assert [asked["body"] for asked in Handler.asked] == ['{"amount":7}'] * times
    assert {asked["idempotency-key"] for asked in Handler.asked} == {
        f"{handle.task_id}/pay"
    }
