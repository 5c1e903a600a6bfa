"""The built-in encoder: a fixed bank of stain-separated, multi-scale oriented filters with pooled statistics.

There is nothing to download and nothing learned or drawn at random: every number follows from a formula, a
published table or a constant written below. It is the embedded default, and a floor for later comparisons.

How a patch becomes a vector
----------------------------
1. Optical density ``-log10(max(rgb, 1/255))`` (Beer–Lambert) and, by the fixed matrix of Ruifrok & Johnston
   2001 (Anal Quant Cytol Histol 23:291), the amounts of haematoxylin, eosin and a residual stain. Two more
   views of the same pixels: the mean density (darkness), and the chromaticity plane of the
   hue–saturation–density model (van der Laak et al. 2000, Cytometry 39:275), in which hue doesn't depend on
   how much stain there is.
2. A pyramid by 2 × 2 means: levels L0 … L4, 0.5, 1, 2, 4 and 8 µm per pixel for 112 µm at 224 px. On each
   level a binomial blur (sigma 1 pixel) and central differences, the discrete scale-space of Lindeberg 1990
   (IEEE PAMI 12:234). First and second differences steer to any orientation (Freeman & Adelson 1991, IEEE
   PAMI 13:891) and are pooled over orientation in closed form: gradient magnitude, Laplacian (positive where
   a spot is denser than its surround, as a nucleus is in H), and the two eigenvalues of the negated Hessian,
   l1 >= l2: both positive on a blob, only l1 on a ridge such as a fibre.
3. Each pixel's structure is named by its strongest response, one of flat, slope, pale blob, dense blob, pale
   line, dense line, saddle (basic image features: Crosier & Griffin 2010, Int J Comput Vis 88:447), and the
   colour of the blobs and lines is pooled apart: what nuclei and the gaps between them look like.
4. Pooling over the patch: means, deviations, skewness, quantiles, soft histograms, peak counts, correlations.

Blocks of the vector
--------------------
``StainBank.blocks`` maps each name to its slice. "Amounts" are H, E, residual and density; L0 is filtered for
H and density only, as the finest detail is common to the stains: 2 + 4 × 4 = 18 numbers for one statistic.
Levels come in ascending order, channels in the order given within a level, quantiles within a channel.

======================  ====  ================================================================================
name                    size  what
======================  ====  ================================================================================
colour_mean               13  mean at L2 of R, G, B, H, E, residual, density, 2 chromaticities, optical
                              density of R, G, B, HSV chroma (max - min of R, G, B)
colour_std                13  their standard deviations at L2
colour_skew               36  damped skewness, L1 … L4, of H, E, residual, density, 2 chromaticities, optical
                              density of R, G, B
chroma_quantiles          14  quantiles .05 .1 .25 .5 .75 .9 .95 of each chromaticity at L2
histogram_h               12  soft histogram of H at L1, bin centres from -0.1 to 1.0; root of each share
histogram_e               12  the same of E, from -0.1 to 0.6
histogram_density         12  the same of density, from 0 to 1
nuclear_fraction           4  share of L1 pixels with H over 0.2, 0.35, 0.5, 0.65 (soft threshold)
colour_correlation        10  correlations at L2 between H, E, residual, density, HSV chroma
gradient_mean             18  mean gradient magnitude of the amounts, L0 … L4 (× 10)
gradient_std              18  its standard deviation (× 10)
laplacian_std             18  standard deviation of the Laplacian (× 10)
laplacian_skew            18  its damped skewness: dense spots on a pale ground, or the reverse
laplacian_quantiles       54  quantiles .1 .9 .97 of it (× 10); on L0 .1 .5 .9 of the maxima of 4 × 4 pixels
chroma_laplacian_skew      8  damped skewness of the Laplacian of the chromaticities, L1 … L4
anisotropy_std            18  standard deviation of l1 - l2 (× 10)
blob_mean                 18  mean of max(l2, 0): dense spots, nuclei-like in H (× 10)
blob_skew                 18  damped skewness of l2
ridge_mean                18  mean of max(max(l1, 0) - abs(l2), 0): dense lines (× 10)
peaks                     20  per 1,000 pixels, local maxima of the Laplacian of H over .02 .05 .1 .2 .35,
                              L0 … L3
coherence                 36  coherence of gradient directions, on each level in cells of 7, then of 14 pixels
structure_colour         144  on L1 … L3, structures named in H, then in density: for pale blobs, dense blobs,
                              pale lines, dense lines the mean over their pixels of H, E, residual, density,
                              2 chromaticities, less the patch's mean
texture_correlation       28  correlations at L2 between H, E, residual, gradient magnitudes and Laplacians
                              of H and E, l2 of H
======================  ====  ================================================================================

"Damped skewness" is ``asinh(m3 / (std**3 + 1e-4))``: 0 on a constant patch, small where there is hardly any
contrast. All values lie well inside float16 (abs < 1e3).

What was left out: pooling by distance from the centre, local binary patterns, radial spectra and
second-order scattering didn't help, or hurt, when the parts were compared inside the training slides of two
cohorts (breast cancer, olfactory bulb) by how well a ridge on them predicts expression.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from spared_fm.errors import InputError

_SIZES = {
    "colour_mean": 13,
    "colour_std": 13,
    "colour_skew": 36,
    "chroma_quantiles": 14,
    "histogram_h": 12,
    "histogram_e": 12,
    "histogram_density": 12,
    "nuclear_fraction": 4,
    "colour_correlation": 10,
    "gradient_mean": 18,
    "gradient_std": 18,
    "laplacian_std": 18,
    "laplacian_skew": 18,
    "laplacian_quantiles": 54,
    "chroma_laplacian_skew": 8,
    "anisotropy_std": 18,
    "blob_mean": 18,
    "blob_skew": 18,
    "ridge_mean": 18,
    "peaks": 20,
    "coherence": 36,
    "structure_colour": 144,
    "texture_correlation": 28,
}

# Optical density in R, G, B of haematoxylin, eosin and the residual; the rows are scaled to length one.
_STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))

_LEVELS = 5
_MIN_PX = 64  # L4 is then 4 × 4, the smallest that reflects by the 3 pixels the filters reach
_ENERGY = 10.0  # brings energies (around 0.01 optical density) away from float16's subnormal range
_FLAT = 0.05  # optical density below which a response is no structure: above the noise, below most nuclei

# Channels of the pyramid.
_H, _E, _DENSITY = 0, 1, 3
_AMOUNTS, _CHROMA, _FILTERED, _OD = slice(0, 4), slice(4, 6), slice(0, 6), slice(6, 9)


def _slices() -> dict[str, slice]:
    out, start = {}, 0
    for name, size in _SIZES.items():
        out[name] = slice(start, start + size)
        start += size
    return out


def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, standard deviation and damped skewness of (B, C, H, W) over the pixels, each (B, C)."""
    flat = x.flatten(2)
    mean = flat.mean(2, keepdim=True)
    c = flat - mean
    c2 = c * c
    std = c2.mean(2).sqrt()
    return mean[..., 0], std, torch.asinh((c2 * c).mean(2) / (std**3 + 1e-4))


