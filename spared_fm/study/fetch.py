"""Fetch: public Visium samples from the addresses of ``fetch.toml``, checked against the hashes of the first download."""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
import tarfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spared_fm.errors import InputError
from spared_fm.slides.slide import first_line
from spared_fm.study.download import download
from spared_fm.tables import read_toml
from spared_fm.targets.datasets import dataset, datasets

if TYPE_CHECKING:
    from spared_fm.store.layout import Layout

FILE = Path(__file__).with_name("fetch.toml")
VARIABLE = "SPARED_FM_HASHES"
"""Environment variable: the file the hashes are recorded in, instead of one in the user's data folder."""
PLACES = {"matrix": "outs/filtered_feature_bc_matrix.h5", "spatial": "spatial.tar.gz", "image": "outs/image.tif"}
"""Where each file of a sample goes, below the sample's folder."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SAMPLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def fetch(
    name: str,
    to: str | Path,
    *,
    layout: Layout | None = None,
    image: bool = True,
    urls: str | Path | None = None,
    hashes: str | Path | None = None,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Download a data set's samples into `to`, each as ``<sample>/outs/`` the way Space Ranger lays it out.

    The first download of an address records the file's sha256; every later one, into whatever folder, must give the same file.
    A download that was cut goes on where it stopped. What is there already is checked, not downloaded.

    Parameters
    ----------
    name
        A data set (``10xgenomic_human_brain``, ``10XGHB``; ``spared-fm datasets`` lists them), with its published split; or
        one sample of the list of addresses, which has none.
    to
        Folder; made where it is not there.
    layout
        A store to ingest the samples into as slides, with their split and patient.
    image
        Fetch the full-resolution images, which are most of the bytes. Without them patches can't be cut.
    urls
        Another list of addresses, in the form of ``fetch.toml``.
    hashes
        JSON file of sha256 by address; by default the one ``SPARED_FM_HASHES`` names, or one in the user's data folder.
    progress
        Show a bar.

    Returns
    -------
    list of dict
        One row per sample: slide, split, patient (None for a sample of its own), path (of ``outs``), files (rows with path,
        url, status: ``fetched`` or ``present``, bytes, sha256, recorded: whether this call recorded the hash), ingested (what
        ``ingest`` says: ``added``, ``unchanged``, …; None without a store).

    Raises
    ------
    InputError
        Unknown name, a data set that is not in the list (the message has its sources), a download that fails or gives
        another file than before, or a damaged list.
    """
    listed = read_urls(Path(urls) if urls is not None else FILE)
    split, patients = _samples(name, listed)
    ledger = Path(hashes or os.environ.get(VARIABLE) or _user_file())
    rows = []
    for sample, part in split.items():
        folder = Path(to) / sample
        files = {
            kind: _fetch_one(listed[sample], kind, folder / place, ledger, progress)
            for kind, place in PLACES.items()
            if kind != "image" or image
        }
        if files["spatial"]["status"] == "fetched" or not (folder / "outs/spatial").is_dir():
            _unpack(folder / PLACES["spatial"], folder / "outs")
        row = {"slide": sample, "split": part, "patient": patients[sample], "path": str(folder / "outs")}
        ingested = _ingest(layout, row, folder, image, progress)
        rows.append({**row, "files": list(files.values()), "ingested": ingested})
    return rows


def read_urls(path: Path) -> dict[str, dict[str, Any]]:
    """Read a list of addresses: sample → ``matrix``, ``spatial``, ``image`` (addresses) and ``sha256`` (by the same names).

    Raises
    ------
    InputError
        The file can't be read, or a table of it lacks a field or has a strange one.
    """
    data = read_toml(path, FILE.name)
    samples = data.pop("sample", {})
    if data or not samples or not isinstance(samples, dict):
        raise InputError(f"{path}: expected [sample.<name>] tables and nothing else")
    for sample, table in samples.items():
        where = f"{path}: sample {sample!r}"
        if not _SAMPLE.fullmatch(sample):
            raise InputError(f"{where}: a name has letters, digits, '.', '_' and '-'")
        if not isinstance(table, dict) or table.keys() - {*PLACES, "sha256"}:
            raise InputError(f"{where}: the fields are {', '.join(PLACES)} and sha256")
        for kind in PLACES:
            if not str(table.get(kind, "")).startswith(("http://", "https://")):
                raise InputError(f"{where}: {kind} must be an address, http:// or https://")
        known = table.setdefault("sha256", {})
        if not isinstance(known, dict) or not all(k in PLACES and _SHA256.fullmatch(str(v)) for k, v in known.items()):
            raise InputError(f"{where}: sha256 must be a table of 64 hex digits for {', '.join(PLACES)}")
    return samples


