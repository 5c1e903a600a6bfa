"""EGGN: a graph of a slide's spots and of the training spots most like them (Yang et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from spared_fm.heads.lightning import pick_device
from spared_fm.heads.models.graphs import exemplars, pieces, relatives
from spared_fm.heads.models.retrieval import ExemplarHead, error_and_correlation
from spared_fm.heads.neighbours import check_coords, hop_table
from spared_fm.heads.neural import fit_net, inner_split

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from spared_fm.heads.models.graphs import Table

#: Most adjacent spots, and exemplars that an exemplar is tied to.
NEAR, ALIKE = 8, 3


@dataclass(frozen=True)
class Graph:
    """A piece of a slide with its exemplars; tables hold local numbers, -1 where there are no more.

    Attributes
    ----------
    rows
        (m,) row numbers of its spots.
    near
        (m, 8) adjacent spots.
    picked
        (m, k) exemplars of each spot.
    bank
        (e,) row numbers of the exemplars in the bank.
    alike
        (e, 3) exemplars most like each exemplar.
    """

    rows: torch.Tensor
    near: torch.Tensor
    picked: torch.Tensor
    bank: torch.Tensor
    alike: torch.Tensor


def build(rows: NDArray[np.intp], coords: NDArray[np.float64], picked: Table, bank: NDArray[np.float32]) -> Graph:
    """Return the graph of some spots of a slide at ``coords`` (m, 2), with exemplars in the rows ``picked`` (m, k)."""
    found = np.unique(picked[picked >= 0])
    local = np.where(picked >= 0, np.searchsorted(found, picked), -1)
    alike = exemplars(bank[found], bank[found], ALIKE, metric="l1", own=np.arange(len(found)))
    tables = (rows, hop_table(coords, None, 1, most=NEAR), local, found, alike)
    return Graph(*(torch.from_numpy(np.asarray(table, dtype=np.int64)) for table in tables))


def of(values: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Return the rows (…, width) that a table names, zeros for -1."""
    return torch.cat([values, values.new_zeros(1, values.shape[1])])[table]


