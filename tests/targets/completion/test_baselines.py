from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from spared_fm.errors import InputError
from spared_fm.targets.completion.baselines import AdaptiveMedian, GeneMean, NeighborMean, gene_moments
from spared_fm.targets.completion.data import Panel, Section, panel_of, without
from spared_fm.targets.completion.hiding import section
from spared_fm.targets.completion.lowrank import LowRankGaussian
from spared_fm.targets.neighbors import knn_graph, nearest
from spared_fm.targets.spared.graph import hops_around
from spared_fm.targets.spared.median import complete_median
from tests.targets.completion.slides import study
from tests.targets.conftest import hex_grid

METHODS = [AdaptiveMedian, NeighborMean, GeneMean, LowRankGaussian]
GENES = tuple(f"g{i}" for i in range(10))


@pytest.fixture(scope="module")
def slides():
    return {one.slide: section(one) for one in study()}


@pytest.fixture(scope="module")
def fitted(slides):
    train = [slides[name] for name in ("t1", "t2", "t3")]
    return {cls.name: cls().fit(train, [slides["v"]], panel_of(train, GENES)) for cls in METHODS}


def test_the_median_is_that_of_the_compiled_rule(slides, fitted):
    one = slides["x"]
    hops = hops_around(knn_graph(one.xy, 6))
    found = fitted["adaptive-median"].complete(one).values
    np.testing.assert_array_equal(found, complete_median(one.values, hops).astype(np.float32))
    assert found[one.visible].tobytes() == one.values[one.visible].tobytes()


@pytest.mark.parametrize("first", [1, 2])
def test_neighbours_are_averaged_over_a_growing_ring(slides, fitted, first):
    """Against a loop over the entries."""
    one = without(slides["x"], np.random.default_rng(0).random(slides["x"].values.shape) < 0.7)
    completer = NeighborMean()
    completer.genes, completer.mean, completer.first = GENES, fitted["gene-mean"].mean, first
    found = completer.complete(one).values
    step = nearest(one.xy, one.k)
    some = [*np.argwhere(one.visible)[::40], *np.argwhere(~one.visible)[::40]]  # visible ones as if they were not
    for spot, gene in some:
        reached = {int(spot)}
        wanted = completer.mean[gene]
        for hop in range(1, 5):
            reached |= {int(j) for i in reached for j in step[i]}
            seen = [j for j in reached - {spot} if one.visible[j, gene]]
            if hop >= first and seen:
                wanted = one.values[seen, gene].mean()
                break
        assert found[spot, gene] == pytest.approx(wanted, rel=1e-5)


def test_neighbour_means_fall_back_to_the_training_mean(fitted):
    one = Section("far", np.zeros((7, 10), np.float32), np.zeros((7, 10), bool), hex_grid(1, 7)[2], np.zeros(7), 6)
    np.testing.assert_allclose(fitted["neighbor-mean"].complete(one).values[0], fitted["gene-mean"].mean, rtol=1e-6)


def test_the_first_ring_is_chosen_on_validation_slides(slides):
    """Near where expression is smooth, far where it is noise."""
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 30, (400, 2))
    smooth = np.repeat(xy[:, :1] / 3 + 1, 10, axis=1) + rng.normal(0, 0.02, (400, 10))
    rough = np.abs(5 + rng.normal(0, 1, (400, 10)))
    panel = Panel(GENES, np.full(10, 0.6))
    for values, first in ((smooth, 1), (rough, 3)):
        one = Section("v", values.astype(np.float32), np.ones((400, 10), bool), xy, np.ones(400), 6)
        assert NeighborMean().fit([one], [one], panel).first == first
    assert NeighborMean().fit([one], [], panel).first == 2


def test_gene_means_leave_out_what_is_not_visible():
    values = np.array([[1, 0], [3, 0], [0, 0]], np.float32)
    one = Section("s", values, np.array([[1, 0], [1, 0], [0, 0]], bool), np.eye(3, 2), np.ones(3), 6)
    mean, deviation = gene_moments([one, one], 2)
    np.testing.assert_array_equal(mean, [2, 0])
    np.testing.assert_array_equal(deviation, [1, 0])
    completed = GeneMean().fit([one], [], panel_of([one], ["a", "b"])).complete(one)
    np.testing.assert_array_equal(completed.values, [[2, 0]] * 3)
    np.testing.assert_array_equal(completed.spread, [[1, 0]] * 3)


@pytest.mark.parametrize("name", [cls.name for cls in METHODS])
class TestEveryBaseline:
    def test_it_is_read_as_it_was_written(self, slides, fitted, name, tmp_path):
        fitted[name].save(tmp_path / "c")
        again = type(fitted[name]).load(tmp_path / "c", GENES)
        one, two = fitted[name].complete(slides["x"]), again.complete(slides["x"])
        assert one.values.tobytes() == two.values.tobytes()
        assert (one.spread is None) == (two.spread is None)
        assert {file.name for file in (tmp_path / "c").iterdir()} == {"card.json", "arrays.safetensors"}
        with pytest.raises(InputError, match="another panel"):
            type(fitted[name]).load(tmp_path / "c", [*GENES[:-1], "other"])

    def test_a_slide_of_few_spots_is_completed(self, slides, fitted, name):
        for n in (1, 2, 7, 18):
            few = rows(slides["x"], slice(0, n))
            completed = fitted[name].complete(few)
            assert completed.values.shape == (n, 10)
            assert completed.values.dtype == np.float32
            assert np.isfinite(completed.values).all()

    def test_a_gene_missing_on_the_slide_and_spots_without_anything(self, slides, fitted, name):
        gone = np.zeros(slides["x"].visible.shape, bool)
        gone[:, 2] = gone[5] = gone[6] = True
        one = without(slides["x"], gone)
        completed = fitted[name].complete(one)
        assert np.isfinite(completed.values).all()
        if name == "adaptive-median":  # SpaRED's rule: nothing is known of the gene
            assert not completed.values[:, 2].any()
        else:
            assert (completed.values[:, 2] > 0).all()
        empty = fitted[name].complete(without(one, np.ones(gone.shape, bool)))
        assert np.isfinite(empty.values).all()

    def test_slides_do_not_touch_each_other(self, slides, fitted, name):
        before = fitted[name].complete(slides["x"]).values.tobytes()
        fitted[name].complete(slides["t1"])
        assert fitted[name].complete(slides["x"]).values.tobytes() == before

    def test_another_number_of_genes_is_refused(self, slides, fitted, name):
        with pytest.raises(InputError, match="slide x has 4 genes"):
            fitted[name].complete(genes(slides["x"], slice(0, 4)))


def rows(one: Section, which: slice) -> Section:
    return replace(
        one,
        values=one.values[which],
        visible=one.visible[which],
        xy=one.xy[which],
        library=one.library[which],
        unit=one.unit[which],
    )


def genes(one: Section, which: slice) -> Section:
    return replace(one, values=one.values[:, which], visible=one.visible[:, which], unit=one.unit[:, which])
