from __future__ import annotations

import json

import numpy as np
import pytest

from spared_fm.errors import InputError
from spared_fm.heads.io import load, save
from spared_fm.heads.registry import make


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(30, 4)), rng.normal(size=(30, 3)), np.repeat(["a", "b"], 15)


@pytest.mark.parametrize("name", ["gene-mean", "ridge"])
def test_round_trip_to_the_bit(name, data, tmp_path):
    X, y, groups = data
    head = make(name).fit(X, y, groups=groups)
    save(head, tmp_path / "c" / "run", {"cohort": "c", "panel": ["g1", "g2", "g3"]})
    again, card = load(tmp_path / "c" / "run")
    np.testing.assert_array_equal(again.predict(X, groups=groups), head.predict(X, groups=groups))
    assert card["head"] == name
    assert card["cohort"] == "c"
    assert card["params"] == json.loads(json.dumps(head.get_params()))
    assert again.get_params()["block_rows"] == head.block_rows
    assert "spared-fm" in card["versions"]
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["run"]


def test_existing_folder_is_refused_and_untouched(data, tmp_path):
    X, y, _ = data
    head = make("gene-mean").fit(X, y)
    save(head, tmp_path / "run", {})
    before = (tmp_path / "run" / "card.json").read_bytes()
    with pytest.raises(InputError, match="exists already"):
        save(head, tmp_path / "run", {"note": "again"})
    assert (tmp_path / "run" / "card.json").read_bytes() == before


@pytest.mark.parametrize("card", [{"x": object()}, {"x": float("nan")}, {"head": "mine"}])
def test_bad_card_leaves_nothing(card, data, tmp_path):
    X, y, _ = data
    with pytest.raises(InputError, match="card"):
        save(make("gene-mean").fit(X, y), tmp_path / "run", card)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_nothing(data, tmp_path, monkeypatch):
    X, y, _ = data
    monkeypatch.setattr("os.fsync", _no_space)
    with pytest.raises(InputError, match="No space left"):
        save(make("gene-mean").fit(X, y), tmp_path / "run", {})
    assert list(tmp_path.iterdir()) == []


def _no_space(_):
    raise OSError(28, "No space left on device")


def test_damage_is_found(data, tmp_path):
    X, y, _ = data
    run = tmp_path / "run"
    save(make("gene-mean").fit(X, y), run, {})
    weights, card = (run / "weights.safetensors").read_bytes(), json.loads((run / "card.json").read_text())

    (run / "weights.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(InputError, match="checksum"):
        load(run)
    (run / "weights.safetensors").write_bytes(weights)
    for change, words in (
        ({"head": "magic"}, "unknown head"),
        ({"format": 99}, "update spared-fm"),
        ({"format": 1}, "older version"),
        ({"params": {"depth": 1}}, "can't be read"),
        ({"head": "ridge"}, "can't be read"),
    ):
        (run / "card.json").write_text(json.dumps(card | change))
        with pytest.raises(InputError, match=words):
            load(run)
    (run / "card.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        load(run)
    (run / "card.json").write_text("[]")
    with pytest.raises(InputError, match="not the card"):
        load(run)
    with pytest.raises(InputError, match="not a saved head"):
        load(tmp_path / "nowhere")


def test_parameters_may_be_numpys(data, tmp_path):
    X, y, groups = data
    head = make("ridge", alphas=np.logspace(0, 2, 3), block_rows=np.int64(8)).fit(X, y, groups=groups)
    save(head, tmp_path / "run", {})
    again, card = load(tmp_path / "run")
    assert card["params"]["alphas"] == [1.0, 10.0, 100.0]
    np.testing.assert_array_equal(again.alpha_, head.alpha_)
