"""Many clients of one server at a time, cheap enough to share its cores: plain HTTP/1.1 over asyncio."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

Answer = tuple[int, bytes]


async def _one(port: int, until: float, body: Callable[[], dict[str, Any]], seen: list[tuple[int, float]]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        while time.monotonic() < until:
            data = json.dumps(body()).encode()
            head = (
                f"POST /api/search HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(data)}\r\n\r\n"
            )
            start = time.perf_counter()
            writer.write(head.encode() + data)
            top = await reader.readuntil(b"\r\n\r\n")
            fields = dict(line.lower().split(b": ", 1) for line in top.split(b"\r\n")[1:] if b": " in line)
            await reader.readexactly(int(fields[b"content-length"]))
            seen.append((int(top.split(b" ", 2)[1]), time.perf_counter() - start))
    finally:
        writer.close()


def search_load(
    port: int, *, clients: int, seconds: float, body: Callable[[], dict[str, Any]]
) -> list[tuple[int, float]]:
    """Send searches without a pause from each of `clients`; status and seconds of every answer."""
    seen: list[tuple[int, float]] = []

    async def everyone() -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(*(_one(port, until, body, seen) for _ in range(clients)))

    asyncio.run(everyone())
    return seen
