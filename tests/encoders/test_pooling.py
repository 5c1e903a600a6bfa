from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from spared_fm.encoders.builder import Encoder, build
from spared_fm.encoders.pooling import combine, pooler, token_grid, vector, views_of
from spared_fm.encoders.spec import resolve
from spared_fm.errors import InputError
from tests.encoders.own_rows import write


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(
        tmp_path_factory.mktemp("rows"),
        cls={},
        mean={"pooling": "mean"},
        cls_mean={"pooling": "cls+mean", "dim": 384},
    )


@pytest.fixture(scope="module")
def patches() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


def normed_tokens(encoder: Encoder, patches: np.ndarray) -> np.ndarray:
    """What leaves the model's last norm, caught there: 1 class, 4 register and 4 × 4 patch tokens."""
    caught = []
    hook = encoder.module.core.norm.register_forward_hook(lambda _, __, output: caught.append(output))
    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.3, 0.4])
    pixels = torch.from_numpy(((patches / 255 - mean) / std).transpose(0, 3, 1, 2)).float()
    with torch.inference_mode():
        encoder.module.core(pixels)
    hook.remove()
    assert caught[0].shape == (3, 1 + 4 + 16, 192)
    return caught[0].numpy()


def test_class_token_and_mean_of_patch_tokens(registry: Path, patches: np.ndarray):
    built = {name: build(resolve(name, "random", registry=registry)) for name in ("cls", "mean", "cls-mean")}
    tokens = normed_tokens(built["cls"], patches)
    expected = {"cls": tokens[:, 0], "mean": tokens[:, 5:].mean(1)}
    expected["cls-mean"] = np.hstack([expected["cls"], expected["mean"]])
    for name, encoder in built.items():
        np.testing.assert_allclose(encoder.encode(patches), expected[name], atol=1e-5)
        assert encoder.dim == expected[name].shape[1]
    assert np.abs(expected["mean"] - tokens[:, 1:].mean(1)).max() > 1e-2  # registers in the mean would have shown


@pytest.mark.parametrize("side", [1, 2, 3, 4])
def test_token_grid(registry: Path, patches: np.ndarray, side: int):
    encoder = build(resolve("cls", "random", registry=registry, tokens=side))
    tokens = normed_tokens(encoder, patches)[:, 5:].reshape(3, 4, 4, 192)
    edges = [(i * 4 // side, -(-(i + 1) * 4 // side)) for i in range(side)]
    cells = [tokens[:, a:b, c:d].mean((1, 2)) for a, b in edges for c, d in edges]
    np.testing.assert_allclose(encoder.encode(patches), np.hstack(cells), atol=1e-5)
    assert (encoder.dim, encoder.pooling) == (side * side * 192, f"grid{side}")


def test_the_grid_runs_row_by_row_from_the_top_left():
    rows, columns = np.mgrid[:4, :4]
    places = torch.tensor(np.stack([rows, columns], axis=-1).reshape(1, 16, 2), dtype=torch.float32)
    tokens = torch.cat([torch.full((1, 5, 2), 99.0), places], dim=1)
    assert token_grid(tokens, 5, 2).tolist() == [[0.5, 0.5, 0.5, 2.5, 2.5, 0.5, 2.5, 2.5]]
    assert torch.equal(token_grid(tokens, 5, 4), places.flatten(1))


@pytest.mark.parametrize(
    ("shape", "side", "words"),
    [((1, 17, 8), 5, "too few"), ((1, 18, 8), 2, "no square grid"), ((1, 8), 2, "no square")],
)
def test_tokens_that_make_no_grid(shape: tuple[int, ...], side: int, words: str):
    with pytest.raises(InputError, match=words):
        token_grid(torch.zeros(shape), 1, side)


def test_tokens_are_no_vector():
    with pytest.raises(InputError, match="pooling must be named"):
        vector(torch.zeros(2, 17, 8))
    assert pooler("model", 0) is vector


def dihedral(image: np.ndarray) -> list[np.ndarray]:
    return [np.rot90(square, quarter) for square in (image, np.fliplr(image)) for quarter in range(4)]


def test_the_eight_views_in_their_order():
    image = np.arange(27, dtype=np.float32).reshape(3, 3, 3)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    found = [view[0].permute(1, 2, 0).numpy() for view in views_of(pixels, "dihedral")]
    assert len({view.tobytes() for view in found}) == 8
    for view, expected in zip(found, dihedral(image), strict=True):
        np.testing.assert_array_equal(view, expected)
    assert [view.data_ptr() for view in views_of(pixels, "identity")] == [pixels.data_ptr()]


def test_vectors_of_the_views(registry: Path, patches: np.ndarray):
    plain, mean, each = (
        build(resolve("cls-mean", "random", registry=registry, views=views))
        for views in ("identity", "dihedral-mean", "dihedral")
    )
    turned = zip(*(dihedral(patch) for patch in patches), strict=True)
    expected = np.stack([plain.encode(np.ascontiguousarray(view)) for view in turned])
    np.testing.assert_allclose(mean.encode(patches), expected.mean(0), atol=1e-5)
    np.testing.assert_allclose(each.encode(patches), np.hstack(list(expected)), atol=1e-5)
    assert (plain.dim, mean.dim, each.dim) == (384, 384, 8 * 384)
    assert np.abs(expected[0] - expected[1]).max() > 1e-2
    assert (mean.views, plain.weights) == ("dihedral-mean", each.weights)


def test_the_mean_of_views_keeps_still_under_a_turn(registry: Path, patches: np.ndarray):
    encoder = build(resolve("cls", "random", registry=registry, views="dihedral-mean"))
    turned = np.ascontiguousarray(np.rot90(patches, axes=(1, 2)))
    np.testing.assert_allclose(encoder.encode(turned), encoder.encode(patches), atol=1e-5)


def test_combine():
    one, two = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 6.0]])
    assert combine([one, two], "dihedral").tolist() == [[1, 2, 3, 6]]
    assert combine([one, two], "dihedral-mean").tolist() == [[2, 4]]
    assert combine([one], "identity") is one
