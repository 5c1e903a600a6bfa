"""The registry of SpaRED's data sets: that it is the published one, and what its reader refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from spared_fm.errors import InputError
from spared_fm.targets.datasets import FILE, dataset, datasets, read_datasets, same_slides

ALL = datasets()


def test_totals_are_the_papers():
    assert len(ALL) == 26
    assert sum(one.organism == "human" for one in ALL.values()) == 14
    assert sum(len(one.slides) for one in ALL.values()) == 105
    assert len({slide for one in ALL.values() for slide in one.slides}) == 97
    assert sum(one.patients for one in ALL.values()) == 35
    assert sum(one.spots for one in ALL.values()) == 308_843
    assert len({one.abbreviation for one in ALL.values()}) == 26
    assert sorted(one.genes for one in ALL.values()) == [32] * 6 + [128] * 20
    assert sum(one.scored_on == "val" for one in ALL.values()) == 15
    # the seven sets of several patients correct batches by patient, the others by slide
    assert {one.combat_key for one in ALL.values() if one.patients > 1} == {"patient"}
    assert {one.combat_key for one in ALL.values() if one.patients == 1} == {"slide_id"}


def test_traps():
    assert same_slides("mirzazadeh_mouse_brain") == {
        "mirzazadeh_mouse_brain_p1": dataset("MMBR").train,
        "mirzazadeh_mouse_brain_p2": dataset("MMBR").val + dataset("MMBR").test,
    }
    assert [name for name in ALL if same_slides(name)] == [
        name for name in ALL if name.startswith("mirzazadeh_mouse_brain")
    ]
    assert [name for name, one in ALL.items() if one.counts == "normalised"] == ["parigi_mouse_intestine"]
    assert {name: one.cell_min_counts for name, one in ALL.items() if one.cell_min_counts != 10} == {
        "mirzazadeh_human_small_intestine": 800
    }


def test_a_set_gives_its_split_patients_and_parameters():
    one = dataset("villacampa_mouse_brain")
    assert one is dataset("vlmb")
    assert one.split["V10F24-078_D1"] == "val"
    assert one.patient == {slide: slide[:10] for slide in one.slides}
    assert dataset("PMI").patient == {"B1_S2": "S2", "A1_S1": "S1"}
    assert set(dataset("10XGHB").patient.values()) == {"unique"}
    parameters = one.parameters
    assert parameters["top_moran_genes"] == 32
    assert parameters["real_data_percentage"] == 0.7
    assert parameters["gene_max_counts"] == 1e6
    parameters["top_moran_genes"] = 0
    assert one.parameters["top_moran_genes"] == 32


def test_an_unknown_name_is_met_with_close_ones():
    with pytest.raises(InputError, match=r"did you mean fan_mouse_olfatory_bulb"):
        dataset("fan_mouse_olfactory_bulb")
    with pytest.raises(InputError, match=r"lists the 26"):
        dataset("zzz")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('organism = "human"', 'organism = "rat"', "organism is 'rat'; expected human or mouse"),
        ("spots = 9882", "spots = 9882.5", "spots is 9882.5; expected a whole number"),
        ("missing = 21\n", "missing = 210\n", "missing is 210; expected a whole percentage"),
        ("genes = 128\n", "", "field 'genes' is missing"),
        ("genes = 128\n", "genes = 128\ngene = 1\n", "unknown field 'gene'"),
        ('val = ["V1_Human_Brain_Section_2"]', 'val = ["V1_Human_Brain_Section_1"]', "listed twice"),
        ("patients = 1\n", "patients = 2\n", "patients is 2, but"),
        ("[parameters]", "[parameter]", "nothing else"),
        ("[parameters]", "[parameters", "not TOML"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, old: str, new: str, words: str):
    text = FILE.read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "sets.toml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(InputError, match=words) as caught:
        read_datasets(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_absent_file_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="can't be read"):
        read_datasets(tmp_path / "none.toml")
