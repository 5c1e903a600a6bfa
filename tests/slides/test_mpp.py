from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spared_fm.errors import InputError
from spared_fm.slides.mpp import array_pitch, mpp_candidates, resolve_mpp
from tests.slides.layouts import PITCH_PX, hex_spots

ORDER = ["given", "metadata", "image", "array", "spot"]


@pytest.mark.parametrize("first", range(5))
def test_the_first_source_that_speaks_wins(first: int) -> None:
    said = {name: 0.5 + 0.001 * i for i, name in enumerate(ORDER) if i >= first}
    found = resolve_mpp("s", **said)
    assert (found.source, found.value) == (ORDER[first], 0.5 + 0.001 * first)
    assert found.candidates == said
    assert found.warnings == ()


def test_a_disagreement_above_three_percent_is_warned_of_and_names_both() -> None:
    found = resolve_mpp("slide7", metadata=0.5, image=0.514, array=0.516, spot=0.25)
    assert found.value == 0.5
    assert len(found.warnings) == 2
    for warning, (name, value) in zip(found.warnings, (("array", "0.516"), ("spot", "0.25")), strict=True):
        for word in ("slide7", "metadata", "0.5 ", name, value):
            assert word in warning


@settings(deadline=None)
@given(value=st.floats(0.05, 10.0), ratio=st.floats(0.5, 2.0))
def test_the_warning_starts_at_three_percent(value: float, ratio: float) -> None:
    found = resolve_mpp("s", given=value, array=value * ratio)
    off = abs(value * ratio / value - 1)
    believed = 0.05 <= value * ratio <= 20
    assert bool(found.warnings) == (off > 0.03 or not believed)
    assert found.value == value


def test_no_source_is_refused_with_the_mend() -> None:
    with pytest.raises(InputError, match=r"slide7: no mpp.*--mpp"):
        resolve_mpp("slide7")


@pytest.mark.parametrize("value", [0.0, -0.5, 0.049, 20.1, math.nan, math.inf])
def test_an_implausible_mpp_is_refused_when_given_and_passed_over_otherwise(value: float) -> None:
    with pytest.raises(InputError, match=r"slide7: --mpp .*0\.05 and 20"):
        resolve_mpp("slide7", given=value)
    found = resolve_mpp("slide7", metadata=value, array=0.5)
    assert (found.value, found.source) == (0.5, "array")
    assert len(found.warnings) == 1
    assert "metadata" in found.warnings[0]
    with pytest.raises(InputError, match="no mpp"):
        resolve_mpp("slide7", metadata=value)


@settings(deadline=None)
@given(
    pitch=st.floats(5.0, 400.0),
    angle=st.floats(-math.pi, math.pi),
    keep=st.floats(0.4, 1.0),
    jitter=st.floats(0.0, 0.04),
    square=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_pitch_of_a_turned_jittered_and_holed_array(
    pitch: float, angle: float, keep: float, jitter: float, square: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    if square:
        row, col = (a.ravel() for a in np.mgrid[5:17, 3:16])
        xy = np.column_stack([col, row]) * pitch
    else:
        row, col = (a.ravel() for a in np.mgrid[0:12, 0:14])
        col = 2 * col + row % 2
        xy = np.column_stack([col * pitch / 2, row * pitch * math.sqrt(3) / 2])
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    xy = xy @ turn + rng.normal(0, jitter * pitch, xy.shape)
    kept = rng.permutation(len(row))[: int(len(row) * keep)]
    found = array_pitch(row[kept], col[kept], xy[kept])
    assert found is not None
    assert found[1] == ("square" if square else "hex")
    assert found[0] == pytest.approx(pitch, rel=0.03)


def test_pitch_is_unknown_below_two_pairs() -> None:
    xy = np.array([[0.0, 0.0], [10.0, 0.0], [50.0, 50.0]])
    assert array_pitch([0, 0, 5], [0, 1, 5], xy) is None
    assert array_pitch([0, 0, 1], [0, 1, 0], xy) is not None
    assert array_pitch([], [], np.empty((0, 2))) is None
    assert array_pitch([3], [4], np.zeros((1, 2))) is None


def test_pitch_leaves_out_unknown_positions_and_repeats() -> None:
    row, col = np.array([0, 0, 0, 0, 0, np.nan]), np.array([0, 1, 2, 3, 3, 4])
    xy = np.array([[0, 0], [10, 0], [20, 0], [30, 0], [900, 0], [40, 0]], float)
    assert array_pitch(row, col, xy) == (10.0, "square")
    xy[1] = np.nan
    assert array_pitch(row, col, xy) is None  # one pair is left


def test_steps_do_not_wrap_round_to_the_next_row() -> None:
    # the end of row 0 and the start of row 1 are not neighbours, however the positions are numbered
    row, col = np.array([0, 0, 1, 1]), np.array([7, 8, 0, 1])
    xy = np.array([[70, 0], [80, 0], [0, 500], [11, 500]], float)
    assert array_pitch(row, col, xy) == (10.5, "square")


def hexagonal() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    spots = hex_spots()
    return spots["array_row"].to_numpy(), spots["array_col"].to_numpy(), spots[["x", "y"]].to_numpy()


def test_candidates_by_layout() -> None:
    assert mpp_candidates({}, {}, hexagonal()) == {"array": pytest.approx(100 / PITCH_PX)}
    row, col = (a.ravel() for a in np.mgrid[0:6, 0:6])
    legacy = (row, col, np.column_stack([col, row]) * 50.0)
    assert mpp_candidates({}, {}, legacy) == {"array": pytest.approx(4.0)}
    assert mpp_candidates({"spot_pitch_um": 100}, {}, legacy) == {"array": pytest.approx(2.0)}


def test_a_wide_square_grid_has_no_pitch_unless_declared() -> None:
    row, col = (a.ravel() for a in np.mgrid[0:100, 0:100])  # binned data, e.g. Visium HD at 8 µm
    wide = (row, col, np.column_stack([col, row]) * 16.0)
    assert mpp_candidates({}, {}, wide) == {}
    assert mpp_candidates({"spot_pitch_um": 8.0}, {}, wide) == {"array": pytest.approx(0.5)}


def test_space_rangers_spot_diameter_alone_says_nothing() -> None:
    assert mpp_candidates({}, {"spot_diameter_fullres": 130.0}) == {}
    found = mpp_candidates({"spot_diameter_um": 55.0}, {"spot_diameter_fullres": 110.0})
    assert found == {"spot": pytest.approx(0.5)}


def test_stated_metadata() -> None:
    assert mpp_candidates({"um_per_px": 0.69}, {}) == {"metadata": 0.69}
    assert mpp_candidates({"um_per_px": "0.69"}, {}) == {"metadata": 0.69}
    assert mpp_candidates({}, {"microns_per_pixel": 0.27}) == {"metadata": 0.27}
    for nothing in (None, "unknown", "", 0, -1, math.nan, math.inf, [1, 2]):
        assert mpp_candidates({"um_per_px": nothing}, {}) == {}


def test_spots_that_coincide_say_nothing() -> None:
    row, col, xy = hexagonal()
    assert mpp_candidates({}, {}, (row, col, xy * 0)) == {}
