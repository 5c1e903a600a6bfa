from __future__ import annotations

import numpy as np
import pytest
import torch

from spared_fm.errors import InputError
from spared_fm.heads.models.graph_layers import neighbour_mean, offset_cells
from spared_fm.heads.models.hist2st import Hist2ST
from spared_fm.heads.models.histogene import HisToGene
from spared_fm.heads.models.pieces import Piece, cut, pitch
from spared_fm.heads.models.sgn import SGN
from spared_fm.heads.models.triplex import Triplex
from tests.heads.models.lattice import SIDE, SPOTS, planted

SMALLEST = {"steps": 5, "depth": 1, "width": 8}
HEADS = [HisToGene, Hist2ST, SGN, Triplex]


@pytest.fixture(scope="module", params=HEADS, ids=lambda kind: kind.name)
def fitted(request):
    X, y, where = planted(slides=3)
    return request.param(**SMALLEST).fit(X, y, **where)


def test_same_seed_same_head_and_saved_weights(fitted):
    X, y, where = planted(slides=3)
    found = fitted.predict(X, **where)
    assert found.shape == y.shape
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:, 2], 7.0, rtol=1e-6)
    again = type(fitted)(**SMALLEST).fit(X, y, **where)
    np.testing.assert_array_equal(again.predict(X, **where), found)
    loaded = type(fitted).from_state(fitted.get_params(), fitted.state())
    np.testing.assert_array_equal(loaded.predict(X, **where), found)
    assert fitted.label == "small"


def test_a_slide_is_predicted_from_itself_and_its_neighbours_count(fitted):
    X, _, where = planted(slides=3)
    found = fitted.predict(X, **where)
    own = {key: value[SPOTS : 2 * SPOTS] for key, value in where.items()}
    np.testing.assert_array_equal(fitted.predict(X[SPOTS : 2 * SPOTS], **own), found[SPOTS : 2 * SPOTS])
    head = type(fitted).from_state(fitted.get_params() | {"standardize": "train"}, fitted.state())
    moved = X.copy()
    moved[0] += 3.0
    change = np.abs(head.predict(moved, **where) - head.predict(X, **where)).max(axis=1)
    assert change[[0, 1, SIDE]].min() > 0
    assert change[SPOTS:].max() == 0
    far = where | {"coords": where["coords"] * 17.0 - 4.0}  # the unit and the origin don't matter
    np.testing.assert_allclose(fitted.predict(X, **far), found, rtol=1e-5)


def test_large_slides_are_cut(fitted):
    X, _, where = planted(slides=3)
    head = type(fitted).from_state(fitted.get_params() | {"max_spots": 9, "standardize": "train"}, fitted.state())
    moved = X.copy()
    moved[0] += 3.0  # corner of the first of four pieces, three by three
    change = np.abs(head.predict(moved, **where) - head.predict(X, **where)).max(axis=1)[:SPOTS].reshape(SIDE, SIDE)
    assert (change[:3, :3] > 0).any()
    change[:3, :3] = 0
    assert change.max() == 0


def test_few_spots_and_no_spots(fitted):
    X, _, where = planted(slides=3)
    few = {key: value[:1] for key, value in where.items()}
    assert np.isfinite(fitted.predict(X[:1], **few)).all()
    none = {key: value[:0] for key, value in where.items()}
    assert fitted.predict(X[:0], **none).shape == (0, 3)
    with pytest.raises(InputError, match="needs coords"):
        fitted.predict(X)


@pytest.mark.parametrize("kind", HEADS)
def test_one_training_spot_is_learnt_by_heart(kind):
    X, y, where = planted(slides=1)
    one = {key: value[:1] for key, value in where.items()}
    head = kind(**SMALLEST, as_published=True).fit(X[:1], y[:1], **one)
    np.testing.assert_allclose(head.predict(X[:1], **one), y[:1], rtol=1e-6)


def test_only_measured_entries_are_fitted():
    X, y, where = planted(slides=3)
    mask = np.random.default_rng(1).uniform(size=y.shape) < 0.7
    mask[:2] = True
    heads = []
    for filled in (0.0, 9.0):
        head = HisToGene(**SMALLEST, fit_on="measured").fit(X, np.where(mask, y, filled), mask, **where)
        heads.append(head.predict(X, **where))
    np.testing.assert_array_equal(*heads)
    with pytest.raises(InputError, match="no mask"):
        HisToGene(**SMALLEST, fit_on="measured").fit(X, y, **where)


@pytest.mark.parametrize("bad", [{"depth": 0}, {"width": 6}, {"dropout": 1.0}, {"fit_on": "some"}, {"max_spots": 0}])
def test_bad_parameters(bad):
    X, y, where = planted(slides=1)
    with pytest.raises(InputError, match=next(iter(bad))):
        HisToGene(**SMALLEST | bad).fit(X, y, **where)


def test_positions_are_in_spot_distances():
    xy = np.indices((4, 3)).reshape(2, -1).T * 35.0
    assert pitch(np.repeat(xy, 2, axis=0)) == 35.0
    assert pitch(xy[:1]) == 1.0
    (piece,) = cut(xy + 900.0, 12)
    np.testing.assert_allclose(piece.xy, xy / 35.0)
    assert cut(xy[:0], 12) == []


def test_nearest_spots_within_reach():
    piece = Piece(np.arange(3), np.array([[0.0, 0.0], [1.0, 0.0], [9.0, 0.0]]))
    np.testing.assert_array_equal(piece.nearest(3, 2.0), [[0, 1, -1, -1], [1, 0, -1, -1], [2, -1, -1, -1]])
    np.testing.assert_array_equal(piece.nearest(1, itself=False), [[1], [0], [1]])


def test_a_neighbour_is_shared_between_cells():
    xy = np.array([[0.0, 0.0], [1.0, 0.0], [0.25, -1.0], [5.0, 5.0]])
    cells = offset_cells(xy, np.array([[0, 1, 2, 3, -1]] * 4), 1)[0].numpy()
    np.testing.assert_allclose(cells[0].reshape(3, 3), [[0, 0, 0], [0, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(cells[1].reshape(3, 3), [[0, 0, 0], [0, 0, 1], [0, 0, 0]])
    np.testing.assert_allclose(cells[2].reshape(3, 3), [[0, 0.75, 0.25], [0, 0, 0], [0, 0, 0]])
    assert cells[3:].max() == 0


def test_mean_over_the_spots_that_are_there():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [8.0, 9.0]])
    found = neighbour_mean(x, torch.tensor([[1, 2], [0, -1], [-1, -1]]))
    torch.testing.assert_close(found, torch.tensor([[5.5, 6.5], [1.0, 2.0], [0.0, 0.0]]))
    torch.testing.assert_close(neighbour_mean(torch.stack([x, -x]), torch.tensor([[1, 2]]))[1], -found[:1])
