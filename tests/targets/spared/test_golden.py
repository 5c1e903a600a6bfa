"""``mode="spared"`` against what package spared 2.2.1 makes of the same counts (see record_golden.py)."""

from __future__ import annotations

import numpy as np
import pytest

from spared_fm.targets import process_dataset
from tests.targets.spared.golden import CASES, GOLDEN, sample


@pytest.mark.parametrize("case", ["hex", "her2st"])
def test_it_reproduces_the_released_package(case: str, request: pytest.FixtureRequest) -> None:
    make, params = CASES[case]
    needed = [request.getfixturevalue("shared_data") / "her2st_counts.h5ad"] if case == "her2st" else []
    ours = sample(process_dataset(make(*needed), params))
    with np.load(GOLDEN / f"{case}.npz", allow_pickle=False) as theirs:
        assert set(ours) == set(theirs)
        for name, values in ours.items():
            if name in ("genes", "spots", "mask", "rows", "columns", "layer_counts"):
                np.testing.assert_array_equal(values, theirs[name], err_msg=name)
            else:
                bar = 1e-3 if "c_" in name else 1e-4
                np.testing.assert_allclose(values, theirs[name], rtol=0, atol=bar, err_msg=name)
