from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from spared_fm.errors import InputError
from spared_fm.slides import tiff
from spared_fm.slides.images import image_size, open_image, thumbnail
from tests.slides.layouts import smooth_image

if TYPE_CHECKING:
    from pathlib import Path

WIDTH, HEIGHT = 301, 203
RGB = smooth_image(WIDTH, HEIGHT)
GREY = RGB[..., 1].copy()
RGB16 = RGB.astype(np.uint16) * 256 + 128  # the two bytes differ
PLANES = np.ascontiguousarray(np.moveaxis(RGB, 2, 0))
ALPHA = np.full(RGB.shape[:2], 255, np.uint8)
ALPHA[:60], ALPHA[60:90] = 0, 100
OPACITY = ALPHA[..., None] / 255
OVER_WHITE = np.rint(RGB * OPACITY + 255 * (1 - OPACITY))
COLORMAP = np.random.default_rng(0).integers(0, 65_536, (3, 256), dtype=np.uint16)
RGB_OPTIONS: dict[str, Any] = {"photometric": "rgb"}
OME = {"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm"}


def grey3(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


CASES: dict[str, tuple[np.ndarray, dict[str, Any], np.ndarray, float]] = {
    "plain": (RGB, RGB_OPTIONS, RGB, 0),
    "bigtiff lzw": (RGB, RGB_OPTIONS | {"compression": "lzw", "predictor": True, "bigtiff": True}, RGB, 0),
    "deflate": (RGB, RGB_OPTIONS | {"compression": "deflate"}, RGB, 0),
    "zstd": (RGB, RGB_OPTIONS | {"compression": "zstd"}, RGB, 0),
    "jpeg": (RGB, RGB_OPTIONS | {"compression": "jpeg", "compressionargs": {"level": 95}}, RGB, 3),
    "jpeg2000": (RGB, RGB_OPTIONS | {"compression": "jpeg2000"}, RGB, 1),
    "grey": (GREY, {"photometric": "minisblack"}, grey3(GREY), 0),
    "white is zero": (255 - GREY, {"photometric": "miniswhite"}, grey3(GREY), 0),
    "1-bit": (GREY > 127, {"photometric": "minisblack"}, grey3(np.where(GREY > 127, 255, 0)), 0),
    "palette": (
        GREY, {"photometric": "palette", "colormap": COLORMAP},
        np.rint(np.moveaxis(COLORMAP[:, GREY], 0, 2) / 257), 0,
    ),
    "16-bit": (RGB16, RGB_OPTIONS, RGB, 0.5),
    "16-bit big-endian": (RGB16, RGB_OPTIONS | {"byteorder": ">"}, RGB, 0.5),
    "16-bit big-endian lzw": (
        RGB16, RGB_OPTIONS | {"byteorder": ">", "compression": "lzw"}, RGB, 0.5,
    ),
    "separate planes": (PLANES, RGB_OPTIONS | {"planarconfig": "separate"}, RGB, 0),
    "separate planes lzw": (
        PLANES, RGB_OPTIONS | {"planarconfig": "separate", "compression": "lzw"}, RGB, 0,
    ),
    "a page per colour": (
        PLANES, {"photometric": "minisblack", "ome": True, "metadata": {"axes": "CYX"}}, RGB, 0,
    ),
    "alpha": (np.dstack([RGB, ALPHA]), RGB_OPTIONS | {"extrasamples": ["UNASSALPHA"]}, OVER_WHITE, 0.05),
    "premultiplied alpha": (
        np.dstack([np.rint(RGB * OPACITY).astype(np.uint8), ALPHA]),
        RGB_OPTIONS | {"extrasamples": ["ASSOCALPHA"]}, OVER_WHITE, 0.2,
    ),
    "a fourth sample that isn't alpha": (
        np.dstack([RGB, ALPHA]), RGB_OPTIONS | {"extrasamples": ["UNSPECIFIED"]}, RGB, 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", [{"tile": (64, 48)}, {"rowsperstrip": 40}, {}], ids=["tiles", "strips", "one"])
@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_tiff_becomes_rgb(case: str, layout: dict[str, Any], tmp_path: Path) -> None:
    pixels, options, truth, tolerance = CASES[case]
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, **options, **layout)
    with open_image(path) as reader:
        found = reader.read(0, 0, 0, WIDTH, HEIGHT)
        assert found.dtype == np.uint8
        assert np.abs(found.astype(int) - truth).mean() <= tolerance
        for x, y, w, h in ((0, 0, 1, 1), (47, 63, 2, 2), (30, 17, 200, 150), (300, 202, 1, 1)):
            np.testing.assert_array_equal(reader.read(0, x, y, w, h), found[y : y + h, x : x + w])
    assert image_size(path) == (WIDTH, HEIGHT)


def write_pyramid(path: Path, top: np.ndarray, *, nested: bool = True, levels: int = 3, **options: Any) -> None:
    options = {"photometric": "rgb", "tile": (128, 128), "compression": "jpeg", "metadata": None}
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        file.write(top, subifds=levels - 1 if nested else None, **options)
        for k in range(1, levels):
            file.write(np.asarray(Image.fromarray(top).reduce(2**k)), subfiletype=1, **options)


@pytest.mark.parametrize("nested", [True, False], ids=["subifds", "pages"])
def test_pyramid_levels(nested: bool, tmp_path: Path) -> None:
    top = smooth_image(1501, 1003)
    write_pyramid(tmp_path / "p.tif", top, nested=nested)
    with open_image(tmp_path / "p.tif") as reader:
        assert [(level.width, level.height, level.downsample) for level in reader.levels] == [
            (1501, 1003, 1.0), (751, 502, 2.0), (376, 251, 4.0),
        ]  # fmt: skip
        for i, level in enumerate(reader.levels):
            truth = np.asarray(Image.fromarray(top).reduce(2**i))
            found = reader.read(i, 0, 0, level.width, level.height)
            assert np.abs(found.astype(int) - truth).mean() < 3
        thumb, scale = thumbnail(reader, 300)
        assert thumb.shape == (200, 300, 3)
        assert scale == pytest.approx(300 / 1501)


def test_a_pyramid_with_a_page_per_colour_in_ome(tmp_path: Path) -> None:
    top = smooth_image(512, 384)
    options: dict[str, Any] = {"photometric": "minisblack", "tile": (64, 64)}
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        metadata = {"axes": "CYX", **OME}
        file.write(np.ascontiguousarray(np.moveaxis(top, 2, 0)), subifds=1, metadata=metadata, **options)
        half = np.asarray(Image.fromarray(top).reduce(2))
        file.write(np.ascontiguousarray(np.moveaxis(half, 2, 0)), subfiletype=1, **options)
    with open_image(tmp_path / "a.ome.tif") as reader:
        assert [level.downsample for level in reader.levels] == [1.0, 2.0]
        assert reader.mpp == 0.5
        np.testing.assert_array_equal(reader.read(0, 100, 50, 90, 80), top[50:130, 100:190])
        np.testing.assert_array_equal(reader.read(1, 10, 5, 90, 80), half[5:85, 10:100])


def test_the_largest_image_of_the_file_is_the_slide(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:  # a label first, as some scanners do
        file.write(smooth_image(90, 120, seed=4), photometric="rgb")
        file.write(RGB, photometric="rgb", tile=(64, 64))
    with open_image(tmp_path / "a.tif") as reader:
        np.testing.assert_array_equal(reader.read(0, 0, 0, WIDTH, HEIGHT), RGB)


def test_a_tiled_file_is_read_by_region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "a.tif", smooth_image(1024, 1024), photometric="rgb", tile=(128, 128))
    decoded: list[int] = []
    plain = tiff._Plane._segment
    monkeypatch.setattr(tiff._Plane, "_segment", lambda self, i: (decoded.append(i), plain(self, i))[1])
    with open_image(tmp_path / "a.tif") as reader:
        decoded.clear()
        reader.read(0, 130, 260, 200, 100)
    assert decoded == [17, 18]


def test_a_decoded_tile_is_kept_and_forgotten_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = smooth_image(1024, 1024)
    tifffile.imwrite(tmp_path / "a.tif", top, photometric="rgb", tile=(128, 128), compression="deflate")
    decoded: list[int] = []
    plain = tiff._Plane._segment
    monkeypatch.setattr(tiff._Plane, "_segment", lambda self, i: (decoded.append(i), plain(self, i))[1])
    two_tiles = 2 * 128 * 128 * 3
    with tiff.TiffImage(tmp_path / "a.tif", 10**9, two_tiles) as reader:
        decoded.clear()
        for x in (130, 140, 300, 310, 130):  # tiles 1, 1, 2, 2, and 1 again, which is still there
            np.testing.assert_array_equal(reader.read(0, x, 10, 50, 60), top[10:70, x : x + 50])
        assert decoded == [1, 2]
        reader.read(0, 400, 10, 10, 10)  # tile 3 pushes 2 out
        reader.read(0, 300, 10, 10, 10)
        assert decoded == [1, 2, 3, 2]
        assert reader._cache.nbytes == two_tiles


def test_eight_threads_decode_no_tile_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = smooth_image(1024, 1024)
    tifffile.imwrite(tmp_path / "a.tif", top, photometric="rgb", tile=(128, 128), compression="jpeg")
    decoded: list[int] = []
    plain = tiff._Plane._segment
    monkeypatch.setattr(tiff._Plane, "_segment", lambda self, i: (decoded.append(i), plain(self, i))[1])
    boxes = np.random.default_rng(0).integers(0, 800, (300, 2)).tolist()
    with open_image(tmp_path / "a.tif") as reader, ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda b: reader.read(0, *b, 200, 200), boxes))
    assert sorted(decoded) == sorted(set(decoded))
    with open_image(tmp_path / "a.tif") as reader:
        for (x, y), part in zip(boxes[:20], parts, strict=False):
            np.testing.assert_array_equal(part, reader.read(0, x, y, 200, 200))


