"""What only object stores have: URLs, conditional PUTs, publishing object by object, kills in the middle of an upload."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spared_fm.errors import InputError
from spared_fm.store import objects
from spared_fm.store.embeddings import EmbeddingArray, IncompleteError
from spared_fm.store.layout import Layout
from spared_fm.store.nodes import read_node, write_node
from spared_fm.store.objects import ObjectFiles, url_of
from spared_fm.store.recipe import Recipe
from tests.object_stores import place
from tests.store.conftest import assert_same, make_slide, new_store, record_of


@pytest.fixture(params=["memory", "s3"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def files(storage: str) -> ObjectFiles:
    return ObjectFiles(storage)


@pytest.mark.parametrize(
    ("root", "url"),
    [
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("S3://bucket", "s3://bucket"),
        (Path("s3://bucket/a"), "s3://bucket/a"),
        ("memory://x", "memory://x"),
        ("store", None),
        ("/data/s3", None),
        ("C:/store", None),
        ("./s3:/x", None),
        ("a:b", None),
    ],
)
def test_urls(root: str | Path, url: str | None):
    assert url_of(root) == url


@pytest.mark.parametrize(("root", "message"), [("gs://b/x", "can't lie on gs://.*s3://"), ("s3://", "names no place")])
def test_urls_that_can_not_be(root: str, message: str):
    with pytest.raises(InputError, match=message):
        url_of(root)


def test_a_missing_bucket_is_told(storage: str, kind: str):
    if kind == "memory":
        pytest.skip("memory has no buckets")
    with pytest.raises(InputError, match="no store here"):
        Layout.open("s3://no-such-bucket/x")
    with pytest.raises(InputError, match="s3://no-such-bucket/x: there is no such bucket"):
        Layout.create("s3://no-such-bucket/x")


def test_a_missing_library_is_told(monkeypatch: pytest.MonkeyPatch):
    import fsspec

    def absent(kind: str, **options: Any) -> None:
        raise ImportError("Install s3fs")

    monkeypatch.setattr(fsspec, "filesystem", absent)
    objects._filesystem.cache_clear()
    with pytest.raises(InputError, match=r"pip install 'spared-fm\[s3\]'"):
        ObjectFiles("s3://bucket/x")


class Answers:
    """A client whose PUTs get these answers: an HTTP status, or an error; then they succeed."""

    def __init__(self, *answers: int | Exception) -> None:
        self.answers = list(answers)

    def pipe_file(self, path: str, data: bytes, mode: str = "overwrite") -> None:
        if self.answers:
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            error = OSError(errno.EIO, "told by the server")
            cause = Exception()
            cause.response = {"ResponseMetadata": {"HTTPStatusCode": answer}}  # type: ignore[attr-defined]
            raise error from cause


@pytest.mark.parametrize(("answers", "won"), [((409, 409), True), ((409, 412), False), ((412,), False), ((), True)])
def test_answers_of_servers_to_a_conditional_put(monkeypatch: pytest.MonkeyPatch, answers: tuple[int, ...], won: bool):
    client = Answers(*answers)
    monkeypatch.setattr(ObjectFiles, "_fs", client)
    assert ObjectFiles("memory://x").put_if_absent("k", b"") == won
    assert client.answers == []


def test_errors_name_the_object(monkeypatch: pytest.MonkeyPatch):
    class NoAnswer(Exception):
        pass

    NoAnswer.__module__ = "botocore.exceptions"
    for answer in (503, PermissionError("Access Denied"), NoAnswer("no credentials")):
        monkeypatch.setattr(ObjectFiles, "_fs", Answers(*[answer] * 2))
        for write in (ObjectFiles("memory://x").put_if_absent, ObjectFiles("memory://x").replace):
            with pytest.raises(OSError, match=r"told|Denied|credentials") as caught:
                write("a/k", b"")
            assert caught.value.filename == "memory://x/a/k"
            assert caught.value.strerror
            assert isinstance(caught.value, PermissionError) == isinstance(answer, PermissionError)


def staged(staging: Path, content: str) -> Path:
    for name in ("zarr.json", "obs/x", "c/0"):
        (staging / content / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / content / name).write_text(f"{name} {content}")
    return staging / content


def test_a_node_whose_upload_fails_is_not_seen_and_the_same_upload_completes_it(
    files: ObjectFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    put = files.put_if_absent

    def fail(key: str, data: bytes) -> bool:
        if key.endswith("obs/x"):
            raise OSError(errno.EIO, "no network")
        return put(key, data)

    monkeypatch.setattr(files, "put_if_absent", fail)
    with pytest.raises(OSError, match="no network"):
        files.publish(staged(tmp_path, "a"), "node")
    monkeypatch.undo()
    assert not files.exists("node/zarr.json")
    assert files.read("node/c/0") == b"c/0 a"
    with pytest.raises(InputError, match=r"half-way.*gc"):
        files.publish(staged(tmp_path, "b"), "node")
    assert not files.exists("node/zarr.json")
    files.publish(staged(tmp_path, "a"), "node")
    assert {name: files.read(f"node/{name}").decode() for name in files._names("node")} == {
        name: f"{name} a" for name in ("zarr.json", "obs/x", "c/0")
    }


def test_two_publishers_at_once_never_mix(files: ObjectFiles, tmp_path: Path):
    for trial in range(4):
        barrier, outcomes = threading.Barrier(2), {}

        def publish(content: str, key: str = f"n{trial}", barrier=barrier, outcomes=outcomes) -> None:
            folder = staged(tmp_path, content)
            barrier.wait()
            try:
                files.publish(folder, key)
                outcomes[content] = "published"
            except (InputError, FileExistsError) as error:
                outcomes[content] = type(error).__name__

        threads = [threading.Thread(target=publish, args=(content,)) for content in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winners = [content for content, outcome in outcomes.items() if outcome == "published"]
        assert len(winners) <= 1
        assert files.exists(f"n{trial}/zarr.json") == bool(winners)
        for content in winners:
            for name in files._names(f"n{trial}"):
                assert files.read(f"n{trial}/{name}") == f"{name} {content}".encode()


def test_removal_takes_what_makes_a_node_first_and_receipts_before_chunks(
    files: ObjectFiles, monkeypatch: pytest.MonkeyPatch
):
    names = ["c/0/0", "receipts/0.json", "zarr.json", "c/1/0", "receipts/1.json"]
    for name in names:
        files.replace(f"n/{name}", b"")
    removed: list[str] = []
    client = files._fs

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(client, name)

        def rm_file(self, path: str) -> None:
            removed.append(path)
            client.rm_file(path)

    monkeypatch.setattr(ObjectFiles, "_fs", Watched())
    files.remove("n")
    assert not files.exists("n")
    order = [path.split("/n/")[1] for path in removed]
    assert order[0] == "zarr.json"
    assert set(order[1:3]) == {"receipts/0.json", "receipts/1.json"}
    assert set(order[3:]) == {"c/0/0", "c/1/0"}


def test_a_name_that_leaves_the_folder_is_not_downloaded(files: ObjectFiles):
    files.replace("heads/card.json", b"")
    files.replace("heads/../x", b"")
    with pytest.raises(InputError, match="not of a store"), files.local_folder("heads"):
        pass


SLIDE_WRITER = """
import sys
from spared_fm.store.layout import Layout
from spared_fm.store.nodes import write_node
from tests.store.conftest import make_slide, record_of
layout = Layout.open(sys.argv[1])
adata = make_slide(3000)
print("going", flush=True)
write_node(layout, layout.slide("big"), adata, record_of(adata))
"""

CHUNK_WRITER = """
import sys
import numpy as np
from spared_fm.store.embeddings import EmbeddingArray
from spared_fm.store.layout import Layout
array = EmbeddingArray(Layout.open(sys.argv[1]), "s1", "enc")
values = np.random.default_rng(0).normal(size=array.shape).astype(np.float32)
print("going", flush=True)
for k in range(array.n_chunks):
    array.write_chunk(k, values[array.rows(k)], device="cpu")
