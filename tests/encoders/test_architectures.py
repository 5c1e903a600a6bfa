"""Every row builds what it says, without weights: the parameters counted, the tokens and the vector measured.

Builds are on the ``meta`` device, where a model of a billion parameters has shapes and no memory.
"""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from torch import nn

from spared_fm.encoders.models import make_core, wrap, wrap_for_tokens
from spared_fm.encoders.pooling import pooler
from spared_fm.encoders.registry import Row, row, rows
from spared_fm.errors import InputError

BUILDS = [found for found in rows().values() if found.loader != "builtin"]
SMALL = {  # one row of those that build the same
    (found.architecture, found.pooling, str(found.build)): found
    for found in BUILDS
    if 0 < found.parameters < 30_000_000
}.values()


def module_of(found: Row) -> nn.Module:
    missing = [name for name in found.requires if not importlib.util.find_spec(name.split()[0])]
    if missing:
        pytest.skip(f"{missing[0]} is not installed")
    return wrap(make_core(found), found).eval()


META: dict[str, nn.Module] = {}


def meta_module_of(found: Row) -> nn.Module:
    """Build once for the rows that differ in their pooling only."""
    key = str((found.loader, found.architecture, found.build, found.head, found.pooling == "model"))
    if key not in META:
        META[key] = module_of(found)
    return META[key]


def patch_tokens(found: Row, tokens: torch.Tensor) -> int:
    assert tokens.shape[::2] == (2, found.token_dim)
    return tokens.shape[1] - found.prefix_tokens


@pytest.mark.parametrize("found", BUILDS, ids=lambda found: found.name)
def test_parameters_tokens_and_dim(found: Row):
    with torch.device("meta"), torch.inference_mode():
        pixels = torch.zeros(2, 3, found.crop, found.crop)
        module = meta_module_of(found)
        assert sum(parameter.numel() for parameter in module.parameters()) == found.parameters
        output = module(pixels)
        assert pooler(found.pooling, found.prefix_tokens)(output).shape == (2, found.dim)
        if found.token_dim:
            tokens = output if output.ndim == 3 else wrap_for_tokens(module)(pixels)
            side = round(patch_tokens(found, tokens) ** 0.5)
            # A prefix counted wrong leaves no square; 16 is the coarsest patch but for networks that shrink by 32.
            assert side**2 == patch_tokens(found, tokens)
            assert found.crop / side in (8, 14, 16, 32)


@pytest.mark.parametrize("found", [found for found in BUILDS if found.requires], ids=lambda found: found.name)
def test_a_missing_package_is_named(found: Row, monkeypatch: pytest.MonkeyPatch):
    for name in found.requires:
        monkeypatch.setitem(sys.modules, name.split()[0], None)  # importing it then fails
        with pytest.raises(InputError, match=rf"encoder {found.name} needs the package {name.split()[0]}: pip install"):
            make_core(found)


def random_module(found: Row) -> nn.Module:
    """Fresh weights, but for what starts as zeros or ones: norms, biases, layer scales, class and register tokens."""
    torch.manual_seed(0)
    module = module_of(found)
    for parameter in module.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
        elif parameter.ndim == 3:
            nn.init.normal_(parameter)
    return module


@pytest.mark.parametrize("found", SMALL, ids=lambda found: found.name)
def test_the_vector_is_the_librarys_own(found: Row):
    """Ours goes through tokens and our pooling; the reference is the forward pass of the library's model."""
    module = random_module(found)
    patches = torch.randn(2, 3, found.crop, found.crop, generator=torch.Generator().manual_seed(1))
    patches[1] *= 4  # averaged over a patch, noise of one strength is all alike
    with torch.inference_mode():
        output = module(patches)
        vector = pooler(found.pooling, found.prefix_tokens)(output)
        core = getattr(module, "core", module)
        expected = core(patches)
        if isinstance(expected, list):  # a stage's map
            expected = expected[-1].mean((2, 3))
        if found.name == "dinov3-s16":  # the one whose library averages by default
            expected = core.forward_features(patches)[:, 0]
    assert vector.shape == (2, found.dim)
    torch.testing.assert_close(vector, expected, rtol=1e-4, atol=1e-5)
    assert (vector[0] - vector[1]).abs().max() > 1e-3


def test_the_published_size_of_h0_mini():
    """Its released file is 342,974,184 bytes: float32 numbers and a header of some kilobytes."""
    assert 0 < 342_974_184 - 4 * row("h0-mini").parameters < 100_000