def mean_of(values: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Return the mean of the rows that each row of a table names, zeros if it names none."""
    count = (table >= 0).sum(dim=1, keepdim=True).clamp_min(1)
    return of(values, table).sum(dim=1) / count


class Layer(nn.Module):
    """Spots hear of adjacent spots and of their exemplars, exemplars of exemplars like them and of their spots."""

    def __init__(self, width: int, told: int) -> None:
        super().__init__()
        self.spot, self.exemplar = nn.Linear(width, width), nn.Linear(width, width)
        self.near, self.alike = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.gates = nn.Sequential(
            nn.Linear(width, width // 4), nn.LeakyReLU(0.2), nn.Linear(width // 4, 2 * width), nn.Sigmoid()
        )
        self.from_exemplar, self.from_spot = nn.Linear(width, width), nn.Linear(width, width)
        self.express = nn.Linear(told, width, bias=False)

    def forward(
        self, h: torch.Tensor, e: torch.Tensor, told: torch.Tensor, graph: Graph
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Spots (m, width), exemplars (e, width), what the exemplars tell of their expression (e, told)."""
        present = graph.picked >= 0
        gate_h, gate_e = self.gates(h[:, None] - of(e, graph.picked)).chunk(2, dim=-1)
        heard = gate_h * of(self.from_exemplar(e) + self.express(told), graph.picked)
        count = present.sum(dim=1, keepdim=True).clamp_min(1)
        to_spot = (heard * present[..., None]).sum(dim=1) / count

        said = (gate_e * self.from_spot(h)[:, None])[present]
        times = torch.bincount(graph.picked[present], minlength=len(e))[:, None].clamp_min(1)
        to_exemplar = torch.zeros_like(e).index_add(0, graph.picked[present], said) / times

        by_near = self.spot(h) + self.near(mean_of(h, graph.near))  # GraphSAGE (Hamilton et al. 2017)
        by_alike = self.exemplar(e) + self.alike(mean_of(e, graph.alike))
        return leaky((by_near + to_spot) / 2), leaky((by_alike + to_exemplar) / 2)


def leaky(x: torch.Tensor) -> torch.Tensor:
    """Return the activation of every layer."""
    return nn.functional.leaky_relu(x, 0.2)


class Net(nn.Module):
    """A graph to the genes of its spots."""

    def __init__(self, inputs: int, genes: int, size: dict[str, Any], dropout: float, *, as_published: bool) -> None:
        super().__init__()
        width = size["width"]
        self.told = min(genes, width) if as_published else None
        self.enter, self.exemplar = nn.Linear(inputs, width), nn.Linear(inputs + genes, width)
        self.layers = nn.ModuleList(Layer(width, self.told or genes) for _ in range(size["depth"]))
        self.drop, self.asks = nn.Dropout(dropout), nn.Linear(width, width, bias=False)
        self.out = nn.Linear(2 * width, genes)

    def forward(self, x: torch.Tensor, bank: torch.Tensor, profiles: torch.Tensor, graph: Graph) -> torch.Tensor:
        """Spots' features (m, d), exemplars' features (e, d) and expression (e, genes) → (m, genes)."""
        h, e = leaky(self.enter(x)), leaky(self.exemplar(torch.cat([bank, profiles], dim=1)))
        told = profiles if self.told is None else e[:, -self.told :]
        for layer in self.layers:
            h, e = layer(self.drop(h), self.drop(e), told, graph)
        heard = of(e, graph.picked)
        score = torch.einsum("mw,mkw->mk", self.asks(h), heard) / h.shape[1] ** 0.5
        score = score.masked_fill(graph.picked < 0, -torch.inf)
        share = torch.softmax(nn.functional.pad(score, (1, 0)), dim=1)[:, 1:]  # it may look at none
        out: torch.Tensor = self.out(torch.cat([h, torch.einsum("mk,mkw->mw", share, heard)], dim=1))
        return out


class EGGN(ExemplarHead):
    """Exemplar guided graph network (Yang, Hossain, Stone & Rahman, Pattern Recognition 2024).

    The spots of a slide and their ``k`` exemplars (the training spots nearest in embedding space) are the nodes;
    adjacent spots, exemplars like each other, and a spot and its exemplars are tied. Gates made from the difference of
    a spot and an exemplar decide what passes between them. **The original runs on cached vectors too.**

    Parameters
    ----------
    k
        Exemplars per spot.
    as_published
        In the released code the layers get the last columns of the exemplars' embedding where their expression is
        meant. False: they get the expression.
    size
        ``"small"``: 128 wide, 2 layers, 300 steps. ``"published"``: 512 wide, 4 layers, 1,000 steps (SpaRED's port). A
        step is one slide.
    steps, lr
        Override the size.
    max_spots
        A slide with more spots is cut into compact pieces (`graphs.pieces`), and is seen piece by piece.
    dropout
        Of the nodes, before every layer (AdamW, weight decay 1e-4, cosine schedule).
    standardize
        As for `Ridge`, for the retrieval too.
    seed, device, progress
        See `spared_fm.heads.neural.Plan`.

    Notes
    -----
    The loss is mean squared error plus half of one minus the mean correlation of the genes over the slide. Differences:
    adjacent spots are those of the array (6 or 8), not of pixel positions divided by 256; targets with mean 0 and
    variance 1 per gene; the best step by inner slides, never by the test slides; exemplars of a training spot are of
    other patients, not only of other slides. See also `ExemplarHead`.
    """

    name: ClassVar[str] = "eggn"
    sees: ClassVar[frozenset[str]] = frozenset({"features", "coords"})
    metric: ClassVar[Literal["l2", "l1"]] = "l1"
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"width": 128, "depth": 2, "steps": 300, "lr": 1e-3},
        "published": {"width": 512, "depth": 4, "steps": 1000, "lr": 5e-4},
    }

    def __init__(
        self,
        k: int = 6,
        *,
        as_published: bool = False,
        size: Literal["small", "published"] = "small",
        steps: int | None = None,
        lr: float | None = None,
        max_spots: int = 4096,
        dropout: float = 0.1,
        standardize: Literal["slide", "train", "none"] = "slide",
        seed: int = 0,
        device: str = "auto",
        progress: bool = False,
    ) -> None:
        self.k = k
        self.as_published = as_published
        self.size = size
        self.steps = steps
        self.lr = lr
        self.max_spots = max_spots
        self.dropout = dropout
        self.standardize = standardize
        self.seed = seed
        self.device = device
        self.progress = progress

    def _net(self, d: int, genes: int) -> nn.Module:
        return Net(d, genes, self.sizes[self.size], self.dropout, as_published=self.as_published)

    def _fit(self, X: NDArray[Any], y: NDArray[Any], mask: Any, groups: Any, coords: Any) -> None:
        self._check_params()
        n = len(X)
        xy = check_coords(coords, n, self.name)
        Z = self._remember(X, y, groups)
        table = exemplars(self.bank_, self.bank_, self.k, metric=self.metric, own=relatives(groups, coords, n))
        unit, place, graphs = pieces(xy, groups, n, self.max_spots), np.empty(n, dtype=np.int64), []
        device = pick_device(self.device)
        for i in range(unit.max() + 1):
            rows = np.flatnonzero(unit == i)
            place[rows] = np.arange(len(rows))
            graph = build(rows, xy[rows], table[rows], self.bank_)
            graphs.append(Graph(**{key: value.to(device) for key, value in vars(graph).items()}))
        x, profiles, places = (torch.from_numpy(a).to(device) for a in (Z, self.profiles_, place))

        def loss(net: Any, rows: torch.Tensor) -> torch.Tensor:
            graph = graphs[unit[int(rows[0])]]
            found = net(x[graph.rows], x[graph.bank], profiles[graph.bank], graph)
            return error_and_correlation(found[places[rows]], profiles[rows])

        split = inner_split(groups, coords, n, seed=self.seed)
        self.net_, history = fit_net(lambda: self._net(X.shape[1], y.shape[1]), loss, split, self._plan(), units=unit)
        self.best_step_ = history.best_step

    def _predict(self, X: NDArray[Any], groups: Any, coords: Any) -> NDArray[Any]:
        xy, net, out = check_coords(coords, len(X), self.name), self._exact(), np.empty((len(X), len(self.offset_)))
        with torch.inference_mode():
            for rows, Z, table in self._slides(X, groups):
                unit = pieces(xy[rows], None, len(rows), self.max_spots)
                for i in range(unit.max() + 1):
                    some = np.flatnonzero(unit == i)
                    graph = build(some, xy[rows[some]], table[some], self.bank_)
                    picked = graph.bank.numpy()
                    bank, profiles = (torch.from_numpy(a[picked]).double() for a in (self.bank_, self.profiles_))
                    out[rows[some]] = net(torch.from_numpy(Z[some]), bank, profiles, graph).numpy()
        return out * self.spread_ + self.offset_
