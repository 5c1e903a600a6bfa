from __future__ import annotations

import json
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spared_fm.errors import InputError
from spared_fm.slides.featurefiles import open_features
from spared_fm.slides.featurejoin import join_barcodes, join_places, shift_and_spread

N, DIM = 40, 6


@pytest.fixture
def vectors() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(N, DIM)).astype(np.float32)


@pytest.fixture
def corners() -> np.ndarray:
    return np.stack([np.arange(N) * 300 % 1700, np.arange(N) * 71], axis=1).astype(np.int64)


def trident(path: Path, vectors: np.ndarray, corners: np.ndarray | None, **attributes: object) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=vectors, chunks=(*([1] * (vectors.ndim - 1)), vectors.shape[-1]))
        if corners is not None:
            file.create_dataset("coords", data=corners).attrs.update(attributes)
    return path


def assert_reads(path: Path, vectors: np.ndarray, **options: str | Path) -> None:
    rows = np.random.default_rng(1).permutation(len(vectors))[:25]
    with open_features(path, **options) as file:
        assert (file.n, file.dim) == vectors.shape
        np.testing.assert_array_equal(file.read(rows), vectors[rows])
        assert file.read(np.array([], int)).shape == (0, vectors.shape[1])


def test_trident(tmp_path: Path, vectors: np.ndarray, corners: np.ndarray):
    path = trident(
        tmp_path / "a.h5", vectors, corners, patch_size=256, patch_size_level0=512, level0_magnification=40,
        target_magnification=20, overlap=0, name="a", savetodir=np.bytes_("/x"),
    )  # fmt: skip
    assert_reads(path, vectors)
    with open_features(path) as file:
        places = file.places
        assert (file.kind, places.unit, places.side, places.patch_px, places.patch_um) == (
            "trident",
            "px",
            512,
            256,
            128,
        )
        assert file.barcodes is None
        assert places.stated["savetodir"] == "/x"
        np.testing.assert_array_equal(places.corners, corners)


def test_trident_without_the_size_at_level_0(tmp_path: Path, vectors: np.ndarray, corners: np.ndarray):
    path = trident(
        tmp_path / "a.h5", vectors, corners, patch_size=256, level0_magnification=40, target_magnification=10
    )
    with open_features(path) as file:
        assert (file.places.side, file.places.patch_um) == (1024, 256)


def test_clam_stacked_with_its_own_coordinates_file(tmp_path: Path, vectors: np.ndarray, corners: np.ndarray):
    path = trident(tmp_path / "a.h5", vectors[None], corners[None])
    assert_reads(path, vectors)
    with open_features(path) as file:
        assert (file.places.side, file.places.patch_um) == (None, 0)
        np.testing.assert_array_equal(file.places.corners, corners)
    (tmp_path / "patches").mkdir()
    with h5py.File(tmp_path / "patches" / "a.h5", "w") as file:
        file.create_dataset("coords", data=corners).attrs.update(
            patch_size=256, patch_level=1, downsample=np.array([4.0, 4.0])
        )
    for place in (tmp_path / "patches", tmp_path / "patches" / "a.h5"):
        with open_features(path, coordinates=place) as file:
            assert (file.places.side, file.places.patch_px) == (1024, 256)
            np.testing.assert_array_equal(file.places.corners, corners)


@pytest.mark.parametrize("attributes", [{"tile_size_um": 256.0, "unit": "um"}, {"tile_size": 256.0, "unit": "um"}])
def test_stamp(tmp_path: Path, vectors: np.ndarray, corners: np.ndarray, attributes: dict):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["feats"] = vectors.astype(np.float16)
        file["coords"] = corners * 0.5
        file.attrs.update(extractor="ctranspath", tile_size_px=224, **attributes)
    assert_reads(path, vectors.astype(np.float16).astype(np.float32))
    with open_features(path) as file:
        places = file.places
        assert (file.kind, places.unit, places.side, places.patch_px, places.patch_um) == ("stamp", "um", 256, 224, 256)
        assert places.stated["extractor"] == "ctranspath"
        np.testing.assert_array_equal(places.corners, corners * 0.5)


def test_stamp_of_unknown_unit(tmp_path: Path, vectors: np.ndarray, corners: np.ndarray):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["feats"], file["coords"] = vectors, corners
        file.attrs["tile_size"] = 224
    with pytest.raises(InputError, match=r"a\.h5: doesn't say tile_size_um.*extract it again"):
        open_features(tmp_path / "a.h5")


