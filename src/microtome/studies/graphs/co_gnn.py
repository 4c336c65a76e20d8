"""Do nodes that choose whether to listen and to broadcast find the neighbours that count?"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Batch
from torch_geometric.nn import GATConv, GCNConv, GraphConv, SAGEConv

from microtome.data.graph_generators import minesweeper
from microtome.data.long_chains import long_chains
from microtome.data.root_neighbours import root_neighbours
from microtome.figures import bars
from microtome.learn.graph_training import fit_graphs, fit_nodes
from microtome.nn.cooperative import CooperativeConv
from microtome.statistics import auroc
from microtome.studies.graphs import _networks as n
from microtome.study import Measured, Study, rows_of

GAIN, FOUND, AHEAD = 0.25, 0.8, 0.0
WIDTH, FEATURES = 32, 5
ON_CHAINS = ("cooperative", "random actions", "GCN", "SAGE")
Layer = Callable[[int, int], nn.Module]


class _RandomActions(CooperativeConv):
    """The same layer whose edges are kept by chance, as often as a trained one keeps them: DropEdge."""

    def __init__(self, inputs: int, outputs: int, share: float = 0.5) -> None:
        super().__init__(inputs, outputs)
        self.share = share

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """[nodes, inputs] -> [nodes, outputs]; all edges are kept when not training."""
        kept = x.new_ones(edge_index.shape[1])
        if self.training:
            kept = torch.bernoulli(self.share * kept)
        return self.own(x) + self.other(self.mean(x, edge_index, kept))


class _Deep(nn.Module):
    """Layers with ReLU between and residual connections, after a linear map and before one."""

    def __init__(self, layer: Layer, inputs: int, outputs: int, depth: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(inputs, WIDTH), nn.Linear(WIDTH, outputs)
        self.convs = nn.ModuleList(layer(WIDTH, WIDTH) for _ in range(depth))

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor | None = None) -> Tensor:
        """[nodes, inputs] -> [nodes, outputs]."""
        x = self.first(x)
        for conv in self.convs:
            x = x + F.relu(conv(x, edge_index))
        return self.last(x)


class _Rooted(nn.Module):
    """One layer on the features as they are: what the task asks for and no more."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.conv = layer(FEATURES, FEATURES)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor | None = None) -> Tensor:
        """[nodes, 5] -> [nodes, 5]."""
        return self.conv(x, edge_index)


def _at_the_root(model: nn.Module, batch: Any) -> Tensor:
    return F.l1_loss(model(batch.x, batch.edge_index)[batch.root], batch.target)


def _error(model: nn.Module, graphs: list[Any]) -> float:
    with torch.no_grad():
        return float(_at_the_root(model.eval(), Batch.from_data_list(graphs)))


def _found(model: nn.Module, graphs: list[Any]) -> tuple[float, float, float]:
    """(share of edges into the root kept rightly, share of edges kept into it, of all) by the first layer."""
    batch = Batch.from_data_list(graphs)
    conv: Any = model.conv
    with torch.no_grad():
        kept = conv.kept(conv.eval().actions(batch.x, batch.edge_index), batch.edge_index)
    into = batch.root[batch.edge_index[1]]
    right = ((kept > 0.5) == (batch.edge_truth > 0))[into]
    return float(right.double().mean()), float(kept[into].mean()), float(kept.mean())


LAYERS: dict[str, Layer] = {
    "cooperative": partial(CooperativeConv, action="sum"),
    "cooperative by means": CooperativeConv,
    "random actions": _RandomActions,
    "GCN": GCNConv,
    "SAGE": SAGEConv,
    "GAT": lambda a, b: GATConv(a, b, heads=1),
    "sum": GraphConv,
}


def _at_the_end(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch.x, batch.edge_index)[batch.root], batch.target)


def _along(layer: Layer, distance: int, count: int, epochs: int, seed: int) -> float:
    """Share of fresh chains of a length at whose end the letter of the far end is told."""
    chains, fresh = (long_chains(count, distance, seed=s) for s in (seed, 10_000 + seed))
    model = n.seeded(lambda: _Deep(layer, 6, 4, distance + 1), seed)
    fit_graphs(model, chains, epochs=epochs, rate=0.005, batch_size=100, seed=seed, loss=_at_the_end)
    batch = Batch.from_data_list(fresh)
    with torch.no_grad():
        told = model.eval()(batch.x, batch.edge_index)[batch.root].argmax(1)
    return float((told == batch.target).double().mean())


def _auc(model: nn.Module, data: Any) -> float:
    with torch.no_grad():
        logits = model.eval()(data.x, data.edge_index)[data.test_mask]
    return auroc((logits[:, 1] - logits[:, 0]).double().numpy(), data.y[data.test_mask].numpy() > 0) or 0.5


