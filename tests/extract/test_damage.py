"""Slides that are damaged: what can't be read is absent and told, everything else is as of the whole slide."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

import spared_fm
from spared_fm.errors import InputError
from spared_fm.extract.plan import make_plan
from spared_fm.extract.run import run
from spared_fm.slides.fingerprint import fingerprint
from spared_fm.slides.patches import PatchSpec
from spared_fm.store.embeddings import EmbeddingArray
from spared_fm.study.api import Study
from tests.slides.test_openslide import write_svs

MPP, SIDE, TILE, PX = 1.0, 1280, 128, 64
CUT = {"chunk_rows": 16, "batch_size": 8, "threads": 1}
OPTIONS = {"patch_um": PX * MPP, "patch_px": PX, "key": "e", **CUT}
MARGIN = 4
"""Pixels around a patch that resampling reads."""


def pixels(seed: int) -> np.ndarray:
    """Glass with textured tissue in x 200–900, y 400–900, in SIDE × SIDE pixels."""
    rng = np.random.default_rng(seed)
    image = np.full((SIDE, SIDE, 3), 238.0)
    image[400:900, 200:900] = (205, 130, 180)
    image[400:900, 200:900] += rng.normal(0, 25, (50, 70, 3)).repeat(10, 0).repeat(10, 1)
    image += rng.normal(0, 12, image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def write_slide(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    top = pixels(seed)
    options = {
        "photometric": "rgb",
        "tile": (TILE, TILE),
        "compression": "jpeg",
        "compressionargs": {"level": 100},
        "metadata": None,
        "resolution": (1e4 / MPP, 1e4 / MPP),
        "resolutionunit": "CENTIMETER",
    }
    with tifffile.TiffWriter(path) as file:
        file.write(top, subifds=1, **options)
        file.write(np.asarray(Image.fromarray(top).reduce(2)), subfiletype=1, **options)
    return path


def tile_place(path: Path, index: int) -> tuple[int, int]:
    """Offset and length of a tile of the finest level."""
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        return page.dataoffsets[index], page.databytecounts[index]


def index_of(column: int, row: int) -> int:
    return row * (SIDE // TILE) + column


def overwrite(path: Path, start: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(data)


def touching(xy: np.ndarray, column: int, row: int, margin: int) -> set[int]:
    """Rows whose patch, widened by ``margin`` pixels, overlaps a tile of the finest level."""
    low = np.array([column, row]) * TILE
    start, stop = xy + 0.5 - PX / 2 - margin, xy + 0.5 + PX / 2 + margin
    return set(np.flatnonzero(((start < low + TILE) & (stop > low)).all(axis=1)).tolist())


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Study]:
    def make_study(name: str, *images: Path) -> Study:
        study = spared_fm.open(tmp_path / name, create=True)
        for image in images:
            study.ingest(image, slide="s", spacing_um=PX * MPP)
        return study

    return make_study


def chunks(study: Study) -> dict[str, bytes]:
    folder = study.layout.files.path(study.layout.embedding("s", "e")) / "c"
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def check_quarantine(study: Study, clean: Study, row: dict, column: int, line: int, image: Path) -> None:
    """Absent are the rows under the tile and no others; the run told so; the others are the clean run's."""
    xy = study.slide("s").obsm["spatial"]
    np.testing.assert_array_equal(xy, clean.slide("s").obsm["spatial"])
    found, expected = study.features("s", "e"), clean.features("s", "e")
    absent = EmbeddingArray(study.layout, "s", "e").absent()
    assert touching(xy, column, line, 0) <= set(absent) <= touching(xy, column, line, MARGIN)
    assert 4 <= len(absent) < len(found) / 4
    for reason in absent.values():
        assert str(image) in reason
        assert f"tile {index_of(column, line)} of page 0" in reason
    assert np.isfinite(expected).all()
    assert np.isnan(found[sorted(absent)]).all()  # not zeros, not the white the gap was filled with
    others = np.setdiff1d(np.arange(len(found)), sorted(absent))
    assert found[others].tobytes() == expected[others].tobytes()
    assert (row["absent"], row["patches"]) == (len(absent), len(found))
    [warning] = row["warnings"]
    assert warning.startswith(f"slide s: {len(absent)} patches can't be read")
    assert absent[min(absent)] in warning


@pytest.mark.parametrize("damage", ["zeros", "cut"])
def test_a_jpeg_tile_that_fails_to_decode(make: Callable[..., Study], tmp_path: Path, damage: str):
    whole = write_slide(tmp_path / "whole" / "1.tif")
    bad = Path(shutil.copytree(whole.parent, tmp_path / "bad")) / "1.tif"
    column, line = 4, 5
    offset, count = tile_place(bad, index_of(column, line))
    lost = count if damage == "zeros" else count // 2
    overwrite(bad, offset + count - lost, bytes(lost))
    clean, study = make("clean", whole), make("store", bad)
    clean.encode("stain-bank", **OPTIONS)
    [row] = study.encode("stain-bank", **OPTIONS)
    check_quarantine(study, clean, row, column, line, bad)
    assert {row["kind"] for row in study.verify()} == {"absent"}
    [again] = study.encode("stain-bank", **OPTIONS)
    assert again["patches"] == 0  # what is damaged for good is not tried at every run


