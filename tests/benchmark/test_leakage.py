from __future__ import annotations

import json
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spared_fm.benchmark.leakage import leakage, section_of
from spared_fm.benchmark.splits import choose_split, spatial_blocks
from spared_fm.errors import InputError


def nowhere(slide):
    raise AssertionError(f"read the spots of {slide}")


def report(parts, patients=None, images=None, xy_um=nowhere, **kw):
    found = leakage(parts, patients or {}, images or {}, xy_um, **{"patch_um": 112.0, **kw})
    json.dumps(found)
    assert all(set(f) == {"kind", "slides", "splits", "detail", "mend"} for f in found)
    return found


def squares(nx=30, ny=20, pitch=100.0):
    x, y = np.meshgrid(np.arange(nx) * pitch, np.arange(ny) * pitch)
    return np.column_stack([x.ravel(), y.ravel()])


def test_nothing_shared():
    parts = {"her2st_A1": "train", "her2st_A2": "train", "her2st_B1": "val", "her2st_C1": "test"}
    patients = {s: s[7] for s in parts}
    assert report(parts, patients, {s: s for s in parts}) == []
    assert report(parts) == []


def test_same_patient():
    parts = {"x": "test", "a": "train", "k": "train", "other": "val"}
    (found,) = report(parts, {"x": "p", "a": "p", "k": "p", "other": "q"})
    assert (found["kind"], found["slides"], found["splits"]) == ("same-patient", ["a", "k", "x"], ["train", "test"])
    assert found["detail"] == "3 slide(s) of patient p are in train and test"
    assert "--split-by patient" in found["mend"]


def test_duplicate_images():
    images = {"a": "f" * 64, "b": "f" * 64, "c": None, "d": None, "e": "0" * 64}
    parts = {"a": "train", "b": "train", "c": "train", "d": "test", "e": "test"}
    (found,) = report(parts, {}, images)
    assert (found["kind"], found["slides"], found["splits"]) == ("duplicate-image", ["a", "b"], ["train"])
    assert "counts 2 times" in found["detail"]
    # the same tissue under two ids, and two pieces of tissue on one image
    at = {"a": squares(), "b": squares()[:7] + 5}
    (found,) = report({**parts, "b": "test"}, {}, images, at.__getitem__)
    assert found["splits"] == ["train", "test"]
    assert "the patches of 7 of 7 test spots overlap patches of train spots" in found["detail"]
    (found,) = report({**parts, "b": "test"}, {}, images, {**at, "b": squares() + 1e4}.__getitem__)
    assert "no patches overlap" in found["detail"]


@pytest.mark.parametrize(
    ("slide", "place"),
    [
        ("her2st_C2", ("her2st_C", 2)),
        ("A1", ("A", 1)),
        ("A06", ("A", 6)),
        ("P1_H1-5", ("P1_H1-", 5)),
        ("V1_Human_Brain_Section_2", ("V1_Human_Brain_Section_", 2)),
        ("V10F24-015_B1", ("V10F24-015_", 2)),
        ("set__V10F24-015-D1", ("set__V10F24-015-", 4)),
        ("V10F24-015_A2", ("V10F24-015_A", 2)),
        ("brain_b", ("brain_", 2)),
        ("brain", None),
        ("B", None),
        ("V1_Mouse_Brain_Sagittal_Anterior", None),
        ("7", ("", 7)),
        ("scan20261123142500", ("scan20261123", 142500)),
    ],
)
def test_section_of(slide, place):
    assert section_of(slide) == place


def test_adjacent_sections_by_name():
    parts = {"her2st_C2": "train", "her2st_C3": "train", "her2st_C4": "test", "her2st_C6": "val", "her2st_D3": "test"}
    (found,) = report(parts)
    assert (found["kind"], found["slides"]) == ("adjacent-sections", ["her2st_C3", "her2st_C4"])
    assert found["splits"] == ["train", "test"]
    assert "1 pair(s)" in found["detail"]
    assert "her2st_C3 (train) and her2st_C4 (test)" in found["detail"]
    # patients that are known to differ are no neighbours, whatever their slides are called
    assert report(parts, {"her2st_C3": "p", "her2st_C4": "q"}) == []
    assert len(report(parts, {"her2st_C3": "p"})) == 1