def _quantiles(x: Tensor, qs: tuple[float, ...]) -> Tensor:
    """Quantiles of (B, C, H, W) over the pixels, linearly interpolated: (B, C * len(qs))."""
    values = x.flatten(2).sort(2).values
    last = values.shape[2] - 1
    out = []
    for q in qs:
        low = math.floor(q * last)
        high = min(low + 1, last)
        out.append(torch.lerp(values[..., low], values[..., high], q * last - low))
    return torch.stack(out, 2).flatten(1)


def _soft_histogram(x: Tensor, low: float, high: float, bins: int = 12) -> Tensor:
    """Root of each bin's share of the pixels of (B, 1, H, W): (B, bins).

    The bins are triangles that overlap by half, so that a share changes smoothly with the stain.
    """
    width = (high - low) / (bins - 1)
    position = (x.clamp(low, high) - low).flatten(1) / width
    shares = [(1 - (position - i).abs()).clamp_min(0).mean(1) for i in range(bins)]
    # Rounding leaves shares of 1e-8 in empty bins, which the root would make 1e-4: they are cut off.
    return (torch.stack(shares, 1) - 1e-6).clamp_min(0).sqrt()


def _correlations(x: Tensor) -> Tensor:
    """Correlations of the channels of (B, C, H, W), 0 for a constant one: (B, C * (C - 1) / 2)."""
    flat = x.flatten(2)
    flat = flat - flat.mean(2, keepdim=True)
    cov = flat @ flat.transpose(1, 2) / flat.shape[2]
    var = torch.diagonal(cov, dim1=1, dim2=2) + 1e-6
    i, j = torch.triu_indices(x.shape[1], x.shape[1], 1, device=x.device)
    return cov[:, i, j] / (var[:, i] * var[:, j]).sqrt()


