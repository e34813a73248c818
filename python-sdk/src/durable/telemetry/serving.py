"""A small HTTP server for probes and scrapes: it answers GET requests of few paths."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Final, NamedTuple, TypeAlias

from durable.errors import InvalidArgument

__all__ = ["Answer", "Routes", "address_of", "serving"]

logger = logging.getLogger("durable.worker")

_PATIENCE: Final = 5.0  # seconds for a request to arrive, and for its answer to leave
_LONGEST_REQUEST: Final = 16_384


class Answer(NamedTuple):
    """The answer to a request."""

    body: str
    content_type: str = "text/plain; charset=utf-8"
    status: HTTPStatus = HTTPStatus.OK


Routes: TypeAlias = Mapping[str, Callable[[], Awaitable[Answer]]]


def address_of(text: str) -> tuple[str, int]:
    """Return "HOST:PORT" as a pair; of "[::1]:80", the host without brackets."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not int(port) < 1 << 16:
        raise InvalidArgument(f"{text!r} is not of the form HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


@contextlib.asynccontextmanager
async def serving(routes: Routes, host: str, port: int) -> AsyncIterator[None]:
    """Answer requests for the duration of the block."""

    async def answer(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                head = await reader.readuntil(b"\r\n\r\n")
            writer.write(_encoded(await _answered(routes, head)))
            async with asyncio.timeout(_PATIENCE):
                await writer.drain()
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            writer.transport.abort()  # the client has gone, or is no client
        finally:
            writer.close()

    server = await asyncio.start_server(answer, host, port, limit=_LONGEST_REQUEST)
    async with server:
        port = server.sockets[0].getsockname()[1]  # it may have been 0
        name = f"[{host}]" if ":" in host else host
        logger.info("serving %s at http://%s:%d", ", ".join(routes), name, port)
        yield


async def _answered(routes: Routes, head: bytes) -> Answer:
    method, target, *_ = [*head.decode("latin-1").split(), "", ""]
    route = routes.get(target.partition("?")[0])
    if route is None:
        return Answer("not found\n", status=HTTPStatus.NOT_FOUND)
    if method != "GET":
        return Answer("only GET\n", status=HTTPStatus.METHOD_NOT_ALLOWED)
    try:
        return await route()
    except Exception as error:  # noqa: BLE001 - said to the client, and logged
        logger.warning("%s could not be answered: %s", target, error)
        return Answer(f"{error}\n", status=HTTPStatus.SERVICE_UNAVAILABLE)


def _encoded(answer: Answer) -> bytes:
    body = answer.body.encode()
    lines = [
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}",
        f"Content-Type: {answer.content_type}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "Connection: close",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body
