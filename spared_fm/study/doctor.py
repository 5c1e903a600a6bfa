"""Doctor: whether this machine is fit: what it has, how far embeddings move on it, and whether a small study comes out right."""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import tempfile
import time
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from spared_fm.encoders.builder import Encoder
    from spared_fm.store.layout import Layout

BATCHES = (1, 2, 7, 32)
THREADS = (1, 2)
HALVES = ("bfloat16", "float16")
PATCHES = 32
PATCH_PX = 224
DISK_MIB = 64
SLOW_MIB_S, LITTLE_GIB = 50.0, 5.0
"""A disk slower than this holds encoding up; with less room than this a cohort of slides may not fit."""
PACKAGES = ("spared-fm", "torch", "timm", "numpy", "zarr", "anndata", "dask", "openslide-python", "tifffile")
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


def doctor(
    encoder: str = "stain-bank",
    *,
    store: Layout | None = None,
    weights: str | Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    disk_mib: int = DISK_MIB,
    self_test: bool = True,
) -> dict[str, Any]:
    """Describe the machine, measure how far an encoder's vectors move on it, and run a small study to the end.

    Parameters
    ----------
    encoder, weights, seed, device
        As for ``encode``.
    store
        Where to measure the disk (a local store); by default the folder for temporary files.
    disk_mib
        MiB to write for that, at most 64.
    self_test
        Run the small study, too (see :func:`spared_fm.study.doctor_steps.self_test`).

    Returns
    -------
    dict
        ``machine``: versions, python, platform, cores, devices, thread settings; ``disk``: folder, mib, mib_per_second
        (written and flushed), free_gib; ``encoders_ready``: those that run here without a network; ``encoder``, ``device``,
        ``patches``; ``moves``: rows with setting, max_abs, max_relative (largest distance of a row, as a share of the row's
        norm), min_cosine, identical, against float32 in batches of 32 with one thread; ``self_test``: its steps;
        ``problems``: what is wrong, a line each; ``warnings``: what is not wrong and may hold up.

    Raises
    ------
    InputError
        Unknown encoder, or the device is not there.
    """
    from spared_fm.encoders.builder import build
    from spared_fm.encoders.spec import resolve
    from spared_fm.study.doctor_steps import self_test as run_steps

    built = build(resolve(encoder, weights, seed=seed), device=device)
    ready, problems = _ready()
    found: dict[str, Any] = {
        "machine": machine(),
        "disk": disk(store, min(disk_mib, DISK_MIB)),
        "encoders_ready": ready,
        "encoder": encoder,
        "device": device,
        "patches": PATCHES,
        "moves": moves(built),
        "self_test": run_steps() if self_test else [],
    }
    return found | {"problems": [*_unmet(), *problems, *_wrong(found)], "warnings": _slow(found)}


def moves(encoder: Encoder) -> list[dict[str, Any]]:
    """Compare ways of computing the same vectors with float32 in batches of 32 with one thread."""
    import torch

    patches = tissue_like(PATCHES, PATCH_PX)
    before = torch.get_num_threads()

    def encode(batch: int, threads: int, dtype: str = "float32") -> np.ndarray:
        torch.set_num_threads(threads)
        cast = dataclasses.replace(encoder, compute_dtype=dtype)
        return np.concatenate([cast.encode(patches[i : i + batch]) for i in range(0, PATCHES, batch)])

    try:
        reference = encode(PATCHES, 1)
        rows = [compare("repeated", encode(PATCHES, 1), reference)]
        rows += [compare(f"batch size {n}", encode(n, 1), reference) for n in BATCHES if n != PATCHES]
        rows += [compare(f"threads {n}", encode(PATCHES, n), reference) for n in THREADS if n != 1]
        rows += [compare(f"{dtype} autocast", encode(PATCHES, 1, dtype), reference) for dtype in HALVES]
    finally:
        torch.set_num_threads(before)
    with np.errstate(over="ignore"):
        stored = reference.astype(np.float16).astype(np.float32)
    return [*rows, compare("float16 storage", stored, reference)]


