from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import pytest

from spared_fm.errors import InputError
from spared_fm.slides.fingerprint import fingerprint

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "big.bin"
    path.write_bytes(np.random.default_rng(3).bytes(9 * MIB + 12_345))
    return path


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def test_layout_is_the_documented_one(big: Path) -> None:
    data = big.read_bytes()
    size, block = len(data), 65_536
    starts = [i * (size - block) // 63 for i in range(64)]
    parts = [size.to_bytes(8, "little"), data[:MIB], *(data[s : s + block] for s in starts), data[-MIB:]]
    assert fingerprint(big) == f"sha256-sampled:{hashlib.sha256(b''.join(parts)).hexdigest()}"
    assert starts[-1] + block == size


def test_full_is_plain_sha256(big: Path) -> None:
    assert fingerprint(big, full=True) == f"sha256:{hashlib.sha256(big.read_bytes()).hexdigest()}"


@pytest.mark.parametrize("size", [0, 1, 100_000, 6 * MIB])
def test_small_files_are_read_whole(tmp_path: Path, size: int) -> None:
    path = tmp_path / "small.bin"
    data = np.random.default_rng(size).bytes(size)
    path.write_bytes(data)
    whole = hashlib.sha256(size.to_bytes(8, "little") + data).hexdigest()
    assert fingerprint(path) == f"sha256-sampled:{whole}"
    for at in range(0, size, 900_001):
        before = fingerprint(path)
        flip(path, at)
        assert fingerprint(path) != before


@pytest.mark.parametrize("at", [0, MIB - 1, 5 * MIB, -1, -MIB])
def test_a_changed_byte_in_a_sampled_part_shows(big: Path, at: int) -> None:
    size, before = big.stat().st_size, fingerprint(big)
    if at == 5 * MIB:  # inside a block of the middle
        at = 35 * (size - 65_536) // 63 + 100
    flip(big, at)
    assert fingerprint(big) != before


def test_one_more_byte_shows_and_the_name_does_not(big: Path) -> None:
    before = fingerprint(big)
    moved = big.rename(big.with_name("other.svs"))
    assert fingerprint(moved) == before
    with moved.open("ab") as file:
        file.write(b"\0")
    assert fingerprint(moved) != before


@pytest.mark.parametrize("full", [False, True])
def test_missing_file_and_folder_are_refused_by_name(tmp_path: Path, full: bool) -> None:
    with pytest.raises(InputError, match=r"gone\.tif: no such file"):
        fingerprint(tmp_path / "gone.tif", full=full)
    with pytest.raises(InputError, match="can't be read"):
        fingerprint(tmp_path, full=full)
