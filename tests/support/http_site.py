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
    """What a site answers. One that `hangs` or `breaks` sends its headers and half of the body,
    and then nothing more, or closes; one that `drips` sends a byte every 50 ms."""

    body: bytes = b""
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    hangs: bool = False
    breaks: bool = False
    drips: bool = False

    def head(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status} Told so", f"Content-Length: {len(self.body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        return "\r\n".join([*lines, "Connection: close", "", ""]).encode()

    async def send(self, writer: asyncio.StreamWriter) -> None:
        is_whole = not (self.hangs or self.breaks)
        body = self.body if is_whole else self.body[: len(self.body) // 2]
        writer.write(self.head())
        for part in (bytes([each]) for each in body) if self.drips else (body,):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.05 if self.drips else 0)


@dataclass
class Site:
    """`replies` are given in turn, the last one over and over; `requests` is what was asked, and
    `asked_at` when, in the event loop's seconds."""

    url: str
    replies: list[Reply]
    requests: list[str] = field(default_factory=list)
    asked_at: list[float] = field(default_factory=list)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
            reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
            self.asked_at.append(asyncio.get_running_loop().time())
            await reply.send(writer)
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