def test_hest_benchmark(tmp_path: Path, vectors: np.ndarray, corners: np.ndarray):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["embeddings"], file["coords"] = vectors, corners
        file.create_dataset("barcodes", data=[[f"B{i}"] for i in range(N)], dtype=h5py.string_dtype())
    assert_reads(tmp_path / "a.h5", vectors)
    with open_features(tmp_path / "a.h5") as file:
        assert (file.kind, file.places.patch_px, file.places.patch_um) == ("hest", 224, 112)
        assert file.barcodes == [f"B{i}" for i in range(N)]


def slide2vec(folder: Path, vectors: torch.Tensor, corners: np.ndarray | None = None) -> Path:
    """Write the folders of a run: embeddings with their metadata, tiles with theirs."""
    for name in ("tile_embeddings", "tiles"):
        (folder / name).mkdir(parents=True)
    path = folder / "tile_embeddings" / "a.pt"
    torch.save(vectors, path)
    meta = {"encoder_name": "uni", "tile_size_lv0": 448, "coordinates_npz_path": "/elsewhere/a.npz"}
    path.with_name("a.meta.json").write_text(json.dumps(meta))
    if corners is not None:
        np.savez_compressed(
            folder / "tiles" / "a.coordinates.npz", x=corners[:, 0], y=corners[:, 1], tile_index=np.arange(len(corners))
        )
        tiling = {"requested_tile_size_px": 224, "requested_spacing_um": 0.5, "tile_size_lv0": 450}
        (folder / "tiles" / "a.coordinates.meta.json").write_text(json.dumps({"tiling": tiling, "slide": {}}))
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_slide2vec(tmp_path: Path, vectors: np.ndarray, corners: np.ndarray, dtype: torch.dtype):
    path = slide2vec(tmp_path, torch.from_numpy(vectors).to(dtype), corners)
    assert_reads(path, torch.from_numpy(vectors).to(dtype).float().numpy())
    with open_features(path) as file:
        places = file.places
        # the tiling's own record of the tile's size goes before that of the embeddings
        assert (file.kind, places.side, places.patch_px, places.patch_um) == ("slide2vec", 450, 224, 112)
        assert places.stated["encoder_name"] == "uni"
        np.testing.assert_array_equal(places.corners, corners)


def test_a_tensor_with_places_in_other_formats(tmp_path: Path, vectors: np.ndarray, corners: np.ndarray):
    torch.save(torch.from_numpy(vectors), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"a\.pt: no coordinates in it or beside it: name .*--coordinates"):
        open_features(tmp_path / "a.pt")
    table = np.zeros(N, [("x", int), ("y", int), ("tile_size_lv0", int)])
    table["x"], table["y"], table["tile_size_lv0"] = *corners.T, 300
    (tmp_path / "places").mkdir()
    np.save(tmp_path / "places" / "a.npy", table)
    lines = ["x, y", *(f"{x},{y}" for x, y in corners)]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    for options, side in (({}, None), ({"coordinates": tmp_path / "places"}, 300)):
        assert_reads(tmp_path / "a.pt", vectors, **options)
        with open_features(tmp_path / "a.pt", **options) as file:
            assert file.places.side == side
            np.testing.assert_array_equal(file.places.corners, corners)


def no_coordinates(path: Path, vectors: np.ndarray, corners: np.ndarray) -> None:
    trident(path, vectors, None)


def fewer_coordinates(path: Path, vectors: np.ndarray, corners: np.ndarray) -> None:
    trident(path, vectors, corners[:-1])


def infinite_coordinates(path: Path, vectors: np.ndarray, corners: np.ndarray) -> None:
    trident(path, vectors, np.where(corners == 0, np.inf, corners))


def one_vector(path: Path, vectors: np.ndarray, corners: np.ndarray) -> None:
    trident(path, vectors[0], corners)


def other_datasets(path: Path, vectors: np.ndarray, corners: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file["imgs"] = vectors


def truncated(path: Path, vectors: np.ndarray, corners: np.ndarray) -> None:
    trident(path, vectors, corners)
    path.write_bytes(path.read_bytes()[:-900])


def no_hdf5(path: Path, vectors: np.ndarray, corners: np.ndarray) -> None:
    path.write_bytes(b"features")


def empty(path: Path, vectors: np.ndarray, corners: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file["features"], file["coords"] = vectors[:0], corners[:0]


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (no_coordinates, "no coordinates in it or beside it"),
        (fewer_coordinates, r"40 features but coordinates of shape \(39, 2\)"),
        (infinite_coordinates, "coordinates that are not finite"),
        (one_vector, r"features of shape \(6,\), not \(n, d\)"),
        (other_datasets, "no features here: looked for features, feats, embeddings; the file has imgs"),
        (truncated, "not a readable file of features .*truncated"),
        (no_hdf5, "not a readable file of features"),
        (empty, "has no features"),
    ],
)
def test_a_bad_h5_is_one_line(tmp_path: Path, vectors: np.ndarray, corners: np.ndarray, write, message: str):
    write(tmp_path / "a.h5", vectors, corners)
    with pytest.raises(InputError, match=message) as raised:
        open_features(tmp_path / "a.h5")
    assert str(raised.value).startswith(str(tmp_path / "a.h5"))
    assert "\n" not in str(raised.value)


