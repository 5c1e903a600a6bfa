"""The built-in encoder: what its docstring promises, on patches drawn for the purpose."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spared_fm.encoders import stain_bank
from spared_fm.encoders.stain_bank import StainBank
from spared_fm.errors import InputError
from tests.encoders.record_golden_stain_bank import GOLDEN, golden_patch

if TYPE_CHECKING:
    from collections.abc import Iterator

HAEMATOXYLIN, EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.07, 0.99, 0.11])
BLOCKS = StainBank.blocks


@pytest.fixture(scope="module")
def bank() -> StainBank:
    return StainBank()


def stained(h: np.ndarray | float, e: np.ndarray | float) -> torch.Tensor:
    """A patch (3, 224, 224) that holds the given amounts of the two stains, by Beer–Lambert."""
    h, e = np.broadcast_arrays(h, e, np.empty((224, 224)))[:2]
    unit = [v / np.linalg.norm(v) for v in (HAEMATOXYLIN, EOSIN)]
    od = h[..., None] * unit[0] + e[..., None] * unit[1]
    return torch.from_numpy(10.0**-od).permute(2, 0, 1).float()


def nuclei(count: int, radius: float = 6.0, amount: float = 0.6, seed: int = 0) -> np.ndarray:
    """Haematoxylin amounts of round, soft-edged nuclei on a jittered grid, so that they never overlap."""
    rng = np.random.default_rng(seed)
    cells = rng.permutation(144)[:count]
    centres = np.stack([cells // 12, cells % 12], 1) * 18.5 + 10 + rng.uniform(-2, 2, (count, 2))
    y, x = np.mgrid[:224, :224]
    out = np.full((224, 224), 0.05)
    for cy, cx in centres:
        out += amount / (1 + np.exp(np.hypot(y - cy, x - cx) - radius))
    return out


def noise(seed: int, n: int = 1, px: int = 224) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((n, 3, px, px), dtype=np.float32))


def encode(bank: StainBank, patch: torch.Tensor) -> torch.Tensor:
    return bank(patch[None])[0]


def block(vector: torch.Tensor, name: str) -> torch.Tensor:
    return vector[BLOCKS[name]]


def test_identity_and_layout(bank: StainBank) -> None:
    assert (StainBank.name, StainBank.version, StainBank.patch_px, StainBank.dim) == (
        "stain-bank",
        1,
        224,
        560,
    )
    ends = [s.stop for s in BLOCKS.values()]
    assert [s.start for s in BLOCKS.values()] == [0, *ends[:-1]]
    assert ends[-1] == StainBank.dim
    assert list(bank.parameters()) == []


def test_docstring_table_is_the_layout() -> None:
    rows = re.findall(r"^(\w+) +(\d+)  ", stain_bank.__doc__ or "", flags=re.M)
    assert [(name, int(size)) for name, size in rows] == [(n, s.stop - s.start) for n, s in BLOCKS.items()]


def test_every_block_has_the_size_it_declares(bank: StainBank) -> None:
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in BLOCKS}
    x = noise(1)
    levels = bank._pyramid(x)
    bank._colour(x, levels, parts)
    for i, level in enumerate(levels):
        bank._texture(i, level, parts)
    sizes = {name: sum(piece.shape[1] for piece in pieces) for name, pieces in parts.items()}
    assert sizes == {name: s.stop - s.start for name, s in BLOCKS.items()}


def test_golden_vector(bank: StainBank) -> None:
    got = encode(bank, golden_patch()).numpy()
    np.testing.assert_allclose(got, np.load(GOLDEN, allow_pickle=False), rtol=1e-3, atol=1e-3)


def test_same_bits_twice_and_in_a_new_instance(bank: StainBank) -> None:
    x = noise(2, n=2)
    first = bank(x)
    assert torch.equal(first, bank(x))
    assert torch.equal(first, StainBank()(x))


def test_survives_its_state_dict(bank: StainBank) -> None:
    other = StainBank()
    for buffer in other.buffers():
        buffer.zero_()
    other.load_state_dict(bank.state_dict())
    assert torch.equal(other(noise(2)), bank(noise(2)))


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two threads, with which the sums over a whole batch are cut otherwise than those over a row."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("px", [224, 67])
def test_a_row_has_the_same_bits_whatever_the_batch(bank: StainBank, px: int) -> None:
    x = noise(3, n=5, px=px)
    alone = torch.cat([bank(row[None].clone()) for row in x])
    assert torch.equal(bank(x), alone)
    assert torch.equal(bank(x.flip(0)), alone.flip(0))
    assert torch.equal(bank(x.contiguous(memory_format=torch.channels_last)), alone)


def test_the_whole_batch_path_of_accelerators_agrees(bank: StainBank) -> None:
    x = torch.stack([golden_patch(), noise(4)[0], stained(nuclei(40), 0.2)])
    torch.testing.assert_close(bank._encode(x), bank(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "patch",
    [
        torch.zeros(3, 224, 224),
        torch.ones(3, 224, 224),
        torch.full((3, 224, 224), 0.5),
        torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(3, 224, 224),
        (torch.arange(224)[None, :, None] + torch.arange(224)[None, None] + torch.zeros(3, 1, 1)) % 2,
        noise(5)[0].round(),
        torch.zeros(3, 224, 224).index_fill_(2, torch.tensor([100]), 1.0),
        noise(6)[0] * 100 - 50,
    ],
    ids=["black", "white", "grey", "red", "checkerboard", "saturated noise", "one line", "out of range"],
)
def test_finite_and_safe_for_float16(bank: StainBank, patch: torch.Tensor) -> None:
    vector = encode(bank, patch)
    assert vector.dtype == torch.float32
    assert torch.isfinite(vector).all()
    assert vector.abs().max() < 1e3


def test_a_constant_patch_has_no_texture(bank: StainBank) -> None:
    vector = encode(bank, torch.full((3, 224, 224), 0.5))
    flat = "gradient_std laplacian_std laplacian_skew blob_skew peaks coherence texture_correlation"
    for name in flat.split():
        torch.testing.assert_close(block(vector, name), torch.zeros_like(block(vector, name)), atol=1e-3, rtol=0)


@settings(max_examples=15, deadline=None)
@given(height=st.integers(64, 150), width=st.integers(64, 150), seed=st.integers(0, 99))
def test_any_size_from_64_px(bank: StainBank, height: int, width: int, seed: int) -> None:
    x = torch.from_numpy(np.random.default_rng(seed).random((1, 3, height, width), dtype=np.float32))
    vector = bank(x)
    assert vector.shape == (1, StainBank.dim)
    assert torch.isfinite(vector).all()


def test_values_out_of_range_are_clipped(bank: StainBank) -> None:
    x = noise(8) * 2 - 0.5
    assert torch.equal(bank(x), bank(x.clamp(0, 1)))


def test_stain_amounts_solve_the_mixing(bank: StainBank) -> None:
    # A pixel stained with 0.5 of each stain in turn unmixes to that stain alone.
    published = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    density = 0.5 * published / published.norm(dim=1, keepdim=True)
    patch = (10**-density).T[None, :, :, None].repeat_interleave(64, 2).expand(1, 3, 192, 64)
    amounts = bank._pyramid(patch)[0][0, :3, ::64, 0]
    torch.testing.assert_close(amounts, 0.5 * torch.eye(3), atol=1e-5, rtol=0)


def test_empty_batch_and_other_float_types(bank: StainBank) -> None:
    assert bank(torch.zeros(0, 3, 224, 224)).shape == (0, StainBank.dim)
    x = noise(7)
    torch.testing.assert_close(bank(x.double()), bank(x))


@pytest.mark.parametrize(
    "bad",
    [
        torch.zeros(3, 224, 224),
        torch.zeros(1, 1, 224, 224),
        torch.zeros(1, 3, 63, 224),
        torch.zeros(1, 3, 224, 224, dtype=torch.uint8),
    ],
    ids=["no batch", "grey", "small", "bytes"],
)
def test_wrong_input_is_refused_in_one_line(bank: StainBank, bad: torch.Tensor) -> None:
    with pytest.raises(InputError, match=re.escape(str(tuple(bad.shape)))) as error:
        bank(bad)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("turn", ["90", "180", "270", "mirror"])
def test_quarter_turns_and_mirror_images_change_little(bank: StainBank, turn: str) -> None:
    patch = golden_patch()
    turned = patch.flip(2) if turn == "mirror" else torch.rot90(patch, int(turn) // 90, (1, 2))
    a, b = encode(bank, patch), encode(bank, turned)
    # One pixel more or less at a threshold moves a mean by about its share of the pixels.
    torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3)


def test_other_turns_change_less_than_other_tissue(bank: StainBank) -> None:
    # Fibres turned by 30°: what is pooled over orientation hardly moves, fibres twice as wide move it.
    y, x = np.mgrid[:224, :224].astype(float)

    def fibres(angle: float, period: float) -> torch.Tensor:
        phase = x * np.cos(np.deg2rad(angle)) + y * np.sin(np.deg2rad(angle))
        return stained(0.1, 0.4 + 0.2 * np.cos(2 * np.pi * phase / period))

    straight, turned, wide = (encode(bank, fibres(*p)) for p in ((0, 16), (30, 16), (0, 32)))
    for name in ("gradient_mean", "laplacian_std", "ridge_mean"):
        near = (block(straight, name) - block(turned, name)).abs().sum()
        far = (block(straight, name) - block(wide, name)).abs().sum()
        assert near < 0.35 * far, name


def test_more_nuclei_give_more_peaks_and_blobs(bank: StainBank) -> None:
    few, some, many = (encode(bank, stained(nuclei(n), 0.2)) for n in (10, 40, 120))
    # H comes first among the channels, L2 (2 µm per pixel) starts after L0's 2 and L1's 4 channels.
    blob_h_l2 = BLOCKS["blob_mean"].start + 2 + 4
    assert few[blob_h_l2] < some[blob_h_l2] < many[blob_h_l2]
    # At L2 a nucleus is 3 pixels wide and peaks once over .2: the count is right, not only its order.
    peaks = [v[BLOCKS["peaks"].start + 2 * 5 + 3] * 56 * 56 / 1000 for v in (few, some, many)]
    assert [float(p) for p in peaks] == pytest.approx([10, 40, 120], rel=0.06)  # some are cut by the border


def test_haematoxylin_moves_the_h_statistics_and_leaves_eosin(bank: StainBank) -> None:
    pale, dark = (encode(bank, stained(0.2 * k + 0 * nuclei(1), 0.3)) for k in (1, 2))
    mean = block(dark, "colour_mean") - block(pale, "colour_mean")
    assert float(mean[3]) == pytest.approx(0.2, abs=1e-4)  # H
    assert float(mean[4]) == pytest.approx(0.0, abs=1e-4)  # E
    assert float(mean[5]) == pytest.approx(0.0, abs=1e-4)  # residual
    assert (block(dark, "histogram_h") - block(pale, "histogram_h")).abs().max() > 0.5
    assert (block(dark, "histogram_e") - block(pale, "histogram_e")).abs().max() < 1e-2


def test_nuclear_fraction_is_the_area_of_nuclei(bank: StainBank) -> None:
    amounts = nuclei(60, radius=7, amount=0.9)
    got = block(encode(bank, stained(amounts, 0.2)), "nuclear_fraction")
    expected = [float((amounts > t).mean()) for t in (0.2, 0.35, 0.5, 0.65)]
    assert got.tolist() == pytest.approx(expected, abs=0.03)


def test_histograms_hold_all_pixels(bank: StainBank) -> None:
    vector = encode(bank, golden_patch())
    for name in ("histogram_h", "histogram_e", "histogram_density"):
        assert float((block(vector, name) ** 2).sum()) == pytest.approx(1, abs=1e-3)


def test_coherence_tells_fibres_from_nuclei(bank: StainBank) -> None:
    x = np.mgrid[:224, :224][1]
    fibres = encode(bank, stained(0.3 + 0.2 * np.cos(2 * np.pi * x / 16), 0.2))
    round_ = encode(bank, stained(nuclei(100), 0.2))
    # Cells of 14 pixels at L2: H is the first of the second four.
    at = BLOCKS["coherence"].start + 4 + 8 + 4
    assert fibres[at] > 0.9
    assert round_[at] < 0.5


def test_structure_colour_tells_what_nuclei_look_like(bank: StainBank) -> None:
    amounts = nuclei(40)
    vector = block(encode(bank, stained(amounts, 0.3 - 0.2 * (amounts > 0.35))), "structure_colour")
    l2_by_h = vector.reshape(3, 2, 4, 6)[1, 0]  # level, class channel, structure, colour channel
    dense_blobs = l2_by_h[1]
    assert dense_blobs[0] > 0.15  # more H than the patch's mean
    assert dense_blobs[1] < -0.05  # less E


def test_skewness_tells_dense_on_pale_from_pale_on_dense(bank: StainBank) -> None:
    amounts = nuclei(40)
    dense = encode(bank, stained(amounts, 0.2))
    pale = encode(bank, stained(amounts.max() - amounts, 0.2))
    h_l2 = BLOCKS["laplacian_skew"].start + 2 + 4
    assert dense[h_l2] > 0.3
    assert pale[h_l2] < -0.3


def test_golden_file_is_small() -> None:
    assert Path(GOLDEN).stat().st_size < 8192
