"""How alike neighbours become, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from microtome.errors import Refusal
from microtome.figures import line
from microtome.finding import Finding, Quantity, Table, Threshold
from microtome.folds import Moments
from microtome.instrument import Asking, HasGraph, Instrument
from microtome.signals import derive
from microtome.signals.expression import Signal
from microtome.signals.graphs import graph_inputs, node_activation, random_partners, structure
from microtome.structure import Structure
from microtome.subject import Subject

ALIKE = Threshold(
    quantity="distance of any two nodes, last layer",
    watch=0.1,
    alarm=0.01,
    worse="below",
    source="Chen et al. 2020: at a mean cosine distance of 0 all nodes are one",
)
COLUMNS = ("layer", "Dirichlet energy", "distance of neighbours", "distance of any two nodes")


@dataclass(frozen=True, kw_only=True)
class Oversmoothing(Instrument):
    """Do the nodes become one as layers go on?

    Of every finished layer h [nodes, d], and of the inputs: the Dirichlet energy on the graph with loops,
    sum_uv |h_u / sqrt(1 + d_u) - h_v / sqrt(1 + d_v)|^2 / 2, as a share of sum_v |h_v|^2 (0..2; 0 is what endless
    propagation leads to; Cai & Wang 2020); MAD, the mean cosine distance 1 - cos(h_u, h_v) of neighbours, and that of
    random pairs of one graph (Chen et al. 2020). Neighbours may be near each other and the classes still apart: nodes
    are lost when random pairs are near too. Sums are over the examples (their own edges), or all nodes of their graphs.
    Exact but for the random pairs, one partner a node; one forward. An all-zero row counts as distance 0.
    """

    papers = ("dagnn", "evaluating-deep-gnns-dgmlp")
    needs = HasGraph
    how_to_read = (
        "Energy and neighbour distance fall where layers average. That is how graph networks work; it is a fault when "
        "the distance of any two nodes goes to 0 as well, for then no head can tell them apart."
    )

    def examine(self, subject: Subject) -> Asking:
        layers = subject.node_layers
        if not layers:
            raise Refusal("no layer of the network has one row a node")
        names = ("inputs", *layers)
        got = yield {
            name: Moments(signals=(_smoothness(graph_inputs if name == "inputs" else node_activation(name)),))
            for name in names
        }
        rows = []
        for name in names:
            energy, size, near, count, far, pairs = got[name].mean.tolist()
            # A layer of zeros has no energy left, whatever its share.
            rows.append((name, energy / size if size > 0 else 0.0, near / max(count, 1e-300) if count else 0.0,
                         far / max(pairs, 1e-300) if pairs else 0.0))  # fmt: skip
        first, last = rows[0], rows[-1]
        points = [
            {"layer": f"{i} {row[0]}", "measure": column, "value": row[c]}
            for i, row in enumerate(rows)
            for c, column in enumerate(COLUMNS[1:], 1)
        ]
        quantities = {
            "distance of any two nodes, last layer": Quantity(value=last[3], unit="1 - cosine"),
            "distance of neighbours, last layer": Quantity(value=last[2], unit="1 - cosine"),
            "Dirichlet energy, last layer": Quantity(value=last[1], unit="share of |h|^2"),
            "Dirichlet energy, inputs": Quantity(value=first[1], unit="share of |h|^2"),
            "lowest Dirichlet energy": Quantity(value=min(r[1] for r in rows[1:]), unit="share of |h|^2"),
        }
        return Finding(
            headline="distance of any two nodes, last layer",
            summary=f"From the inputs to {last[0]} the energy goes from {first[1]:.2g} to {last[1]:.2g} and the cosine "
            f"distance of any two nodes from {first[3]:.2g} to {last[3]:.2g} (neighbours: {last[2]:.2g}).",
            quantities=quantities,
            tables={"layers": Table(columns=COLUMNS, rows=tuple(rows), caption="In order of the network")},
            figures={
                "smoothness": line("Smoothness by layer", points, x="layer", y="value", series="measure")
            },
            threshold=ALIKE,
        )


def _smoothness(values: Signal) -> Signal:
    return derive(_read, values, structure, name="smoothness")


def _read(values: Tensor, structure: Structure) -> Tensor:
    """[n, 6] energy, |h|^2, summed neighbour distance, neighbours, summed random distance, pairs of each example."""
    h = values.double().flatten(1)
    if len(h) != structure.nodes:
        raise Refusal("a layer has another number of rows than the graph has nodes")
    source, target = structure.edge_index
    kept = source != target
    source, target = source[kept], target[kept]
    degree = torch.bincount(target, minlength=len(h)).double() + 1
    scaled, unit = h / degree.sqrt()[:, None], F.normalize(h, dim=1)
    partner = random_partners(structure)
    nonzero = (unit.square().sum(1) > 0).double()

    def per_node(edge_values: Tensor) -> Tensor:
        return torch.zeros(len(h), dtype=torch.double).index_add_(0, target, edge_values)

    def apart(a: Tensor, b: Tensor) -> Tensor:
        return (1 - (unit[a] * unit[b]).sum(1)).clamp_min(0) * nonzero[a] * nonzero[b]

    energy = per_node((scaled[source] - scaled[target]).square().sum(1)) / 2
    every = torch.arange(len(h))
    other = (partner != every).double()
    table = torch.stack(
        [energy, h.square().sum(1), per_node(apart(source, target)), per_node(torch.ones_like(source).double()),
         apart(every, partner) * other, other], dim=1,
    )  # fmt: skip
    if not structure.per_graph:
        return table[structure.examples]
    total = torch.zeros(structure.graphs, 6, dtype=torch.double).index_add_(0, structure.graph, table)
    return total[structure.examples]
