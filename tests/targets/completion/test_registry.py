from __future__ import annotations

import json
import subprocess
import sys

import anndata as ad
import numpy as np
import pytest

from spared_fm.errors import InputError
from spared_fm.targets.completion import registry
from spared_fm.targets.completion.baselines import AdaptiveMedian, GeneMean
from spared_fm.targets.completion.cohort import complete_layer
from spared_fm.targets.completion.data import Completer, Panel, panel_of
from spared_fm.targets.completion.hiding import section
from spared_fm.targets.completion.registry import METHODS, layer_name
from spared_fm.targets.neighbors import knn_graph
from spared_fm.targets.normalize import lognorm
from spared_fm.targets.spared.graph import hops_around
from spared_fm.targets.spared.median import complete_median
from tests.targets.completion.slides import study


@pytest.fixture
def cohort(make_slide):
    slides = {"a": make_slide(0, n_genes=12), "b": make_slide(1, n_genes=12)}
    slides["b"].obs["array_row"], slides["b"].obs["array_col"] = np.divmod(np.arange(42), 7)  # a square grid
    joined = ad.concat(slides, label="slide", index_unique="/")
    joined.layers["lognorm"] = lognorm(joined.X.toarray())
    joined.layers["mask"] = joined.layers["lognorm"] > 0
    return joined


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_a_completer_by_its_name(name):
    found = registry.method(name)
    assert found.name == name
    assert all(hasattr(found, part) for part in ("fit", "complete", "save", "load"))
    assert isinstance(found(), Completer)


def test_prefixes_differ():
    assert len({method.prefix for method in METHODS.values()}) == len(METHODS)


def test_nothing_heavy_is_imported_before_it_is_needed():
    code = "import sys, spared_fm.targets.completion.registry as r; r.method('gene-mean'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_is_loaded_by_the_method_that_wrote_it(tmp_path):
    given = [section(one) for one in study() if one.split == "train"]
    genes = [f"g{i}" for i in range(10)]
    GeneMean().fit(given, [], panel_of(given, genes)).save(tmp_path / "c")
    assert isinstance(registry.load(tmp_path / "c", genes), GeneMean)
    with pytest.raises(InputError, match="another panel"):
        registry.load(tmp_path / "c", genes[::-1])
    with pytest.raises(InputError, match="not a fitted completer"):
        registry.load(tmp_path)
    card = tmp_path / "c" / "card.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"name": "os.system"}))
    with pytest.raises(InputError, match=r"unknown completion 'os\.system'"):
        registry.load(tmp_path / "c")


def test_layers_are_named_as_spared_names_them():
    assert layer_name("adaptive-median", "log1p") == "d_log1p"
    assert layer_name("spackle", "c_d_log1p") == layer_name("spackle", "c_log1p") == "c_t_log1p"
    assert layer_name("spackle-released", "c_log1p") == "c_tr_log1p"


def test_each_slide_is_completed_alone_on_its_own_grid(cohort):
    cohort = cohort[np.random.default_rng(0).permutation(cohort.n_obs)].copy()  # slides need not lie together
    panel = Panel(tuple(cohort.var_names), np.ones(cohort.n_vars))
    found, spread = complete_layer(cohort, AdaptiveMedian().fit([], [], panel), "lognorm")
    assert spread is None
    for slide, k in (("a", 6), ("b", 8)):
        rows = (cohort.obs["slide"] == slide).to_numpy()
        hops = hops_around(knn_graph(cohort.obsm["spatial"][rows], k))
        wanted = complete_median(np.asarray(cohort.layers["lognorm"][rows]), hops)
        np.testing.assert_array_equal(found[rows], wanted.astype(np.float32))
    mask = cohort.layers["mask"]
    np.testing.assert_array_equal(found[mask], cohort.layers["lognorm"][mask])
    assert (found[~mask] > 0).any()


def test_unknown_methods_are_refused():
    with pytest.raises(InputError, match="unknown completion 'magic': choose"):
        registry.method("magic")
