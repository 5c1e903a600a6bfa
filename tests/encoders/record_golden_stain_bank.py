"""Record the golden vector of the built-in encoder: ``python -m tests.encoders.record_golden_stain_bank``.

Run it only with a new ``StainBank.version``: stores hold vectors of the old one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).with_name("golden_stain_bank.npy")


def golden_patch() -> torch.Tensor:
    """Draw a patch (3, 224, 224) from formulas: nuclei-like spots, fibres, a lumen, pigment, a gradient."""
    y, x = np.mgrid[:224, :224].astype(np.float64)
    h, e = 0.08 + 0.0004 * x, 0.25 + 0.08 * np.cos((x + 2 * y) / 6.0)
    for k in range(48):
        cy, cx = 224 * ((k * 0.7548776662) % 1), 224 * ((k * 0.5698402910) % 1)  # low-discrepancy points
        h = h + (0.4 + 0.006 * k) * np.exp(-(((y - cy) / (4 + k % 4)) ** 2 + ((x - cx) / (4 + k % 3)) ** 2))
    tissue = 1 / (1 + np.exp((28 - np.hypot(y - 150, x - 60)) / 2))
    od = (h * tissue)[None] * np.array([0.65, 0.70, 0.29])[:, None, None]
    od = od + (e * tissue)[None] * np.array([0.07, 0.99, 0.11])[:, None, None]
    pigment = 0.3 * np.exp(-(((y - 40) / 9) ** 2) - ((x - 180) / 14) ** 2)
    od = od + pigment[None] * np.array([0.27, 0.57, 0.78])[:, None, None]
    # Bytes as an image would hold them, so that rounding in the formulas can't reach the encoder.
    return torch.from_numpy(np.rint(255 * 10.0**-od)).float() / 255


if __name__ == "__main__":
    from spared_fm.encoders.stain_bank import StainBank

    np.save(GOLDEN, StainBank()(golden_patch()[None])[0].numpy(), allow_pickle=False)
