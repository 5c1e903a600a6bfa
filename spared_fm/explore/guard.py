"""What every request must pass before anything of it is read, and the headers that every answer carries.

The server listens on this machine only, yet a web page from elsewhere can make a browser on this machine send requests. So the
name it was called by must be this machine's (a foreign name that resolves to 127.0.0.1 is refused), what is not a plain read must
come from our own page, and bodies are bounded before they are parsed.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
READS = frozenset({"GET", "HEAD"})
MOST_BODY = 4 << 20
"""Most bytes of a body that is not an upload."""
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "object-src 'none'; base-uri 'none'; frame-ancestors 'none'; form-action 'self'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


class Guard:
    """ASGI middleware around the whole application.

    Parameters
    ----------
    app
        The application.
    uploads
        Paths that take a file.
    most_upload
        Most bytes of a body sent there.
    """

    def __init__(self, app: ASGIApp, *, uploads: tuple[str, ...], most_upload: int) -> None:
        self.app, self.uploads, self.most_upload = app, uploads, most_upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what is refused, hand on what is not."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        refusal = _refusal(scope)
        body = b""
        if refusal is None and scope["method"] not in READS:
            limit = self.most_upload if scope["path"] in self.uploads else MOST_BODY
            body_or_none = await _body(scope, receive, limit)
            if body_or_none is None:
                refusal = 413, f"the request is larger than {limit:,} bytes"
            else:
                body = body_or_none
        if refusal is not None:
            await _refuse(guarded, *refusal)
            return
        if scope["method"] in READS:
            await self.app(scope, receive, guarded)
            return
        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, guarded)


def _refusal(scope: Scope) -> tuple[int, str] | None:
    """Status and reason, or None for a request that may pass."""
    headers = scope["headers"]
    hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
    if len(hosts) != 1 or _name(hosts[0]) not in HOSTS:
        return 403, "the explorer answers as 127.0.0.1 or localhost only"
    if scope["method"] in READS:
        return None
    for name, value in headers:
        text = value.decode("latin-1").lower()
        if name == b"origin" and text != f"{scope.get('scheme', 'http')}://{hosts[0]}".lower():
            return 403, "requests from other sites are refused"
        if name == b"sec-fetch-site" and text not in ("same-origin", "none"):
            return 403, "requests from other sites are refused"
    return None


def _name(host: str) -> str:
    """Host name without its port."""
    name, colon, port = host.lower().rpartition(":")
    return name if colon and port.isdigit() else host.lower()


async def _body(scope: Scope, receive: Receive, limit: int) -> bytes | None:
    """Read a body, or None where it is larger than the limit; what is too large is never held."""
    for name, value in scope["headers"]:
        if name == b"content-length" and (not value.isdigit() or len(value) > 18 or int(value) > limit):
            return None
    parts: list[bytes] = []
    total = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b""  # the client has gone
        total += len(message.get("body", b""))
        if total > limit:
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 413:
        headers.append((b"connection", b"close"))  # the rest of it is not read
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
