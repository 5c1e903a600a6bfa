"""A web server on this machine that does what it is told: ranges, cut connections, errors, files that change."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Web:
    """Files by path, and how they are served.

    Attributes
    ----------
    base
        The server's address.
    files
        Path → content.
    tag
        ETag of every answer; "" sends none.
    ranges
        Whether ranges are given.
    cuts
        For the next answers: bytes after which the connection is cut.
    statuses
        For the next answers: a status to send instead.
    asked
        (path, Range header or None) of the requests so far.
    """

    base: str
    files: dict[str, bytes] = field(default_factory=dict)
    tag: str = '"v1"'
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    asked: list[tuple[str, str | None]] = field(default_factory=list)


@contextlib.contextmanager
def serve() -> Iterator[Web]:
    """Serve on a free port of the loopback interface until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.close_connection = True
            asked = self.headers.get("Range")
            web.asked.append((self.path, asked))
            if web.statuses:
                self.refuse(web.statuses.pop(0))
            elif self.path not in web.files:
                self.refuse(404)
            else:
                self.answer(web.files[self.path], asked)

        def refuse(self, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def answer(self, content: bytes, asked: str | None) -> None:
            start = 0
            if asked and web.ranges and self.headers.get("If-Range") == web.tag:
                start = int(asked.removeprefix("bytes=").partition("-")[0])
            if start >= len(content) > 0:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            if web.tag:
                self.send_header("ETag", web.tag)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            body = content[start:]
            self.wfile.write(body[: web.cuts.pop(0)] if web.cuts else body)

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web = Web(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
