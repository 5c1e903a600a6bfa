from __future__ import annotations

from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from spared_fm.errors import InputError
from spared_fm.slides.counts import read_slides
from spared_fm.slides.patches import PatchReader, PatchSpec, UnreadablePatchError
from spared_fm.slides.patchfiles import StoredPatchReader, has_patches, open_patches, spared_window
from tests.slides.layouts import ArrayImage, poisson_counts, smooth_image, square_slide

PX = 24


def pictures(n: int, px: int = PX, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, px, px, 3), dtype=np.uint8)


def write_hest(path: Path, patches: np.ndarray, barcodes: list[str], **attributes: float) -> Path:
    """A file as HEST writes it."""
    with h5py.File(path, "w") as file:
        file.create_dataset("img", data=patches, chunks=(1, *patches.shape[1:]))
        file["img"].attrs.update(attributes)
        file["coords"] = np.zeros((len(patches), 2), np.int64)
        file["barcode"] = np.array(barcodes, "S")[:, None]
    return path


def spared_study(slides: tuple[str, ...] = ("A", "B"), n: int = 5) -> tuple[ad.AnnData, np.ndarray]:
    """An AnnData as SpaRED writes it, and its patches."""
    total = n * len(slides)
    patches = pictures(total)
    adata = ad.AnnData(
        X=sparse.csr_matrix(poisson_counts(total, 4)),
        obs=pd.DataFrame({"slide_id": np.repeat(slides, n)}, index=[f"{s}-{i}" for s in slides for i in range(n)]),
        var=pd.DataFrame(index=[f"G{i}" for i in range(4)]),
        obsm={
            "spatial": np.random.default_rng(3).uniform(50, 900, (total, 2)),
            "patches_scale_1.0": patches.reshape(total, -1),
        },
    )
    scalefactors = {"spot_diameter_fullres": 47.3}
    metadata = {"um_per_px": 0.5}
    adata.uns["spatial"] = {s: {"scalefactors": scalefactors, "metadata": metadata} for s in slides}
    return adata, patches


def test_hest(tmp_path: Path) -> None:
    patches, barcodes = pictures(9), [f"S{i:02d}-1" for i in range(9)]
    path = write_hest(tmp_path / "a.h5", patches, barcodes)
    assert has_patches(path)
    with open_patches(path) as source:
        assert (source.n, source.px, source.mpp, source.barcodes) == (9, PX, None, barcodes)
        for rows in ([0, 1, 2], [8, 2, 2, 5], [], [3]):
            np.testing.assert_array_equal(source.read(rows), patches[rows])
    with open_patches(write_hest(tmp_path / "b.h5", patches, barcodes, pixel_size=0.25)) as source:
        assert source.mpp == 0.25


def test_spared_is_row_major_rgb_and_told_apart_by_slide(tmp_path: Path) -> None:
    adata, patches = spared_study()
    adata.write_h5ad(tmp_path / "adata.h5ad")
    with open_patches(tmp_path / "adata.h5ad", "B") as source:
        assert source.barcodes == list(adata.obs_names[5:])
        np.testing.assert_array_equal(source.read([4, 0]), patches[[9, 5]])
    with open_patches(tmp_path / "adata.h5ad") as source:
        assert source.n == 10
    adata.obs_names = [f"S{i % 5}" for i in range(10)]  # the same barcodes on both slides
    adata.write_h5ad(tmp_path / "same.h5ad")
    with pytest.raises(InputError, match=r"same\.h5ad: barcodes occur more than once"):
        open_patches(tmp_path / "same.h5ad")
    with open_patches(tmp_path / "same.h5ad", "A") as source:
        np.testing.assert_array_equal(source.read([3]), patches[[3]])


def test_reading_a_study_leaves_its_patches_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adata, _ = spared_study()
    path = tmp_path / "adata.h5ad"
    adata.write_h5ad(path)
    read: list[str] = []
    plain = h5py.Dataset.__getitem__
    monkeypatch.setattr(
        h5py.Dataset, "__getitem__", lambda self, key, **kw: (read.append(self.name), plain(self, key, **kw))[1]
    )
    slides = read_slides(path)
    assert "/obsm/spatial" in read
    assert "/obsm/patches_scale_1.0" not in read
    assert [s.id for s in slides] == ["A", "B"]
    for data in slides:
        assert (data.image, data.image_kind) == (path, "patches")
        assert list(data.adata.obsm) == ["spatial"]
        np.testing.assert_array_equal(data.adata.X.toarray(), adata[data.adata.obs_names].X.toarray())


def test_a_hest_file_goes_with_its_counts(tmp_path: Path) -> None:
    square_slide().write_h5ad(tmp_path / "T1.h5ad")
    write_hest(tmp_path / "T1.h5", pictures(3), ["0x0", "0x1", "1x0"])
    [data] = read_slides(tmp_path / "T1.h5ad", image=tmp_path / "T1.h5")
    assert (data.image, data.image_kind) == (tmp_path / "T1.h5", "patches")


