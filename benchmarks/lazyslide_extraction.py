"""The same measurement for LazySlide 0.13 (`tl.feature_extraction`), run in an environment of its own.

    python benchmarks/extraction.py --keep /tmp/bench --part none          # writes /tmp/bench/pyramid/image.tif
    python -m venv lazy && lazy/bin/pip install torch==2.13.0 'lazyslide>=0.13,<0.14'
    lazy/bin/python benchmarks/lazyslide_extraction.py /tmp/bench/pyramid/image.tif [--rounds 5] [--patches 576]

Prints patches/s and the ratio to the bare forward of the same module (contiguous batches, torch's own threads), interleaved.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import statistics
import time
import warnings

import torch

library = torch.library.Library("torchvision", "DEF")  # PyPI's torchvision beside a CPU torch
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
warnings.simplefilter("ignore")

import lazyslide
import timm
from PIL import Image
from wsidata import open_wsi

BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image")
    parser.add_argument("--mpp", type=float, default=0.6901012549258021)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patches", type=int, default=576)
    options = parser.parse_args()
    wsi = open_wsi(options.image, store=None)
    # LazySlide refuses to enlarge: tiles of the same 112 µm are read at the slide's own mpp, and the transform enlarges them.
    tile_px = round(112 / options.mpp)
    lazyslide.pp.tile_tissues(wsi, tile_px, slide_mpp=options.mpp, tissue_key=None, background_filter=False, edge=False)
    tiles = wsi.shapes["tiles"]
    first = max(0, (len(tiles) - options.patches) // 2)
    wsi.shapes["tiles"] = tiles.iloc[first : first + options.patches]
    for name in ("vit_small_patch16_224", "mobilenetv3_small_100"):
        torch.manual_seed(0)
        module = timm.create_model(name, pretrained=False, num_classes=0).eval()
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(module), is_training=False)
        batch = torch.rand(BATCH, 3, 224, 224)
        for workers in (0, 2):
            rates, ratios = [], []
            for _ in range(options.rounds):
                with torch.inference_mode():
                    module(batch)
                    started = time.perf_counter()
                    for _ in range(options.patches // BATCH):
                        module(batch)
                    bare = options.patches // BATCH * BATCH / (time.perf_counter() - started)
                started = time.perf_counter()
                lazyslide.tl.feature_extraction(
                    wsi,
                    module,
                    model_name=name,
                    transform=lambda x, t=transform: t(Image.fromarray(x)),
                    batch_size=BATCH,
                    num_workers=workers,
                    device="cpu",
                    amp=False,
                    pbar=False,
                )
                rate = options.patches / (time.perf_counter() - started)
                rates.append(rate)
                ratios.append(rate / bare)
            print(
                f"{name:26s} num_workers={workers}: {statistics.median(rates):7.1f} patches/s, "
                f"÷ bare forward {statistics.median(ratios):.3f}"
            )


if __name__ == "__main__":
    main()