def spring(path: str) -> None:
    Path(path).write_text("sprung")


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple:
        return spring, (self.path,)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_pickle_is_refused_unopened(tmp_path: Path, form: str):
    path, sprung = tmp_path / "a.pt", tmp_path / "sprung"
    if form == "torch":
        torch.save({"features": Trap(sprung)}, path)
    else:
        path.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(
        InputError, match=r"a\.pt: not a readable file of features \(it holds pickled objects"
    ) as raised:
        open_features(path)
    assert "\n" not in str(raised.value)
    assert not sprung.exists()


def test_other_bad_files(tmp_path: Path, vectors: np.ndarray):
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    with pytest.raises(InputError, match="holds list, not a tensor"):
        open_features(tmp_path / "list.pt")
    torch.save(torch.zeros(3), tmp_path / "slide.pt")
    with pytest.raises(InputError, match=r"holds \(3,\), not a tensor"):
        open_features(tmp_path / "slide.pt")
    with pytest.raises(InputError, match="no such file"):
        open_features(tmp_path / "none.h5")
    with pytest.raises(InputError, match="--kind 'x' is not one of"):
        open_features(tmp_path / "slide.pt", "x")
    (tmp_path / "a.csv").write_text("u,v\n1,2\n")
    with pytest.raises(InputError, match=r"a\.csv: no readable x and y"):
        open_features(trident(tmp_path / "a.h5", vectors, None), coordinates=tmp_path / "a.csv")


def test_only_the_rows_asked_for_are_read(tmp_path: Path, vectors: np.ndarray, corners: np.ndarray):
    path = trident(tmp_path / "a.h5", vectors, corners)
    spans = []
    with open_features(path) as file:
        inner = file._slice
        file._slice = lambda start, stop: (spans.append((start, stop)), inner(start, stop))[1]
        file.read(np.array([3, 1, 39, 38, 3]))
    assert spans == [(1, 4), (38, 40)]


# -- joining -----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.floats(0.0, 1.0))
@settings(max_examples=60, deadline=None)
def test_patches_cut_at_shuffled_spots_find_them(seed: int, n: int, dropped: float):
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.arange(10.0), np.arange(6.0)), -1).reshape(-1, 2)[:n] * 100
    order = rng.permutation(n)[: max(1, round(n * (1 - dropped)))]
    off = rng.uniform(-10, 10, (len(order), 2))
    rows, distance = join_places(grid, grid[order] + off, 28.0, Path("f"))
    expected = np.full(n, -1)
    expected[order] = np.arange(len(order))
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(distance[order], np.hypot(*off.T))


def test_what_can_not_be_told_apart_is_refused():
    spots = np.array([[0.0, 0.0], [100.0, 0.0]])
    with pytest.raises(InputError, match="f: 1 places occur more than once"):
        join_places(spots, np.array([[0.0, 0], [0, 0], [100, 0]]), 5, Path("f"))
    with pytest.raises(InputError, match=r"f: 1 spots have two patches within 30 µm: pass --tolerance-um below 20"):
        join_places(spots, np.array([[0.0, 10], [0, -20], [100, 0]]), 30, Path("f"))
    with pytest.raises(InputError, match=r"f: 1 patches are within 60 µm of two spots: pass --tolerance-um below 55"):
        join_places(spots, np.array([[45.0, 0]]), 60, Path("f"))
    assert join_places(spots, np.array([[45.0, 0]]), 50, Path("f"))[0].tolist() == [0, -1]


def test_barcodes():
    assert join_barcodes(["a", "b", "c"], ["c", "x", "a"], Path("f")).tolist() == [2, -1, 0]
    with pytest.raises(InputError, match="f: 1 barcodes occur more than once"):
        join_barcodes(["a"], ["a", "a"], Path("f"))
    with pytest.raises(InputError, match=r"f: none of its barcodes \(e.g. 'x'\) is a spot's \(e.g. 'a'\)"):
        join_barcodes(["a"], ["x"], Path("f"))


def test_shift_and_spread():
    spots = np.random.default_rng(0).uniform(0, 1000, (50, 2))
    shift, spread = shift_and_spread(spots, spots - [30, 40])
    assert shift == pytest.approx(50)
    assert spread == pytest.approx(0, abs=1e-9)
    assert shift_and_spread(spots, spots[::-1])[1] > 300
