from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from spared_fm.errors import InputError
from spared_fm.targets.normalize import lognorm
from spared_fm.targets.panel import MORAN_MIN_SPOTS, fit_panel, morans_i, select_panel, shared_genes
from tests.targets.conftest import hex_grid


def test_variance_equals_pooled_numpy_variance(make_slide):
    slides = {f"s{i}": make_slide(i, rows=4 + i) for i in range(3)}
    found = fit_panel(slides, n_genes=30, panel="variance")
    pooled = np.vstack([lognorm(s.X.toarray()) for s in slides.values()]).astype(np.float64)
    expected = dict(zip(slides["s0"].var_names, pooled.var(axis=0), strict=True))
    np.testing.assert_allclose(found.scores, [expected[g] for g in found.genes], rtol=1e-10)
    assert found.genes == sorted(expected, key=lambda g: (-expected[g], g))


def test_variance_does_not_cancel_on_a_large_mean():
    """E[x²] − E[x]² in float32 would return noise here."""
    import anndata as ad

    counts = np.full((200, 2), 10**6)
    counts[::2, 1] += 200
    slide = ad.AnnData(X=sp.csr_matrix(counts), obs={"total_counts": np.full(200, 1e4)})
    slide.var_names = ["flat", "wavy"]
    found = fit_panel({"s": slide}, n_genes=2, panel="variance")
    assert found.genes == ["wavy", "flat"]
    assert found.scores[0] == pytest.approx(np.var(lognorm(counts, np.full(200, 1e4)).astype(np.float64)[:, 1]))
    assert found.scores[1] < 1e-12


@pytest.mark.parametrize("panel", ["variance", "moran", "hvg"])
def test_order_of_slides_and_of_genes_does_not_matter(make_slide, panel):
    a, b = make_slide(1), make_slide(2)
    one = fit_panel({"a": a, "b": b}, n_genes=12, panel=panel)
    other = fit_panel({"b": b[:, ::-1].copy(), "a": lambda: a[:, ::-1].copy()}, n_genes=12, panel=panel)
    assert one.genes == other.genes
    np.testing.assert_array_equal(one.scores, other.scores)
    assert len(set(one.genes)) == 12


def scores_of(panel):
    return dict(zip(panel.genes, panel.scores, strict=True))


@pytest.mark.parametrize("panel", ["variance", "moran"])
def test_ties_go_by_name(make_slide, panel):
    """Three kinds of gene, twenty equal ones of each, mixed: a sort that is not stable would shuffle them."""
    slide = make_slide(3, n_genes=60)
    kinds = slide.X[:, [4, 9, 14]].toarray()
    slide.X = sp.csr_matrix(np.tile(kinds, 20))
    slide.obs["total_counts"] = 1000
    names = list(slide.var_names)
    found = fit_panel({"s": slide}, n_genes=60, panel=panel, genes=names[::-1])
    assert len(set(found.scores)) == 3
    assert found.genes == [
        g for score in sorted(set(found.scores))[::-1] for g in names if scores_of(found)[g] == score
    ]


def test_moran_finds_the_spatial_gene(make_slide):
    slide = make_slide(4, rows=10, cols=10)
    dense = slide.X.toarray()
    dense[:, 7] = np.where(np.arange(100) < 50, 40, 1)  # top half of the grid
    slide.X = sp.csr_matrix(dense)
    found = fit_panel({"s": slide}, n_genes=3, panel="moran")
    assert found.genes[0] == "g07"
    assert found.scores[0] > 0.6 > found.scores[1]


@pytest.mark.parametrize(("layout", "k"), [("hex", 6), ("square", 8), (None, 6)])
def test_moran_equals_its_definition(layout, k):
    rng = np.random.default_rng(5)
    xy = hex_grid(8, 8)[2]
    x = rng.poisson(2.0, (64, 5)).astype(np.float32)
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=2).round(9)
    np.fill_diagonal(distance, np.inf)
    weights = np.zeros((64, 64))
    np.put_along_axis(weights, np.argsort(distance, axis=1, kind="stable")[:, :k], 1 / k, axis=1)
    z = x - x.mean(axis=0)
    expected = 64 / weights.sum() * (z * (weights @ z)).sum(axis=0) / (z**2).sum(axis=0)
    np.testing.assert_allclose(morans_i(sp.csr_matrix(x), xy, layout), expected, rtol=1e-4, atol=1e-6)


