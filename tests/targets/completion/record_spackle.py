"""Run the module of the released SpaCKLE, and record what it makes of seeded weights and inputs.

Needs the files of the wheel ``spared==2.2.1`` (``pip download --no-deps spared==2.2.1``, unpacked) and torch; Lightning and
the other packages that the file imports but the module does not need are replaced. From the repository root:

    python -m tests.targets.completion.record_spackle WHEEL
"""

from __future__ import annotations

import importlib.util
import sys
import types
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch

from tests.targets.completion.golden_spackle import GOLDEN, SIZES, inputs, weights


def released(wheel: Path) -> Any:
    """Return ``spared/spackle/model.py`` of the wheel as a module, with Lightning's module class replaced by torch's."""
    warnings.simplefilter("ignore")
    lightning = types.ModuleType("lightning")
    lightning.LightningModule = torch.nn.Module  # type: ignore[attr-defined]
    sys.modules |= {
        "lightning": lightning,
        "spackle": MagicMock(),
        "spared": MagicMock(),
        "spared.metrics": MagicMock(),
    }
    sys.modules["spackle.utils"] = types.ModuleType("spackle.utils")  # imported with a star
    path = wheel / "spared" / "spackle" / "model.py"
    spec = importlib.util.spec_from_file_location("released_spackle", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SystemExit(f"{path} is not there: unpack the wheel spared==2.2.1")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(wheel: str) -> None:
    found = {}
    module = released(Path(wheel))
    for case, (genes, _) in SIZES.items():
        net = module.TransformerEncoder(genes, 1, 2, genes).eval()
        kept = {key: tuple(v.shape) for key, v in net.state_dict().items() if not key.startswith("encoder_layer.")}
        net.load_state_dict({key: torch.from_numpy(value) for key, value in weights(kept).items()}, strict=False)
        with torch.no_grad():
            out = net(torch.from_numpy(inputs(case))).numpy()
        found[case] = out[:, :1] if case == "wide" else out  # the centre, or all tokens of the small panel
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
