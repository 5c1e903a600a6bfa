"""Every kind of damage to every chunk is found and named, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from spared_fm.store.embeddings import EmbeddingArray
from spared_fm.store.layout import Layout
from spared_fm.store.recipe import Recipe
from spared_fm.store.verify import check_chunk, verify_array


@pytest.fixture
def array(make_store: Callable[..., Layout], recipe: Recipe) -> EmbeddingArray:
    array = EmbeddingArray.plan(make_store(), "s1", "enc", recipe=recipe, dim=4, chunk_rows=4)
    values = np.random.default_rng(0).normal(size=array.shape).astype(np.float32)
    for k in range(array.n_chunks):
        array.write_chunk(k, values[array.rows(k)], device="cpu")
    return EmbeddingArray(array.layout, "s1", "enc")


def chunk(array: EmbeddingArray, k: int) -> str:
    return f"{array.node}/c/{k}/0"


def receipt(array: EmbeddingArray, k: int) -> str:
    return f"{array.node}/receipts/{k}.json"


def put(array: EmbeddingArray, key: str, change: Callable[[bytes], bytes]) -> None:
    array.layout.files.replace(key, change(array.layout.files.read(key)))


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def found(array: EmbeddingArray) -> list[tuple[int, str]]:
    return [(problem.chunk, problem.kind) for problem in verify_array(array)]


def test_a_whole_array_has_no_problems(array: EmbeddingArray):
    assert found(array) == []
    assert check_chunk(array, 0) is None


def test_one_flipped_byte_in_every_chunk_in_turn(array: EmbeddingArray):
    files = array.layout.files
    for k in range(array.n_chunks):
        whole = files.read(chunk(array, k))
        for position in range(0, len(whole), max(1, len(whole) // 32)):  # the last chunk's padding included
            files.replace(chunk(array, k), flipped(whole, position))
            assert found(array) == [(k, "checksum")]
        files.replace(chunk(array, k), flipped(whole, len(whole) - 1))
        assert found(array) == [(k, "checksum")]
        files.replace(chunk(array, k), whole)
    assert found(array) == []


def edit(array: EmbeddingArray, k: int, **changes: object) -> None:
    put(array, receipt(array, k), lambda data: json.dumps({**json.loads(data), **changes}).encode())


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (lambda a, k: put(a, chunk(a, k), lambda data: data[:-1]), "size"),
        (lambda a, k: put(a, chunk(a, k), lambda data: data + b"\0"), "size"),
        (lambda a, k: a.layout.files.remove(chunk(a, k)), "missing"),
        (lambda a, k: a.layout.files.remove(receipt(a, k)), "unreceipted"),
        (lambda a, k: a.layout.files.replace(receipt(a, k), b"{"), "receipt"),
        (lambda a, k: a.layout.files.replace(receipt(a, k), b"[]"), "receipt"),
        (lambda a, k: a.layout.files.replace(receipt(a, k), b"\xff\xfe"), "receipt"),
        (lambda a, k: edit(a, k, bytes="many"), "receipt"),
        (lambda a, k: edit(a, k, embedding_id="other"), "foreign"),
        (lambda a, k: edit(a, k, chunk=k + 1), "foreign"),
        (lambda a, k: edit(a, k, crc32c="00000000"), "checksum"),
    ],
)
def test_every_damage_names_its_chunk(array: EmbeddingArray, damage: Callable, kind: str):
    for k in range(array.n_chunks):
        before = {key: array.layout.files.read(key) for key in (chunk(array, k), receipt(array, k))}
        damage(array, k)
        assert found(array) == [(k, kind)]
        for key, data in before.items():
            array.layout.files.replace(key, data)
    assert found(array) == []


def test_unfinished_is_no_damage(array: EmbeddingArray):
    array.layout.files.remove(chunk(array, 1))
    array.layout.files.remove(receipt(array, 1))
    assert found(array) == []
    problem = check_chunk(array, 1)
    assert problem is not None
    assert problem.kind == "unfinished"
