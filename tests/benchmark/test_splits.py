from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spared_fm.benchmark.splits import check_split, split_by
from spared_fm.errors import InputError


@given(st.integers(2, 12), st.integers(1, 4), st.integers(0, 99))
def test_patients_are_never_split(n_patients, sections, seed):
    patients = {f"p{i}s{j}": f"p{i}" for i in range(n_patients) for j in range(sections)}
    slides = list(patients)
    split = split_by(slides, patients, "patient", seed=seed)
    assert set(split) == set(slides)
    for p in set(patients.values()):
        assert len({split[s] for s in slides if patients[s] == p}) == 1
    assert {"train", "test"} <= set(split.values())
    assert ("val" in split.values()) == (n_patients > 2)
    assert check_split(split, patients) == []
    assert list(split_by(slides[::-1] + slides, patients, "patient", seed=seed).items()) == list(split.items())


def test_shares_and_seeds():
    slides = [f"s{i}" for i in range(100)]
    split = split_by(slides, {}, "slide", fractions=(7, 1, 2))
    assert [list(split.values()).count(p) for p in ("train", "val", "test")] == [70, 10, 20]
    assert split_by(slides, {}, "slide", seed=1) != split_by(slides, {}, "slide", seed=0)
    assert "val" not in split_by(slides, {}, "slide", fractions=(0.5, 0, 0.5)).values()
    assert list(split_by(slides, {}, "slide", fractions=(0, 1, 1)).values()).count("train") >= 1


@pytest.mark.parametrize(
    ("slides", "patients", "kw", "words"),
    [
        (["a", "b"], {"a": "p", "b": "p"}, {"by": "patient"}, "split by slide"),
        (["a"], {}, {"by": "slide"}, "add one"),
        ([], {}, {"by": "slide"}, "add one"),
        (["a", "b"], {"a": "p", "b": None}, {"by": "patient"}, "no patient is known for b"),
        (["a", "b"], {}, {"by": "section"}, "use 'patient'"),
        (["a", "b"], {}, {"by": "slide", "fractions": (1, 1)}, "fractions"),
        (["a", "b"], {}, {"by": "slide", "fractions": (1, -1, 1)}, "fractions"),
    ],
)
def test_bad_splits(slides, patients, kw, words):
    with pytest.raises(InputError, match=words):
        split_by(slides, patients, **kw)


def test_check_warns_of_shared_patients():
    found = check_split({"a": "train", "b": "test", "c": "test"}, {"a": "p", "b": "p", "c": "q"})
    assert len(found) == 1
    assert "patient p is in train and test" in found[0]
    assert "unknown" in check_split({"a": "train", "b": "test"}, {"a": "p", "b": None})[0]


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ({"a": "test"}, "no slide is in the train"),
        ({"a": "train"}, "hold one out"),
        ({"a": "train", "b": "tset"}, "tset"),
        ({}, "train"),
    ],
)
def test_check_refuses(split, words):
    with pytest.raises(InputError, match=words):
        check_split(split, {})
