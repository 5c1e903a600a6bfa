from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spared_fm.errors import InputError
from spared_fm.store.embeddings import slide_record
from spared_fm.store.layout import Layout
from spared_fm.study import download as module
from spared_fm.study.fetch import FILE, PLACES, VARIABLE, fetch, read_urls
from spared_fm.targets.datasets import datasets
from tests.slides.layouts import smooth_image, write_outs
from tests.study.web import Web, serve

SAMPLES = ("V1_Breast_Cancer_Block_A_Section_1", "V1_Breast_Cancer_Block_A_Section_2")
NAME = "10xgenomic_human_breast_cancer"


def tarball(members: dict[str, bytes | str]) -> bytes:
    """Files by name; a str is where a symbolic link points to."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname, content = tarfile.SYMTYPE, content, b""
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


@pytest.fixture(scope="module")
def served_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Two samples as they lie on the publisher's server."""
    files = {}
    for seed, sample in enumerate(SAMPLES):
        outs = write_outs(tmp_path_factory.mktemp(sample), version=1, images=("hires", "lowres"))
        files[f"/{sample}.h5"] = (outs / "filtered_feature_bc_matrix.h5").read_bytes()
        spatial = {f"spatial/{path.name}": path.read_bytes() for path in (outs / "spatial").iterdir()}
        files[f"/{sample}.tar.gz"] = tarball(spatial)
        stream = io.BytesIO()
        Image.fromarray(np.asarray(smooth_image(400, 360, seed))).save(stream, "tiff")
        files[f"/{sample}.tif"] = stream.getvalue()
    return files


@pytest.fixture
def web(served_files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(module, "PAUSE_S", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "hashes.json"))
    with serve() as served:
        served.files = dict(served_files)
        yield served


@pytest.fixture
def urls(web: Web, tmp_path: Path) -> Path:
    path = tmp_path / "urls.toml"
    lines = (
        f'[sample.{s}]\nmatrix = "{web.base}/{s}.h5"\nspatial = "{web.base}/{s}.tar.gz"\nimage = "{web.base}/{s}.tif"\n'
        for s in SAMPLES
    )
    path.write_text("".join(lines))
    return path


def test_the_shipped_list() -> None:
    listed = read_urls(FILE)
    ours = {slide for d in datasets().values() if d.name.startswith("10x") for slide in d.slides}
    assert set(listed) == ours
    assert all(table[kind].startswith("https://") for table in listed.values() for kind in PLACES)
    addresses = [table[kind] for table in listed.values() for kind in PLACES]
    assert len(set(addresses)) == len(addresses)


def test_a_data_set_goes_into_the_store_with_its_published_split(web: Web, urls: Path, tmp_path: Path) -> None:
    layout = Layout.create(tmp_path / "store")
    rows = fetch(NAME, tmp_path / "to", layout=layout, urls=urls)
    assert [(row["slide"], row["split"], row["patient"]) for row in rows] == [
        (SAMPLES[0], "train", "unique"),
        (SAMPLES[1], "val", "unique"),
    ]
    assert [row["ingested"] for row in rows] == ["added", "added"]
    assert all(file["recorded"] and file["status"] == "fetched" for row in rows for file in row["files"])
    record = slide_record(layout, SAMPLES[1])
    assert (record["split"], record["image"]["kind"], record["image"]["width"]) == ("val", "fullres", 400)
    recorded = json.loads((tmp_path / "hashes.json").read_text())
    assert recorded == {f"{web.base}{path}": hashlib.sha256(data).hexdigest() for path, data in web.files.items()}
    asked = len(web.asked)
    again = fetch("10xghbc", tmp_path / "to", layout=layout, urls=urls)  # by abbreviation
    assert len(web.asked) == asked
    assert [row["ingested"] for row in again] == ["unchanged", "unchanged"]
    assert not any(file["recorded"] or file["status"] != "present" for row in again for file in row["files"])


def test_without_images(web: Web, urls: Path, tmp_path: Path) -> None:
    (row,) = fetch(SAMPLES[0], tmp_path / "to", urls=urls, image=False)
    assert (row["split"], row["patient"], row["ingested"]) == (None, None, None)
    assert sorted(p.name for p in Path(row["path"]).iterdir()) == ["filtered_feature_bc_matrix.h5", "spatial"]
    assert not [path for path, _ in web.asked if path.endswith(".tif")]


