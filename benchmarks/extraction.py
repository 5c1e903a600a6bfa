"""Patches/s of `encode` against the bare forward pass of the same encoder, on a real slide.

The slide is ``her2st_C2`` written as a pyramidal, JPEG-tiled TIFF; the spots are a dense grid of 112 µm patches over its
tissue. For two encoders in one pass, where decoding should matter, a part of it is enlarged to 0.25 µm per pixel and written
with a scanner's levels (1, 4, 16), so that patches at 0.5 µm per pixel are decoded from four times their pixels. Every round
measures each side once, interleaved; ratios are medians over the rounds.

Two bare forwards are shown: *default*, what one gets from timm (contiguous batches, torch's own threads), and *best*, the
faster of two arrangements known to us (channels last, with one stream per core or torch's own threads): with all cores busy
in the forward pass, no extractor that decodes on the same cores can reach it.

    python benchmarks/extraction.py [--rounds 5] [--patches 576] [--part forward|builtin|pair|workers]
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import tifffile
import torch
from PIL import Image

import spared_fm
from spared_fm.encoders.builder import Encoder, build
from spared_fm.encoders.spec import resolve
from spared_fm.extract import source
from spared_fm.slides.resample import prepare
from spared_fm.study.api import Study
from spared_fm.torchvision_ops import declare_missing_operators

CORES = len(os.sched_getaffinity(0))
BATCH = 32
FINE_MPP = 0.25
VIT, MOBILENET, BUILTIN = "timm:vit_small_patch16_224", "timm:mobilenetv3_small_100", "stain-bank"


def write_slides(data: Path, folder: Path, patches: int) -> None:
    """Write her2st_C2 as a pyramid into ``folder/pyramid``, and a part of it, enlarged, into ``folder/fine``."""
    Image.MAX_IMAGE_PIXELS = None
    source = ad.read_h5ad(data / "her2st_C2" / "counts.h5ad")
    [library] = source.uns["spatial"].values()
    mpp = library["metadata"]["um_per_px"]
    image = Image.open(data / "her2st_C2" / "image.jpg")
    low, high = source.obsm["spatial"].min(0), source.obsm["spatial"].max(0)
    write_slide(folder / "pyramid", np.asarray(image), (2, 4), mpp, low, (high - low)[0], patches)
    side = math.ceil(patches**0.5) * 112.0
    left, top = (low + high) / 2 - side / mpp / 2
    part = image.crop((left, top, left + side / mpp, top + side / mpp)).resize(
        (round(side / FINE_MPP), round(side / FINE_MPP)), Image.Resampling.BICUBIC
    )
    first = np.full(2, 56.0 / FINE_MPP)
    write_slide(folder / "fine", np.asarray(part), (4, 16), FINE_MPP, first, (side - 112.0) / FINE_MPP, patches)


def write_slide(
    slide: Path, pixels: np.ndarray, levels: tuple[int, ...], mpp: float, first: np.ndarray, width: float, patches: int
) -> None:
    """Write a pyramid and a grid of spots from ``first`` on, ``width`` pixels wide."""
    slide.mkdir(parents=True)
    with tifffile.TiffWriter(slide / "image.tif", bigtiff=True) as file:
        options = {"tile": (256, 256), "compression": "jpeg", "compressionargs": {"level": 90}, "photometric": "rgb"}
        file.write(pixels, subifds=2, **options)
        for level in levels:
            file.write(pixels[::level, ::level], subfiletype=1, **options)
    step = 112.0 / mpp
    columns = int(width / step + 1e-6) + 1
    grid = [(first[0] + (i % columns) * step, first[1] + (i // columns) * step) for i in range(patches)]
    adata = ad.AnnData(np.ones((patches, 2), np.int32))
    adata.obs = pd.DataFrame({"array_row": np.arange(patches) // columns}, index=[f"g{i}" for i in range(patches)])
    adata.var_names = ["a", "b"]
    adata.obsm["spatial"] = np.array(grid)
    adata.uns["spatial"] = {slide.name: {"metadata": {"um_per_px": mpp}, "scalefactors": {}, "images": {}}}
    adata.write_h5ad(slide / "counts.h5ad")


def encode(study: Study, encoders: list[str], slide: str = "pyramid", **options: object) -> dict[str, object]:
    """Encode into fresh arrays, from an image that is opened anew; returns the row of the first encoder."""
    source._image.cache_clear()  # with it go the tiles decoded in the round before
    for key in study.layout.embeddings(slide):
        study.layout.files.remove(study.layout.embedding(slide, key))
    return study.encode(encoders, slides=slide, batch_size=BATCH, **options)[0]


def bare(module: torch.nn.Module, batches: list[torch.Tensor], streams: int, threads: int) -> float:
    """Patches/s of forward passes on ready tensors."""

    def one(batch: torch.Tensor) -> None:
        with torch.inference_mode():
            module(batch)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    if streams == 1:  # as anyone would: in the main thread
        one(batches[0])
        started = time.perf_counter()
        for batch in batches:
            one(batch)
        return sum(map(len, batches)) / (time.perf_counter() - started)
    with ThreadPoolExecutor(streams, initializer=torch.set_num_threads, initargs=(threads,)) as executor:
        list(executor.map(one, batches[:streams]))  # warm up
        started = time.perf_counter()
        list(executor.map(one, batches))
        seconds = time.perf_counter() - started
    torch.set_num_threads(before)
    return sum(map(len, batches)) / seconds


def ready(encoder: Encoder, patches: int, channels_last: bool) -> list[torch.Tensor]:
    """Random pixels as transformed batches."""
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, 224, 224, 3), dtype=np.uint8)
    form = torch.channels_last if channels_last else torch.contiguous_format
    sizes = [min(BATCH, patches - start) for start in range(0, patches, BATCH)]
    return [encoder.transform(pixels[:size]).contiguous(memory_format=form) for size in sizes]


def untouched(name: str) -> torch.nn.Module:
    """Build the network as its library does: one that was channels last before stays so in part, and is slower for it."""
    if not name.startswith("timm:"):
        return build(resolve(name)).module.to(memory_format=torch.contiguous_format)
    declare_missing_operators()
    import timm

    return timm.create_model(name.removeprefix("timm:"), pretrained=False, num_classes=0).eval()


def forward_part(study: Study, encoders: list[str], patches: int, rounds: int) -> None:
    print(f"{'encoder':34s} {'encode/s':>9s} {'default/s':>9s} {'best/s':>9s} {'÷ default':>9s} {'÷ best':>7s}  stages")
    for name in encoders:
        tuned, plain = build(resolve(name)), untouched(name)
        batches = {layout: ready(tuned, patches, layout == "best") for layout in ("default", "best")}
        found: dict[str, list[float]] = {"encode": [], "default": [], "best": []}
        row: dict[str, object] = {}
        for _ in range(rounds):
            found["default"].append(bare(plain, batches["default"], 1, CORES))
            best = (bare(tuned.module, batches["best"], *how) for how in ((CORES, 1), (1, CORES)))
            found["best"].append(max(best))
            row = encode(study, [name])
            found["encode"].append(float(row["patches_per_second"]))
        median = {side: statistics.median(values) for side, values in found.items()}
        ratios = {
            side: statistics.median(e / b for e, b in zip(found["encode"], found[side], strict=True))
            for side in ("default", "best")
        }
        print(
            f"{name:34s} {median['encode']:9.1f} {median['default']:9.1f} {median['best']:9.1f} "
            f"{ratios['default']:9.3f} {ratios['best']:7.3f}  {row['stages']}",
            flush=True,
        )


def builtin_part(study: Study, patches: int, rounds: int) -> None:
    """Wall ÷ max(forward wall, (read + decode + forward core-seconds) ÷ cores); cutting at the exact mpp is part of reading."""
    encoder = build(resolve(BUILTIN))
    batches = ready(encoder, patches, True)
    ratios = []
    for _ in range(rounds):
        forward_wall = patches / bare(encoder.module, batches, CORES, 1)
        row = encode(study, [BUILTIN])
        stages = row["stages"]
        busy = (stages["read"] + stages["decode"] + stages["resample"] + stages["forward"]) / CORES
        ratios.append(float(row["seconds"]) / max(forward_wall, busy))
    print(f"built-in encoder: wall ÷ max(forward wall, core-seconds ÷ cores) = {statistics.median(ratios):.3f}")


def pair_part(study: Study, rounds: int) -> None:
    ratios, row = [], {}
    for _ in range(rounds):
        row = encode(study, [BUILTIN, MOBILENET], "fine")
        apart = sum(float(encode(study, [name], "fine")["seconds"]) for name in (BUILTIN, MOBILENET))
        ratios.append(float(row["seconds"]) / apart)
    print(f"two encoders in one pass ÷ sum of two passes = {statistics.median(ratios):.3f}  {row['stages']}")


def workers_part(study: Study, patches: int, rounds: int) -> None:
    """Scaling from 1 to 2 worker processes, one thread each, beside that of two bare forwards."""
    encoder = build(resolve(MOBILENET))
    batches = ready(encoder, patches, True)
    ours, limit = [], []
    for _ in range(rounds):
        one = run_workers(study, 1)
        two = run_workers(study, 2)
        ours.append(two / one)
        limit.append(bare(encoder.module, batches, 2, 1) / bare(encoder.module, batches, 1, 1))
    share = statistics.median(o / b for o, b in zip(ours, limit, strict=True))
    print(
        f"2 workers ÷ 1 worker = {statistics.median(ours):.2f}; two bare forwards ÷ one = {statistics.median(limit):.2f}; "
        f"share {share:.3f}"
    )


def run_workers(study: Study, workers: int) -> float:
    """Patches/s of `encode` on workers that are up, with one stream each."""
    from distributed import Client, LocalCluster

    options = {"OMP_NUM_THREADS": "1", "SPARED_FM_CORES": "1"}
    with LocalCluster(
        n_workers=workers, threads_per_worker=2, host="127.0.0.1", dashboard_address="127.0.0.1:0", env=options
    ) as cluster:
        with Client(cluster) as client:
            client.run(_warm)
        row = encode(study, [MOBILENET], scheduler=cluster.scheduler_address, chunk_rows=48)
    return float(row["patches_per_second"])


def _warm() -> None:
    from spared_fm.extract import task

    task.get(resolve(MOBILENET), "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patches", type=int, default=576)
    parser.add_argument("--part", choices=["forward", "builtin", "pair", "workers", "none"], action="append")
    parser.add_argument("--encoder", action="append", help="for the part forward")
    parser.add_argument("--keep", type=Path, help="write the slide and the store here, and keep them")
    options = parser.parse_args()
    parts = options.part or ["forward", "builtin", "pair", "workers"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        if not (folder / "fine").exists():
            write_slides(options.data, folder, options.patches)
        study = spared_fm.open(folder / "store", create=True)
        for name in ("pyramid", "fine"):
            study.ingest(folder / name)
        prepare()  # as in any run of more than 4,096 patches
        print(f"{CORES} cores, {options.patches} patches, medians of {options.rounds} interleaved rounds")
        if "forward" in parts:
            forward_part(study, options.encoder or [VIT, MOBILENET, BUILTIN], options.patches, options.rounds)
        if "builtin" in parts:
            builtin_part(study, options.patches, options.rounds)
        if "pair" in parts:
            pair_part(study, options.rounds)
        if "workers" in parts:
            workers_part(study, options.patches, options.rounds)


if __name__ == "__main__":
    main()
