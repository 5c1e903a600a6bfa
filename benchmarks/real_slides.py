"""Score the built-in encoder and a random network on the real slides, beside the colour floor, through the whole product.

Prints one row per cohort and encoder: mean PCC-Gene over the 50 genes of highest variance on the training slides, target
``lognorm``, all entries, with features standardised per slide and by the training slides, and the mean over seeds with the
training spots shuffled. The slides of ``her2st`` are neighbouring sections of one patient: a score there says little about
new patients.

    python benchmarks/real_slides.py [--data ../shared/data] [--store DIR] [--seeds 20]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

import spared_fm
from spared_fm.benchmark.runner import evaluate
from spared_fm.slides.images import open_image
from spared_fm.slides.patches import PatchReader, PatchSpec
from spared_fm.study.api import Study
from spared_fm.study.cohort import target
from spared_fm.study.evaluate import join, make_head

COHORTS = {
    "her2st (C2+C3 -> C4, one patient)": (["her2st_C2", "her2st_C3"], "her2st_C4", 0.450),
    "mob (rep1+rep12 -> rep11)": (["mob_rep1", "mob_rep12"], "mob_rep11", 0.490),
}
RANDOM = "timm:vit_small_patch16_224"


def colour_statistics(study: Study, slide: str) -> np.ndarray:
    """Mean and standard deviation of R, G, B and of their optical densities: 12 numbers per patch."""
    record = study.layout.attributes(study.layout.slide(slide)) or {}
    with open_image(record["image"]["path"]) as image:
        patches = PatchReader(image, record["mpp"], PatchSpec()).read(study.slide(slide).obsm["spatial"])
    pixels = patches.reshape(len(patches), -1, 3).astype(np.float32)
    density = -np.log((pixels + 1) / 256)
    return np.concatenate([f(values, axis=1) for values in (pixels, density) for f in (np.mean, np.std)], axis=1)


def pcc(
    x: dict[str, np.ndarray], y: dict[str, np.ndarray], split: dict[str, str], standardize: str, seed: int | None = None
) -> float:
    """Mean PCC-Gene of ridge on the test slide."""
    head = make_head("ridge", standardize)
    found = evaluate(head, encoder="", target="", X=x, Y=y, split=split, shuffle_seed=seed)
    return float(found.rows[0]["pcc_gene"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        study = spared_fm.open(options.store or Path(temporary) / "store", create=True)
        for train, test, _ in COHORTS.values():
            for slide in [*train, test]:
                study.ingest(options.data / slide, split="test" if slide == test else "train")
        study.encode(["stain-bank", RANDOM], progress=True)
        for label, (train, test, floor) in COHORTS.items():
            name = test.split("_")[0]
            study.cohort(name, slides=[*train, test], n_genes=50, panel="variance")
            print(f"\n{label}; floor stated with the data {floor:.3f}")
            print(
                f"{'features':32s} {'per slide':>9s} {'train std':>9s} {'shuffled (mean of ' + str(options.seeds) + ')':>22s}"
            )
            split = {**dict.fromkeys(train, "train"), test: "test"}
            y = target(study.layout, name, "lognorm")
            joined = {encoder: join(study.layout, name, encoder) for encoder in ("stain-bank", RANDOM)}
            rows = joined["stain-bank"].rows
            features = {encoder: found.features for encoder, found in joined.items()}
            features["colour statistics (here)"] = {slide: colour_statistics(study, slide) for slide in split}
            truth = {slide: y[rows[slide]] for slide in split}
            for encoder, x in features.items():
                shuffled = [pcc(x, truth, split, "slide", seed) for seed in range(options.seeds)]
                scores = [pcc(x, truth, split, standardize) for standardize in ("slide", "train")]
                print(
                    f"{encoder:32s} {scores[0]:9.3f} {scores[1]:9.3f} {np.mean(shuffled):14.3f} ± {np.std(shuffled):.3f}"
                )


if __name__ == "__main__":
    main()
