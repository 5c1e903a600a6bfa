"""From an encoder's name to something that turns patches into vectors."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from spared_fm.encoders.models import classifier_names, fill_core, make_core, timm_conversion, wrap, wrap_for_tokens
from spared_fm.encoders.pooling import combine, pooler, vector, views_of
from spared_fm.encoders.registry import BUILT_INS
from spared_fm.encoders.spec import PRETRAINED, RANDOM, EncoderSpec, checked
from spared_fm.encoders.transform import Transform
from spared_fm.encoders.weights import fill, weights_digest
from spared_fm.errors import InputError
from spared_fm.torchvision_ops import declare_missing_operators

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy as np

    from spared_fm.encoders.registry import Row


@dataclasses.dataclass
class Encoder:
    """A frozen model with its transform: uint8 patches in, float32 vectors out.

    Attributes
    ----------
    spec
        What was asked for.
    versioned_name
        The name that enters the recipe: with its version for the built-in encoders, for other registry rows with a digest of
        what they build, since an activation function or a number of heads leaves no trace in the weights.
    module
        The network in inference mode on ``device``, channels last: pixels → vectors, or tokens.
    transform
        From uint8 patches to what the network takes.
    dim
        Length of a vector.
    weights
        Digest of the weights in use.
    pooling, prefix_tokens, views, compute_dtype
        Recipe fields, as data.
    device
        Torch device string.
    pool
        From the module's output (float32) to vectors (batch, d); ``dim`` is 8 × d where eight views are kept apart.
    row
        The registry row, None for ``timm:<model>``.
    """

    spec: EncoderSpec
    versioned_name: str
    module: torch.nn.Module
    transform: Transform
    dim: int
    weights: str
    pooling: str
    prefix_tokens: int
    compute_dtype: str
    device: str
    pool: Callable[[torch.Tensor], torch.Tensor] = vector
    row: Row | None = None

    @property
    def views(self) -> str:
        """The views of a patch that are averaged or kept."""
        return self.spec.views

    def forward(self, batch: torch.Tensor) -> np.ndarray:
        """Encode a transformed batch (batch, 3, h, w) float32 → (batch, dim) float32."""
        return forward_together([self], batch)[0]

    def encode(self, patches: np.ndarray) -> np.ndarray:
        """Encode one batch of uint8 RGB patches (batch, px, px, 3) → (batch, dim) float32."""
        return self.forward(self.transform(patches))


def forward_together(encoders: Sequence[Encoder], batch: torch.Tensor) -> list[np.ndarray]:
    """Run one module once for several encoders, each of which pools its output in its own way.

    Parameters
    ----------
    encoders
        For which :func:`shares_forward` holds with the first.
    batch
        What their transform gives, float32 (batch, 3, h, w).

    Returns
    -------
    list of numpy.ndarray
        Vectors of each encoder, (batch, dim) float32.
    """
    first = encoders[0]
    if not all(shares_forward(first, other) for other in encoders[1:]):
        raise ValueError("encoders that run together share module, transform, views and compute dtype")
    device, dtype = torch.device(first.device), getattr(torch, first.compute_dtype)
    vectors: list[list[torch.Tensor]] = [[] for _ in encoders]
    with torch.inference_mode():
        for pixels in views_of(batch.to(device, non_blocking=True), first.views):
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                output = first.module(pixels)
            output = output.float()
            for found, encoder in zip(vectors, encoders, strict=True):
                found.append(encoder.pool(output))
        return [combine(found, first.views).cpu().numpy() for found in vectors]


def shares_forward(one: Encoder, other: Encoder) -> bool:
    """Whether one forward pass serves both encoders."""
    return (
        one.module is other.module
        and one.transform == other.transform
        and (one.views, one.compute_dtype, one.device) == (other.views, other.compute_dtype, other.device)
    )


def build(spec: EncoderSpec, *, device: str = "cpu", others: Iterable[Encoder] = ()) -> Encoder:
    """Build an encoder.

    The network is touched only for weights ``"pretrained"``.

    Parameters
    ----------
    spec
        From :func:`spared_fm.encoders.spec.resolve`.
    device
        ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
    others
        Encoders built before: a module with the same weights on the same device is taken from them, not built again.

    Raises
    ------
    InputError
        The weights can't be had or don't fit, an optional package is missing, the registry row contradicts the model it
        builds, or the device is not there.
    """
    _check_device(device)
    if spec.tokens:
        return with_tokens(build(dataclasses.replace(spec, tokens=0), device=device, others=others), spec.tokens)
    row = spec.row
    if row is None:
        return _build_timm(spec, device)
    return _build_built_in(spec, row, device) if row.loader == "builtin" else _build_row(spec, row, device, others)


def with_tokens(encoder: Encoder, grid: int) -> Encoder:
    """Give the encoder of a token grid that has the weights of ``encoder`` in common with it.

    Its module is the same object, so that :func:`forward_together` serves both, unless ``encoder`` takes a vector that the
    model itself pools (``pooling`` ``model`` in the registry, or ``timm:<model>``).

    Parameters
    ----------
    encoder
        With the view ``identity``.
    grid
        Side g of the grid; a vector has g × g × width numbers, see :func:`spared_fm.encoders.pooling.token_grid`.

    Raises
    ------
    InputError
        The model has no grid of patch tokens, or a smaller one.
    """
    row = encoder.row
    tokens = dataclasses.replace(
        encoder,
        spec=checked(dataclasses.replace(encoder.spec, tokens=grid)),
        module=wrap_for_tokens(encoder.module),
        pooling=f"grid{grid}",
        pool=pooler("model", encoder.prefix_tokens, grid),
    )
    size = encoder.transform.crop
    if size is None:
        raise InputError(f"encoder {encoder.spec.name} has no grid of patch tokens; leave out --tokens")
    dim = _output_dim(tokens, size)
    if row is not None and dim != grid**2 * row.token_dim:
        raise InputError(
            f"encoder {row.name}: its registry row promises tokens of {row.token_dim}, its model's have {dim // grid**2}"
        )
    return dataclasses.replace(tokens, dim=dim)


def _build_built_in(spec: EncoderSpec, row: Row, device: str) -> Encoder:
    where, name = BUILT_INS[row.architecture].split(":")
    module = getattr(importlib.import_module(f"spared_fm.encoders.{where}"), name)().eval().to(device)
    version = f"{module.name}/{module.version}"
    encoder = Encoder(
        spec=spec,
        versioned_name=version,
        module=module,
        transform=Transform(),
        dim=module.dim,
        weights=version,
        pooling="statistics",
        prefix_tokens=0,
        compute_dtype="float32",
        device=device,
        row=row,
    )
    return dataclasses.replace(encoder, dim=_all_views(encoder, module.dim))


def _build_row(spec: EncoderSpec, row: Row, device: str, others: Iterable[Encoder]) -> Encoder:
    same = next((other for other in others if other.device == device and _same_module(other, spec, row)), None)
    if same is not None:
        module, weights = same.module, same.weights
    else:
        # A private generator state: building an encoder must not move the caller's random numbers.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            core = make_core(row)
        fill_core(core, row, spec.weights)
        weights = weights_digest(core.state_dict())
        module = wrap(core, row).eval().to(device)
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    built = hashlib.sha256(
        json.dumps([row.loader, row.architecture, row.build, row.head], sort_keys=True).encode()
    ).hexdigest()
    encoder = Encoder(
        spec=spec,
        versioned_name=f"{row.name}/{built[:8]}",
        module=module,
        transform=Transform(row.resize or None, row.crop, row.interpolation, row.mean, row.std),
        dim=row.dim,
        weights=weights,
        pooling=row.pooling,
        prefix_tokens=row.prefix_tokens,
        compute_dtype=spec.precision or row.compute_dtype,
        device=device,
        pool=pooler(row.pooling, row.prefix_tokens),
        row=row,
    )
    _check_row(encoder, row)
    return dataclasses.replace(encoder, dim=_all_views(encoder, encoder.dim))


def _same_module(other: Encoder, spec: EncoderSpec, row: Row) -> bool:
    """Whether the module of ``other`` is what ``spec`` would build."""
    if other.row is None or (other.spec.tokens and row.pooling == "model"):
        return False
    fields = ["loader", "architecture", "build", "head"] + (
        ["hub", "revision", "file"] if spec.weights == PRETRAINED else []
    )
    return (
        all(getattr(other.row, field) == getattr(row, field) for field in fields)
        and (other.row.pooling == "model") == (row.pooling == "model")
        and (other.spec.weights, other.spec.seed) == (spec.weights, spec.seed)
    )


def _check_row(encoder: Encoder, row: Row) -> None:
    """Run the model once: what the row says of it must hold."""
    try:
        dim = _output_dim(encoder, row.crop)
    except (RuntimeError, AssertionError, ValueError, IndexError, TypeError) as error:
        raise InputError(
            f"encoder {row.name}: its model does not take {row.crop} × {row.crop} pixels "
            f"({(str(error).splitlines() or [type(error).__name__])[0][:160]}); mend crop or build in its registry row"
        ) from error
    if dim != encoder.dim:
        raise InputError(f"encoder {row.name}: its registry row promises {encoder.dim} numbers, its model gives {dim}")


def _build_timm(spec: EncoderSpec, device: str) -> Encoder:
    declare_missing_operators()
    import timm

    model = _timm_model(spec).eval().to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # faster for convolutions, the same numbers
    config = timm.data.resolve_model_data_config(model)
    encoder = Encoder(
        spec=spec,
        versioned_name=spec.name,
        module=model,
        transform=_timm_transform(spec, config),
        dim=0,
        weights=weights_digest(model.state_dict()),
        pooling=_pooling(model),
        prefix_tokens=int(getattr(model, "num_prefix_tokens", 0)),
        compute_dtype=spec.precision or "float32",
        device=device,
    )
    return dataclasses.replace(encoder, dim=_all_views(encoder, _output_dim(encoder, config["input_size"][1])))


def _timm_transform(spec: EncoderSpec, config: dict[str, Any]) -> Transform:
    """Read the evaluation transform timm's data config declares, for square patches."""
    _, height, width = config["input_size"]
    if height != width or config["crop_mode"] not in ("center", "squash"):
        raise InputError(
            f"{spec.name}: timm crops its input by {config['crop_mode']!r} to {height} × {width}; not supported"
        )
    resize = math.floor(height / config["crop_pct"]) if config["crop_mode"] == "center" else height
    return Transform(resize, height, config["interpolation"], tuple(config["mean"]), tuple(config["std"]))


