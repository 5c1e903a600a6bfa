from __future__ import annotations

import csv

import anndata as ad
import numpy as np
import pytest
from PIL import Image

from spared_fm.errors import InputError
from spared_fm.slides.synthetic import PITCH_UM, SPOT_UM, generate_study
from spared_fm.slides.synthetic_tissue import draw_stain

SMALL = {"n_slides": 3, "n_genes": 120, "spots_per_side": 9}


def picture(folder):
    with Image.open(folder / "image.jpg") as image:
        return np.asarray(image)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return folder, generate_study(folder, seed=3, **SMALL)


@pytest.fixture(scope="module")
def big_slide(tmp_path_factory):
    """One slide of full size, for what is only visible over many spots."""
    path = generate_study(tmp_path_factory.mktemp("big"), n_slides=3, n_genes=300, mpp=(1.0, 1.0))[0]
    return ad.read_h5ad(path / "counts.h5ad"), picture(path).astype(float)


def test_folders_and_table(study):
    folder, paths = study
    with (folder / "study.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [folder / r["path"] for r in rows] == paths
    assert [r["slide"] for r in rows] == [p.name for p in paths]
    split = {p: {r["split"] for r in rows if r["patient"] == p} for p in {r["patient"] for r in rows}}
    assert split == {"P1": {"train"}, "P2": {"test"}}


def test_layout_is_that_of_real_slides(study, shared_data):
    """Same keys, shapes and dtypes of the Visium convention as the real counts.h5ad."""
    real = ad.read_h5ad(shared_data / "her2st_C2" / "counts.h5ad")
    (truth,) = real.uns["spatial"].values()
    for path in study[1]:
        slide = ad.read_h5ad(path / "counts.h5ad")
        assert list(slide.uns["spatial"]) == [path.name]
        made = slide.uns["spatial"][path.name]
        assert set(truth["scalefactors"]) == set(made["scalefactors"])
        assert set(truth["images"]) == set(made["images"])
        assert made["images"]["hires"].dtype == truth["images"]["hires"].dtype
        assert {"in_tissue", "array_row", "array_col"} <= set(slide.obs.columns)
        assert slide.X.dtype == real.X.dtype
        assert slide.X.format == real.X.format


def test_pixels_micrometres_and_grid_agree(study):
    for path in study[1]:
        slide = ad.read_h5ad(path / "counts.h5ad")
        made = slide.uns["spatial"][path.name]
        meta, factors = made["metadata"], made["scalefactors"]
        width, height = picture(path).shape[1::-1]
        assert (meta["image_width_px"], meta["image_height_px"]) == (width, height)
        assert bool(meta["synthetic"]) is True
        xy = slide.obsm["spatial"]
        assert (xy > SPOT_UM / meta["um_per_px"]).all()
        assert (xy < np.array([width, height]) - SPOT_UM / meta["um_per_px"]).all()
        gap = np.linalg.norm(xy[:, None] - xy[None], axis=2) + np.eye(len(xy)) * 1e9
        assert np.median(gap.min(axis=1)) * meta["um_per_px"] == pytest.approx(PITCH_UM, rel=1e-6)
        assert factors["spot_diameter_fullres"] * meta["um_per_px"] == pytest.approx(SPOT_UM)
        hires = made["images"]["hires"]
        assert hires.shape[1] == pytest.approx(width * factors["tissue_hires_scalef"], abs=1)
        assert ((slide.obs["array_row"] + slide.obs["array_col"]) % 2 == 0).all()
        assert slide.obs_names.is_unique


def test_same_seed_same_study_and_other_seed_another(study, tmp_path):
    again, other = generate_study(tmp_path / "a", seed=3, **SMALL), generate_study(tmp_path / "b", seed=4, **SMALL)
    for first, second in zip(study[1], again, strict=True):
        assert (first / "image.jpg").read_bytes() == (second / "image.jpg").read_bytes()
        one, two = ad.read_h5ad(first / "counts.h5ad"), ad.read_h5ad(second / "counts.h5ad")
        assert (one.X != two.X).nnz == 0
        np.testing.assert_array_equal(one.layers["true_lognorm"], two.layers["true_lognorm"])
    assert (study[1][0] / "image.jpg").read_bytes() != (other[0] / "image.jpg").read_bytes()
    crowding = [list(ad.read_h5ad(p / "counts.h5ad").obs["nuclei_per_mm2"]) for p in (study[1][0], other[0])]
    assert crowding[0] != crowding[1]  # another section, not the same one stained anew


def test_slides_share_genes_and_differ_otherwise(study):
    slides = [ad.read_h5ad(p / "counts.h5ad") for p in study[1]]
    assert all(list(s.var_names) == list(slides[0].var_names) for s in slides)
    pictures = {(p / "image.jpg").read_bytes() for p in study[1]}
    assert len(pictures) == len(slides)


def test_truth_is_noise_free_and_counts_follow_it(big_slide):
    slide, _ = big_slide
    truth = slide.layers["true_lognorm"]
    np.testing.assert_allclose(np.expm1(truth.astype(np.float64)).sum(axis=1), 1e4, rtol=1e-4)
    counts = slide.X.toarray()
    assert counts.min() == 0
    measured = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    markers = slide.var["programme"].isin(["tumour", "stroma", "lymphoid", "adipose"]).to_numpy()
    r = [np.corrcoef(truth[:, g], measured[:, g])[0, 1] for g in np.flatnonzero(markers)]
    assert 0.4 < np.median(r) < 0.95  # the truth shows through the noise, and noise there is
    assert 0.1 < (counts == 0).mean() < 0.6
    library = counts.sum(axis=1)
    assert np.corrcoef(np.log(library), np.log(slide.obs["true_library_size"]))[0, 1] > 0.9
    assert library.std() / library.mean() > 0.25


def test_programmes_follow_their_regions_and_density(big_slide):
    slide, _ = big_slide
    truth = slide.layers["true_lognorm"]
    assert 200 <= slide.n_obs <= 400
    for region in ("tumour", "stroma", "lymphoid", "adipose"):
        here = (slide.obs["region"] == region).to_numpy()
        assert here.sum() >= 10
        genes = (slide.var["programme"] == region).to_numpy()
        assert (truth[here][:, genes].mean(axis=0) > truth[~here][:, genes].mean(axis=0) + 0.3).all()
    density = slide.obs["nuclei_per_mm2"].to_numpy()
    genes = np.flatnonzero(slide.var["programme"] == "density")
    within = (slide.obs["region"] == "tumour").to_numpy()
    r = [np.corrcoef(np.log(density[within] + 200), truth[within, g])[0, 1] for g in genes]
    assert np.mean(r) > 0.3  # also among spots of one region, so that the image tells more than the region


def test_image_shows_what_the_truth_says(big_slide):
    """Patches differ by region as H&E would: fat is bright, lymphoid tissue blue and dark, stroma pink."""
    slide, image = big_slide
    red, green, blue = (
        np.array(
            [image[y - 27 : y + 27, x - 27 : x + 27, c].mean() for x, y in slide.obsm["spatial"].round().astype(int)]
        )
        for c in range(3)
    )
    region = slide.obs["region"].to_numpy()
    green_of = {r: green[region == r].mean() for r in np.unique(region)}
    assert green_of["adipose"] == max(green_of.values())
    pink = red - blue
    assert pink[region == "stroma"].mean() > pink[region == "tumour"].mean() > pink[region == "lymphoid"].mean()
    r = np.corrcoef(red, slide.obs["nuclei_per_mm2"])[0, 1]
    assert r < -0.6  # nuclei take up red light
    tumour = region == "tumour"  # within one region only the nuclei themselves tell their number
    within = np.corrcoef(red[tumour], slide.obs["nuclei_per_mm2"][tumour])[0, 1]
    assert within < -0.6
    corner = image[:40, :40]
    assert corner.min() > 200  # glass


def test_patients_differ_in_hue_and_strength():
    stains = [draw_stain(np.random.default_rng(i)) for i in range(6)]
    for dye in ("hematoxylin", "eosin"):
        density = np.array([getattr(s, dye) for s in stains])
        strength = np.linalg.norm(density, axis=1)
        hue = density / strength[:, None]
        assert strength.std() > 0.05
        assert hue.std(axis=0).max() > 0.01
        assert (hue @ hue.T).min() > 0.95  # the same dye still


def test_impossible_studies_are_refused(tmp_path):
    for bad in ({"n_patients": 1}, {"n_slides": 2}, {"n_slides": 1}, {"spots_per_side": 1}, {"mpp": (0.0, 1.0)}):
        with pytest.raises(InputError):
            generate_study(tmp_path / "never", **bad)
    assert not (tmp_path / "never").exists()