def test_damage_that_the_fingerprint_can_not_see(make: Callable[..., Study], tmp_path: Path):
    """In a long file a few bytes may go after ingest; the run meets them, and the restored file gives the clean bytes."""
    image = write_slide(tmp_path / "1.tif")
    os.truncate(image, 48 << 20)  # a tail of zeros spreads the sampled blocks
    known = fingerprint(image)
    # a file of its own for the clean run: a worker keeps decoded tiles of a path it knows
    whole = Path(shutil.copy(image, tmp_path / "whole.tif"))
    clean, study = make("clean", whole), make("store", image)
    clean.encode("stain-bank", **OPTIONS)
    for column, line in ((c, r) for r in (5, 4) for c in range(2, 7)):
        offset, _ = tile_place(image, index_of(column, line))
        original = image.read_bytes()[offset : offset + 64]
        overwrite(image, offset, bytes(64))
        if fingerprint(image) == known:
            break
        overwrite(image, offset, original)
    else:
        pytest.fail("every tile lies in a sampled block")
    [row] = study.encode("stain-bank", **OPTIONS)
    check_quarantine(study, clean, row, column, line, image)
    tried = study.verify(repair=True)
    assert tried
    assert not any(row["repaired"] for row in tried)  # still damaged: absent as before
    assert chunks(study) != chunks(clean)
    overwrite(image, offset, original)
    mended = study.verify(repair=True)
    assert {row["chunk"] for row in mended} == {row["chunk"] for row in tried}
    assert all(row["kind"] == "absent" and row["repaired"] for row in mended)
    assert chunks(study) == chunks(clean)
    assert study.verify() == []


def test_a_slide_cut_short_after_ingest_is_refused_and_goes_on_when_it_is_back(
    make: Callable[..., Study], tmp_path: Path
):
    image = write_slide(tmp_path / "1.tif")
    clean, fresh, begun = make("clean", image), make("fresh", image), make("begun", image)
    clean.encode("stain-bank", **OPTIONS)
    encode_some_chunks(begun, 2)
    whole = image.read_bytes()
    os.truncate(image, len(whole) // 2)
    for study in (fresh, begun):
        with pytest.raises(InputError, match=r"slide s: .*1\.tif is no longer the image.*put that one back") as caught:
            study.encode("stain-bank", **OPTIONS)
        assert "\n" not in str(caught.value)
    assert fresh.layout.embeddings("s") == []
    array = EmbeddingArray(begun.layout, "s", "e")
    assert len(array.missing()) == array.n_chunks - 2
    done = np.arange(2 * array.chunk_rows)
    assert begun.features("s", "e", done).tobytes() == clean.features("s", "e", done).tobytes()
    with pytest.raises(InputError, match="not finished"):
        begun.features("s", "e")
    image.write_bytes(whole)
    for study, before in ((fresh, 0), (begun, 2)):
        [row] = study.encode("stain-bank", **OPTIONS)
        assert (row["chunks_done_before"], row["absent"]) == (before, 0)
        assert chunks(study) == chunks(clean)


def encode_some_chunks(study: Study, count: int) -> None:
    """Leave the store as a run that stopped after ``count`` chunks does."""
    from spared_fm.encoders.builder import build
    from spared_fm.encoders.spec import resolve

    encoder = build(resolve("stain-bank"))
    plan = make_plan(study.layout, ["s"], [encoder], PatchSpec(PX * MPP, PX), keys=["e"], **CUT)
    plan.tasks = plan.tasks[:count]
    run(plan)


def test_two_different_slides_both_called_1_svs(tmp_path: Path):
    sides = {"A": 0, "B": 1}
    for name, seed in sides.items():
        (tmp_path / name).mkdir()
        write_svs(tmp_path / name / "1.svs", pixels(seed).repeat(2, 0).repeat(2, 1))
    (tmp_path / "slides.csv").write_text("path\nA/1.svs\nB/1.svs\n")
    both = spared_fm.open(tmp_path / "both", create=True)
    assert [row["slide"] for row in both.ingest_table(tmp_path / "slides.csv")] == ["A__1", "B__1"]
    options = {**OPTIONS, "patch_um": 16.0}  # write_svs says 0.25 µm per pixel
    both.encode("stain-bank", **options)
    for name in sides:
        alone = spared_fm.open(tmp_path / f"alone{name}", create=True)
        alone.ingest(tmp_path / name / "1.svs", slide="s")
        alone.encode("stain-bank", **options)
        found = both.features(f"{name}__1", "e")
        assert len(found) > 1
        assert found.tobytes() == alone.features("s", "e").tobytes()
    assert not np.array_equal(both.features("A__1", "e"), both.features("B__1", "e"))
