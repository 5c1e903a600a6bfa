from __future__ import annotations

import json

import numpy as np
import pytest

from spared_fm.errors import InputError
from spared_fm.targets.completion.folder import ARRAYS, CARD, check_panel, read, write

GENES = ["A", "B", "C"]
ARRAY = {"w": np.arange(6, dtype=np.float32).reshape(2, 3).T}


@pytest.fixture
def fit(tmp_path):
    write(tmp_path / "fit", "some-method", GENES, {"settings": {"steps": 3}}, ARRAY)
    return tmp_path / "fit"


def test_what_was_written_is_read(fit):
    card, arrays = read(fit, "some-method", GENES)
    assert (card["settings"], card["genes"], card["name"]) == ({"steps": 3}, GENES, "some-method")
    np.testing.assert_array_equal(arrays["w"], ARRAY["w"])
    assert [path.name for path in fit.parent.iterdir()] == ["fit"]  # nothing half-written is left beside it


def test_a_folder_is_never_written_over(fit):
    with pytest.raises(InputError, match="exists already"):
        write(fit, "some-method", GENES, {}, {})


@pytest.mark.parametrize(
    ("card", "reason"),
    [({"genes": []}, "may not hold genes"), ({"x": float("nan")}, "not JSON"), ({"x": {1}}, "not JSON")],
)
def test_cards_that_cannot_be_written(tmp_path, card, reason):
    with pytest.raises(InputError, match=reason):
        write(tmp_path / "fit", "some-method", GENES, card, ARRAY)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_refuses_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="can't be written"):
        write(tmp_path / "file" / "fit", "some-method", GENES, {}, ARRAY)


def change(fit, **fields):
    card = json.loads((fit / CARD).read_text())
    (fit / CARD).write_text(json.dumps(card | fields))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda fit: (fit / CARD).unlink(), "is not a fitted completer"),
        (lambda fit: (fit / ARRAYS).unlink(), "is not a fitted completer"),
        (lambda fit: (fit / CARD).write_text("{"), "card.json is damaged"),
        (lambda fit: (fit / CARD).write_text("[]"), "is not the card of a completer"),
        (lambda fit: change(fit, format=99), "has format 99"),
        (lambda fit: change(fit, format="1"), "has format 1"),
        (lambda fit: change(fit, name="other"), "holds 'other', not 'some-method'"),
        (lambda fit: (fit / ARRAYS).write_bytes((fit / ARRAYS).read_bytes()[:-1]), "does not match its checksum"),
    ],
)
def test_damage_is_refused_in_one_line(fit, damage, reason):
    damage(fit)
    with pytest.raises(InputError, match=reason) as refused:
        read(fit, "some-method")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("genes", "reason"),
    [
        (["A", "B"], r"its panel also has C \(1 genes more\)"),
        (["A", "X", "Y", "C"], r"X is not in its panel \(2 of 4 genes\)"),
        (["B", "A", "C"], "its genes stand in another order"),
    ],
)
def test_another_panel_is_refused(fit, genes, reason):
    with pytest.raises(InputError, match=f"fit is for another panel: {reason}"):
        read(fit, "some-method", genes)
    check_panel("it", GENES, tuple(GENES))