def test_stored_patches_are_joined_by_barcode_and_given_as_they_are(tmp_path: Path) -> None:
    patches = pictures(4)
    with open_patches(write_hest(tmp_path / "a.h5", patches, ["c", "a", "d", "b"])) as source:
        reader = StoredPatchReader(source, ["a", "b", "c", "lost", "d"], 0.5, PatchSpec(um=PX / 2, px=PX))
        np.testing.assert_array_equal(reader.read([0, 1, 2, 4]), patches[[1, 3, 0, 2]])
        out = np.zeros((1, PX, PX, 3), np.uint8)
        assert reader.read(np.array([1]), out=out) is out
        np.testing.assert_array_equal(out, patches[[3]])
        with pytest.raises(UnreadablePatchError, match=r"a\.h5: no patch of spot 'lost'") as caught:
            reader.read([0, 3, 2])
        assert caught.value.index == 1


@pytest.mark.parametrize(("um", "px"), [(12.0, 48), (8.0, 24), (6.0, 20), (11.9, 24)])
def test_another_size_is_the_middle_cut_as_from_an_image(um: float, px: int, tmp_path: Path) -> None:
    whole = smooth_image(200, 200)
    x, y = 90, 110  # an even window around the corner between four pixels
    stored = whole[y - 12 : y + 12, x - 12 : x + 12]
    with open_patches(write_hest(tmp_path / "a.h5", stored[None], ["s"])) as source:
        found = StoredPatchReader(source, ["s"], 0.5, PatchSpec(um=um, px=px)).read([0])[0]
    truth = PatchReader(ArrayImage(whole), 0.5, PatchSpec(um=um, px=px)).read_one(x - 0.5, y - 0.5)
    edge = round(3 * px * 0.5 / um)  # there the image goes on, and the stored patch doesn't
    inner = np.s_[edge:-edge, edge:-edge] if um > 9 else np.s_[:, :]
    assert np.abs(found[inner].astype(int) - truth[inner]).max() <= 1


def test_more_tissue_than_is_stored_is_refused(tmp_path: Path) -> None:
    with (
        open_patches(write_hest(tmp_path / "a.h5", pictures(1), ["s"])) as source,
        pytest.raises(InputError, match=r"a\.h5: its patches are 12 µm wide, 12\.5 µm .*--patch-um 12 or less"),
    ):
        StoredPatchReader(source, ["s"], 0.5, PatchSpec(um=12.5, px=24))


def test_a_damaged_row_is_named_and_the_others_still_read(tmp_path: Path) -> None:
    patches = pictures(5)
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("img", data=patches, chunks=(1, PX, PX, 3), compression="gzip", fletcher32=True)
        file["barcode"] = np.array(list("abcde"), "S")
        chunk = data.id.get_chunk_info(2)
    raw = bytearray(path.read_bytes())
    raw[chunk.byte_offset + chunk.size // 2] ^= 255
    path.write_bytes(raw)
    with open_patches(path) as source:
        reader = StoredPatchReader(source, list("abcde"), 0.5, PatchSpec(um=12, px=24))
        with pytest.raises(UnreadablePatchError, match=r"a\.h5: patches can't be read") as caught:
            reader.read([0, 1, 2, 3])
        assert caught.value.index == 2
        np.testing.assert_array_equal(reader.read([0, 1, 3, 4]), patches[[0, 1, 3, 4]])


def test_what_is_no_file_of_patches(tmp_path: Path) -> None:
    path = write_hest(tmp_path / "a.h5", pictures(4), list("abcd"))
    whole = path.read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    write_hest(tmp_path / "few.h5", pictures(4), list("abc"))
    write_hest(tmp_path / "twice.h5", pictures(2), ["a", "a"])
    write_hest(tmp_path / "oblong.h5", pictures(2)[:, :12], ["a", "b"])
    square_slide().write_h5ad(tmp_path / "none.h5ad")
    (tmp_path / "text.h5").write_text("no")
    for name, message in (
        ("cut.h5", "copy it again"),
        ("few.h5", "3 barcodes for 4 patches"),
        ("twice.h5", "more than once"),
        ("oblong.h5", "square"),
        ("none.h5ad", "no patches here"),
        ("text.h5", "copy it again"),
        ("absent.h5", "no such file"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            open_patches(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not has_patches(tmp_path / "text.h5")
    assert not has_patches(tmp_path / "none.h5ad")


@pytest.mark.parametrize(("diameter", "side"), [(47.3, 48), (48.0, 48), (48.9, 48), (49.0, 50)])
def test_spareds_window(diameter: float, side: int) -> None:
    assert spared_window(diameter) == side
