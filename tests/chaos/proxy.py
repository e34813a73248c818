"""A network between a server and its clients that can be cut and can fall silent.

    with Proxy(server) as proxy:
        psycopg.connect(proxy.conninfo())
        proxy.cut("answer lost")

It forwards bytes, and knows only that the protocol alternates requests and answers.
Each kind of cut waits for its moment on one connection, which the caller chooses:

    request lost    the next request does not reach the server
    under way       the server has the next request, and the client no longer waits
    answer lost     the server has answered, so it has committed; the answer is lost
    half an answer  the client gets the first bytes of the answer

On a silent connection nothing arrives any more, in either direction, while the kernels
of both ends consider it healthy.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import threading
from collections import Counter
from collections.abc import Callable
from random import Random
from types import TracebackType
from typing import Final, Literal, Self, TypeVar

from psycopg.conninfo import conninfo_to_dict

from tests.support.wait import eventually

__all__ = ["CUTS", "Cut", "Proxy"]

T = TypeVar("T")
Cut = Literal["request lost", "under way", "answer lost", "half an answer"]

NAME: Final = re.compile(rb"application_name\0(.*?)\0")  # in the first packet
CUTS: Final[tuple[Cut, ...]] = (
    "request lost",
    "under way",
    "answer lost",
    "half an answer",
)


class Half(asyncio.Protocol):
    """One side of a connection; it passes on the bytes it receives."""

    def __init__(
        self, hears: Callable[[bytes], None], ends: Callable[[], None]
    ) -> None:
        self._hears = hears
        self._ends = ends
        self._early: list[bytes] = []
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        for data in self._early:
            transport.write(data)

    def data_received(self, data: bytes) -> None:
        self._hears(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - its name
        self._ends()

    def say(self, data: bytes) -> None:
        """Send data, or keep it until there is a peer to send it to."""
        if self.transport is None:
            self._early.append(data)
        elif not self.transport.is_closing():
            self.transport.write(data)

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class Connection:
    """A client, the server, and perhaps a fault to be injected between them."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self.number = next(proxy.numbers)
        self.client = Half(self._asked, self._left)
        self.server = Half(self._answered, self._left)
        self.fault: Cut | None = None
        self.name = ""
        self.silent = False
        self._asks = False
        self._broken = False

    @property
    def sound(self) -> bool:
        """Whether no fault has occurred and none is pending."""
        return self.fault is None and not self.silent

    def _left(self) -> None:
        """Handle the end of one peer; on a silent line the other does not notice."""
        if not self.silent:
            self.close()

    def _asked(self, request: bytes) -> None:
        if self.silent or self._broken:
            return
        if self.fault == "request lost":
            self._break()
            return
        if not self.name and (said := NAME.search(request)):
            self.name = said[1].decode()
        self._asks = True
        self.server.say(request)
        if self.fault == "under way":
            self._break(gently=True)

    def _answered(self, answer: bytes) -> None:
        if self.silent or self._broken:
            return
        if self._asks and self.fault in {"answer lost", "half an answer"}:
            if self.fault == "half an answer":
                self.client.say(answer[: len(answer) // 2])
            self._break(gently=True)
            return
        self._asks = False
        self.client.say(answer)

    def _break(self, *, gently: bool = False) -> None:
        assert self.fault is not None
        self._proxy.count[self.fault] += 1
        self._broken = True
        self.close(gently=gently)

    def close(self, *, gently: bool = False) -> None:
        """Close both sides; `gently` flushes pending data first."""
        self._proxy.connections.discard(self)
        for half in (self.client, self.server):
            if gently and half.transport is not None:
                half.transport.close()
            else:
                half.abort()


class Proxy:
    """Listens on a port of its own, in a thread of its own."""

    def __init__(self, conninfo: str, random: Random | None = None) -> None:
        self.direct = conninfo
        self._server = conninfo_to_dict(conninfo)
        self._random = random or Random(0)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._dialling: set[asyncio.Task[None]] = set()
        self._mute = False
        self.numbers = itertools.count()
        self.connections: set[Connection] = set()
        self.count: Counter[Cut] = Counter()
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        listening = self._loop.create_server(self._accept, "127.0.0.1", 0)
        future = asyncio.run_coroutine_threadsafe(listening, self._loop)
        self._listener = future.result()
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._do(self._listener.close)
        self.cut_all()
        self._do(lambda: [task.cancel() for task in self._dialling])
        eventually(lambda: not self._dialling, what="nobody is being connected")
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def conninfo(self, dbname: str | None = None) -> str:
        """Return the URL of a database behind the proxy."""
        user = self._server.get("user", "postgres")
        name = dbname or self._server.get("dbname", "postgres")
        return f"postgresql://{user}@127.0.0.1:{self.port}/{name}?gssencmode=disable"

    def cut(self, how: Cut, name: str | None = None) -> None:
        """Inject this fault into one of the connections, as soon as it is used.

        Into any, or into one of this application_name.
        """

        def choose() -> None:
            sound = [c for c in self._sound() if name in {None, c.name}]
            if sound:
                self._random.choice(sound).fault = how

        self._do(choose)

    def cut_all(self) -> int:
        """Break all connections at once; return how many there were."""

        def cut() -> int:
            there = list(self.connections)
            for connection in there:
                connection.close()
            return len(there)

        return self._do(cut)

    def stop_listening(self) -> int:
        """Pass nothing on any more, on existing and on new connections."""

        def hush() -> int:
            self._mute = True
            for connection in self.connections:
                connection.silent = True
            return len(self.connections)

        return self._do(hush)

    def hush(self, name: str) -> int:
        """Let the connections of this application_name fall silent for good."""

        def hush() -> int:
            named = [c for c in self._sound() if c.name == name]
            for connection in named:
                connection.silent = True
            return len(named)

        return self._do(hush)

    def hush_some(self, number: int = 1) -> int:
        """Silence any so many connections for good; new ones can be made."""

        def hush() -> int:
            sound = self._sound()
            chosen = self._random.sample(sound, min(number, len(sound)))
            for connection in chosen:
                connection.silent = True
            return len(chosen)

        return self._do(hush)

    def speak(self) -> None:
        """Serve new connections again; silent ones stay silent."""

        def speak() -> None:
            self._mute = False

        self._do(speak)

    def _sound(self) -> list[Connection]:
        sound = [connection for connection in self.connections if connection.sound]
        return sorted(sound, key=lambda connection: connection.number)

    def _do(self, what: Callable[[], T]) -> T:
        async def do() -> T:
            return what()

        return asyncio.run_coroutine_threadsafe(do(), self._loop).result()

    def _accept(self) -> Half:
        connection = Connection(self)
        connection.silent = self._mute
        self.connections.add(connection)
        task = self._loop.create_task(self._dial(connection))
        self._dialling.add(task)
        task.add_done_callback(self._dialling.discard)
        return connection.client

    async def _dial(self, connection: Connection) -> None:
        host = str(self._server.get("host", "127.0.0.1"))
        port = int(self._server.get("port") or 5432)

        def server() -> Half:
            return connection.server

        try:
            if host.startswith("/"):
                path = f"{host}/.s.PGSQL.{port}"
                await self._loop.create_unix_connection(server, path)
            else:
                await self._loop.create_connection(server, host, port)
        except OSError:
            connection.close()  # the server is down
        if connection not in self.connections:
            connection.server.abort()