"""


def start(code: str, layout: Layout) -> subprocess.Popen[bytes]:
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(layout.root)],
        stdout=subprocess.PIPE,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"going\n"
    return process


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()  # type: ignore[union-attr]


def test_a_writer_killed_while_it_uploads_a_slide(tmp_path: Path):
    layout = new_store(place("s3", tmp_path))
    node, adata = layout.slide("big"), make_slide(3000)
    for _ in range(10):
        process = start(SLIDE_WRITER, layout)
        while process.poll() is None and not layout.files.exists(f"{node}/obs"):
            time.sleep(0.001)
        kill(process)
        there, whole = layout.files.exists(node), layout.files.exists(f"{node}/zarr.json")
        assert layout.slides() == (["big", "s1"] if whole else ["s1"])
        if there and not whole:
            break
        layout.files.remove(node)
    else:
        pytest.fail("no kill fell into an upload")
    other = make_slide(3000, seed=1)
    with pytest.raises(InputError, match="half-way"):
        write_node(layout, node, other, record_of(other))
    assert layout.slides() == ["s1"]
    write_node(layout, node, adata, record_of(adata))
    assert layout.slides() == ["big", "s1"]
    assert_same(read_node(layout, node), adata)


def test_a_writer_killed_while_it_uploads_chunks(tmp_path: Path, recipe: Recipe):
    layout = new_store(place("s3", tmp_path), n_spots=800)
    array = EmbeddingArray.plan(layout, "s1", "enc", recipe=recipe, dim=2048, chunk_rows=64)
    values = np.random.default_rng(0).normal(size=array.shape).astype(np.float32)
    in_the_middle = 0
    for wanted in (1, 4, 9):
        process = start(CHUNK_WRITER, layout)
        while process.poll() is None and len(array.missing()) > array.n_chunks - wanted:
            time.sleep(0.001)
        kill(process)
        missing = array.missing()
        in_the_middle += 0 < len(missing) < array.n_chunks
        for k in range(array.n_chunks):
            fresh, rows = EmbeddingArray(layout, "s1", "enc"), np.array(array.rows(k))
            if k in missing:
                with pytest.raises(IncompleteError):
                    fresh.read(rows)
            else:
                np.testing.assert_array_equal(fresh.read(rows), values[rows].astype(np.float16))
    assert in_the_middle >= 2
    for k in array.missing():
        array.write_chunk(k, values[array.rows(k)], device="cpu")
    np.testing.assert_array_equal(EmbeddingArray(layout, "s1", "enc").read(), values.astype(np.float16))
