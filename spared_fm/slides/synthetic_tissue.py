"""Synthetic H&E: regions, nuclei and a Beer–Lambert rendering. Nothing here looks at real tissue.

Fields live on a coarse grid of :data:`FIELD_UM` micrometres and are enlarged to the image; only textures
are made near full resolution. Lengths are micrometres, stain amounts are relative concentrations (about 0
to 1.5).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial import cKDTree
from scipy.special import expit

FIELD_UM = 5.0
REGIONS = ("tumour", "stroma", "lymphoid", "adipose")

_FIELD_SCALE_UM = (190.0, 210.0, 110.0, 210.0)  # size of the blobs of each region
_FIELD_BIAS = (0.55, 0.35, -0.15, -0.15)  # above zero: more of the region
_NUCLEI_PER_MM2 = np.array([4200.0, 1300.0, 9500.0, 220.0])
_CYTOPLASM_H = np.array([0.13, 0.03, 0.16, 0.0], np.float32)
_LATTICE_UM = 6.4  # nuclei sit on a jittered lattice, so they crowd but rarely pile up


@dataclass(frozen=True)
class Stain:
    """Optical density per unit of each stain in R, G, B, and the glass (0–255)."""

    hematoxylin: np.ndarray
    eosin: np.ndarray
    glass: np.ndarray


@dataclass(frozen=True)
class Tissue:
    """Maps of one section on the coarse grid, each ``(h, w)`` float32; ``logits`` is ``(region, h, w)``."""

    logits: np.ndarray
    inside: np.ndarray  # above 0 within the section, in micrometres from its edge
    lumen: np.ndarray  # above 0 in gland lumens
    density: np.ndarray  # nuclei per mm²
    bend: np.ndarray  # displacement of the fibres across their direction, µm
    tilt: float  # direction of the fibres before bending, radians

    @property
    def size_um(self) -> tuple[float, float]:
        """Width and height in micrometres."""
        return self.inside.shape[1] * FIELD_UM, self.inside.shape[0] * FIELD_UM

    def regions(self) -> np.ndarray:
        """Share of each region, ``(region, h, w)``, summing to one."""
        return _softmax(self.logits)


@dataclass(frozen=True)
class Nuclei:
    """Nuclei of one section: centre ``(n, 2)`` in µm, region ``(n,)`` int, direction ``(n,)`` in radians."""

    xy_um: np.ndarray
    region: np.ndarray
    angle: np.ndarray


def draw_stain(rng: np.random.Generator) -> Stain:
    """Draw one patient's staining: hue and strength vary about Ruifrok and Johnston's vectors (2001)."""
    vectors = np.array([[0.650, 0.704, 0.286], [0.092, 0.954, 0.283]]) + rng.normal(0, 0.03, (2, 3))
    vectors = np.clip(vectors, 0.02, None)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    hematoxylin, eosin = vectors * rng.uniform([[1.1], [0.85]], [[1.55], [1.25]])
    return Stain(hematoxylin, eosin, np.array([243.0, 242.0, 245.0]) + rng.uniform(-3, 3, 3))


def grow_tissue(rng: np.random.Generator, width_um: float, height_um: float) -> Tissue:
    """Grow a section: an outline, smooth regions, gland lumens and fibres."""
    shape = (round(height_um / FIELD_UM), round(width_um / FIELD_UM))
    logits = np.stack(
        [_smooth(rng, shape, scale) + bias for scale, bias in zip(_FIELD_SCALE_UM, _FIELD_BIAS, strict=True)]
    )
    logits = (logits * 9).astype(np.float32)  # steep: neighbouring regions mix over tens of micrometres only
    share = _softmax(logits)
    lumen = _smooth(rng, shape, 24.0) - 1.45 - 6 * np.clip(1 - share[0], 0, 1)  # none near the edge of a nest
    inside = _outline(rng, shape)
    crowding = np.exp(0.35 * _smooth(rng, shape, 90.0))
    density = np.tensordot(_NUCLEI_PER_MM2, share, axes=1) * crowding * (inside > 0) * (lumen < 0)
    return Tissue(
        logits,
        inside,
        lumen.astype(np.float32),
        density.astype(np.float32),
        (90 * _smooth(rng, shape, 160.0)).astype(np.float32),
        float(rng.uniform(0, np.pi)),
    )


def scatter_nuclei(rng: np.random.Generator, tissue: Tissue) -> Nuclei:
    """Scatter nuclei by the density map, each with the region and the fibre direction of its place."""
    width, height = tissue.size_um
    lattice = np.stack(
        np.meshgrid(np.arange(0, width, _LATTICE_UM), np.arange(0, height, _LATTICE_UM)), axis=-1
    ).reshape(-1, 2)
    xy = lattice + rng.uniform(0, _LATTICE_UM, lattice.shape)
    chance = _at(tissue.density, xy) * _LATTICE_UM**2 / 1e6
    xy = xy[rng.random(len(xy)) < chance]
    share = np.stack([_at(s, xy) for s in tissue.regions()])
    region = (rng.random(len(xy)) > np.cumsum(share, axis=0)[:-1]).sum(axis=0)
    across_y, across_x = np.gradient(tissue.bend, FIELD_UM)
    along = np.array([np.cos(tissue.tilt), np.sin(tissue.tilt)])
    # fibres are level lines of (distance across them + bend): its gradient turned by 90° runs along them
    grad_x, grad_y = -along[1] + _at(across_x, xy), along[0] + _at(across_y, xy)
    free = rng.uniform(0, np.pi, len(xy))
    angle = np.where(region == 1, np.arctan2(-grad_x, grad_y) + rng.normal(0, 0.2, len(xy)), free)
    return Nuclei(xy, region, angle % np.pi)


def render(rng: np.random.Generator, tissue: Tissue, nuclei: Nuclei, stain: Stain, um_per_px: float) -> np.ndarray:
    """Render a section in transmitted light.

    Parameters
    ----------
    rng, tissue, nuclei, stain
        What to draw.
    um_per_px
        Pixel size in micrometres.

    Returns
    -------
    np.ndarray
        ``(height, width, 3)`` uint8, RGB: glass × exp(-(haematoxylin + eosin optical density)).
    """
    width, height = (round(side / um_per_px) for side in tissue.size_um)
    full, half = (height, width), ((height + 1) // 2, (width + 1) // 2)
    share = _softmax(np.stack([_enlarge(field, half) for field in tissue.logits]) * 2)
    eosin = _eosin(rng, tissue, share, half, 2 * um_per_px)
    haze = np.tensordot(_CYTOPLASM_H, share, axes=1)
    present = expit(_enlarge(tissue.inside, half) / 1.5) * expit(-12 * _enlarge(tissue.lumen, half))
    eosin_full, haze_full = _enlarge(eosin * present, full), _enlarge(haze * present, full)
    nuclear = _stamp(rng, nuclei, full, um_per_px)
    haematoxylin = haze_full + nuclear
    eosin_full *= 1 - 0.55 * np.minimum(nuclear, 1)
    noise = rng.standard_normal(full, dtype=np.float32) * np.float32(2.2)
    image = np.empty((*full, 3), np.uint8)
    for channel in range(3):
        depth = haematoxylin * np.float32(stain.hematoxylin[channel])
        depth += eosin_full * np.float32(stain.eosin[channel])
        light = np.exp(-depth) * np.float32(stain.glass[channel]) + noise
        image[..., channel] = np.clip(light, 0, 255)
    return image


def _eosin(
    rng: np.random.Generator, tissue: Tissue, share: np.ndarray, shape: tuple[int, int], um_per_px: float
) -> np.ndarray:
    grain = _grain(rng, shape, 1.6 / um_per_px)
    cloud = _grain(rng, shape, 7.0 / um_per_px)
    fibre = _fibres(rng, tissue, shape, um_per_px)
    tumour = 0.46 + 0.07 * grain + 0.06 * cloud
    stroma = np.clip(0.60 + 0.25 * fibre + 0.05 * grain, 0.03, None)
    lymphoid = 0.26 + 0.06 * cloud
    fat = _fat(rng, tissue, share[3], shape, um_per_px)
    return np.einsum("rhw,rhw->hw", share, np.stack([tumour, stroma, lymphoid, fat])).astype(np.float32)


def _fibres(rng: np.random.Generator, tissue: Tissue, shape: tuple[int, int], um_per_px: float) -> np.ndarray:
    """Noise stretched along one direction, then bent: standard deviation about 1."""
    side = int(np.hypot(*shape)) + 2
    streaks = gaussian_filter(
        rng.standard_normal((side, side), dtype=np.float32), (2.0 / um_per_px, 28 / um_per_px), mode="wrap"
    )
    streaks /= streaks.std()
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    cos, sin = np.float32(np.cos(tissue.tilt)), np.float32(np.sin(tissue.tilt))
    bend = _enlarge(tissue.bend, shape) / np.float32(um_per_px)
    return map_coordinates(streaks, [-sin * x + cos * y + bend, cos * x + sin * y], order=1, mode="grid-wrap")


def _fat(
    rng: np.random.Generator, tissue: Tissue, share: np.ndarray, shape: tuple[int, int], um_per_px: float
) -> np.ndarray:
    """Empty vacuoles with thin walls: the borders of a Voronoi tessellation of jittered centres."""
    width, height, spacing = *tissue.size_um, 58.0
    ticks = (np.arange(-spacing, side + spacing, spacing) for side in (width, height))
    grid = np.stack(np.meshgrid(*ticks), axis=-1)
    centres = (grid + rng.uniform(-0.42, 0.42, grid.shape) * spacing).reshape(-1, 2)
    wall = np.full(shape, 0.02, np.float32)
    rows, cols = np.nonzero(share > 0.02)
    if len(rows):
        near = cKDTree(centres).query(np.column_stack([cols, rows]) * um_per_px, k=2, workers=1)[0]
        wall[rows, cols] += 0.62 * expit((4.5 - near[:, 1] + near[:, 0]) / 0.9)
    return wall


def _stamp(rng: np.random.Generator, nuclei: Nuclei, shape: tuple[int, int], um_per_px: float) -> np.ndarray:
    """Stamp all nuclei, each one of a bank of drawn shapes; where they overlap the darker wins."""
    n_angles, n_kinds = 12, 6
    banks = {
        region: [
            [_nucleus(rng, region, np.pi * a / n_angles, um_per_px) for _ in range(n_kinds)] for a in range(n_angles)
        ]
        for region in range(len(REGIONS))
    }
    edge = max(t.shape[0] for bank in banks.values() for kinds in bank for t in kinds)
    canvas = np.zeros((shape[0] + 2 * edge, shape[1] + 2 * edge), np.float32)
    turn = np.round(nuclei.angle / np.pi * n_angles).astype(int) % n_angles
    kind = rng.integers(0, n_kinds, len(turn))
    strength = rng.normal(1, 0.13, len(turn)).clip(0.6, 1.4).astype(np.float32)
    cells = np.round(nuclei.xy_um / um_per_px).astype(int) + edge
    for (x, y), region, a, k, s in zip(cells, nuclei.region, turn, kind, strength, strict=True):
        shape_drawn = banks[int(region)][a][k]
        half = shape_drawn.shape[0] // 2
        window = canvas[y - half : y + half + 1, x - half : x + half + 1]
        np.maximum(window, shape_drawn * s, out=window)
    return canvas[edge : edge + shape[0], edge : edge + shape[1]]


def _nucleus(rng: np.random.Generator, region: int, angle: float, um_per_px: float) -> np.ndarray:
    """Draw one nucleus in an odd square: large and vesicular, spindle, small and dark, or flattened."""
    length, breadth = ((6.6, 5.0), (7.2, 2.0), (3.5, 3.2), (5.5, 1.6))[region]  # semi-axes, µm
    length, breadth = length * rng.uniform(0.8, 1.22), breadth * rng.uniform(0.8, 1.22)
    half = int(np.ceil((length + 2.5) / um_per_px))
    y, x = np.mgrid[-half : half + 1, -half : half + 1] * um_per_px
    u, v = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    wobble = 1 + 0.09 * np.cos(2 * np.arctan2(v, u) + rng.uniform(0, 6)) * rng.uniform(0, 1)
    radius = np.hypot(u / length, v / breadth) / wobble
    body = expit((1 - radius) * min(length, breadth) / 0.55)
    chromatin = gaussian_filter(rng.standard_normal(x.shape), 0.9 / um_per_px)
    chromatin /= chromatin.std() + 1e-9
    if region == 0:  # pale inside, a darker rim and often a nucleolus
        rim = np.exp(-(((radius - 0.88) / 0.2) ** 2))
        spot = np.exp(-((u - rng.normal(0, 1.5)) ** 2 + (v - rng.normal(0, 1)) ** 2) / 1.6) * (rng.random() < 0.7)
        drawn = body * (0.62 + 0.10 * chromatin) + 0.28 * rim * body + 0.5 * spot * body
    else:
        drawn = body * ((0.0, 0.95, 1.25, 0.9)[region] + 0.10 * chromatin)
    return np.clip(drawn, 0, None).astype(np.float32)


def _outline(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Signed distance-like map of the section: positive within, in µm, falling off towards the glass."""
    y, x = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    turn = np.arctan2(y, x)
    reach = 0.92 + sum(rng.normal(0, 0.055 / k) * np.cos(k * turn + rng.uniform(0, 2 * np.pi)) for k in range(2, 7))
    squarish = (np.abs(x) ** 3 + np.abs(y) ** 3) ** (1 / 3)
    rough = 9 * _smooth(rng, shape, 14.0)
    return ((reach - squarish) * min(shape) * FIELD_UM / 2 + rough).astype(np.float32)


def _smooth(rng: np.random.Generator, shape: tuple[int, int], scale_um: float) -> np.ndarray:
    """Smooth random field of mean 0 and standard deviation 1."""
    field = gaussian_filter(rng.standard_normal(shape), scale_um / FIELD_UM / 2, mode="reflect")
    return (field - field.mean()) / field.std()


def _grain(rng: np.random.Generator, shape: tuple[int, int], sigma_px: float) -> np.ndarray:
    field = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma_px, truncate=3)
    return field / field.std()


def _softmax(logits: np.ndarray) -> np.ndarray:
    weight = np.exp(logits - logits.max(axis=0))
    return weight / weight.sum(axis=0)


def _enlarge(field: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    resized = Image.fromarray(np.asarray(field, np.float32)).resize(shape[::-1], Image.Resampling.BILINEAR)
    return np.array(resized)


def _at(field: np.ndarray, xy_um: np.ndarray) -> np.ndarray:
    """Value of a coarse map at points in micrometres (cell centres lie at half cells)."""
    return map_coordinates(field, (xy_um / FIELD_UM - 0.5)[:, ::-1].T, order=1, mode="nearest")
