"""The HEST benchmark's regression, as published and corrected.

Source: HEST-1k (Jaume et al. 2024, NeurIPS) and its released benchmark. Targets there are log1p of raw counts of 50
genes, folds are patients, and the score is Pearson's r per gene over the whole test split.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from spared_fm.errors import InputError
from spared_fm.heads.base import RowBlocks
from spared_fm.heads.linear import LinearHead, Sums
from spared_fm.heads.lsqr import diagonal_lsqr
from spared_fm.heads.ridge import WIDE, PCARidge
from spared_fm.heads.spectral import Eigen

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from spared_fm.heads.base import Block
    from spared_fm.heads.moments import Moments


class HestExact(LinearHead):
    """HEST's numbers: standardise, PCA to 256, ridge with alpha 100 / (256 · genes) and no intercept.

    The alpha is fixed (about .008 for 50 genes): the published code takes one as an argument and ignores it. Without
    an intercept and with targets that aren't centred, predictions are off by the mean of each gene: Pearson's r
    doesn't see it, errors and R² mean nothing. The published code solves by scikit-learn's ``lsqr``, which stops where its
    tolerance of 1e-4 is met, and that changes the PCC in the fourth place: it is stopped at the same step here. The
    published code finds the components by a randomised method, here they are exact, from sums of products. With
    fewer than 256 features or spots the published code fails; here all components are used and take the place of
    256 in alpha.

    Parameters
    ----------
    components
        Number of principal components.
    block_rows
        Most rows that are held in float64 at a time.

    Attributes
    ----------
    alpha_
        The penalty.
    """

    name: ClassVar[str] = "hest-exact"
    arrays: ClassVar[tuple[str, ...]] = ("coef", "intercept", "center", "scale", "labelled", "alpha")
    poor_score: ClassVar[bool] = True  # no intercept
    standardize = "train"
    cv = "auto"

    def __init__(self, components: int = 256, *, block_rows: int = 8192) -> None:
        self.components = components
        self.block_rows = block_rows

    def _fit_blocks(self, blocks: Iterable[Block]) -> None:
        self._check_params()
        sums = Sums(self._checked(blocks), self.standardize, self.block_rows)
        self._fit_sums(sums, sums.total)

    def fit_folds(self, X: Any, y: Any, groups: Any, test: Sequence[Sequence[str]]) -> Iterator[HestExact]:
        """Fit once per fold from one reading of the rows.

        Parameters
        ----------
        X, y, groups
            As for ``fit``; groups are needed.
        test
            Slides (labels) of each fold that are left out.

        Yields
        ------
        HestExact
            A head fitted on all slides but those of the fold.

        Raises
        ------
        InputError
            As ``fit``; a slide that isn't there, or a fold that leaves none to train on.
        """
        X, y = self._begin(X, y)
        sums = Sums(RowBlocks(X, y, groups, self.block_rows), self.standardize, self.block_rows)
        for fold in test:
            if unknown := sorted(set(fold) - set(sums.slides)):
                raise InputError(f"no slide {unknown[0]!r} in the groups: fold slides must be among them")
            rest = sums.total
            for label, part in zip(sums.slides, sums.parts, strict=True):
                rest = rest.less(part) if label in fold else rest
            if rest.n == 0:
                raise InputError("a fold leaves no slide to train on: give folds that are smaller")
            head = HestExact(self.components, block_rows=self.block_rows)
            head.n_features_in_, head.single_target_ = self.n_features_in_, self.single_target_
            head._fit_sums(sums, rest)
            yield head

    def _fit_sums(self, sums: Sums, training: Moments) -> None:
        mean_x, self.scale_, mean_y, centred = sums.training(training)
        components = min(self.components, training.n, len(mean_x))
        self.labelled_, self.center_ = sums.labelled, sums.ox + mean_x
        self.alpha_ = 100.0 / (components * len(centred.yy))
        self.intercept_ = np.zeros(len(centred.yy))
        basis = Eigen(centred.xx, components)
        # the components are centred, so products with targets that aren't centred are the same
        root = np.sqrt(basis.eigenvalues())
        b = np.divide(
            basis.rotate(centred.xy), root[:, None], out=np.zeros((len(root), len(mean_y))), where=root[:, None] > 0
        )
        squares = centred.yy + training.n * (sums.oy + mean_y) ** 2  # of targets that aren't centred
        rest = np.sqrt(np.maximum(squares - np.sum(b**2, axis=0), 0.0))
        self.coef_ = basis.back(diagonal_lsqr(root, b, rest, self.alpha_))


class HestCorrected(PCARidge):
    """HEST's regression with the alpha picked inside the training patients, and an intercept.

    `PCARidge` with other defaults: standardised by the training spots as HEST does, alphas up to 10⁶ (picked by
    leaving out training patients, or slides if there is one patient).

    Parameters
    ----------
    components, alphas, alpha_per, standardize, cv, block_rows
        As for `PCARidge`.
    """

    name: ClassVar[str] = "hest-corrected"

    def __init__(
        self,
        components: int | None = 256,
        *,
        alphas: Sequence[float] = WIDE,
        alpha_per: Literal["gene", "all"] = "all",
        standardize: Literal["slide", "train", "none"] = "train",
        cv: Literal["auto", "patient", "slide", "gcv", "loo"] = "auto",
        block_rows: int = 8192,
    ) -> None:
        super().__init__(
            components, alphas=alphas, alpha_per=alpha_per, standardize=standardize, cv=cv, block_rows=block_rows
        )
