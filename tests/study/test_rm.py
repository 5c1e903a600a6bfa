from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from spared_fm.errors import InputError
from spared_fm.study.api import Study
from spared_fm.study.rm import rm
from spared_fm.study.verify import verify

KEY = "stain-bank"


def test_a_slide_in_a_cohort_is_refused_unless_forced(copy: Callable[[], Study]):
    study = copy()
    slide = study.slides[0]
    with pytest.raises(InputError, match=f"{slide} is used by cohort 'c'.*--force"):
        rm(study.layout, slides=slide)
    assert slide in study.slides
    [row] = rm(study.layout, slides=slide, force=True)
    assert (row["kind"], row["name"], row["removed"]) == ("slide", slide, True)
    assert slide not in study.slides
    assert [found["kind"] for found in verify(study.layout)] == ["drift"]


def test_a_dry_run_removes_nothing(copy: Callable[[], Study]):
    study = copy()
    slide = study.slides[0]
    folder = study.layout.files.path(study.layout.slide(slide))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert rm(study.layout, slides=slide, force=True, dry_run=True) == [
        {"kind": "slide", "name": slide, "bytes": size, "removed": False}
    ]
    assert slide in study.slides


def test_embeddings_of_one_slide_and_of_all(copy: Callable[[], Study]):
    study = copy()
    first, *others = study.slides
    assert [row["name"] for row in rm(study.layout, slides=first, encoder=KEY)] == [f"{first}/{KEY}"]
    assert study.layout.embeddings(first) == []
    assert "spatial" in study.slide(first).obsm
    assert [row["name"] for row in rm(study.layout, encoder=KEY)] == [f"{slide}/{KEY}" for slide in others]
    with pytest.raises(InputError, match="none of the 3 slides"):
        rm(study.layout, encoder=KEY)


def test_an_index_goes_with_the_last_of_its_embeddings(copy: Callable[[], Study]):
    study = copy()
    study.index(KEY)
    place = study.layout.files.path(f"indexes/{KEY}")
    shutil.copytree(place, place.with_name(f"{KEY}@90um"))  # of other embeddings
    first, *others = study.slides
    assert [row["kind"] for row in rm(study.layout, slides=first, encoder=KEY)] == ["embedding"]
    listed = rm(study.layout, encoder=KEY, dry_run=True)
    size = sum(path.stat().st_size for path in place.iterdir())
    assert listed[0] == {"kind": "index", "name": KEY, "bytes": size, "removed": False}
    assert [row["name"] for row in rm(study.layout, slides=others, encoder=KEY)] == [row["name"] for row in listed]
    assert study.layout.files.list("indexes") == [f"{KEY}@90um"]


def test_several_arrays_of_one_encoder_are_told_apart(copy: Callable[[], Study]):
    study = copy()
    slide = study.slides[0]
    keys = [study.encode(KEY, slides=slide, patch_um=um)[0]["key"] for um in (90.0, 200.0)]
    assert len(rm(study.layout, slides=slide, encoder=KEY)) == 1, "the plain key is the encoder's own"
    with pytest.raises(InputError, match="several embeddings fit"):
        rm(study.layout, slides=slide, encoder=KEY)
    rm(study.layout, slides=slide, encoder=keys[0])
    assert study.layout.embeddings(slide) == [keys[1]]


def test_heads_and_cohorts(copy: Callable[[], Study]):
    study = copy()
    for name in ("one", "two"):
        study.fit("c", encoder=KEY, head="gene-mean", name=name)
    with pytest.raises(InputError, match=r"no head 'three' \(heads: one, two\)"):
        rm(study.layout, cohort="c", head="three")
    assert [row["kind"] for row in rm(study.layout, cohort="c", head="one")] == ["head"]
    with pytest.raises(InputError, match=r"1 fitted heads.*--force"):
        rm(study.layout, cohort="c")
    assert [row["kind"] for row in rm(study.layout, cohort="c", force=True)] == ["cohort", "heads", "completers"]
    assert (study.cohorts, study.layout.files.list("heads")) == ([], [])
    with pytest.raises(InputError, match="no cohort 'c'"):
        rm(study.layout, cohort="c")


def test_benchmarks(copy: Callable[[], Study], tmp_path: Path):
    study = copy()
    study.cohort("d", n_genes=12)
    toml = tmp_path / "b.toml"
    toml.write_text(
        f'name = "b"\ncohorts = ["c", "d"]\nencoders = ["{KEY}"]\nheads = ["gene-mean"]\ntargets = ["lognorm"]\n'
        'protocol = "strict"\n'
    )
    study.run_benchmark(toml)
    with pytest.raises(InputError, match=r"cohort 'c' has 1 cells in benchmarks, e.g. in b; .*--force"):
        rm(study.layout, cohort="c")
    rows = rm(study.layout, cohort="c", force=True)
    assert [row["kind"] for row in rows] == ["cohort", "cell", "cell", "completers"]
    shown = study.show_benchmark("b").drop_duplicates("cell")
    assert dict(zip(shown["cohort"], shown["status"], strict=True)) == {"c": "waiting", "d": "done"}
    with pytest.raises(InputError, match=r"no benchmark 'x' \(benchmarks: b\)"):
        rm(study.layout, benchmark="x")
    [row] = rm(study.layout, benchmark="b")
    assert (row["kind"], row["name"], row["removed"]) == ("benchmark", "b", True)
    assert study.layout.files.list("benchmarks") == []
    assert "d" in study.cohorts


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"slides": "x", "cohort": "c"},
        {"encoder": KEY, "cohort": "c"},
        {"head": "h"},
        {"benchmark": "b", "cohort": "c"},
    ],
)
def test_what_to_remove_must_be_one_kind_of_thing(study: Study, wrong: dict):
    with pytest.raises(InputError, match="--slide and/or --encoder"):
        rm(study.layout, **wrong)
    with pytest.raises(InputError, match="--head goes with --cohort"):
        rm(study.layout, slides="*", head="h")
