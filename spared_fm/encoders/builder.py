"""From an encoder's name to something that turns patches into vectors."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from spared_fm.encoders.spec import PRETRAINED, RANDOM, EncoderSpec
from spared_fm.encoders.torchvision_ops import declare_missing_operators
from spared_fm.encoders.transform import Transform
from spared_fm.encoders.weights import fill, weights_digest
from spared_fm.errors import InputError

if TYPE_CHECKING:
    import numpy as np


@dataclasses.dataclass
class Encoder:
    """A frozen model with its transform: uint8 patches in, float32 vectors out.

    Attributes
    ----------
    spec
        What was asked for.
    versioned_name
        The name that enters the recipe: with its version for the built-in encoder.
    module
        The network in inference mode on ``device``, channels last.
    transform
        From uint8 patches to what the network takes.
    dim
        Length of a vector.
    weights
        Digest of the weights in use.
    pooling, prefix_tokens, compute_dtype
        Recipe fields, as data.
    device
        Torch device string.
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

    def forward(self, batch: torch.Tensor) -> np.ndarray:
        """Encode a transformed batch (batch, 3, h, w) float32 → (batch, dim) float32."""
        device = torch.device(self.device)
        dtype = getattr(torch, self.compute_dtype)
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return self.module(batch.to(device, non_blocking=True)).float().cpu().numpy()

    def encode(self, patches: np.ndarray) -> np.ndarray:
        """Encode one batch of uint8 RGB patches (batch, px, px, 3) → (batch, dim) float32."""
        return self.forward(self.transform(patches))


def build(spec: EncoderSpec, *, device: str = "cpu") -> Encoder:
    """Build an encoder.

    Parameters
    ----------
    spec
        From :func:`spared_fm.encoders.spec.resolve`.
    device
        ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

    Raises
    ------
    InputError
        The weights can't be had or don't fit, or the device is not there.
    """
    _check_device(device)
    return _build_stain_bank(spec, device) if spec.loader == "builtin" else _build_timm(spec, device)


def _build_stain_bank(spec: EncoderSpec, device: str) -> Encoder:
    from spared_fm.encoders.stain_bank import StainBank

    module = StainBank().eval().to(device)
    version = f"{StainBank.name}/{StainBank.version}"
    return Encoder(
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
    )


def _build_timm(spec: EncoderSpec, device: str) -> Encoder:
    declare_missing_operators()
    import timm

    model = _timm_model(spec).eval().to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # faster for convolutions, the same numbers
    config = timm.data.resolve_model_data_config(model)
    return Encoder(
        spec=spec,
        versioned_name=spec.name,
        module=model,
        transform=_timm_transform(spec, config),
        dim=_output_dim(model, config["input_size"], device),
        weights=weights_digest(model.state_dict()),
        pooling=_pooling(model),
        prefix_tokens=int(getattr(model, "num_prefix_tokens", 0)),
        compute_dtype="float32",
        device=device,
    )


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

    # A private generator state: building an encoder must not move the caller's random numbers.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        if spec.weights != PRETRAINED:
            model = timm.create_model(spec.architecture.split(".")[0], pretrained=False, num_classes=0)
            if spec.weights != RANDOM:
                classifier = timm.get_pretrained_cfg_value(spec.architecture.split(".")[0], "classifier") or ()
                fill(
                    model,
                    Path(spec.weights),
                    ignore=(classifier,) if isinstance(classifier, str) else tuple(classifier),
                )
            return model
        try:
            return timm.create_model(spec.architecture, pretrained=True, num_classes=0)
        except Exception as error:  # hub, network and file errors of many kinds, all with the same mend
            raise InputError(
                f"pretrained weights of {spec.name} can't be had here ({type(error).__name__}); "
                "fetch them where there is a network and pass --weights FILE, or use --weights random for a floor"
            ) from error


def _output_dim(model: torch.nn.Module, input_size: tuple[int, int, int], device: str) -> int:
    """Dim by a forward pass: MobileNet-like models widen after pooling, and no attribute says so for all architectures."""
    with torch.inference_mode():
        return int(model(torch.zeros(1, *input_size, device=device)).shape[-1])


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