def test_adjacent_sections_as_given():
    parts = {"her2st_C2": "train", "her2st_C3": "test", "x": "test", "y": "val", "z": "train"}
    assert report(parts, sections={}) == []
    sections = {"her2st_C2": None, "x": ("block", 4), "y": ("block", 4), "z": ("block", 5)}
    (found,) = report(parts, {"x": "p", "y": "q"}, sections=sections)  # who gives a series knows better
    assert found["slides"] == ["x", "y", "z"]
    assert "3 pair(s)" in found["detail"]
    assert "as given" in found["detail"]


def test_many_numbered_slides_are_one_finding():
    parts = {f"s{i}": ("train", "test")[i % 2] for i in range(100)}
    (found,) = report(parts)
    assert "99 pair(s)" in found["detail"]


def test_overlapping_patches():
    xy = squares()
    part = np.where(xy[:, 0] < 1000, "train", "test")
    same, overlap = report({"s": part}, xy_um=lambda s: xy)
    assert (same["kind"], same["slides"], same["splits"]) == ("same-patient", ["s"], ["train", "test"])
    assert (overlap["kind"], overlap["slides"], overlap["splits"]) == ("overlapping-patches", ["s"], ["train", "test"])
    assert "20 of 400 test spots" in overlap["detail"]
    for width, n in ((100.0, 1), (100.01, 2)):  # patches that touch don't overlap
        assert len(report({"s": part}, xy_um=lambda s: xy * (1 - 1e-12), patch_um=width)) == n
    assert len(report({"s": np.where(xy[:, 0] == 1000, "", part)}, xy_um=lambda s: xy)) == 1


def test_corners_count():
    """Patches are squares: 100 µm away in x and in y is 141 µm, yet patches of 112 µm overlap."""
    found = report({"s": np.array(["train", "val"])}, xy_um=lambda s: np.array([[0, 0], [100, 100.0]]))
    assert [f["kind"] for f in found] == ["same-patient", "overlapping-patches"]


@given(st.integers(0, 999), st.floats(1, 500), st.integers(3, 40))
def test_blocks_are_free_of_overlap(seed, patch, n):
    xy = np.random.default_rng(seed).uniform(0, 4000, (n, 2))
    try:
        split = choose_split(["s"], {}, lambda s: xy, seed=seed, buffer_um=patch)
    except InputError:
        return
    assert [f["kind"] for f in report(split.parts, xy_um=lambda s: xy, patch_um=patch)] == ["same-patient"]


def test_a_million_bins_in_seconds():
    xy = squares(1000, 1000, 8.0)
    started = time.perf_counter()
    blocks = spatial_blocks(xy, buffer_um=56.0)
    found = report({"s": blocks}, xy_um=lambda s: xy)
    assert [f["splits"] for f in found[1:]] == [["train", "val"], ["train", "test"], ["val", "test"]]
    assert time.perf_counter() - started < 20  # about 1 s


@pytest.mark.parametrize(
    ("parts", "kw", "words"),
    [
        ({"s": "tset"}, {}, "unknown split 'tset'"),
        ({"s": np.array(["train", "test", "moon"])}, {}, "unknown split 'moon'"),
        ({"s": np.array(["train", "test"])}, {}, "slide s has 600 spots, but its split has 2"),
        ({"s": "train"}, {"patch_um": 0.0}, "give their width"),
        ({"s": "train"}, {"patch_um": float("nan")}, "give their width"),
    ],
)
def test_bad_input(parts, kw, words):
    with pytest.raises(InputError, match=words):
        report(parts, xy_um=lambda s: squares(), **kw)
