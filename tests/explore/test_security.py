"""Other sites, other names, paths in place of ids, and pictures that unpack to more than memory holds."""

from __future__ import annotations

import asyncio
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from spared_fm.explore.app import create_app
from spared_fm.explore.guard import MOST_BODY
from spared_fm.study.api import Study
from tests.explore.conftest import ENCODER, HOST


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "127.0.0.2", "", "localhost@evil"]
)
def test_a_foreign_name_is_refused(client: TestClient, host: str) -> None:
    for path in ("/", "/api/slides", "/static/app.js", "/openapi.json"):
        answer = client.get(path, headers={"host": host})
        assert answer.status_code == 403, path
        assert list(answer.json()) == ["error"]


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "localhost", "LOCALHOST:1", "[::1]:8765"])
def test_this_machine_may_ask(client: TestClient, host: str) -> None:
    assert client.get("/api/slides", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "https://127.0.0.1:8765"},
        {"origin": "http://127.0.0.1:9999"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_other_sites_may_not_post(client: TestClient, headers: dict[str, str]) -> None:
    body = {"encoder": ENCODER, "vector": [1.0] * 560}
    assert client.post("/api/search", json=body, headers=headers).status_code == 403
    assert (
        client.post("/api/search", json=body, headers={"origin": HOST, "sec-fetch-site": "same-origin"}).status_code
        == 200
    )


def test_every_answer_carries_the_policy(client: TestClient) -> None:
    for path, status in (("/api/slides", 200), ("/api/none", 404), ("/openapi.json", 200)):
        answer = client.get(path)
        assert answer.status_code == status
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers
    assert client.get("/api/slides", headers={"host": "evil"}).headers["content-security-policy"]


def test_nothing_is_written(client: TestClient) -> None:
    for method in ("PUT", "DELETE", "PATCH"):
        assert client.request(method, "/api/slides").status_code == 405


PATHS = (
    "../../../etc/passwd",
    "%2e%2e/secret",
    "/etc/passwd",
    "..\\secret",
    "a\x00b",
    "C:\\x",
    "~root",
)


def spied(method: Any, touched: list[str]) -> Any:
    def call(self: Any, key: str = "", *rest: Any) -> Any:
        touched.append(key)
        return method(self, key, *rest)

    return call


def test_no_path_of_a_request_reaches_the_file_system(shown: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands in the place of an id, no file is opened, looked at or listed that the request names."""
    client = TestClient(create_app(shown.layout.root), base_url=HOST, raise_server_exceptions=False)
    slide = shown.slides[0]
    client.get(f"/api/slides/{slide}")
    touched: list[str] = []
    real = type(shown.layout.files)
    for name in ("read", "exists", "list", "local_file", "zarr_store"):
        monkeypatch.setattr(real, name, spied(getattr(real, name), touched))
    for path in PATHS:
        gets: list[tuple[str, dict[str, str]]] = [
            (f"/api/slides/{path}", {}),
            (f"/api/slides/{path}/spots", {}),
            (f"/api/slides/{path}/tiles/0/0_0.jpg", {}),
            (f"/api/slides/{slide}/values", {"what": f"pca:{path}"}),
            (f"/api/slides/{slide}/values", {"what": f"obs:{path}"}),
            (f"/api/slides/{slide}/values", {"what": "gene:x", "layer": path}),
            (f"/api/slides/{slide}/values", {"what": "gene:x", "layer": f"cohort:c/{path}"}),
            (f"/api/slides/{slide}/values", {"what": "gene:x", "layer": f"head:c/{path}"}),
            (f"/api/slides/{slide}/patch", {"spot": path}),
            ("/api/genes", {"slide": path, "layer": path}),
            ("/api/features", {"encoder": path, "slide": slide}),
            ("/api/features", {"encoder": ENCODER, "slide": path}),
            ("/api/targets", {"cohort": path, "layer": path, "slide": slide}),
            ("/api/targets", {"cohort": "c", "layer": path, "slide": slide}),
            (f"/static/{path}", {}),
        ]
        for url, params in gets:
            assert client.get(url.replace("\x00", "%00"), params=params).status_code in (404, 422), url
        vector = [1.0] * 560
        for body in (
            {"encoder": path, "vector": vector},
            {"encoder": ENCODER, "spots": [f"{path}/x"]},
            {"encoder": ENCODER, "spots": [f"{slide}/{path}"]},
            {"encoder": ENCODER, "region": {"slide": path, "x": 0, "y": 0, "width": 1, "height": 1}},
            {"encoder": ENCODER, "vector": vector, "slides": [path]},
            {"encoder": ENCODER, "vector": vector, "cohort": path},
            {"encoder": ENCODER, "vector": vector, "genes": ["x"], "layer": f"cohort:c/{path}"},
        ):
            assert client.post("/api/search", json=body).status_code in (404, 422), body
    assert touched
    for path in PATHS:
        assert not [key for key in touched if path in key]


def png(width: int, height: int, pixels: bytes) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(pixels, 9)) + chunk(b"IEND", b"")


def send(client: TestClient, data: bytes, **fields: str) -> Any:
    return client.post("/api/search/upload", files={"image": ("x", data)}, data={"encoder": ENCODER, "k": "1"} | fields)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = png(30_000, 30_000, b"\0" * 30_001)  # 2.7 GB once decoded
    assert len(bomb) < 1000

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr("spared_fm.slides.raster._decode", never)
    answer = send(client, bomb)
    assert answer.status_code == 413
    assert "30000×30000" in answer.json()["error"]


def test_pixels_that_unpack_to_more_than_their_header_says_take_no_memory(client: TestClient) -> None:
    import tracemalloc

    tracemalloc.start()
    answer = send(client, png(64, 64, b"\0" * 100_000_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert answer.status_code in (200, 422)
    assert peak < 150_000_000  # of which this test's own zeros are the most


def test_uploads_are_bounded_in_bytes_and_pixels(shown: Study) -> None:
    client = TestClient(create_app(shown.layout.root, max_upload=10_000, max_pixels=256 * 256), base_url=HOST)
    small, large = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (256, 256), "pink").save(small, "PNG")
    Image.new("RGB", (256, 257), "pink").save(large, "PNG")
    assert send(client, small.getvalue()).status_code == 200
    assert send(client, large.getvalue()).status_code == 413
    assert send(client, small.getvalue() + b"\0" * 10_000).status_code == 413
    assert send(client, b"\0" * 200_000).status_code == 413  # refused by the guard, before it is parsed


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"\xff\xd8\xff" + b"\0" * 99, b"II*\0" * 9]
)
def test_what_is_no_picture_is_refused(client: TestClient, data: bytes) -> None:
    answer = send(client, data)
    assert answer.status_code == 422
    assert "/" not in answer.json()["error"].replace("µm/px", "")  # nothing of where it was kept


def test_a_body_without_a_length_is_counted(shown: Study) -> None:
    app = create_app(shown.layout.root)
    sent: list[dict[str, Any]] = []
    read = 0

    async def receive() -> dict[str, Any]:
        nonlocal read
        read += 1 << 20
        return {"type": "http.request", "body": b" " * (1 << 20), "more_body": True}  # without end

    async def send_(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/search",
        "headers": [(b"host", b"localhost")],
        "scheme": "http",
    }
    asyncio.run(app.build_middleware_stack()(scope, receive, send_))  # type: ignore[arg-type]
    assert sent[0]["status"] == 413
    assert read <= MOST_BODY + (1 << 20)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(client: TestClient, value: str) -> None:
    body = f'{{"encoder":"{ENCODER}","vector":[{value}]}}'
    answer = client.post("/api/search", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert list(answer.json()) == ["error"]


def test_texts_that_are_no_text_are_answered(client: TestClient) -> None:
    body = f'{{"encoder":"{ENCODER}","spots":["\\ud800/\\u0000"]}}'
    assert client.post("/api/search", content=body, headers={"content-type": "application/json"}).status_code in (
        404,
        422,
    )
    assert client.get("/api/slides/%ff%fe").status_code == 404


def test_it_listens_on_this_machine_only() -> None:
    from spared_fm.explore import server

    assert server.HOST == "127.0.0.1"
    assert "0.0.0.0" not in Path(server.__file__).read_text()
