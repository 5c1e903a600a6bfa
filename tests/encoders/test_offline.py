from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from spared_fm.encoders.builder import build
from spared_fm.encoders.offline import VARIABLE, configured_file
from spared_fm.encoders.spec import resolve
from spared_fm.errors import InputError
from tests.encoders.own_rows import BASE, write


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "uni.safetensors").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    path = tmp_path / "weights.toml"
    path.write_text(f'[uni]\nfile = "uni.safetensors"\nsha256 = "{digest}"\n')
    monkeypatch.setenv(VARIABLE, str(path))
    return path


def test_the_named_file_takes_the_place_of_published_weights(config: Path):
    spec = resolve("uni")
    assert spec.weights == str(config.parent / "uni.safetensors")
    assert spec.is_default  # the key of its arrays is the plain one
    assert resolve("virchow").weights == "pretrained"
    assert resolve("uni", "random").weights == "random"
    assert resolve("stain-bank").weights == "none"


def test_no_config_no_file(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert configured_file("uni") is None


def test_a_wrong_file_is_named_with_both_digests(config: Path):
    (config.parent / "uni.safetensors").write_bytes(b"others!")
    found, named = (hashlib.sha256(data).hexdigest() for data in (b"others!", b"weights"))
    with pytest.raises(InputError, match=rf"uni\.safetensors: sha256 is {found}, .*says {named} for uni"):
        resolve("uni")
    (config.parent / "uni.safetensors").unlink()
    with pytest.raises(InputError, match=r"uni\.safetensors: no such weights file; .*weights\.toml names it for uni"):
        resolve("uni")


def test_a_config_that_says_too_little(config: Path):
    config.write_text('[uni]\nfile = "uni.safetensors"\n')
    with pytest.raises(InputError, match=r"weights\.toml: table \[uni\] needs file and sha256"):
        resolve("uni")
    config.write_text("[uni\n")
    with pytest.raises(InputError, match=r"weights\.toml: not TOML"):
        resolve("uni")
    config.unlink()
    with pytest.raises(InputError, match=r"weights\.toml: can't be read"):
        resolve("uni")


def test_its_weights_are_built_in(config: Path, tmp_path: Path):
    registry = write(tmp_path, mine={})
    torch.manual_seed(3)
    model = timm.create_model(BASE["architecture"], **BASE["build"])
    save_file(model.state_dict(), tmp_path / "mine.safetensors")
    digest = hashlib.sha256((tmp_path / "mine.safetensors").read_bytes()).hexdigest()
    config.write_text(f'[mine]\nfile = "{tmp_path}/mine.safetensors"\nsha256 = "{digest}"\n')
    found = build(resolve("mine", registry=registry))
    assert found.weights == build(resolve("mine", tmp_path / "mine.safetensors", registry=registry)).weights
    assert found.weights != build(resolve("mine", "random", registry=registry)).weights
