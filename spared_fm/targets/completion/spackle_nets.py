"""The two networks called SpaCKLE: as its package releases it, and as its paper describes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spared_fm.errors import InputError
from spared_fm.targets.completion.training import load_tensors

if TYPE_CHECKING:
    from pathlib import Path

LAYERS, HEADS = 2, 1

_UNUSED = "encoder_layer."  # the released module also registers the layer it makes its encoder's copies of


class ReleasedNet(nn.Module):
    """SpaCKLE as in package ``spared`` 2.2.1: linear, two encoder layers, linear, all as wide as the panel.

    Torch's defaults otherwise: feed-forward 2048, dropout 0.1, ReLU, normalisation after each sum. The encoder takes the
    first axis of its input for the sequence. That axis is the batch, so **spots attend to the other spots of the batch that
    stand at the same place in their neighbourhoods**, never to their own neighbours.

    Parameters
    ----------
    n_genes
        Genes of the panel.
    """

    def __init__(self, n_genes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_genes, n_genes)
        layer = nn.TransformerEncoderLayer(n_genes, HEADS)
        self.transformer_encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.out_linear = nn.Linear(n_genes, n_genes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Predict every token, ``(batch, tokens, genes)`` float32, from input of that shape."""
        found: Tensor = self.out_linear(self.transformer_encoder(self.linear(tokens)))
        return found


class DescribedNet(nn.Module):
    """SpaCKLE as its paper describes it (arXiv 2407.13027): the same layers, attending over a spot and its neighbours.

    Only the centre is predicted, so the last layer is computed for the centre alone, over keys and values of all tokens.

    Parameters
    ----------
    n_genes
        Genes of the panel.
    """

    def __init__(self, n_genes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_genes, n_genes)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(n_genes, HEADS, batch_first=True) for _ in range(LAYERS))
        self.out_linear = nn.Linear(n_genes, n_genes)

    def forward(self, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        """Predict the centre of each neighbourhood.

        Parameters
        ----------
        tokens
            ``(batch, tokens, genes)`` float32, the centre first; entries that are not visible are 0.
        padding
            ``(batch, tokens)`` bool, True where there is no spot: left out of the attention. None: all are spots.

        Returns
        -------
        Tensor
            ``(batch, genes)`` float32.
        """
        x = self.linear(tokens)
        *before, last = self.layers
        for layer in before:
            x = layer(x, src_key_padding_mask=padding)
        found: Tensor = self.out_linear(_centre_only(last, x, padding))
        return found


def _centre_only(layer: Any, x: Tensor, padding: Tensor | None) -> Tensor:
    """First token of what ``layer`` makes of ``x``, ``(batch, width)``."""
    centre = x[:, :1]
    attended, _ = layer.self_attn(centre, x, x, key_padding_mask=padding, need_weights=False)
    centre = layer.norm1(centre + layer.dropout1(attended))
    inner = layer.dropout(torch.relu(layer.linear1(centre)))
    out: Tensor = layer.norm2(centre + layer.dropout2(layer.linear2(inner)))
    return out[:, 0]


def read_released(path: Path, n_genes: int) -> ReleasedNet:
    """Read a checkpoint that the released code (Lightning) wrote, or a bare state dict of its module.

    Parameters
    ----------
    path
        File of ``torch.save``; nothing but tensors and plain values is unpickled.
    n_genes
        Genes of the panel it must be for.

    Returns
    -------
    ReleasedNet
        On the CPU, in evaluation mode.

    Raises
    ------
    InputError
        No such file, a pickle that holds other things, keys of another module, or another number of genes.
    """
    found = load_tensors(path, "give a checkpoint of SpaCKLE, or its state_dict alone")
    state = found.get("state_dict", found) if isinstance(found, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} holds no state dict: give a checkpoint of SpaCKLE")
    weights = {str(key).removeprefix("model."): value for key, value in state.items()}
    weights = {key: value for key, value in weights.items() if not key.startswith(_UNUSED)}
    net = ReleasedNet(n_genes).eval()
    wanted = net.state_dict()
    if other := sorted(weights.keys() ^ wanted.keys()):
        raise InputError(f"{path} is not of SpaCKLE without image features: {other[0]} does not fit its module")
    if (width := len(weights["linear.weight"])) != n_genes:
        raise InputError(f"{path} is for another panel: it has {width} genes, this one {n_genes}")
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"{path} is not of SpaCKLE as released: the shapes of its weights do not fit") from error
    return net
