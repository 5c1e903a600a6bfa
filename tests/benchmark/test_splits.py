from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from spared_fm.benchmark.splits import PARTS, check_split, choose_split, spatial_blocks, split_by, split_label
from spared_fm.errors import InputError


@given(st.integers(2, 12), st.integers(1, 4), st.integers(0, 99))
def test_patients_are_never_split(n_patients, sections, seed):
    patients = {f"p{i}s{j}": f"p{i}" for i in range(n_patients) for j in range(sections)}
    slides = list(patients)
    split = split_by(slides, patients, "patient", seed=seed)
    assert set(split) == set(slides)
    for p in set(patients.values()):
        assert len({split[s] for s in slides if patients[s] == p}) == 1
    assert {"train", "test"} <= set(split.values())
    assert ("val" in split.values()) == (n_patients > 2)
    assert check_split(split, patients) == []
    assert list(split_by(slides[::-1] + slides, patients, "patient", seed=seed).items()) == list(split.items())


def test_shares_and_seeds():
    slides = [f"s{i}" for i in range(100)]
    split = split_by(slides, {}, "slide", fractions=(7, 1, 2))
    assert [list(split.values()).count(p) for p in ("train", "val", "test")] == [70, 10, 20]
    assert split_by(slides, {}, "slide", seed=1) != split_by(slides, {}, "slide", seed=0)
    assert "val" not in split_by(slides, {}, "slide", fractions=(0.5, 0, 0.5)).values()
    assert list(split_by(slides, {}, "slide", fractions=(0, 1, 1)).values()).count("train") >= 1


@pytest.mark.parametrize(
    ("slides", "patients", "kw", "words"),
    [
        (["a", "b"], {"a": "p", "b": "p"}, {"by": "patient"}, "split by slide"),
        (["a"], {}, {"by": "slide"}, "add one, or split by block"),
        ([], {}, {"by": "slide"}, "add one"),
        (["a", "b"], {"a": "p", "b": None}, {"by": "patient"}, "no patient is known for b"),
        (["a", "b"], {}, {"by": "section"}, "use 'patient'"),
        (["a", "b"], {}, {"by": "slide", "fractions": (1, 1)}, "fractions"),
        (["a", "b"], {}, {"by": "slide", "fractions": (1, -1, 1)}, "fractions"),
    ],
)
def test_bad_splits(slides, patients, kw, words):
    with pytest.raises(InputError, match=words):
        split_by(slides, patients, **kw)


def test_check_warns_of_shared_patients():
    found = check_split({"a": "train", "b": "test", "c": "test"}, {"a": "p", "b": "p", "c": "q"})
    assert len(found) == 1
    assert "patient p is in train and test" in found[0]
    assert "unknown" in check_split({"a": "train", "b": "test"}, {"a": "p", "b": None})[0]


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ({"a": "test"}, "no slide is in the train"),
        ({"a": "train"}, "hold one out"),
        ({"a": "train", "b": "tset"}, "tset"),
        ({}, "train"),
    ],
)
def test_check_refuses(split, words):
    with pytest.raises(InputError, match=words):
        check_split(split, {})


def test_check_of_divided_slides():
    found = check_split({"a": np.array(["train", "", "val"]), "b": "test"}, {"a": "p", "b": "q"})
    assert found == ["patient p is in train and val: scores say little about new patients"]
    with pytest.raises(InputError, match="slide a: unknown split 'tset'"):
        check_split({"a": np.array(["train", "tset"])}, {})
    with pytest.raises(InputError, match="hold one out"):
        check_split({"a": np.array(["train", ""])}, {})


def unread(slide):
    raise AssertionError(f"read the spots of {slide}")


def test_the_strictest_split_is_chosen():
    patients = {f"p{i}s{j}": f"p{i}" for i in range(3) for j in range(2)}
    split = choose_split(list(patients), patients, unread, buffer_um=224)
    assert split.by == "patient"
    assert set(split.parts.values()) == set(PARTS)
    assert split.label == (
        "Split by patient; no patient is in two parts: a held-out score says how well new patients are predicted "
        "(2 of 3 are held out)."
    )
    four = list(patients)[:4]  # two patients
    split = choose_split(four, patients, unread, buffer_um=224)
    assert split.by == "section"
    assert "another section of a seen patient is predicted, not a new patient" in split.label
    assert choose_split(four, patients, unread, by="patient", buffer_um=224).by == "patient"
    split = choose_split(four, {}, unread, buffer_um=224)
    assert split.by == "section"
    assert "unknown" in split.label
    split = choose_split(["s", "s"], {"s": "p"}, lambda s: hexagons(), buffer_um=224)
    assert split.by == "block"
    assert list(split.parts) == ["s"]
    assert "not another section or a new patient" in split.label


