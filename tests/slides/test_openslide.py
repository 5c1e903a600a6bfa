from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from spared_fm.errors import InputError
from spared_fm.slides.images import ImageReader, image_size, open_image, thumbnail
from spared_fm.slides.openslide import OpenSlideImage, scanner_format
from spared_fm.slides.patches import PatchReader, PatchSpec
from spared_fm.slides.raster import RasterImage
from spared_fm.slides.tiff import TiffImage
from tests.slides.layouts import smooth_image

WIDTH, HEIGHT = 1536, 1024  # levels of a half and a quarter are whole
TOP = smooth_image(WIDTH, HEIGHT)


def write_pyramid(path: Path, top: np.ndarray, *, thumb: bool = False, **options: Any) -> Path:
    """A tiled pyramid, one page per level, after the first a thumbnail in strips as Aperio has it."""
    options = {"photometric": "rgb", "tile": (256, 256), "compression": "jpeg", "metadata": None} | options
    with tifffile.TiffWriter(path) as file:
        for level, factor in enumerate((1, 2, 4)):
            if level == 1 and thumb:
                small = np.asarray(Image.fromarray(top).reduce(8))
                file.write(small, photometric="rgb", compression="jpeg", metadata=None, rowsperstrip=16)
            pixels = np.asarray(Image.fromarray(top).reduce(factor))
            file.write(pixels, subfiletype=int(level > 0 and not thumb), **options)
    return path


def write_svs(path: Path, top: np.ndarray = TOP) -> Path:
    text = (
        f"Aperio Image Library v12.0.15\r\n{top.shape[1]}x{top.shape[0]} [0,0 {top.shape[1]}x{top.shape[0]}] (256x256) "
        "JPEG/RGB Q=90|AppMag = 20|MPP = 0.2500"
    )
    return write_pyramid(path, top, thumb=True, description=text)


def write_trestle(path: Path, top: np.ndarray = TOP) -> Path:
    return write_pyramid(path, top, software="MedScan", description="Background Color=FFFFFF;Image Width=1536")


def damage(path: Path, tile: int) -> None:
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        offset, count = page.dataoffsets[tile], page.databytecounts[tile]
    data = bytearray(path.read_bytes())
    data[offset : offset + count] = bytes(count)
    path.write_bytes(data)


def same(one: ImageReader, other: ImageReader) -> None:
    assert one.levels == other.levels
    rng = np.random.default_rng(0)
    for index, level in enumerate(one.levels):
        boxes = [
            (int(rng.integers(level.width - 120)), int(rng.integers(level.height - 90)), 120, 90) for _ in range(12)
        ]
        for box in [*boxes, (0, 0, level.width, level.height), (level.width - 1, level.height - 1, 1, 1)]:
            np.testing.assert_array_equal(one.read(index, *box), other.read(index, *box))


def test_openslide_and_tifffile_give_the_same_pixels_of_every_level(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "a.svs")
    with OpenSlideImage(path) as one, TiffImage(path, 10**9) as other:
        assert [level.downsample for level in one.levels] == [1.0, 2.0, 4.0]
        assert one.mpp == other.mpp == 0.25
        same(one, other)


def test_the_same_of_real_tissue(tmp_path: Path, shared_data: Path) -> None:
    with RasterImage(shared_data / "her2st_C2" / "image.jpg", 10**9) as whole:
        top = whole.read(0, 3000, 3500, 2048, 1536)
    path = write_svs(tmp_path / "C2.svs", top)
    with OpenSlideImage(path) as one, TiffImage(path, 10**9) as other:
        same(one, other)
        spec, xy = PatchSpec(), np.array([(600.3, 700.7), (20.0, 900.1), (1200.0, 40.0)])
        np.testing.assert_array_equal(PatchReader(one, 0.25, spec).read(xy), PatchReader(other, 0.25, spec).read(xy))
        assert PatchReader(one, 0.25, spec).level == 1


def test_who_reads_what(tmp_path: Path) -> None:
    for path, kind in (
        (write_pyramid(tmp_path / "plain.tif", TOP), TiffImage),
        (write_pyramid(tmp_path / "renamed.svs", TOP), TiffImage),  # a generic TIFF whatever its name
        (write_svs(tmp_path / "a.svs"), TiffImage),  # faster, and exact on every level
        (write_trestle(tmp_path / "a.bif"), OpenSlideImage),
    ):
        with open_image(path) as reader:
            assert type(reader) is kind
            assert (reader.levels[0].width, reader.levels[0].height) == image_size(path) == (WIDTH, HEIGHT)
            assert np.abs(reader.read(0, 300, 200, 80, 90).astype(int) - TOP[200:290, 300:380]).mean() < 3
    Image.fromarray(TOP).save(tmp_path / "b.png")
    with open_image((tmp_path / "b.png").rename(tmp_path / "b.svs")) as reader:
        assert type(reader) is RasterImage


