"""EGN: a transformer over the tokens of a spot that looks at the spots most like it (Yang et al. 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from spared_fm.errors import InputError
from spared_fm.heads.lightning import pick_device
from spared_fm.heads.models.attention import Attention, Layer
from spared_fm.heads.models.graphs import exemplars, relatives
from spared_fm.heads.models.retrieval import ExemplarHead, error_and_correlation
from spared_fm.heads.neural import fit_net, inner_split

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Spots that are predicted at a time.
PREDICTED_ROWS = 512


class Bridge(nn.Module):
    """The exemplars look at the spot's tokens, the spot's query looks at them, and the tokens look at both."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.attend = nn.ModuleList(Attention(width, heads, dropout) for _ in range(3))

    def forward(
        self, z: torch.Tensor, q: torch.Tensor, e: torch.Tensor, bias: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens (b, t, width), query (b, 1, width), exemplars (b, k + 1, width), bias -inf where one is absent."""
        e = e + self.attend[0](self.norms[0](e), z)
        q = q + self.attend[1](self.norms[1](q), e, bias)
        both = torch.cat([q, e], dim=1)
        z = z + self.attend[2](self.norms[2](z), both, nn.functional.pad(bias, (1, 0)))
        return z, q, e


class Net(nn.Module):
    """Tokens and exemplars to genes."""

    def __init__(self, inputs: int, genes: int, tokens: int, dropout: float, size: dict[str, Any]) -> None:
        super().__init__()
        width, heads = size["width"], size["heads"]
        self.enter, self.place = nn.Linear(inputs, width), nn.Parameter(torch.zeros(tokens, width))
        self.query, self.exemplar = nn.Linear(inputs, width), nn.Linear(inputs + genes, width)
        self.none = nn.Parameter(torch.zeros(1, 1, width))  # always there, so that there is something to look at
        self.layers = nn.ModuleList(Layer(width, heads, size["hidden"], dropout) for _ in range(size["depth"]))
        self.bridges = nn.ModuleList(Bridge(width, heads, dropout) for _ in range(size["depth"] // 2))
        self.classes = nn.Linear(width, width, bias=False)
        self.out = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, genes))

    def forward(self, x: torch.Tensor, others: torch.Tensor, absent: torch.Tensor) -> torch.Tensor:
        """Tokens (b, t, d), exemplars' features and expression (b, k, d + genes), where there is none (b, k)."""
        z, q = self.enter(x) + self.place, self.query(x.mean(dim=1, keepdim=True))
        e = torch.cat([self.none.expand(len(x), 1, -1), self.exemplar(others)], dim=1)
        hidden = nn.functional.pad(absent, (1, 0))[:, None, None]
        bias = torch.zeros(hidden.shape, dtype=x.dtype, device=x.device).masked_fill(hidden, -torch.inf)
        for i, layer in enumerate(self.layers):
            z = layer(z)
            if i % 2:
                z, q, e = self.bridges[i // 2](z, q, e, bias)
        score = self.classes(z)  # class-specific residual attention (Zhu & Wu 2021), temperature .1, weight .5
        pooled = score.mean(dim=1) + 0.5 * (torch.softmax(0.1 * score, dim=1) * score).sum(dim=1)
        out: torch.Tensor = self.out(torch.cat([pooled, q[:, 0]], dim=1))
        return out


class EGN(ExemplarHead):
    """Exemplar guided network (Yang, Hossain, Stone & Rahman, WACV 2023), on cached vectors or tokens.

    Layers of a vision transformer over the tokens of a spot; after every second one a bridge to the ``k`` training
    spots nearest in embedding space and their expression. **The original's transformer reads 256 px of pixels; here it
    runs on cached tokens, or, with ``tokens=1``, on the pooled vector alone.** The retrieval is on cached vectors in
    the original too.

    Parameters
    ----------
    k
        Exemplars per spot.
    tokens
        ``X`` holds so many tokens of each spot, one after the other; they are averaged for the retrieval.
    as_published
        SpaRED's port leaves out only the spot itself when it fetches exemplars in training: these then come from the
        same slide, mostly from beside the spot, which those of a new slide never do. False: exemplars are of other
        patients, or slides.
    size
        ``"small"``: 128 wide, 2 layers, 300 steps. ``"published"``: 1,024 wide, 8 layers, 1,000 steps.
    steps, lr
        Override the size.
    batch, dropout
        Of the training (AdamW, weight decay 1e-4, cosine schedule).
    standardize
        As for `Ridge`, for the retrieval too.
    seed, device, progress
        See `spared_fm.heads.neural.Plan`.

    Notes
    -----
    The loss is mean squared error plus half of one minus the mean correlation of the genes. Differences: targets
    with mean 0 and variance 1 per gene for log10 and min-max; one cosine for warm restarts; the attention in the bridge
    is written from the paper's idea, not after its code. See also `ExemplarHead`.
    """

    name: ClassVar[str] = "egn"
    cached: ClassVar[str] = "cached vectors or tokens; the original's transformer reads pixels"
    poor_score: ClassVar[bool] = True  # three hundred steps
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"width": 128, "depth": 2, "heads": 4, "hidden": 256, "steps": 300, "lr": 1e-3},
        "published": {"width": 1024, "depth": 8, "heads": 16, "hidden": 4096, "steps": 1000, "lr": 5e-4},
    }

    def __init__(
        self,
        k: int = 6,
        *,
        tokens: int = 1,
        as_published: bool = False,
        size: Literal["small", "published"] = "small",
        steps: int | None = None,
        lr: float | None = None,
        batch: int = 256,
        dropout: float = 0.1,
        standardize: Literal["slide", "train", "none"] = "slide",
        seed: int = 0,
        device: str = "auto",
        progress: bool = False,
    ) -> None:
        self.k = k
        self.tokens = tokens
        self.as_published = as_published
        self.size = size
        self.steps = steps
        self.lr = lr
        self.batch = batch
        self.dropout = dropout
        self.standardize = standardize
        self.seed = seed
        self.device = device
        self.progress = progress

    def _net(self, d: int, genes: int) -> nn.Module:
        return Net(d // self.tokens, genes, self.tokens, self.dropout, self.sizes[self.size])

    def _looks(self, Z: NDArray[Any]) -> NDArray[np.float32]:
        return Z.reshape(len(Z), self.tokens, Z.shape[1] // self.tokens).mean(axis=1).astype(np.float32)

    def _fit(self, X: NDArray[Any], y: NDArray[Any], mask: Any, groups: Any, coords: Any) -> None:
        self._check_params()
        if self.tokens < 1 or X.shape[1] % self.tokens:
            raise InputError(f"{X.shape[1]} columns are not {self.tokens} tokens: give egn the tokens of the encoder")
        n = len(X)
        Z = self._remember(X, y, groups)
        own = np.arange(n) if self.as_published else relatives(groups, coords, n)
        device = pick_device(self.device)
        look = Lookup(self, device, torch.float32)
        x, table = (torch.from_numpy(a).to(device) for a in (Z, exemplars(self.bank_, self.bank_, self.k, own=own)))

        def loss(net: Any, rows: torch.Tensor) -> torch.Tensor:
            return error_and_correlation(look(net, x[rows], table[rows]), look.profiles[rows])

        split = inner_split(groups, coords, n, seed=self.seed)
        self.net_, history = fit_net(lambda: self._net(X.shape[1], y.shape[1]), loss, split, self._plan())
        self.best_step_ = history.best_step

    def _predict(self, X: NDArray[Any], groups: Any, coords: Any) -> NDArray[Any]:
        net, out = self._exact(), np.empty((len(X), len(self.offset_)))
        look = Lookup(self, torch.device("cpu"), torch.float64)
        with torch.inference_mode():
            for rows, Z, table in self._slides(X, groups):
                x, near = torch.from_numpy(Z), torch.from_numpy(table)
                for i in range(0, len(rows), PREDICTED_ROWS):
                    some = slice(i, i + PREDICTED_ROWS)
                    out[rows[some]] = look(net, x[some], near[some]).numpy()
        return out * self.spread_ + self.offset_


class Lookup:
    """The bank on a device: calls the network with what a table of exemplars names."""

    def __init__(self, head: EGN, device: torch.device, dtype: torch.dtype) -> None:
        self.tokens, self.dtype = head.tokens, dtype
        self.bank, self.profiles = (torch.from_numpy(np.array(a)).to(device) for a in (head.bank_, head.profiles_))

    def __call__(self, net: Any, x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """Standardised features (b, tokens · d) and exemplars (b, k) to genes."""
        others = torch.cat([self.bank[table], self.profiles[table]], dim=-1).to(self.dtype)
        found: torch.Tensor = net(x.unflatten(1, (self.tokens, -1)), others, table < 0)
        return found