def test_a_file_cut_short_while_it_is_open_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, smooth_image(1024, 1024), photometric="rgb", tile=(128, 128), compression="jpeg")
    with open_image(path) as reader:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)
        with pytest.raises(InputError, match=r"a\.tif: .*tile 63 of page 0 .*ends before"):
            reader.read(0, 1000, 1000, 10, 10)


def test_an_uncompressed_file_is_mapped_and_a_striped_one_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    plain = tiff._Plane._segment
    monkeypatch.setattr(tiff._Plane, "_segment", lambda self, i: (decoded.append(i), plain(self, i))[1])
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb")
    tifffile.imwrite(tmp_path / "b.tif", RGB, photometric="rgb", compression="lzw", rowsperstrip=50)
    with open_image(tmp_path / "a.tif", max_pixels=1) as reader:  # nothing is decoded, so no limit applies
        reader.read(0, 5, 5, 100, 100)
        assert decoded == []
    with open_image(tmp_path / "b.tif") as reader:
        for _ in range(3):
            reader.read(0, 5, 5, 100, 100)
        assert decoded == [0, 1, 2, 3, 4]


def test_pixel_limit_is_of_what_is_decoded_at_once(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "t.tif", RGB, photometric="rgb", tile=(64, 64))
    tifffile.imwrite(tmp_path / "s.tif", RGB, photometric="rgb", compression="lzw")
    open_image(tmp_path / "t.tif", max_pixels=64 * 64).close()
    with pytest.raises(InputError, match=r"t\.tif: 64×64"):
        open_image(tmp_path / "t.tif", max_pixels=64 * 64 - 1)
    with pytest.raises(InputError, match=r"s\.tif: 301×203 .*max_pixels"):
        open_image(tmp_path / "s.tif", max_pixels=WIDTH * HEIGHT - 1)


