from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image, ImageFile

from spared_fm.errors import InputError
from spared_fm.slides.counts import read_slides
from spared_fm.slides.images import ImageReader, image_size, open_image, thumbnail
from spared_fm.slides.mpp import resolve_mpp
from spared_fm.slides.patches import PatchReader, PatchSpec
from tests.slides.layouts import ArrayImage, smooth_image

if TYPE_CHECKING:
    from pathlib import Path

RGB = smooth_image(301, 203)
WHITE_TOP = RGB.copy()
WHITE_TOP[:60] = 255
ALPHA = np.full(RGB.shape[:2], 255, np.uint8)
ALPHA[:60] = 0


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def whole(path: Path) -> np.ndarray:
    with open_image(path) as reader:
        level = reader.levels[0]
        return np.array(reader.read(0, 0, 0, level.width, level.height))


def grey3(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


GREY = RGB[..., 0].copy()
PALETTED = Image.fromarray(RGB).quantize(16)
CASES = {
    "rgb png": (Image.fromarray(RGB), "PNG", {}, RGB, 0),
    "rgba png": (Image.fromarray(np.dstack([RGB, ALPHA])), "PNG", {}, WHITE_TOP, 0),
    "grey png": (Image.fromarray(GREY), "PNG", {}, grey3(GREY), 0),
    "grey and alpha png": (
        Image.fromarray(np.dstack([GREY, ALPHA])), "PNG", {}, grey3(np.where(ALPHA == 0, 255, GREY)), 0,
    ),
    "16-bit png": (Image.fromarray(GREY.astype(np.uint16) * 256 + 128), "PNG", {}, grey3(GREY), 0.5),
    "1-bit png": (Image.fromarray(GREY > 127), "PNG", {}, grey3(np.where(GREY > 127, 255, 0)), 0),
    "palette png": (PALETTED, "PNG", {}, np.asarray(PALETTED.convert("RGB")), 0),
    "transparent colour png": (
        Image.fromarray(np.where(ALPHA[..., None] == 0, 7, np.maximum(RGB, 8)).astype(np.uint8)), "PNG",
        {"transparency": (7, 7, 7)}, np.where(ALPHA[..., None] == 0, 255, np.maximum(RGB, 8)), 0,
    ),
    "rgb jpeg": (Image.fromarray(RGB), "JPEG", {"quality": 95}, RGB, 3),
    "grey jpeg": (Image.fromarray(GREY), "JPEG", {"quality": 95}, grey3(GREY), 3),
    "cmyk jpeg": (Image.fromarray(RGB).convert("CMYK"), "JPEG", {"quality": 95}, RGB, 3),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_jpeg_and_png_becomes_rgb(case: str, tmp_path: Path) -> None:
    image, kind, options, truth, tolerance = CASES[case]
    path = tmp_path / "image"  # the name says nothing, the first bytes do
    path.write_bytes(encoded(image, kind, **options))
    found = whole(path)
    assert found.dtype == np.uint8
    assert found.shape == RGB.shape
    assert np.abs(found.astype(int) - truth).mean() <= tolerance
    assert image_size(path) == (301, 203)


def test_a_large_image_is_converted_band_by_band_without_seams(tmp_path: Path) -> None:
    tall = smooth_image(2100, 4300)  # more than two bands
    Image.fromarray(tall).save(tmp_path / "a.png", compress_level=1)
    np.testing.assert_array_equal(whole(tmp_path / "a.png"), tall)


def test_reader_follows_the_protocol(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(Image.fromarray(RGB), "JPEG", dpi=(2540, 2540)))
    with open_image(path) as reader:
        assert isinstance(reader, ImageReader)
        assert reader.path == path
        assert reader.mpp is None  # 2540 dpi would be 10 µm: a JPEG's dpi is never trusted
        (level,) = reader.levels
        assert (level.width, level.height, level.downsample) == (301, 203, 1.0)
        part = reader.read(0, 31, 17, 64, 40)
        np.testing.assert_array_equal(part, reader.read(0, 0, 0, 301, 203)[17:57, 31:95])
    with pytest.raises(ValueError, match="closed"):
        reader.read(0, 0, 0, 1, 1)


@pytest.mark.parametrize(
    "box",
    [(1, 0, 0, 5, 5), (-1, 0, 0, 5, 5), (0, -1, 0, 5, 5), (0, 0, -1, 5, 5), (0, 297, 0, 5, 5),
     (0, 0, 200, 5, 5), (0, 0, 0, 0, 5), (0, 0, 0, 5, -1)],
)  # fmt: skip
def test_a_box_outside_is_refused(box: tuple[int, int, int, int, int], tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    with open_image(tmp_path / "a.png") as reader, pytest.raises(ValueError, match=r"a\.png"):
        reader.read(*box)


@pytest.mark.parametrize("padding_allowed", [False, True])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.97, 0.999])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_image_is_refused(
    kind: str, share: float, padding_allowed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # other libraries set this flag for the whole process; Pillow then fills what is missing with grey
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", padding_allowed)
    data = encoded(Image.fromarray(RGB), kind)
    path = tmp_path / "cut.img"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=r"cut\.img: .*(damaged|truncated).*copy it again"):
        open_image(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_image_with_a_lost_end_is_refused(kind: str, tmp_path: Path) -> None:
    data = encoded(Image.fromarray(smooth_image(900, 700)), kind)
    path = tmp_path / "zeros.img"  # a download that was never finished on a preallocated file
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    with pytest.raises(InputError, match=r"zeros\.img"):
        open_image(path)


def test_a_flipped_byte_in_a_png_is_refused(tmp_path: Path) -> None:
    data = bytearray(encoded(Image.fromarray(RGB), "PNG"))
    data[len(data) // 2] ^= 0x10
    (tmp_path / "flip.png").write_bytes(data)
    with pytest.raises(InputError, match=r"flip\.png"):
        open_image(tmp_path / "flip.png")


@pytest.mark.parametrize("opener", [open_image, image_size])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such image"),
        (b"", "empty"),
        (b"barcode,x,y\n", "not a JPEG, PNG or TIFF"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (b"\xff\xd8\xff\xe0", "damaged"),
        (b"II*\0", "damaged"),
        (b"\x89PNG\r\n\x1a\n" + bytes(200), "damaged"),
    ],
)
def test_what_is_no_image_is_refused_by_name(
    opener: object, content: bytes | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "what.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"what\.jpg: .*{message}") as caught:
        opener(path)
    assert "\n" not in str(caught.value)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be read"):
        open_image(tmp_path)


def test_pixel_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    with pytest.raises(InputError, match=r"a\.png: 301×203 = 61,103 .*max_pixels.*SPARED_FM_MAX_PIXELS"):
        open_image(path, max_pixels=61_102)
    open_image(path, max_pixels=61_103).close()
    monkeypatch.setenv("SPARED_FM_MAX_PIXELS", "1000")
    with pytest.raises(InputError, match="limit is 1,000"):
        open_image(path)
    open_image(path, max_pixels=100_000).close()  # the argument wins
    for wrong in ("many", "-5", "0"):
        monkeypatch.setenv("SPARED_FM_MAX_PIXELS", wrong)
        with pytest.raises(InputError, match="SPARED_FM_MAX_PIXELS"):
            open_image(path)


def test_pillows_own_limit_neither_stops_us_nor_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(smooth_image(3000, 2000)).save(path, compress_level=1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5_000_000)  # a warning above this, an error at twice it
    assert whole(path).shape == (2000, 3000, 3)
    assert Image.MAX_IMAGE_PIXELS == 5_000_000


def test_threads_read_the_same(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    with open_image(tmp_path / "a.png") as reader, ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda i: reader.read(0, i, i, 50, 50), range(100)))
    for i, part in enumerate(parts):
        np.testing.assert_array_equal(part, RGB[i : i + 50, i : i + 50])


def test_thumbnail_keeps_the_aspect_and_the_mean() -> None:
    image = smooth_image(1501, 1003)
    thumb, scale = thumbnail(ArrayImage(image), 300)
    assert thumb.shape == (200, 300, 3)
    assert thumb.dtype == np.uint8
    assert scale == pytest.approx(300 / 1501)
    assert np.abs(thumb.mean((0, 1)) - image.mean((0, 1))).max() < 1.5
    reference = np.asarray(Image.fromarray(image).resize((300, 200), Image.Resampling.BICUBIC))
    assert np.abs(thumb.astype(int) - reference).mean() < 1.0


def test_thumbnail_never_enlarges() -> None:
    image = smooth_image(50, 80)
    thumb, scale = thumbnail(ArrayImage(image), 300)
    np.testing.assert_array_equal(thumb, image)
    assert scale == 1.0


def test_thumbnail_scale_is_of_the_longer_side_and_marks_land() -> None:
    image = np.zeros((1600, 90, 3), np.uint8)
    image[1000:1016] = 255
    thumb, scale = thumbnail(ArrayImage(image), 100)
    assert thumb.shape[:2] == (100, 6)
    assert scale == 100 / 1600
    rows = thumb[:, :, 0].mean(axis=1)
    assert (rows @ (np.arange(100) + 0.5)) / rows.sum() == pytest.approx(1008 * scale, abs=0.05)


def test_thumbnail_reads_the_coarsest_level_that_suffices() -> None:
    top = smooth_image(1024, 768)
    levels = [top, *(np.asarray(Image.fromarray(top).reduce(k)) for k in (2, 4))]
    image = ArrayImage(*levels)
    read: list[int] = []
    plain = image._read
    image._read = lambda level, *box: (read.append(level), plain(level, *box))[1]  # type: ignore[method-assign]
    for max_px, level in ((100, 2), (256, 2), (257, 1), (1024, 0), (5000, 0)):
        read.clear()
        thumb, _ = thumbnail(image, max_px)
        assert max(thumb.shape) == min(max_px, 1024)
        assert set(read) == {level}


def test_thumbnail_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="at least 1 pixel"):
        thumbnail(ArrayImage(RGB), 0)


def test_a_real_slide_of_92_megapixels(shared_data: Path) -> None:
    """One decoding serves every check: size, whole-file thumbnail, patches, mpp, and no bomb warning."""
    (slide,) = read_slides(shared_data / "her2st_C2")
    assert slide.image is not None
    with open_image(slide.image) as reader:
        assert (reader.levels[0].width, reader.levels[0].height) == (9274, 9911)
        assert reader.mpp is None
        thumb, scale = thumbnail(reader, 500)
        assert thumb.shape == (500, 468, 3)
        stored = np.asarray(Image.fromarray(slide.thumbnails["hires"]).resize((468, 500)))
        assert np.abs(thumb.astype(int) - stored).mean() < 6
        mpp = resolve_mpp(slide.id, **slide.mpp_candidates)
        patches = PatchReader(reader, mpp.value, PatchSpec())
        xy = slide.adata.obsm["spatial"]
        read = patches.read(xy[:40])
        assert read.shape == (40, 224, 224, 3)
        assert patches.upsample == pytest.approx(1.380, abs=1e-3)
        assert patches.achieved_mpp == pytest.approx(0.5)
        # the patch's mean colour is the thumbnail's where the spot is
        for patch, (x, y) in zip(read, xy[:40], strict=True):
            half = 56 / mpp.value * scale
            left, right, top, bottom = (
                round(v) for v in (x * scale - half, x * scale + half, y * scale - half, y * scale + half)
            )
            there = thumb[top : bottom + 1, left : right + 1].mean((0, 1))
            assert np.abs(patch.mean((0, 1)) - there).max() < 12
