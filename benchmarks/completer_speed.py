"""Time and memory of completing a cohort with ``rate-attention``: 300,000 spots × 128 genes by default.

    python benchmarks/completer_speed.py [--spots 300000] [--slide 3000] [--threads 2]

Slides are synthetic (hexagonal grid, negative binomial counts of 128 genes with four regions, 40 % of the entries missing);
weights come from a fit of a few steps at the sizes in use, since speed does not depend on them. Prints seconds per spot, the
time for all spots, and the peak of resident memory, libraries included. ``--slide 300000`` makes one slide of all spots.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import torch

from spared_fm.targets.completion.data import Section, panel_of
from spared_fm.targets.completion.rate_attention import RateAttention

N_GENES = 128


def slide(n: int, seed: int) -> Section:
    """Draw a synthetic slide of ``n`` spots in ln(1 + counts per 10⁴)."""
    rng = np.random.default_rng(seed)
    columns = int(np.ceil(np.sqrt(n)))
    row, column = np.divmod(np.arange(n), columns)
    xy = np.stack([column + row % 2 / 2, row * np.sqrt(0.75)], axis=1)
    programs = np.random.default_rng(0).gamma(0.5, 1.0, (4, N_GENES)).astype(np.float32)
    region = (2 * row // (row.max() + 1) + 2 * (2 * column // columns)).astype(int)
    depth = rng.gamma(4.0, 0.3, (n, 1)).astype(np.float32)
    counts = rng.poisson(depth * programs[region]).astype(np.float32)
    total = counts.sum(axis=1) + rng.poisson(500, n)
    amount = (1e4 / total)[:, None].astype(np.float32)
    unit = np.broadcast_to(np.log1p(amount), counts.shape)
    return Section(
        f"synthetic {seed}", np.log1p(counts * amount), counts > 0, xy, np.log1p(total).astype(np.float32), 6, unit=unit
    )


def main() -> None:
    """Fit for a moment, complete all slides, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spots", type=int, default=300_000)
    parser.add_argument("--slide", type=int, default=3_000, help="spots of a slide")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train = [slide(1000, 10**6)]
    panel = panel_of(train, [f"g{i}" for i in range(N_GENES)])
    completer = RateAttention(steps=2).fit(train, [], panel)
    seconds = done = 0
    while done < args.spots:
        section = slide(min(args.slide, args.spots - done), done)
        start = time.perf_counter()
        completer.complete(section)
        seconds += time.perf_counter() - start
        done += len(section.values)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{done} spots × {N_GENES} genes in slides of {args.slide}, {completer.settings.members} nets, {args.threads} threads: "
        f"{seconds:.1f} s, {1e3 * seconds / done:.3f} ms per spot, peak {peak:.2f} GiB"
    )


if __name__ == "__main__":
    main()
