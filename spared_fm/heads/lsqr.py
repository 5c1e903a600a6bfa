"""Damped least squares by LSQR for many targets at once, with its stopping rule, on a diagonal problem."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]


def diagonal_lsqr(
    root: Matrix, b: Matrix, rest: Matrix, alpha: float, *, tol: float = 1e-4, most: int = 1000
) -> Matrix:
    """Return where LSQR stops on its way to the minimum of ``|D x - b|² + rest² + alpha |x|²``.

    LSQR (Paige & Saunders 1982, ACM TOMS 8:43) stops when its estimates say that the residual, or the gradient, is
    small: with a loose tolerance well before the minimum, which shrinks the solution. Its steps don't change when
    the rows of a problem are rotated, so a problem with orthogonal columns of any number of rows is solved as this
    one: ``D`` the lengths of the columns, ``b`` the targets along them, ``rest`` what is left of the targets.

    Parameters
    ----------
    root
        (k,) diagonal of D, not negative.
    b, rest
        (k, m) and (m,).
    alpha
        Penalty, above 0.
    tol
        Of both stopping tests (scikit-learn's ``tol``).
    most
        Most steps.

    Returns
    -------
    numpy.ndarray
        (k, m).
    """
    D, damp = root[:, None], np.sqrt(alpha)
    size = np.sqrt(np.sum(b**2, axis=0) + rest**2)
    x = np.zeros_like(b)
    going = (size > 0) & (np.abs(D * b).max(axis=0) > 0)
    # the bidiagonalisation: u (its last row the part along `rest`) and v of length 1, beta and a their lengths before
    u, beta = np.vstack([b, rest]), size.copy()
    u, _ = _unit(u)
    v, a = _unit(D * u[:-1])
    w, rhobar, phibar = v.copy(), a.copy(), beta.copy()
    frobenius, damped = np.zeros_like(a), np.zeros_like(a)  # |A|² and the damping's share of the residual, both growing
    cs2, sn2, z, xx = -np.ones_like(a), np.zeros_like(a), np.zeros_like(a), np.zeros_like(a)
    tiny = np.finfo(np.float64).tiny
    for _ in range(most):
        if not going.any():
            break
        frobenius += a**2 + alpha
        u[:-1], u[-1] = D * v - a * u[:-1], -a * u[-1]
        u, beta = _unit(u)
        frobenius += beta**2
        v, a = _unit(D * u[:-1] - beta * v)
        # rotate the damping away, then the subdiagonal
        rhobar1 = np.hypot(rhobar, damp)
        damped += (damp / rhobar1 * phibar) ** 2
        phibar = rhobar / rhobar1 * phibar
        rho = np.hypot(rhobar1, beta)
        cs, sn = rhobar1 / rho, beta / rho
        theta, rhobar, phi, phibar = sn * a, -cs * a, cs * phibar, sn * phibar
        x += np.where(going, phi / rho, 0.0) * w
        w = v - theta / rho * w
        # |x| from one more rotation, from the right
        gambar, right = -cs2 * rho, phi - sn2 * rho * z
        length = np.sqrt(xx + (right / gambar) ** 2)
        gamma = np.hypot(gambar, theta)
        cs2, sn2, z = gambar / gamma, theta / gamma, right / gamma
        xx += z**2
        residual = np.sqrt(phibar**2 + damped)
        norm = np.sqrt(frobenius)
        gradient = a * np.abs(sn * phi) / np.maximum(norm * residual, tiny)
        going &= (gradient > tol) & (residual > tol * (size + norm * length))
    return x


def _unit(columns: Matrix) -> tuple[Matrix, Matrix]:
    """Return columns scaled to length 1 (zeros stay), and their lengths."""
    lengths = np.sqrt(np.einsum("ij,ij->j", columns, columns))
    return columns / np.where(lengths > 0, lengths, 1.0), lengths
