"""The heads by name; each family's module is imported when it is first asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from spared_fm.heads.base import Head

#: name: (module, class)
HEADS: dict[str, tuple[str, str]] = {
    "gene-mean": ("spared_fm.heads.mean", "GeneMean"),
    "ridge": ("spared_fm.heads.ridge", "Ridge"),
    "pca-ridge": ("spared_fm.heads.ridge", "PCARidge"),
    "hest-exact": ("spared_fm.heads.hest", "HestExact"),
    "hest-corrected": ("spared_fm.heads.hest", "HestCorrected"),
    "pls": ("spared_fm.heads.pls", "PLS"),
    "reduced-rank-ridge": ("spared_fm.heads.reduced_rank", "ReducedRankRidge"),
    "knn": ("spared_fm.heads.knn", "KNN"),
    "coordinates": ("spared_fm.heads.coordinates", "Coordinates"),
    "slide-mean": ("spared_fm.heads.oracle", "SlideMean"),
    "mlp": ("spared_fm.heads.mlp", "MLP"),
    "lightgbm": ("spared_fm.heads.trees", "LightGBM"),
    "context-ridge": ("spared_fm.heads.context", "ContextRidge"),
    "context-mlp": ("spared_fm.heads.context", "ContextMLP"),
    "deepsets": ("spared_fm.heads.deepsets", "DeepSets"),
    "multi-encoder": ("spared_fm.heads.multi", "MultiEncoder"),
    "stacking": ("spared_fm.heads.stacking", "Stacking"),
    "spared-linear": ("spared_fm.heads.models.stnet", "SparedLinear"),
    "egn": ("spared_fm.heads.models.egn", "EGN"),
    "eggn": ("spared_fm.heads.models.eggn", "EGGN"),
    "bleep": ("spared_fm.heads.models.bleep", "BLEEP"),
    "sepal": ("spared_fm.heads.models.sepal", "SEPAL"),
    "histogene": ("spared_fm.heads.models.histogene", "HisToGene"),
    "hist2st": ("spared_fm.heads.models.hist2st", "Hist2ST"),
    "sgn": ("spared_fm.heads.models.sgn", "SGN"),
    "triplex": ("spared_fm.heads.models.triplex", "Triplex"),
    "pixnet": ("spared_fm.heads.models.pixnet", "PixNet"),
}

#: name: (head, its parameters, encoder and views of the published row). The backbone rows of SpaRED's tables, on frozen
#: features; a benchmark may put any other encoder in their place, and then it is no longer that row.
PRESETS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "shufflenet": ("spared-linear", {"target": "expression"}, "shufflenetv2-x0.5", "identity"),
    "vit-b": ("spared-linear", {"target": "expression"}, "vit-b16-imagenet", "identity"),
    "vit-b-delta": ("spared-linear", {"target": "deltas"}, "vit-b16-imagenet", "identity"),
    "st-net": ("spared-linear", {"target": "expression", "views": 8}, "densenet121", "dihedral"),
}


def head_class(name: str) -> type[Head]:
    """Return the class of a head, or of the head that a preset sets.

    Raises
    ------
    InputError
        No head has this name; the message lists those there are.
    """
    if name not in HEADS and name not in PRESETS:
        raise InputError(f"unknown head {name!r}: use one of {', '.join(sorted((*HEADS, *PRESETS)))}")
    module, attribute = HEADS[PRESETS[name][0] if name in PRESETS else name]
    found: type[Head] = getattr(import_module(module), attribute)
    return found


def make(name: str, **params: Any) -> Head:
    """Return an unfitted head; parameters that are given go before a preset's.

    Raises
    ------
    InputError
        Unknown name, or a parameter that the head does not take.
    """
    try:
        return head_class(name)(**(PRESETS[name][1] if name in PRESETS else {}) | params)
    except TypeError as error:
        raise InputError(f"head {name!r} can't be made with {params}: {error}") from error