def test_rare_and_constant_genes_have_a_moran_of_zero():
    xy = hex_grid(6, 6)[2]
    x = np.zeros((36, 4), np.float32)
    x[: MORAN_MIN_SPOTS - 1, 0] = 5
    x[:MORAN_MIN_SPOTS, 1] = 5
    x[:, 2] = 3
    score = morans_i(sp.csr_matrix(x), xy, "hex")
    assert score[[0, 2, 3]].tolist() == [0, 0, 0]
    assert score[1] > 0.3


def test_hvg_are_scanpys_own(make_slide):
    import anndata as ad
    import scanpy as sc

    slides = {s: make_slide(i, n_genes=80, rows=12) for i, s in enumerate("ab")}
    pooled = ad.concat(slides, label="slide", index_unique="-")
    sc.pp.normalize_total(pooled, target_sum=1e4)
    sc.pp.log1p(pooled)
    sc.pp.highly_variable_genes(pooled, n_top_genes=20, flavor="seurat", batch_key="slide")
    assert set(select_panel(slides, n_genes=20, panel="hvg")) == set(pooled.var_names[pooled.var.highly_variable])


def test_totals_given_or_stored_are_used(make_slide):
    slide = make_slide(6)
    totals = np.random.default_rng(0).integers(500, 5000, slide.n_obs)
    given = fit_panel({"s": slide}, n_genes=5, panel="variance", totals={"s": totals})
    stored = slide.copy()
    stored.obs["total_counts"] = totals
    assert fit_panel({"s": stored}, n_genes=5, panel="variance").scores.tolist() == given.scores.tolist()
    assert fit_panel({"s": slide}, n_genes=5, panel="variance").scores.tolist() != given.scores.tolist()


def test_file_keeps_its_order(make_slide, tmp_path):
    listed = tmp_path / "genes.txt"
    listed.write_text("# marker genes\ng07\n\n g02 \ng11\n")
    found = fit_panel({"s": make_slide()}, n_genes=128, panel=str(listed))
    assert found.genes == ["g07", "g02", "g11"]
    assert np.isnan(found.scores).all()


@pytest.mark.parametrize(
    ("text", "says"),
    [("g01\nNOPE\n", "NOPE"), ("", "names no gene"), ("g01\ng01\n", "g01 named more than once")],
)
def test_bad_files_are_refused(make_slide, tmp_path, text, says):
    listed = tmp_path / "genes.txt"
    listed.write_text(text)
    with pytest.raises(InputError, match=says):
        select_panel({"s": make_slide()}, n_genes=3, panel=str(listed))


def test_binary_file_is_refused(make_slide, tmp_path):
    (tmp_path / "genes.bin").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(InputError, match=r"genes\.bin"):
        select_panel({"s": make_slide()}, n_genes=3, panel=str(tmp_path / "genes.bin"))


def test_bad_requests_are_refused(make_slide):
    slide = make_slide()
    with pytest.raises(InputError, match=r"31 genes .* the 30 that"):
        select_panel({"s": slide}, n_genes=31, panel="variance")
    with pytest.raises(InputError, match="0 genes"):
        select_panel({"s": slide}, n_genes=0, panel="variance")
    with pytest.raises(InputError, match="unknown panel 'varience'"):
        select_panel({"s": slide}, n_genes=3, panel="varience")
    with pytest.raises(InputError, match="training slide"):
        select_panel({}, n_genes=3, panel="variance")


def test_hvg_without_any_dispersion_is_refused(make_slide):
    slide = make_slide()
    slide.X = sp.csr_matrix(np.ones(slide.shape, np.int32))
    with pytest.raises(InputError, match="no highly variable genes"):
        select_panel({"s": slide}, n_genes=3, panel="hvg")


def test_symbols_against_ensembl_ids_are_named():
    with pytest.raises(InputError, match=r"b \(for example ENSG01\).*Ensembl"):
        shared_genes({"a": ["TP53"], "c": ["TP53", "ACTB"], "b": ["ENSG01"]})