def measure(smoke: bool, seed: int = 0) -> Measured:
    """Trees with neighbours that count and neighbours that do not; mines."""
    seeds, count, epochs, size, rounds = (2, 40, 2, 16, 3) if smoke else (6, 1000, 120, 40, 100)
    distances, many, on_chains = ((2,), 2, 2) if smoke else ((2, 4), 80, 3)
    start, table = 1000 + 100 * seed, {}
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for s in range(start, start + seeds):
        trees, fresh = root_neighbours(count, seed=s), root_neighbours(count // 2, seed=10_000 + s)
        trivial = torch.cat([t.target for t in fresh])
        note("error, always the mean of all", float((trivial - trivial.mean(0)).abs().mean()))
        for name, layer in LAYERS.items():
            torch.manual_seed(s)
            model = fit_graphs(
                _Rooted(layer), trees, epochs=epochs, rate=0.02, batch_size=100, seed=s, loss=_at_the_root
            )
            note(f"error, {name}", _error(model, fresh))
            if name.startswith("cooperative"):
                right, into, every = _found(model, fresh)
                note(f"edges into the root kept rightly, {name}", right)
                note(f"edges into the root that are kept, {name}", into)
                note(f"edges that are kept, {name}", every)
        grid = minesweeper(size, seed=s)
        for name, layer in LAYERS.items():
            torch.manual_seed(s)
            model = _Deep(layer, 7, 2, 4)
            fit_nodes(model, grid, epochs=rounds, decay=0.0)
            note(f"ROC AUC on mines, {name}", _auc(model, grid))
        for name in ON_CHAINS if s < start + on_chains else ():
            for distance in distances:
                told = _along(LAYERS[name], distance, count, many, s)
                note(f"accuracy over {distance} edges, {name}", told)
    numbers: dict[str, float] = {"seeds": float(seeds)}
    for name, values in found.items():
        numbers |= n.summary(name, values)
    others = [name for name in LAYERS if not name.startswith("cooperative")]
    for what, better in (("error", min), ("ROC AUC on mines", max)):
        best = [better(v) for v in zip(*(found[f"{what}, {name}"] for name in others), strict=True)]
        table[what] = list(zip(found[f"{what}, cooperative"], best, strict=True))
    saved = [1 - own / other for own, other in table["error"]]
    ahead = [own - other for own, other in table["ROC AUC on mines"]]
    share = "share of the best other's error that cooperation saves"
    numbers |= n.summary(share, saved)
    numbers |= n.summary("ROC AUC on mines, cooperative less the best of the others", ahead)
    gain = numbers[f"{share}, low"]
    right = numbers["edges into the root kept rightly, cooperative"]
    lead = numbers["ROC AUC on mines, cooperative less the best of the others, low"]
    holds = (gain > GAIN, right >= FOUND, lead > AHEAD)
    verdict = "reproduced" if all(holds) else "partly" if any(holds[:2]) else "not reproduced"
    return Measured(
        numbers=numbers,
        verdict="inconclusive" if smoke else verdict,  # type: ignore[arg-type]
        decided_by=f"cooperation saves {numbers[share]:.3f} of the error of the best other layer (at least {gain:.3f}, "
        f"threshold {GAIN}); {right:.1%} of edges into the root are kept or left rightly (at least {FOUND:.0%}); on "
        f"mines its AUC is {numbers['ROC AUC on mines, cooperative less the best of the others']:+.3f} beside the "
        f"best of the others (at least {lead:+.3f}, threshold {AHEAD:g}): {sum(holds)} of 3 hold",
        figure=bars(
            "Error on the mean of the root's neighbours of degree six",
            rows_of(numbers, "error, {layer}"),
            category="layer",
            value="value",
            band=("low", "high"),
            value_title="mean absolute error",
        ),
        conditions=(
            f"{count} trees of depth two, 5 features, children of 2 to 10 edges of which half have 6; one layer on the "
            "features as they are, "
            f"{epochs} epochs. Mines on a grid of {size} x {size}, four residual layers, {rounds} epochs.",
            "Random actions keep half of the edges while training and all after (DropEdge).",
            "A first run was of a layer whose slopes exploded where no edge is kept, so that it chose nothing; mended, "
            "thresholds as they were.",
            "An earlier full run was over the first threshold by 0.002, on seeds that had been looked at; these are "
            "new, design and thresholds as they were.",
            f"Chains of {' and '.join(map(str, distances))} edges whose nodes have leaves, a layer more than edges, "
            f"{many} epochs, {on_chains} seeds: measured, not in the verdict. The published graphs are not measured.",
        ),
    )


STUDY = Study(
    paper="co-gnn",
    claim="Where only some neighbours count, nodes that choose whether to listen and to broadcast find them (at least "
    "80 % of the edges into the root rightly) and err at least a quarter less than GCN, SAGE, GAT, sums, and random "
    "actions; on mines they are ahead of all of these as well.",
    null="Chosen actions do no better than fixed neighbourhoods or edges dropped at random.",
    control="The same layer with random actions; actions chosen from means, which cannot count; the same data, "
    "epochs and widths for all.",
    threshold=f"Share of the best other's error saved above {GAIN} with its interval; edges kept or left rightly at "
    f"least {FOUND:.0%}; lead in ROC AUC above 0 with its interval. All: reproduced; one of the first two: partly.",
    measure=measure,
    uses=(
        "microtome.nn.cooperative.CooperativeConv",
        "microtome.data.root_neighbours.root_neighbours",
        "microtome.data.long_chains.long_chains",
    ),
    example="from microtome.data.root_neighbours import root_neighbours\nfrom microtome.nn.cooperative import "
    "CooperativeConv\ntree = root_neighbours(1)[0]\nlayer = CooperativeConv(5, 5, action='sum')\n"
    "print(layer.actions(tree.x, tree.edge_index).argmax(1))  # standard, listen, broadcast, isolate",
    relates={
        "heterophily-benchmark-audit": "its mines are the second task here, on which the best of five fixed layers is "
        "0.01 of AUC ahead"
    },
)