def _timm_model(spec: EncoderSpec) -> torch.nn.Module:
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        if spec.weights != PRETRAINED:
            architecture = spec.architecture.split(".")[0]
            model = timm.create_model(architecture, pretrained=False, num_classes=0)
            if spec.weights != RANDOM:
                fill(
                    model,
                    Path(spec.weights),
                    ignore=classifier_names(architecture),
                    convert=timm_conversion(model),
                )
            return model
        try:
            return timm.create_model(spec.architecture, pretrained=True, num_classes=0)
        except Exception as error:  # hub, network and file errors of many kinds, all with the same mend
            raise InputError(
                f"pretrained weights of {spec.name} can't be had here ({type(error).__name__}); "
                "fetch them where there is a network and pass --weights FILE, or use --weights random for a floor"
            ) from error


def _output_dim(encoder: Encoder, side: int) -> int:
    """Length of one view's vector by a forward pass: no attribute says it for all architectures."""
    plain = dataclasses.replace(encoder, spec=dataclasses.replace(encoder.spec, views="identity"))
    return int(plain.forward(torch.zeros(1, 3, side, side)).shape[1])


def _all_views(encoder: Encoder, dim: int) -> int:
    return 8 * dim if encoder.views == "dihedral" else dim


def _pooling(model: torch.nn.Module) -> str:
    """Timm keeps a name (transformers) or a pooling module (convolutional nets) under the same attribute."""
    pool = getattr(model, "global_pool", None)
    return str(pool if isinstance(pool, str) else getattr(pool, "pool_type", "none"))


def _check_device(device: str) -> None:
    kind = device.split(":")[0]
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(kind, False):
        raise InputError(
            f"device {device!r} is not available here; there is {', '.join(k for k, ok in there.items() if ok)}"
        )