def test_slide_and_section_are_the_same():
    slides = list("abcdef")
    a, b = (choose_split(slides, {}, unread, by=by, seed=3, buffer_um=1) for by in ("slide", "section"))
    assert a == b
    assert a.parts == split_by(slides, {}, "slide", seed=3)


def test_blocks_of_one_slide_do_not_depend_on_the_others():
    at = {s: hexagons() for s in "abcdef"}
    alone = choose_split(["a"], {}, at.__getitem__, seed=2, buffer_um=224)
    among = choose_split(list(at), {}, at.__getitem__, by="block", seed=2, buffer_um=224)
    assert (alone.parts["a"] == among.parts["a"]).all()
    assert len({part.tobytes() for part in among.parts.values()}) > 1  # and are drawn for each


@pytest.mark.parametrize(
    ("slides", "patients", "kw", "words"),
    [
        ([], {}, {}, "no slide to split"),
        (["a"], {}, {"by": "section"}, "add one, or split by block"),
        (["a"], {"a": "p"}, {"by": "patient"}, "add one, or split by block"),
        (["a", "b"], {"a": "p", "b": "p"}, {"by": "patient"}, "add one, or split by slide"),
        (list("abcd"), {"a": "p", "b": "q", "c": "r"}, {}, "no patient is known for d"),
        (["a"], {}, {"by": "moon"}, "can't split by 'moon': use patient, section"),
        (["one"], {}, {}, "slide one: 1 spot\\(s\\) over 0 x 0 µm leave no room for 3 blocks 224 µm apart"),
    ],
)
def test_what_cannot_be_split(slides, patients, kw, words):
    with pytest.raises(InputError, match=words):
        choose_split(slides, patients, lambda s: np.zeros((1, 2)), buffer_um=224, **kw)


def test_label_of_a_given_split():
    label = split_label({"a": "train", "b": "test", "c": "test"}, {"a": "p", "b": "p", "c": None}, "given")
    assert label.startswith("Split as given; sections of the same patient (p) are in several parts")


def hexagons(rows=60, cols=64, pitch=100.0):
    i, j = np.divmod(np.arange(rows * cols), cols)
    return np.column_stack([(j + i % 2 / 2) * pitch, i * pitch * np.sqrt(3) / 2])


def square_grid(rows=31, cols=33, pitch=200.0):
    i, j = np.divmod(np.arange(rows * cols), cols)
    return np.column_stack([j, i]) * pitch


@pytest.mark.parametrize("grid", [hexagons, square_grid])
@pytest.mark.parametrize("shares", [(0.6, 0.2, 0.2), (8, 1, 1), (0.5, 0, 0.5), (0.3, 0.7, 0)])
def test_shares_of_blocks(grid, shares):
    xy, wanted = grid(), np.array(shares) / sum(shares)
    disc = xy[np.linalg.norm(xy - xy.mean(axis=0), axis=1) < np.ptp(xy[:, 1]) / 2]
    for centres in (xy, disc):
        for seed in range(6):
            blocks = spatial_blocks(centres, shares=shares, buffer_um=224, seed=seed)
            kept = blocks[blocks != ""]
            assert len(kept) > 0.88 * len(blocks)
            assert np.abs([np.mean(kept == p) for p in PARTS] - wanted).max() < 0.035
            assert boxes_apart(centres, blocks) >= 224 - 1e-9


def test_seeds_of_blocks():
    xy = hexagons()
    drawn = [spatial_blocks(xy, buffer_um=224, seed=s) for s in range(30)]
    assert (drawn[0] == spatial_blocks(xy, buffer_um=224, seed=0)).all()
    assert len({blocks.tobytes() for blocks in drawn}) >= 10


def apart(xy, blocks):
    """Least Chebyshev distance between spots of different parts, by brute force."""
    kept = blocks != ""
    far = np.abs(xy[kept][:, None] - xy[kept][None]).max(axis=-1)
    return far[blocks[kept][:, None] != blocks[kept][None]].min()