def _is_local_maximum(x: Tensor) -> Tensor:
    """Where (B, C, H, W) is the largest in its 3 × 3 pixels; slices are faster than a pooling on a CPU."""
    p = functional.pad(x, (1, 1, 1, 1), mode="replicate")
    rows = torch.maximum(torch.maximum(p[..., :-2, :], p[..., 1:-1, :]), p[..., 2:, :])
    return x >= torch.maximum(torch.maximum(rows[..., :-2], rows[..., 1:-1]), rows[..., 2:])


class _Derivatives:
    """First and second Gaussian derivatives of (B, C, H, W), and what no rotation changes in them.

    Slices instead of convolutions: a five-tap kernel is limited by memory, and mirror images stay mirrored.
    """

    def __init__(self, x: Tensor) -> None:
        p = functional.pad(x, (3, 3, 3, 3), mode="reflect")
        n, m = p.shape[-2:]
        v = (p[..., : n - 4, :] + p[..., 4:, :]) * 0.0625 + p[..., 2 : n - 2, :] * 0.375
        v = v + (p[..., 1 : n - 3, :] + p[..., 3 : n - 1, :]) * 0.25
        b = (v[..., : m - 4] + v[..., 4:]) * 0.0625 + v[..., 2 : m - 2] * 0.375
        b = b + (v[..., 1 : m - 3] + v[..., 3 : m - 1]) * 0.25
        north, south = b[..., :-2, 1:-1], b[..., 2:, 1:-1]
        west, east = b[..., 1:-1, :-2], b[..., 1:-1, 2:]
        centre2 = 2 * b[..., 1:-1, 1:-1]
        gx, gy = (east - west) * 0.5, (south - north) * 0.5
        xx, yy = east + west - centre2, south + north - centre2
        xy = (b[..., 2:, 2:] - b[..., 2:, :-2] - b[..., :-2, 2:] + b[..., :-2, :-2]) * 0.25
        self.gxx, self.gyy, self.gxy = gx * gx, gy * gy, gx * gy
        self.gradient = (self.gxx + self.gyy + 1e-10).sqrt()
        self.laplacian = -(xx + yy)
        difference = xx - yy
        self.anisotropy = (difference * difference + 4 * xy * xy + 1e-10).sqrt()
        self.l1 = (self.laplacian + self.anisotropy) * 0.5
        self.l2 = (self.laplacian - self.anisotropy) * 0.5

    def coherence(self, channels: slice, cells: int) -> Tensor:
        """Mean doubled-angle gradient vector's length over the energy, in cells × cells windows: (B, C).

        1 where all gradients of a window share one direction, 0 where they share none (Bigün & Granlund 1987,
        ICCV:433); windows count by their energy.
        """
        a, b, c = (functional.adaptive_avg_pool2d(t[:, channels], cells) for t in (self.gxx, self.gyy, self.gxy))
        length = ((a - b) ** 2 + 4 * c * c).sqrt().sum((2, 3))
        return length / ((a + b).sum((2, 3)) + 1e-3)

    def structures(self, channel: int) -> Tensor:
        """Mark pale blobs, dense blobs, pale lines, dense lines of one channel: (B, 4, H, W) of 0 and 1."""
        lap, an = self.laplacian[:, channel], self.anisotropy[:, channel]
        shapes = torch.stack([-lap, lap, (an - lap) * 0.5**0.5, (an + lap) * 0.5**0.5], 1)
        rivals = torch.maximum(2 * self.gradient[:, channel], an).clamp_min(_FLAT)  # slope, saddle, flat
        strongest = torch.maximum(shapes.amax(1), rivals)
        return (shapes == strongest[:, None]).to(lap.dtype)


