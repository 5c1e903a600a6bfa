"""Self-attention and cross-attention over sets of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from torch import Tensor


class Attention(nn.Module):
    """Multi-head attention of queries to other tokens (Vaswani et al. 2017), with dropout on what comes out.

    No dropout falls on the attention weights, so that they never need to be held: memory grows with the tokens.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv = nn.Linear(width, width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))

    def forward(self, query: Tensor, others: Tensor, bias: Tensor | None = None) -> Tensor:
        """Attend from (batch, m, width) to (batch, n, width); ``bias`` (batch, heads, m, n) is added, -inf to hide."""
        k, v = self.kv(others).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.q(query), k, v))
        found: Tensor = scaled_dot_product_attention(q, k, v, attn_mask=bias)
        out: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return out


class Layer(nn.Module):
    """A transformer layer with the normalisation first: attention to oneself, then a two-layer perceptron."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.before, self.attention = nn.LayerNorm(width), Attention(width, heads, dropout)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, width),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(batch, n, width) → the same shape."""
        normed = self.before(x)
        x = x + self.attention(normed, normed, bias)
        out: Tensor = x + self.mlp(x)
        return out


class Transformer(nn.Module):
    """Layers in a row."""

    def __init__(self, depth: int, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(width, heads, hidden, dropout) for _ in range(depth))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(batch, n, width) → the same shape."""
        for layer in self.layers:
            x = layer(x, bias)
        return x


class PlaceTables(nn.Module):
    """One learned vector per column and one per row of a slide's grid, added to the features of the spots there.

    Parameters
    ----------
    places
        Columns and rows in the tables; spots farther out get the last ones.
    width
        Of the vectors.
    random
        Start from a normal distribution, so that columns and rows that no training slide has stay random, as
        published. Otherwise start from zero: what was never trained adds nothing.
    """

    def __init__(self, places: int, width: int, *, random: bool) -> None:
        super().__init__()
        start = torch.randn(2, places, width) if random else torch.zeros(2, places, width)
        self.columns, self.rows = (nn.Embedding.from_pretrained(table, freeze=False) for table in start)

    def forward(self, place: Tensor) -> Tensor:
        """(n, 2) column and row numbers → (n, width)."""
        place = place.clamp(max=self.rows.num_embeddings - 1)
        out: Tensor = self.columns(place[:, 0]) + self.rows(place[:, 1])
        return out
