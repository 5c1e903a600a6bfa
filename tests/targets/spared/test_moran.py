from __future__ import annotations

import numpy as np

from spared_fm.targets.spared.graph import slide_graph
from spared_fm.targets.spared.moran import morans_i
from tests.targets.spared.synthetic import hex_xy


def test_it_is_the_textbook_formula() -> None:
    rng = np.random.default_rng(0)
    graph = slide_graph(hex_xy(5, 6))
    values = rng.gamma(2, size=(30, 4))
    w = graph.toarray() / graph.toarray().sum(axis=1, keepdims=True)
    expected = []
    for x in values.T:
        z = x - x.mean()
        expected.append(30 / w.sum() * sum(w[i, j] * z[i] * z[j] for i in range(30) for j in range(30)) / (z @ z))
    np.testing.assert_allclose(morans_i(values, graph), expected, rtol=1e-10)


def test_spots_without_neighbours_carry_no_weight() -> None:
    xy = np.vstack([hex_xy(5, 6), [[100, 100]]])
    graph = slide_graph(xy, hex_geometry=False)
    assert graph[[30]].nnz == 0
    x = np.random.default_rng(1).gamma(2, size=(31, 1))
    w, z = graph.toarray(), (x - x.mean())[:, 0]
    w = w / np.maximum(w.sum(axis=1, keepdims=True), 1)
    np.testing.assert_allclose(morans_i(x, graph), [31 / w.sum() * (z @ w @ z) / (z @ z)], rtol=1e-10)


def test_a_constant_gene_and_a_single_spot_have_no_score() -> None:
    assert np.isnan(morans_i(np.full((30, 1), 0.1), slide_graph(hex_xy(5, 6)))).all()
    assert np.isnan(morans_i(np.ones((1, 2)), slide_graph(np.zeros((1, 2))))).all()


def test_a_gradient_scores_high_and_noise_does_not() -> None:
    xy = hex_xy(12, 12)
    values = np.column_stack([xy[:, 0], np.random.default_rng(2).normal(size=144)])
    gradient, noise = morans_i(values, slide_graph(xy))
    assert gradient > 0.8
    assert abs(noise) < 0.2
