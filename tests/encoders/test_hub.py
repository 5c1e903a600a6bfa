from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub.constants
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import save_file

from spared_fm.encoders.builder import build
from spared_fm.encoders.hub import fetch
from spared_fm.encoders.models import make_core
from spared_fm.encoders.registry import row
from spared_fm.encoders.spec import resolve
from spared_fm.errors import InputError
from tests.encoders.own_rows import write


def refusing(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[tuple[Any, ...]]:
    """Let the hub answer with an error or a path; returns what it is asked for."""
    asked = []

    def download(repository: str, name: str, *, revision: str | None, repo_type: str | None) -> Any:
        asked.append((repository, name, revision, repo_type))
        found = answer(name) if callable(answer) else answer
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr("spared_fm.encoders.hub._reachable", lambda: True)
    return asked


def http(kind: type[Exception], status: int) -> Exception:
    return kind("refused", response=httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co")))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            http(errors.GatedRepoError, 403),
            "ask for access at https://huggingface.co/MahmoodLab/UNI, then `hf auth login`",
        ),
        (http(errors.RepositoryNotFoundError, 404), "is not there or not for you"),
        (http(errors.RevisionNotFoundError, 404), "at revision 'main' is not there"),
        (
            errors.LocalEntryNotFoundError("gone"),
            "no network, and its weights are not in the cache; give --weights FILE",
        ),
        (errors.OfflineModeIsEnabled("offline"), "no network.*SPARED_FM_WEIGHTS"),
        (http(errors.RemoteEntryNotFoundError, 404), r"has no model\.safetensors or pytorch_model\.bin"),
        (httpx.ReadTimeout("slow"), r"can't be fetched \(ReadTimeout\)"),
    ],
)
def test_what_keeps_weights_away_is_one_line(monkeypatch: pytest.MonkeyPatch, answer: Exception, words: str):
    refusing(monkeypatch, answer)
    with pytest.raises(InputError, match=f"^uni: .*{words}") as caught:
        fetch(row("uni"))
    assert "\n" not in str(caught.value)


def test_without_a_network_nothing_is_tried_for_long(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "https://nowhere.invalid")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    started = time.monotonic()
    with pytest.raises(InputError, match=r"^uni: no network.*--weights FILE"):
        fetch(row("uni"))
    assert time.monotonic() - started < 5
    assert caplog.text == ""


def test_safetensors_are_preferred(monkeypatch: pytest.MonkeyPatch):
    asked = refusing(monkeypatch, lambda name: http(errors.RemoteEntryNotFoundError, 404) if "safe" in name else "/b")
    assert fetch(row("uni")) == Path("/b")
    assert [question[1] for question in asked] == ["model.safetensors", "pytorch_model.bin"]
    assert asked[0][::2] == ("MahmoodLab/UNI", "main")


def test_a_data_set_repository_and_a_named_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    path = write(tmp_path, mine={"hub": "datasets/me/data", "file": "a/b.pth", "revision": "abc"}, none={})
    asked = refusing(monkeypatch, "/b")
    fetch(row("mine", path))
    assert asked == [("me/data", "a/b.pth", "abc", "dataset")]
    with pytest.raises(InputError, match="no published file can be fetched"):
        fetch(row("none", path))


def test_offline_mode_is_respected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"--weights FILE"):
        build(resolve("kaiko-s16"))


def test_published_weights_go_the_same_strict_way_as_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    registry = write(tmp_path, mine={"hub": "me/mine"})
    torch.manual_seed(9)
    core = make_core(row("mine", registry))
    save_file(core.state_dict(), tmp_path / "model.safetensors")
    refusing(monkeypatch, str(tmp_path / "model.safetensors"))
    found = build(resolve("mine", registry=registry))
    assert found.weights == build(resolve("mine", tmp_path / "model.safetensors", registry=registry)).weights
    save_file({**core.state_dict(), "more": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="more has no place"):
        build(resolve("mine", registry=registry))
