"""Self-test of doctor: a tiny synthetic study through every step in a folder of its own, with the numbers checked."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from spared_fm.study.api import Study

    Step = Callable[[Study, Path], str]

ENCODER = "stain-bank"
SLIDES = 3
KNOWN_PCC, WITHIN, MOST_BY_CHANCE = 0.257, 0.03, 0.15
"""PCC-Gene of ridge on these slides, and how far libraries of other versions may move it; on shuffled pairs it is 0.08."""


def self_test() -> list[dict[str, Any]]:
    """Ingest, encode, fit and search a small synthetic study and check what comes out; under a minute on two cores.

    Returns
    -------
    list of dict
        One row per step: step, ok, seconds, text (what was found, or what is wrong). It ends with the first that is not ok.
    """
    from spared_fm.study.api import Study

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="spared-fm-doctor-") as own:
        study = Study(Path(own) / "store", create=True)
        for name, step in STEPS.items():
            started = time.perf_counter()
            try:
                said, ok = step(study, Path(own)), True
            except Exception as error:  # whatever fails here is what doctor is asked to find
                said, ok = f"{type(error).__name__}: {error}".splitlines()[0], False
            rows.append({"step": name, "ok": ok, "seconds": round(time.perf_counter() - started, 2), "text": said})
            if not ok:
                break
    return rows


def _ingest(study: Study, folder: Path) -> str:
    import pandas as pd

    from spared_fm.slides.synthetic import generate_study

    generate_study(folder / "slides", n_slides=SLIDES, n_patients=2, spots_per_side=8, n_genes=60)
    for row in pd.read_csv(folder / "slides" / "study.csv", dtype=str).itertuples():
        study.ingest(folder / "slides" / str(row.path), slide=row.slide, patient=row.patient, split=row.split)
    spots = sum(study.slide(slide).n_obs for slide in study.slides)
    _expect(len(study.slides) == SLIDES and spots > 0, f"{len(study.slides)} slides with {spots} spots came out")
    return f"{SLIDES} slides, {spots} spots"


def _encode(study: Study, folder: Path) -> str:
    [first] = study.encode(ENCODER, chunk_rows=16)
    [again] = study.encode(ENCODER, chunk_rows=16)
    _expect(again["patches"] == 0, f"{again['patches']} patches were computed again")
    finite = all(np.isfinite(study.features(slide, ENCODER)).all() for slide in study.slides)
    _expect(finite, "vectors are not finite")
    return f"{first['patches']} patches, {first['patches_per_second']} per second"


def _golden(study: Study, folder: Path) -> str:
    from spared_fm.study.encoders import verify_encoder

    found = verify_encoder(ENCODER, golden=folder / "none.json")
    _expect(found["status"] == "same", found["text"])
    return f"the vectors of the golden patches are those that are known (cosine {found['cosine']:.6f})"


def _plain(study: Study, folder: Path) -> str:
    import anndata

    slide = study.slides[0]
    plain = anndata.read_zarr(folder / "store" / "data.zarr" / "slides" / slide)
    _expect(np.array_equal(plain.obsm[ENCODER], study.features(slide, ENCODER)), "plain anndata reads other vectors")
    damaged = study.verify()
    _expect(not damaged, f"verify finds {damaged[0]['problem'] if damaged else ''}")
    return "plain anndata reads the same vectors; every chunk matches its receipt"


def _fit(study: Study, folder: Path) -> str:
    study.cohort("doctor", n_genes=12, panel="variance")
    scores, chance = (
        float(rows[rows["slide"].isna()]["pcc_gene"].iloc[0])
        for rows in (
            study.benchmark("doctor", encoders=[ENCODER], heads=["ridge"], shuffle_seed=seed) for seed in (None, 0)
        )
    )
    _expect(abs(scores - KNOWN_PCC) <= WITHIN, f"ridge has PCC-Gene {scores:.3f}; it should be about {KNOWN_PCC}")
    _expect(abs(chance) <= MOST_BY_CHANCE, f"shuffled pairs have PCC-Gene {chance:.3f}; that is more than chance")
    run = study.fit("doctor", encoder=ENCODER)["run"]
    predicted = study.predict("doctor", run)
    _expect(len(predicted) == SLIDES, f"the saved head predicted {len(predicted)} of {SLIDES} slides")
    return f"ridge has PCC-Gene {scores:.3f}, on shuffled pairs {chance:.3f}"


def _search(study: Study, folder: Path) -> str:
    slide = study.slides[0]
    query = np.asarray(study.features(slide, ENCODER)[5], np.float32)
    hits = study.search(ENCODER, vectors=[query], k=5, standardize=False)
    names, vectors = [], []
    for other in study.slides:
        names += [f"{other}/{barcode}" for barcode in study.slide(other).obs_names]
        vectors.append(np.asarray(study.features(other, ENCODER), np.float64))
    every = np.concatenate(vectors)
    cosine = every @ query / np.linalg.norm(every, axis=1) / np.linalg.norm(query.astype(np.float64))
    order = np.argsort(-cosine, kind="stable")[:5]
    _expect(hits["spot"].iloc[0] == names[order[0]], f"the nearest is {hits['spot'].iloc[0]}, not the spot itself")
    furthest = float(np.abs(hits["similarity"].to_numpy() - cosine[order]).max())
    _expect(furthest < 1e-5, f"similarities differ from NumPy's by {furthest:.1e}")
    return f"the 5 nearest are those of NumPy (to {max(furthest, 1e-9):.0e})"


STEPS: dict[str, Step] = {
    "ingest": _ingest,
    "encode": _encode,
    "golden vectors": _golden,
    "read back": _plain,
    "fit": _fit,
    "search": _search,
}


def _expect(ok: bool, otherwise: str) -> None:
    if not ok:
        raise InputError(otherwise)