def _samples(name: str, listed: dict[str, dict[str, Any]]) -> tuple[dict[str, str | None], dict[str, str | None]]:
    """Sample → split, sample → patient."""
    if name in listed:
        return {name: None}, {name: None}
    abbreviations = {found.abbreviation.lower() for found in datasets().values()}
    if name.lower() in abbreviations | datasets().keys():
        found = dataset(name)
        absent = [slide for slide in found.slides if slide not in listed]
        if not absent:
            return dict(found.split), dict(found.patient)
        raise InputError(
            f"{found.name}: its slides can't be fetched by address (e.g. {absent[0]}); download them from "
            f"{', '.join(found.sources)} and `spared-fm ingest` them, or give --urls FILE"
        )
    possible = [*listed, *(d.name for d in datasets().values() if set(d.slides) <= listed.keys())]
    close = difflib.get_close_matches(name, possible, n=3, cutoff=0.6)
    hint = f"did you mean {', '.join(close)}?" if close else f"what can be fetched: {', '.join(sorted(possible))}"
    raise InputError(f"nothing called {name!r} can be fetched; {hint}")


def _fetch_one(table: dict[str, Any], kind: str, target: Path, ledger: Path, progress: bool) -> dict[str, Any]:
    """Download one file, or check the one that is there; the first download's hash is recorded."""
    url, listed = table[kind], table["sha256"].get(kind)
    known = listed or _read_ledger(ledger).get(url)
    before = _state(target)
    source = "the list of addresses" if listed else str(ledger)
    found = download(url, target, known, source=source, progress=progress)
    if known is None:
        _record(ledger, url, found)
    return {
        "path": str(target),
        "url": url,
        "status": "present" if _state(target) == before else "fetched",
        "bytes": target.stat().st_size,
        "sha256": found,
        "recorded": known is None,
    }


def _state(path: Path) -> tuple[int, int] | None:
    return (path.stat().st_ino, path.stat().st_mtime_ns) if path.is_file() else None


def _user_file() -> Path:
    from platformdirs import user_data_path

    return Path(user_data_path("spared-fm")) / "fetched.json"


def _read_ledger(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: the recorded hashes can't be read ({first_line(error)}): mend or remove it"
        ) from error
    if not isinstance(found, dict) or not all(_SHA256.fullmatch(str(value)) for value in found.values()):
        raise InputError(f"{path}: not a table of address and sha256: mend or remove it")
    return found


def _record(path: Path, url: str, sha256: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    draft.write_text(json.dumps({**_read_ledger(path), url: sha256}, indent=1, sort_keys=True), encoding="utf-8")
    os.replace(draft, path)


def _unpack(archive: Path, outs: Path) -> None:
    """Unpack ``spatial/`` of an archive into `outs`: whole or not at all, and no file outside."""
    target = outs / "spatial"
    draft = outs / f".spatial.{uuid.uuid4().hex}"
    try:
        with tarfile.open(archive) as tar:
            members = [member for member in tar if Path(member.name).parts[:1] == ("spatial",)]
            tar.extractall(draft, members, filter="data")
        if not (draft / "spatial").is_dir():
            raise InputError(f"{archive}: there is no spatial/ in it: check the list of addresses")
        if target.exists():
            shutil.rmtree(target)
        os.replace(draft / "spatial", target)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InputError(f"{archive}: can't be unpacked ({first_line(error)}): remove it and fetch again") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _ingest(layout: Layout | None, row: dict[str, Any], folder: Path, image: bool, progress: bool) -> str | None:
    if layout is None:
        return None
    from spared_fm.study.ingest import ingest

    picture = folder / PLACES["image"] if image else None
    (found,) = ingest(
        layout,
        row["path"],
        slide=row["slide"],
        patient=row["patient"],
        split=row["split"],
        image=picture,
        progress=progress,
    )
    return str(found["status"])
