"""From an encoder's name to something that turns patches into vectors."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from spared_fm.encoders.spec import PRETRAINED, RANDOM, EncoderSpec
from spared_fm.encoders.torchvision_ops import declare_missing_operators
from spared_fm.encoders.weights import fill, weights_digest
from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable


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
        The network in inference mode on ``device``.
    prepare
        One uint8 patch (px, px, 3) → float32 tensor (3, h, w), as the encoder was trained with.
    dim
        Length of a vector.
    weights
        Digest of the weights in use.
    transform, pooling, prefix_tokens, compute_dtype
        Recipe fields, as data.
    device
        Torch device string.
    """

    spec: EncoderSpec
    versioned_name: str
    module: torch.nn.Module
    prepare: Callable[[np.ndarray], torch.Tensor]
    dim: int
    weights: str
    transform: dict[str, Any]
    pooling: str
    prefix_tokens: int
    compute_dtype: str
    device: str

    def encode(self, patches: np.ndarray) -> np.ndarray:
        """Encode one batch.

        Parameters
        ----------
        patches
            uint8 RGB, shape (batch, px, px, 3).

        Returns
        -------
        np.ndarray
            float32, shape (batch, dim).
        """
        batch = torch.stack([self.prepare(patch) for patch in patches]).to(self.device)
        with torch.inference_mode():
            return self.module(batch).float().cpu().numpy()


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
        prepare=_to_unit_range,
        dim=module.dim,
        weights=version,
        transform={"scale": "1/255"},
        pooling="statistics",
        prefix_tokens=0,
        compute_dtype="float32",
        device=device,
    )


def _to_unit_range(patch: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(patch.transpose(2, 0, 1))).float().div_(255)


def _build_timm(spec: EncoderSpec, device: str) -> Encoder:
    declare_missing_operators()
    import timm
    from PIL import Image

    model = _timm_model(spec)
    config = timm.data.resolve_model_data_config(model)
    eval_transform = timm.data.create_transform(**config, is_training=False)

    def prepare(patch: np.ndarray) -> torch.Tensor:
        return eval_transform(Image.fromarray(patch))

    digest = weights_digest(model.state_dict())
    return Encoder(
        spec=spec,
        versioned_name=spec.name,
        module=model.eval().to(device),
        prepare=prepare,
        dim=_output_dim(model, config["input_size"]),
        weights=digest,
        transform={
            "name": "timm.create_transform",
            "input_size": list(config["input_size"]),
            "interpolation": config["interpolation"],
            "crop_pct": config["crop_pct"],
            "crop_mode": config["crop_mode"],
            "mean": list(config["mean"]),
            "std": list(config["std"]),
        },
        pooling=_pooling(model),
        prefix_tokens=int(getattr(model, "num_prefix_tokens", 0)),
        compute_dtype="float32",
        device=device,
    )


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


def _output_dim(model: torch.nn.Module, input_size: tuple[int, int, int]) -> int:
    """Dim by a forward pass: MobileNet-like models widen after pooling, and no attribute says so for all architectures."""
    with torch.inference_mode():
        return int(model.eval()(torch.zeros(1, *input_size)).shape[-1])


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