class StainBank(torch.nn.Module):
    """Fixed filter bank for H&E patches; the module's docstring tells every block of the vector.

    Attributes
    ----------
    name, version
        Identity of the encoder. Any change of a value of the vector is a new ``version``.
    dim
        Length of the vector.
    patch_px
        Patch side for which the levels have the micrometres given above. Other sizes from 64 px work; an odd
        row or column that a 2 × 2 mean leaves over is dropped.
    blocks
        Name of a block → its slice of the vector.

    Notes
    -----
    Quarter turns and mirror images of a square patch whose side is a multiple of 32 give the same vector, up
    to rounding and, in ``structure_colour``, to pixels whose two strongest responses are all but equal.

    On a CPU the rows of a batch are encoded one at a time, which is no slower (a row's working set fits the
    cache), so a row has the same bits whatever the batch around it. Elsewhere the batch goes through as one,
    and rows agree to rounding. Another number of threads changes the last bits (about 1e-7).
    """

    name: ClassVar[str] = "stain-bank"
    version: ClassVar[int] = 1
    dim: ClassVar[int] = sum(_SIZES.values())
    patch_px: ClassVar[int] = 224
    blocks: ClassVar[dict[str, slice]] = _slices()

    unmix: Tensor
    nuclear_thresholds: Tensor
    peak_thresholds: Tensor

    def __init__(self) -> None:
        super().__init__()
        stains = torch.tensor(_STAINS, dtype=torch.float64)
        stains = stains / stains.norm(dim=1, keepdim=True)
        self.register_buffer("unmix", torch.linalg.inv(stains).float())
        self.register_buffer("nuclear_thresholds", torch.tensor([0.2, 0.35, 0.5, 0.65]))
        self.register_buffer("peak_thresholds", torch.tensor([0.02, 0.05, 0.1, 0.2, 0.35]))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Encode patches.

        Parameters
        ----------
        x
            RGB patches in [0, 1], (B, 3, H, W), H and W at least 64. Values outside are clipped.

        Returns
        -------
        Tensor
            float32 (B, ``dim``), finite for every finite input.

        Raises
        ------
        InputError
            If the shape isn't (B, 3, >= 64, >= 64) or the values aren't floating point.
        """
        if x.ndim != 4 or x.shape[1] != 3 or min(x.shape[2:]) < _MIN_PX or not x.is_floating_point():
            raise InputError(
                f"stain-bank: got {x.dtype} patches of shape {tuple(x.shape)}; give floating-point RGB "
                f"in [0, 1] of shape (batch, 3, height, width), with sides of {_MIN_PX} px or more"
            )
        x = x.float().clamp(0, 1).contiguous()
        if x.shape[0] == 0:
            return x.new_zeros((0, self.dim))
        if x.device.type == "cpu":
            return torch.cat([self._encode(row[None]) for row in x])
        return self._encode(x)

    def _pyramid(self, x: Tensor) -> list[Tensor]:
        """Levels of (B, 9, ·, ·): H, E, residual, density, two chromaticities, density of R, G, B."""
        od = -torch.log10(x.clamp_min(1 / 255))
        density = od.mean(1, keepdim=True)
        # 0.05 keeps the hue of nearly white pixels, which is noise, near zero.
        chroma_x = od[:, :1] / (density + 0.05) - 1
        chroma_y = (od[:, 1:2] - od[:, 2:3]) / ((density + 0.05) * 3**0.5)
        r, g, b = od.unbind(1)
        w = self.unmix
        amounts = torch.stack([r * w[0, i] + g * w[1, i] + b * w[2, i] for i in range(3)], 1)
        levels = [torch.cat([amounts, density, chroma_x, chroma_y, od], 1)]
        for _ in range(_LEVELS - 1):
            levels.append(functional.avg_pool2d(levels[-1], 2))
        return levels

    def _encode(self, x: Tensor) -> Tensor:
        levels = self._pyramid(x)
        parts: dict[str, list[Tensor]] = {name: [] for name in _SIZES}
        self._colour(x, levels, parts)
        for i, level in enumerate(levels):
            self._texture(i, level, parts)
        return torch.cat([piece for pieces in parts.values() for piece in pieces], 1)

    def _colour(self, x: Tensor, levels: list[Tensor], parts: dict[str, list[Tensor]]) -> None:
        """Append the blocks that need no filter."""
        l1, l2 = levels[1], levels[2]
        hsv_chroma = functional.avg_pool2d(x.amax(1, keepdim=True) - x.amin(1, keepdim=True), 4)
        mean, std, _ = _moments(torch.cat([functional.avg_pool2d(x, 4), l2, hsv_chroma], 1))
        parts["colour_mean"].append(mean)
        parts["colour_std"].append(std)
        parts["colour_skew"] += [_moments(level)[2] for level in levels[1:]]
        parts["chroma_quantiles"].append(_quantiles(l2[:, _CHROMA], (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)))
        parts["histogram_h"].append(_soft_histogram(l1[:, [_H]], -0.1, 1.0))
        parts["histogram_e"].append(_soft_histogram(l1[:, [_E]], -0.1, 0.6))
        parts["histogram_density"].append(_soft_histogram(l1[:, [_DENSITY]], 0.0, 1.0))
        over = torch.sigmoid((l1[:, [_H]] - self.nuclear_thresholds[:, None, None]) / 0.04)
        parts["nuclear_fraction"].append(over.mean((2, 3)))
        parts["colour_correlation"].append(_correlations(torch.cat([l2[:, _AMOUNTS], hsv_chroma], 1)))

    def _texture(self, i: int, level: Tensor, parts: dict[str, list[Tensor]]) -> None:
        """Append what the filters give on level ``i``."""
        d = _Derivatives(level[:, [_H, _DENSITY]] if i == 0 else level[:, _FILTERED])
        amounts = slice(0, 2) if i == 0 else _AMOUNTS
        laplacian, l1, l2 = d.laplacian[:, amounts], d.l1[:, amounts], d.l2[:, amounts]

        mean, std, _ = _moments(d.gradient[:, amounts])
        parts["gradient_mean"].append(mean * _ENERGY)
        parts["gradient_std"].append(std * _ENERGY)
        _, std, skew = _moments(laplacian)
        parts["laplacian_std"].append(std * _ENERGY)
        parts["laplacian_skew"].append(skew)
        if i == 0:  # sorting 50,000 pixels would cost as much as the rest of the level
            quantiles = _quantiles(functional.max_pool2d(laplacian, 4), (0.1, 0.5, 0.9))
        else:
            quantiles = _quantiles(laplacian, (0.1, 0.9, 0.97))
        parts["laplacian_quantiles"].append(quantiles * _ENERGY)
        parts["anisotropy_std"].append(_moments(d.anisotropy[:, amounts])[1] * _ENERGY)
        parts["blob_mean"].append(l2.clamp_min(0).mean((2, 3)) * _ENERGY)
        parts["blob_skew"].append(_moments(l2)[2])
        ridge = (l1.clamp_min(0) - l2.abs()).clamp_min(0)
        parts["ridge_mean"].append(ridge.mean((2, 3)) * _ENERGY)
        # Cells of 7 and 14 pixels at 224 px; their number is fixed, so other sizes see the same windows.
        parts["coherence"] += [d.coherence(amounts, 32 >> i), d.coherence(amounts, 16 >> i)]

        if i < 4:
            h = laplacian[:, :1]
            peaks = _is_local_maximum(h) & (h > self.peak_thresholds[:, None, None])
            parts["peaks"].append(peaks.float().mean((2, 3)) * 1000)
        if i > 0:
            parts["chroma_laplacian_skew"].append(_moments(d.laplacian[:, _CHROMA])[2])
        if 1 <= i <= 3:
            contrast = level[:, _FILTERED] - level[:, _FILTERED].mean((2, 3), keepdim=True)
            for channel in (_H, _DENSITY):
                masks = d.structures(channel).flatten(2)
                total = masks @ contrast.flatten(2).transpose(1, 2)
                # 20 pixels of the patch's own mean: a handful of pixels shouldn't speak for a structure.
                parts["structure_colour"].append((total / (masks.sum(2, keepdim=True) + 20)).flatten(1))
        if i == 2:
            texture = [level[:, :3], d.gradient[:, [_H, _E]], laplacian[:, [_H, _E]], l2[:, [_H]]]
            parts["texture_correlation"].append(_correlations(torch.cat(texture, 1)))