def compare(setting: str, found: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    """Distance of vectors (n, dim) from their reference, by its measures; null where a value overflowed."""
    found, reference = found.astype(np.float64), reference.astype(np.float64)
    if not np.isfinite(found).all():
        return {"setting": setting, "max_abs": None, "max_relative": None, "min_cosine": None, "identical": False}
    difference = found - reference
    norms = np.maximum(np.linalg.norm(reference, axis=1), np.finfo(np.float64).tiny)
    lengths = np.maximum(np.linalg.norm(found, axis=1), np.finfo(np.float64).tiny)
    return {
        "setting": setting,
        "max_abs": float(np.abs(difference).max()),
        "max_relative": float((np.linalg.norm(difference, axis=1) / norms).max()),
        "min_cosine": float(((found * reference).sum(1) / norms / lengths).min()),
        "identical": bool((found == reference).all()),
    }


def tissue_like(n: int, px: int) -> np.ndarray:
    """Seeded uint8 patches (n, px, px, 3) of smooth pink and violet: encoders see neither flat colour nor white noise."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 1, (n, 15, 15))
    at = np.linspace(0, 14, px)
    low = np.clip(at.astype(int), 0, 13)
    part = at - low
    smooth = coarse[:, low] * (1 - part)[:, None] + coarse[:, low + 1] * part[:, None]
    smooth = smooth[:, :, low] * (1 - part) + smooth[:, :, low + 1] * part
    pink, violet = np.array([235, 190, 215]), np.array([110, 70, 150])
    patches = smooth[..., None] * pink + (1 - smooth[..., None]) * violet + rng.normal(0, 8, (n, px, px, 1))
    return np.clip(patches, 0, 255).astype(np.uint8)


def machine() -> dict[str, Any]:
    """Versions, devices, cores and thread settings."""
    import torch

    devices = ["cpu", *(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        devices.append("mps")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "cores_usable": usable,
        "devices": devices,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch_threads": torch.get_num_threads(),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def disk(store: Layout | None, mib: int) -> dict[str, Any] | None:
    """Write speed with fsync where the store lies; None for an object store."""
    root = store.files.root if store is not None else Path(tempfile.gettempdir())
    if not isinstance(root, Path):
        return None
    block = np.random.default_rng(0).integers(0, 256, 1 << 20, dtype=np.uint8).tobytes()
    with tempfile.TemporaryFile(dir=root) as file:
        started = time.perf_counter()
        for _ in range(mib):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        seconds = time.perf_counter() - started
    free = shutil.disk_usage(root).free / (1 << 30)
    return {"folder": str(root), "mib": mib, "mib_per_second": round(mib / seconds, 1), "free_gib": round(free, 1)}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _ready() -> tuple[list[str], list[str]]:
    """Find encoders that run here without a network, and what is wrong with the user's list of weights."""
    from spared_fm.study.encoders import encoders

    try:
        return [row["name"] for row in encoders(ready=True)], []
    except InputError as error:
        return [], [str(error)]


def _unmet() -> list[str]:
    """Find required packages that are not here, or not in a version that is known to work."""
    from packaging.requirements import Requirement

    found = []
    for requirement in map(Requirement, requires("spared-fm") or []):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        here = _version(requirement.name)
        if here is None or not requirement.specifier.contains(here, prereleases=True):
            found.append(f"{requirement.name} is {here or 'not installed'}; pip install '{requirement}'")
    return found


def _wrong(found: dict[str, Any]) -> list[str]:
    """Say what the measurements find wrong."""
    problems = [f"self-test, {row['step']}: {row['text']}" for row in found["self_test"] if not row["ok"]]
    repeated = next(row for row in found["moves"] if row["setting"] == "repeated")
    if found["device"] == "cpu" and not repeated["identical"]:
        problems.append(
            "the same patches, encoded twice the same way, give other vectors: look at the memory and the BLAS"
        )
    return problems


def _slow(found: dict[str, Any]) -> list[str]:
    """Say what is not wrong, and may hold up."""
    machine, disk = found["machine"], found["disk"]
    notes = []
    if machine["torch_threads"] > machine["cores_usable"]:
        notes.append(
            f"torch takes {machine['torch_threads']} threads, {machine['cores_usable']} cores may be used: "
            f"set OMP_NUM_THREADS={machine['cores_usable']}"
        )
    if disk and disk["mib_per_second"] < SLOW_MIB_S:
        notes.append(f"{disk['folder']} takes {disk['mib_per_second']} MiB per second; a local disk is quicker")
    if disk and disk["free_gib"] < LITTLE_GIB:
        notes.append(f"{disk['folder']} has {disk['free_gib']} GiB left")
    return notes
