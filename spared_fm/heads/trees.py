"""Gradient-boosted trees, one model per gene, on principal components that are binned once for the whole panel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from spared_fm.errors import InputError
from spared_fm.heads.base import NAN_TARGETS, pack_labels, unpack_labels
from spared_fm.heads.neural import entries, inner_split
from spared_fm.heads.scaled import ScaledHead

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]


class LightGBM(ScaledHead):
    """LightGBM per gene (Ke et al. 2017) on the principal components of the standardised features.

    Binning depends on the features alone, so one binned training set (and one binned inner validation set) serves all
    genes and only the labels are exchanged. Few bins (``max_bin``) are what makes it fast.

    Parameters
    ----------
    components
        Principal components of the standardised features, all there are if fewer; None: the features themselves.
    rounds, patience
        Most trees, and how many may bring nothing on the inner slides before a gene's model stops.
    leaves, depth, least_rows, lr, max_bin, l2
        LightGBM's ``num_leaves``, ``max_depth``, ``min_data_in_leaf``, ``learning_rate``, ``max_bin``, ``lambda_l2``.
    standardize
        As for `Ridge`.
    fit_on
        ``"all"`` entries, or only those ``"measured"`` (the mask of ``fit``).
    threads
        Of LightGBM; 0 for all cores. Does not change the result.
    seed
        Decides the inner slides.

    Attributes
    ----------
    center_, scale_, rotation_
        (d,), (d,) and (d, components) float64.
    models_
        The models in LightGBM's text format, one after the other, as `pack_labels` packs them.
    rounds_
        (genes,) trees of each model.

    Notes
    -----
    Inner slides: see `spared_fm.heads.neural.inner_split`. A gene that is constant gets its constant.
    """

    name: ClassVar[str] = "lightgbm"
    arrays: ClassVar[tuple[str, ...]] = ("center", "scale", "rotation", "labelled", "models", "rounds")
    poor_score: ClassVar[bool] = True  # leaves of twenty rows fit two hundred coarsely

    rotation_: Matrix
    models_: NDArray[np.uint8]
    rounds_: NDArray[np.int64]

    def __init__(
        self,
        components: int | None = 256,
        *,
        rounds: int = 300,
        patience: int = 20,
        leaves: int = 15,
        depth: int = 5,
        least_rows: int = 20,
        lr: float = 0.05,
        max_bin: int = 63,
        l2: float = 1.0,
        standardize: Literal["slide", "train", "none"] = "slide",
        fit_on: Literal["all", "measured"] = "all",
        threads: int = 0,
        seed: int = 0,
    ) -> None:
        self.components = components
        self.rounds = rounds
        self.patience = patience
        self.leaves = leaves
        self.depth = depth
        self.least_rows = least_rows
        self.lr = lr
        self.max_bin = max_bin
        self.l2 = l2
        self.standardize = standardize
        self.fit_on = fit_on
        self.threads = threads
        self.seed = seed

    def _check_params(self) -> None:
        self._choice("fit_on", ("all", "measured"))
        if (
            min(self.rounds, self.patience, self.least_rows, 1 if self.components is None else self.components) < 1
            or min(self.leaves, self.max_bin) < 2
        ):
            raise InputError(
                "lightgbm rounds, patience, least_rows, components must be 1 or more; leaves, max_bin 2 or more"
            )

    def _fit(self, X: NDArray[Any], y: NDArray[Any], mask: Any, groups: Any, coords: Any) -> None:
        self._check_params()
        y64 = y.astype(np.float64)
        if not np.isfinite(y64).all():
            raise InputError(NAN_TARGETS)
        measured = entries(mask, y.shape, self.fit_on)
        self._learn_scale(X, groups)
        self.rotation_ = self._components(X, groups)
        models, rounds = self._boost(
            self._inputs(X, groups), y64, measured, inner_split(groups, coords, len(X), seed=self.seed)
        )
        self.rounds_, self.models_ = np.array(rounds), pack_labels(models)

    def _components(self, X: NDArray[Any], groups: Any) -> Matrix:
        """Return the axes (d, components) of the largest variance, all features if they are not to be rotated."""
        d = X.shape[1]
        if self.components is None or self.components >= d:
            return np.eye(d)
        products = np.zeros((d, d))
        for _, Z in self._scaled(X, groups):
            products += Z.T @ Z
        _, vectors = np.linalg.eigh(products)
        return np.ascontiguousarray(vectors[:, ::-1][:, : self.components])

    def _inputs(self, X: NDArray[Any], groups: Any) -> Matrix:
        out = np.empty((len(X), self.rotation_.shape[1]))
        for rows, Z in self._scaled(X, groups):
            out[rows] = Z @ self.rotation_
        return out

    def _boost(
        self, Z: Matrix, y: Matrix, measured: NDArray[np.bool_] | None, split: Any
    ) -> tuple[list[str], list[int]]:
        """Return each gene's model as text and its number of trees."""
        import lightgbm

        settings = {
            "objective": "regression",
            "num_leaves": self.leaves,
            "max_depth": self.depth,
            "min_data_in_leaf": self.least_rows,
            "learning_rate": self.lr,
            "max_bin": self.max_bin,
            "lambda_l2": self.l2,
            "num_threads": self.threads,
            "deterministic": True,
            "force_col_wise": True,  # left to itself, LightGBM times both ways for every gene
            "feature_pre_filter": False,
            "verbosity": -1,
            "seed": self.seed,
        }
        train = lightgbm.Dataset(Z[split.train], params=settings).construct()
        held = (
            lightgbm.Dataset(Z[split.held], reference=train, params=settings).construct() if len(split.held) else None
        )
        models, rounds = [], []
        for gene in range(y.shape[1]):
            for part, rows in ((train, split.train), (held, split.held)):
                if part is not None:
                    part.set_label(y[rows, gene])
                    part.set_weight(None if measured is None else measured[rows, gene].astype(np.float64) + 1e-12)
            stop: list[Any] = [lightgbm.early_stopping(self.patience, verbose=False)] if held is not None else []
            model = lightgbm.train(
                settings, train, self.rounds, valid_sets=None if held is None else [held], callbacks=stop
            )
            count = model.best_iteration if model.best_iteration > 0 else model.current_iteration()
            models.append(model.model_to_string(num_iteration=count))
            rounds.append(count)
        return models, rounds

    def _predict(self, X: NDArray[Any], groups: Any, coords: Any) -> NDArray[Any]:
        import lightgbm

        Z = self._inputs(X, groups)
        models = [lightgbm.Booster(model_str=text) for text in unpack_labels(self.models_)]
        return np.stack([model.predict(Z, num_threads=self.threads) for model in models], axis=1)