@pytest.mark.parametrize(
    ("options", "mpp"),
    [
        ({}, None),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),  # 353 µm: an editor's default
        ({"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}, 0.25),
        ({"resolution": (50_800, 50_800), "resolutionunit": "INCH"}, 0.5),
        ({"resolution": (40_000, 20_000), "resolutionunit": "CENTIMETER"}, None),  # pixels aren't that oblong
        ({"resolution": (4, 4), "resolutionunit": "NONE"}, None),
        ({"resolution": (1e7, 1e7), "resolutionunit": "CENTIMETER"}, None),  # 1 nm
        ({"imagej": True, "resolution": (2.0, 2.0), "metadata": {"unit": "um"}}, 0.5),
        ({"ome": True, "metadata": OME}, 0.5),
        ({"ome": True, "metadata": OME | {"PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm",
                                          "PhysicalSizeY": 250, "PhysicalSizeYUnit": "nm"}}, 0.25),
        ({"ome": True, "metadata": OME | {"PhysicalSizeXUnit": "pixel", "PhysicalSizeYUnit": "pixel"}}, None),
        ({"description": "Aperio Image Library v12\r\n301x203|AppMag = 40|MPP = 0.2498|Left = 1",
          "metadata": None}, 0.2498),
        ({"description": "Aperio Image Library v12\r\n301x203|MPP = 0", "metadata": None,
          "resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}, 0.25),
    ],
)  # fmt: skip
def test_mpp_of_the_image(options: dict[str, Any], mpp: float | None, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    imagej = {} if options.get("imagej") else {"tile": (64, 64)}
    tifffile.imwrite(path, RGB, photometric="rgb", **imagej, **options)
    with open_image(path) as reader:
        assert reader.mpp == (None if mpp is None else pytest.approx(mpp, rel=1e-3))


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("options", [{}, {"compression": "lzw"}, {"compression": "jpeg", "tile": (64, 64)}])
def test_a_truncated_tiff_is_refused(options: dict[str, Any], share: float, tmp_path: Path) -> None:
    path = tmp_path / "cut.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", **options)
    data = path.read_bytes()
    path.write_bytes(data[: max(9, int(len(data) * share))])
    with pytest.raises(InputError, match=r"cut\.tif: the image is (truncated|damaged).*copy") as caught:
        open_image(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("nested", [True, False], ids=["subifds", "pages"])
def test_a_pyramid_that_lost_its_end_is_refused(nested: bool, tmp_path: Path) -> None:
    write_pyramid(tmp_path / "p.tif", smooth_image(901, 703), nested=nested)
    whole = (tmp_path / "p.tif").read_bytes()
    with tifffile.TiffFile(tmp_path / "p.tif") as file:
        levels = file.series[0].levels
        # just before and just after each level's page, and in its pixels
        cuts = [int(level.pages[0].offset) + n for level in levels[1:] for n in (-1, 0, 40)]
        cuts += [level.pages[0].dataoffsets[-1] + 9 for level in levels]
    for cut in [*cuts, len(whole) - 1]:
        (tmp_path / "cut.tif").write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"cut\.tif: the image is (truncated|damaged).*copy"):
            open_image(tmp_path / "cut.tif")


def test_a_damaged_tile_is_named_and_the_others_still_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, smooth_image(512, 512), photometric="rgb", tile=(128, 128), compression="jpeg")
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        offset, count = page.dataoffsets[6], page.databytecounts[6]
    data = bytearray(path.read_bytes())
    data[offset + count // 2 : offset + count] = bytes(count - count // 2)  # libjpeg alone would paint it grey
    path.write_bytes(data)
    with open_image(path) as reader:
        reader.read(0, 0, 0, 256, 128)
        with pytest.raises(InputError, match=r"a\.tif: .*tile 6 of page 0"):
            reader.read(0, 256, 128, 10, 10)


def test_a_sparse_tile_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, smooth_image(256, 256), photometric="rgb", tile=(128, 128))
    with tifffile.TiffFile(path, mode="r+") as file:
        page = file.pages.first
        page.tags["TileByteCounts"].overwrite([0, *page.databytecounts[1:]])
        page.tags["TileOffsets"].overwrite([0, *page.dataoffsets[1:]])
    with open_image(path) as reader:
        found = reader.read(0, 0, 0, 256, 256)
    assert not found[:128, :128].any()
    np.testing.assert_array_equal(found[128:], smooth_image(256, 256)[128:])


@pytest.mark.parametrize(
    ("pixels", "options", "message"),
    [
        (np.zeros((4, 80, 90), np.uint8), {"photometric": "minisblack"}, "4 planes"),
        (np.zeros((80, 90), np.float32), {"photometric": "minisblack"}, "float32"),
        (np.zeros((80, 90), np.int16), {"photometric": "minisblack"}, "int16"),
        (np.zeros((80, 90, 4), np.uint8), {"photometric": "separated"}, "SEPARATED"),
        (np.zeros((80, 90, 6), np.uint8), {"photometric": "rgb", "extrasamples": [0, 0, 0]}, "6 samples"),
    ],
)
def test_what_is_not_one_rgb_or_grey_plane_is_refused(
    pixels: np.ndarray, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    tifffile.imwrite(tmp_path / "odd.tif", pixels, **options)
    with pytest.raises(InputError, match=rf"odd\.tif: .*{message}"):
        open_image(tmp_path / "odd.tif")


@pytest.mark.parametrize("options", [{"tile": (64, 64)}, {"rowsperstrip": 50}])
def test_threads_read_the_same(options: dict[str, Any], tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", compression="deflate", **options)
    with open_image(tmp_path / "a.tif") as reader, ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda i: reader.read(0, i, i // 2, 90, 90), range(200)))
    for i, part in enumerate(parts):
        np.testing.assert_array_equal(part, RGB[i // 2 : i // 2 + 90, i : i + 90])


def test_closed_and_out_of_bounds(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", tile=(64, 64))
    with open_image(tmp_path / "a.tif") as reader, pytest.raises(ValueError, match="not inside"):
        reader.read(0, 0, 0, WIDTH + 1, 5)
    with pytest.raises(ValueError, match="closed"):
        reader.read(0, 0, 0, 1, 1)