def test_another_file_than_the_first_time_is_refused(web: Web, urls: Path, tmp_path: Path) -> None:
    fetch(SAMPLES[0], tmp_path / "one", urls=urls, image=False)
    web.files[f"/{SAMPLES[0]}.h5"] += b" "
    with pytest.raises(InputError, match=rf"{SAMPLES[0]}\.h5: is not the file .*hashes\.json asks for"):
        fetch(SAMPLES[0], tmp_path / "two", urls=urls, image=False)
    assert list((tmp_path / "two" / SAMPLES[0] / "outs").iterdir()) == []
    (row,) = fetch(SAMPLES[0], tmp_path / "two", urls=urls, image=False, hashes=tmp_path / "other.json")
    assert all(file["recorded"] for file in row["files"])


def test_a_listed_hash_is_held_to(web: Web, urls: Path, tmp_path: Path) -> None:
    lines = urls.read_text().splitlines()
    lines.insert(4, f'sha256 = {{ matrix = "{"0" * 64}" }}')
    urls.write_text("\n".join(lines))
    with pytest.raises(InputError, match="which the list of addresses asks for"):
        fetch(SAMPLES[0], tmp_path / "to", urls=urls)
    assert not (tmp_path / "hashes.json").exists()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"spatial/../../../evil": b"x"}, "can't be unpacked"),
        ({"spatial/link": "/etc/passwd"}, "can't be unpacked"),
        ({"elsewhere/a": b"x"}, r"there is no spatial/ in it"),
        (None, "can't be unpacked"),
    ],
)
def test_a_bad_archive(
    web: Web, urls: Path, tmp_path: Path, members: dict[str, bytes | str] | None, message: str
) -> None:
    web.files[f"/{SAMPLES[0]}.tar.gz"] = b"no archive" if members is None else tarball(members)
    with pytest.raises(InputError, match=message):
        fetch(SAMPLES[0], tmp_path / "to", urls=urls, image=False)
    outs = tmp_path / "to" / SAMPLES[0] / "outs"
    assert [path.name for path in outs.iterdir()] == ["filtered_feature_bc_matrix.h5"]
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vicari_mouse_brain", r"its slides can't be fetched by address .*https?://.*--urls"),
        ("10xgenomic_human_brest_cancer", f"did you mean {NAME}"),
        ("zzz", f"what can be fetched: {NAME}, {SAMPLES[0]}"),
    ],
)
def test_what_cannot_be_fetched(urls: Path, tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fetch(name, tmp_path / "to", urls=urls)
    assert not (tmp_path / "to").exists()


GOOD: dict[str, Any] = {kind: f'"https://x/{kind}"' for kind in PLACES}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[sample", "not TOML"),
        ("a = 1", r"expected \[sample.<name>\] tables"),
        ('[sample."../up"]\nmatrix = "https://x"', "a name has letters"),
        ('[sample.a]\nmatrix = "file:///etc/passwd"', "matrix must be an address"),
        ("[sample.a]\nother = 1", "the fields are matrix, spatial, image and sha256"),
        ("[sample.a]\n" + "\n".join(f"{k} = {v}" for k, v in GOOD.items()) + '\nsha256 = {matrix = "1"}', "64 hex"),
    ],
)
def test_bad_lists(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "urls.toml").write_text(text)
    with pytest.raises(InputError, match=message):
        read_urls(tmp_path / "urls.toml")
    with pytest.raises(InputError, match=r"none\.toml: can't be read"):
        read_urls(tmp_path / "none.toml")


def test_a_damaged_record_of_hashes(web: Web, urls: Path, tmp_path: Path) -> None:
    for text in ("{", "[]", '{"a": "b"}'):
        (tmp_path / "hashes.json").write_text(text)
        with pytest.raises(InputError, match=r"hashes\.json: .*mend or remove it"):
            fetch(SAMPLES[0], tmp_path / "to", urls=urls)
    assert web.asked == []


def test_the_users_file_is_used_where_nothing_else_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from spared_fm.study.fetch import _user_file

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert _user_file().name == "fetched.json"
    assert "spared-fm" in _user_file().parts
