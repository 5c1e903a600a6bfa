from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from spared_fm.errors import InputError
from spared_fm.targets.normalize import lognorm
from spared_fm.targets.panel import fit_panel, read_panel, shared_genes


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


@pytest.mark.parametrize("panel", ["variance", "hvg"])
def test_order_of_slides_and_of_genes_does_not_matter(make_slide, panel):
    a, b = make_slide(1), make_slide(2)
    one = fit_panel({"a": a, "b": b}, n_genes=12, panel=panel)
    other = fit_panel({"b": b[:, ::-1].copy(), "a": lambda: a[:, ::-1].copy()}, n_genes=12, panel=panel)
    assert one.genes == other.genes
    np.testing.assert_array_equal(one.scores, other.scores)
    assert len(set(one.genes)) == 12


def scores_of(panel):
    return dict(zip(panel.genes, panel.scores, strict=True))


def test_ties_go_by_name(make_slide):
    """Three kinds of gene, twenty equal ones of each, mixed: a sort that is not stable would shuffle them."""
    slide = make_slide(3, n_genes=60)
    kinds = slide.X[:, [4, 9, 14]].toarray()
    slide.X = sp.csr_matrix(np.tile(kinds, 20))
    slide.obs["total_counts"] = 1000
    names = list(slide.var_names)
    found = fit_panel({"s": slide}, n_genes=60, panel="variance", genes=names[::-1])
    assert len(set(found.scores)) == 3
    assert found.genes == [
        g for score in sorted(set(found.scores))[::-1] for g in names if scores_of(found)[g] == score
    ]


def test_hvg_are_scanpys_own(make_slide):
    import anndata as ad
    import scanpy as sc

    slides = {s: make_slide(i, n_genes=80, rows=12) for i, s in enumerate("ab")}
    pooled = ad.concat(slides, label="slide", index_unique="-")
    sc.pp.normalize_total(pooled, target_sum=1e4)
    sc.pp.log1p(pooled)
    sc.pp.highly_variable_genes(pooled, n_top_genes=20, flavor="seurat", batch_key="slide")
    assert set(fit_panel(slides, n_genes=20, panel="hvg").genes) == set(pooled.var_names[pooled.var.highly_variable])


def test_stored_totals_are_used(make_slide):
    slide = make_slide(6)
    stored = slide.copy()
    stored.obs["total_counts"] = np.random.default_rng(0).integers(500, 5000, slide.n_obs)
    found = fit_panel({"s": stored}, n_genes=5, panel="variance")
    expected = lognorm(slide.X.toarray(), stored.obs["total_counts"].to_numpy()).astype(np.float64).var(axis=0)
    np.testing.assert_allclose(found.scores, np.sort(expected)[::-1][:5], rtol=1e-10)


def test_a_list_keeps_its_order(make_slide, tmp_path):
    listed = tmp_path / "genes.txt"
    listed.write_text("# marker genes\ng07\n\n g02 \ng11\n")
    found = fit_panel({"s": make_slide()}, n_genes=128, panel=read_panel(listed))
    assert found.genes == ["g07", "g02", "g11"]
    assert np.isnan(found.scores).all()
    with pytest.raises(InputError, match="NOPE"):
        fit_panel({"s": make_slide()}, n_genes=3, panel=["g01", "NOPE"])


@pytest.mark.parametrize(
    ("text", "says"),
    [(b"", "names no gene"), (b"g01\ng01\n", "g01 named more"), (b"\xff\xfe\x00\xd8", "not a readable")],
)
def test_bad_files_are_refused(tmp_path, text, says):
    listed = tmp_path / "genes.txt"
    listed.write_bytes(text)
    with pytest.raises(InputError, match=says):
        read_panel(listed)
    with pytest.raises(InputError, match="unknown panel 'varience'"):
        read_panel("varience")


def test_bad_requests_are_refused(make_slide):
    slide = make_slide()
    with pytest.raises(InputError, match=r"31 genes .* the 30 that"):
        fit_panel({"s": slide}, n_genes=31, panel="variance")
    with pytest.raises(InputError, match="0 genes"):
        fit_panel({"s": slide}, n_genes=0, panel="variance")
    with pytest.raises(InputError, match="unknown panel 'varience'"):
        fit_panel({"s": slide}, n_genes=3, panel="varience")
    with pytest.raises(InputError, match="training slide"):
        fit_panel({}, n_genes=3, panel="variance")


def test_hvg_without_any_dispersion_is_refused(make_slide):
    slide = make_slide()
    slide.X = sp.csr_matrix(np.ones(slide.shape, np.int32))
    with pytest.raises(InputError, match="no highly variable genes"):
        fit_panel({"s": slide}, n_genes=3, panel="hvg")


def test_symbols_against_ensembl_ids_are_named():
    with pytest.raises(InputError, match=r"b \(for example ENSG01\).*Ensembl"):
        shared_genes({"a": ["TP53"], "c": ["TP53", "ACTB"], "b": ["ENSG01"]})