def boxes_apart(xy, blocks):
    """Least Chebyshev distance between the upright rectangles around the parts: below 0 if two overlap."""
    boxes = [(xy[blocks == p].min(axis=0), xy[blocks == p].max(axis=0)) for p in PARTS if (blocks == p).any()]
    return min(max((low - top).max(), (bottom - high).max()) for (low, high), (bottom, top) in combinations(boxes, 2))


whole = st.integers(-50, 50)
clouds = st.one_of(
    st.lists(st.tuples(whole, whole), min_size=0, max_size=40),
    st.lists(st.tuples(whole, st.just(3)), min_size=1, max_size=40),  # all in a line
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=60),  # many at one place
).map(lambda spots: np.array(spots, dtype=float).reshape(-1, 2))


@given(clouds, st.integers(1, 30), st.integers(0, 20), st.sampled_from([(0.6, 0.2, 0.2), (0.5, 0, 0.5), (1, 5, 2)]))
def test_blocks_keep_their_distance(xy, buffer, seed, shares):
    wanted = [p for p, share in zip(PARTS, shares, strict=True) if share]
    try:
        blocks = spatial_blocks(xy, shares=shares, buffer_um=buffer, seed=seed)
    except InputError:
        # refused only where there is no room: two blocks need the buffer's extent in x or in y. For three: along
        # each axis, from each end, the spots beyond the first one's buffer have no such extent
        for axis in (0, 1):
            for sign in (1, -1):
                along = sign * xy[:, axis]
                beyond = xy[along >= along.min(initial=np.inf) + buffer]
                assert len(beyond) == 0 or (len(wanted) == 3 and np.ptp(beyond, axis=0).max() < buffer)
        return
    assert blocks.shape == (len(xy),)
    assert set(blocks) - {""} == set(wanted)
    assert apart(xy, blocks) >= buffer
    assert boxes_apart(xy, blocks) >= buffer  # each part is one block


@given(clouds, st.integers(1, 30), st.integers(0, 5), st.randoms(use_true_random=False))
def test_blocks_follow_the_spots(xy, buffer, seed, random):
    try:
        blocks = spatial_blocks(xy, buffer_um=buffer, seed=seed)
    except InputError:
        assume(False)
    order = np.array(random.sample(range(len(xy)), len(xy)))
    assert (spatial_blocks(xy[order], buffer_um=buffer, seed=seed) == blocks[order]).all()
    assert (spatial_blocks(xy + np.array([1e6 + 0.1, -300.7]), buffer_um=buffer, seed=seed) == blocks).all()
    assert (spatial_blocks(xy * 7.3, buffer_um=buffer * 7.3, seed=seed) == blocks).all()


@pytest.mark.parametrize(
    ("xy", "kw", "words"),
    [
        (np.empty((0, 2)), {}, "0 spot"),
        (np.array([[0, 0], [900, 0]]), {}, "leave no room for 3 blocks"),
        (np.array([[0, 0], [100, 0], [223.999, 0]]), {"shares": (1, 0, 1)}, "no room for 2 blocks 224 µm apart"),
        (np.array([[0, np.nan]]), {}, "finite"),
        (np.zeros(4), {}, "finite x and y"),
        (hexagons(), {"buffer_um": 0}, "one patch's width"),
        (hexagons(), {"buffer_um": np.nan}, "one patch's width"),
        (hexagons(), {"shares": (0, 1, 1)}, "must be above 0"),
        (hexagons(), {"shares": (1, 0, 0)}, "must be above 0"),
        (hexagons(), {"shares": (1, 1)}, "give shares of"),
    ],
)
def test_bad_blocks(xy, kw, words):
    with pytest.raises(InputError, match=words):
        spatial_blocks(xy, **{"buffer_um": 224, **kw})


def test_fewest_spots_that_can_be_divided():
    line = np.array([[0, 0], [224, 0], [448, 0]])
    assert set(spatial_blocks(line, buffer_um=224)) == set(PARTS)
    assert set(spatial_blocks(line[:2], shares=(1, 0, 1), buffer_um=224)) == {"train", "test"}
    corners = np.array([[0, 0], [224, 0], [0, 224], [224, 224]])  # the second cut runs across the first
    gallows = np.array([[0, 0], [0, 224], [224, 100]])  # only the right one can be cut off first
    for seed in range(10):
        assert set(spatial_blocks(corners, buffer_um=224, seed=seed)) == set(PARTS)
        assert set(spatial_blocks(gallows, buffer_um=224, seed=seed)) == set(PARTS)