def test_tiles_an_aperio_scanner_left_out_are_read_by_openslide(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "a.svs")
    with tifffile.TiffFile(path, mode="r+") as file:
        page = file.pages.first
        page.tags["TileByteCounts"].overwrite([0, *page.databytecounts[1:]])
    with open_image(path) as reader:
        assert type(reader) is OpenSlideImage
        assert reader.read(0, 0, 0, 256, 256).min() > 0  # black is what tifffile would give
        np.testing.assert_array_equal(reader.read(0, 300, 300, 9, 9), OpenSlideImage(path).read(0, 300, 300, 9, 9))


def test_transparent_parts_are_white_and_half_transparent_ones_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = OpenSlideImage(write_svs(tmp_path / "a.svs"))
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[0, 0], rgba[0, 1], rgba[1] = (0, 0, 0, 0), (200, 100, 0, 51), (10, 20, 30, 255)
    monkeypatch.setattr(reader._slide, "read_region", lambda *_: Image.fromarray(rgba))
    found = reader._read(0, 0, 0, 3, 2)
    assert found[0].tolist() == [[255, 255, 255], [244, 224, 204], [255, 255, 255]]
    assert found[1].tolist() == [[10, 20, 30]] * 3
    reader.close()


def test_a_tile_that_does_not_decode_spoils_only_itself(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "a.svs")
    with OpenSlideImage(path) as reader:
        whole = reader.read(0, 600, 600, 100, 100)
    damage(path, 1)
    with OpenSlideImage(path) as reader:
        for _ in range(2):
            with pytest.raises(InputError, match=r"a\.svs: .*damaged.*level 0, x 300, y 10") as caught:
                reader.read(0, 300, 10, 50, 50)
            assert "\n" not in str(caught.value)
            np.testing.assert_array_equal(reader.read(0, 600, 600, 100, 100), whole)


def test_threads_survive_a_damaged_tile(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "a.svs")
    damage(path, 1)

    def read(reader: OpenSlideImage, x: int) -> np.ndarray | None:
        try:
            return reader.read(0, x, 10, 50, 50)
        except InputError:
            return None

    with OpenSlideImage(path) as reader, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: read(reader, (300, 700)[i % 2]), range(64)))
    assert all(part is None for part in found[::2])
    for part in found[1::2]:
        assert part is not None
        np.testing.assert_array_equal(part, found[1])


@pytest.mark.parametrize(("resolution", "mpp"), [((40_000, 40_000), 0.25), ((40_000, 39_200), 0.2525), (None, None)])
def test_mpp(resolution: tuple[int, int] | None, mpp: float | None, tmp_path: Path) -> None:
    options = {"resolution": resolution, "resolutionunit": "CENTIMETER"} if resolution else {}
    path = write_pyramid(tmp_path / "a.tif", TOP, **options)
    with OpenSlideImage(path) as reader:
        assert reader.mpp == (None if mpp is None else pytest.approx(mpp, rel=1e-3))


def test_oblong_pixels_are_refused(tmp_path: Path) -> None:
    path = write_pyramid(tmp_path / "a.tif", TOP, resolution=(40_000, 38_000), resolutionunit="CENTIMETER")
    with pytest.raises(InputError, match=r"a\.tif: its pixels are 0\.25 µm wide and 0\.263\d+ µm high"):
        OpenSlideImage(path)


@pytest.mark.parametrize("content", [b"not an image at all", b"II*\0" + bytes(100)])
def test_a_file_that_is_no_slide_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.ndpi"
    path.write_bytes(content)
    assert scanner_format(path) is None
    with pytest.raises(InputError, match=r"a\.ndpi: .*copy it again"):
        open_image(path)


def test_a_truncated_slide_is_refused(tmp_path: Path) -> None:
    whole = write_svs(tmp_path / "whole.svs").read_bytes()
    for share in (0.3, 0.7, 0.95):
        (tmp_path / "cut.svs").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(InputError, match=r"cut\.svs: .*copy it again"):
            open_image(tmp_path / "cut.svs")


def test_closed_and_thumbnail(tmp_path: Path) -> None:
    with OpenSlideImage(write_svs(tmp_path / "a.svs")) as reader:
        thumb, scale = thumbnail(reader, 150)
        assert thumb.shape == (100, 150, 3)
        assert scale == pytest.approx(150 / WIDTH)
    with pytest.raises(ValueError, match="closed"):
        reader.read(0, 0, 0, 1, 1)
