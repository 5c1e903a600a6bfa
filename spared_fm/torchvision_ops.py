"""Let ``import torchvision`` work beside a CPU build of torch.

PyPI's torchvision is linked against the CUDA build of torch. Beside a CPU torch its compiled extension does not load, and the
import then dies while registering fake kernels for ``torchvision::nms`` and ``torchvision::qnms``, operators the extension
would have declared. timm and torchmetrics import torchvision, so we declare the two schemas first. Only transforms are
used, never the operators; where the extension loads, nothing is declared.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@functools.cache
def declare_missing_operators() -> torch.library.Library | None:
    """Declare the two operators when torchvision's extension cannot load; call before the first import of torchvision.

    Returns
    -------
    torch.library.Library or None
        The library that holds the declarations (cached, since they vanish with it), None where none were needed.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or _extension_loads(Path(spec.origin).parent):
        return None
    library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        library.define(schema)
    return library


def _extension_loads(package: Path) -> bool:
    for extension in (*package.glob("_C*.so"), *package.glob("_C*.pyd")):
        try:
            ctypes.CDLL(str(extension))
        except OSError:
            continue
        return True
    return False
