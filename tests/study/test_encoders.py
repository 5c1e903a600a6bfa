from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest
from safetensors.torch import save_file

from spared_fm.encoders.builder import build
from spared_fm.encoders.registry import rows
from spared_fm.encoders.spec import resolve
from spared_fm.errors import InputError
from spared_fm.study.encoders import encoders, verify_encoder
from tests.encoders.own_rows import write


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_all_rows_are_listed_and_filtered():
    table = {row["name"]: row for row in encoders()}
    assert set(table) == set(rows())
    built_in = ["stain-bank", "colour-stats"]
    assert {table[name]["weights"] for name in built_in} == {"built in"}
    assert {row["weights"] for name, row in table.items() if name not in built_in} == {"not here"}
    assert {row["name"] for row in encoders("kaiko-*", dim=384)} == {"kaiko-s16", "kaiko-s8"}
    assert not any(row["gated"] for row in encoders(ungated=True))
    assert [row["name"] for row in encoders(ready=True)] == built_in
    with pytest.raises(InputError, match=r"none of the .* encoders fits"):
        encoders("nothing*")


def test_where_weights_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "w.toml").write_text('[uni]\nfile = "uni.safetensors"\nsha256 = "0"\n')
    monkeypatch.setenv("SPARED_FM_WEIGHTS", str(tmp_path / "w.toml"))
    assert encoders("uni")[0]["weights"] == "not here"
    (tmp_path / "uni.safetensors").touch()
    assert encoders("uni")[0]["weights"] == "config"
    snapshot = tmp_path / "hub" / "models--MahmoodLab--UNI2-h" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "pytorch_model.bin").touch()
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    assert encoders("uni2-h")[0]["weights"] == "cache"


def test_a_package_that_lacks(tmp_path: Path):
    registry = write(tmp_path, mine={"requires": ["no-such-package>=2"]})
    [row] = encoders("mine", registry=registry)
    assert row["lacks"] == ["no-such-package>=2"]


def test_vectors_are_recorded_and_met_again(tmp_path: Path):
    registry, golden = write(tmp_path, tiny={}), tmp_path / "sub" / "golden.json"
    built = build(resolve("tiny", "random", seed=3, registry=registry))
    state = {name.removeprefix("core."): part.contiguous() for name, part in built.module.state_dict().items()}
    save_file(state, tmp_path / "tiny.safetensors")
    options = {"weights": tmp_path / "tiny.safetensors", "registry": registry, "golden": golden}
    assert verify_encoder("tiny", **options)["status"] == "unknown"
    assert verify_encoder("tiny", record=True, **options)["recorded"] == str(golden)
    assert verify_encoder("tiny", **options)["status"] == "same"
    write(tmp_path, tiny={"mean": [0.0, 0.0, 0.0]})
    found = verify_encoder("tiny", **options)
    assert found["status"] == "differs"
    assert found["error"] > found["tolerance"]
