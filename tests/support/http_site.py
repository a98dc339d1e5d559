"""A web site on this machine that answers as it is told, well or badly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

DOCUMENTS = Path(__file__).resolve().parents[1] / "documents"


@dataclass(frozen=True)
class Reply:
    """What a site answers. One that `hangs` sends its headers and half of the body, no more."""

    body: bytes = b""
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    hangs: bool = False

    def encoded(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status} Told so", f"Content-Length: {len(self.body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        head = "\r\n".join([*lines, "Connection: close", "", ""]).encode()
        return head + (self.body[: len(self.body) // 2] if self.hangs else self.body)


@dataclass
class Site:
    """`replies` are given in turn, the last one over and over; `requests` is what was asked."""

    url: str
    replies: list[Reply]
    requests: list[str] = field(default_factory=list)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
            reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
            writer.write(reply.encoded())
            await writer.drain()
            if reply.hangs:
                await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def http_site(*replies: Reply) -> AsyncIterator[Site]:
    site = Site("", list(replies))
    server = await asyncio.start_server(site.answer, "127.0.0.1", 0)
    site.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/rates"
    try:
        yield site
    finally:
        server.close()
