"""Can graph networks be trained by layers with losses of their own, without errors that go back?"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.nn import GCNConv
from torch_geometric.transforms import RandomNodeSplit

from microtome.data.graph_generators import stochastic_blocks
from microtome.data.graphs import available, load
from microtome.figures import bars
from microtome.learn.forwardgnn import ForwardNetwork, Rule, fit_forward, normalised
from microtome.learn.graph_training import fit_nodes, node_cross_entropy
from microtome.studies.graphs import _networks as n
from microtome.study import Measured, Study

NEAR, FLAT, GROWS = 0.03, 1.1, 2.5
WRONG: tuple[Rule, ...] = ("labels", "virtual")
FORWARD: tuple[Rule, ...] = ("single", "input", "loss")
BACK, BACK_VIRTUAL = "backpropagation", "backpropagation, classes' nodes"


class _Backward(ForwardNetwork):
    """The network of rule ``single`` with the last layer's loss alone, which goes back through all layers."""

    def layer(self, i: int, x: Tensor, edges: Tensor) -> Tensor:
        return F.relu(self.convs[i](normalised(x), edges))

    def last(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.run(*self.extended(x, edge_index, self.labels))[-1]

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.compare(self.last(x, edge_index), len(x))


def _backward_loss(model: Any, data: Any) -> Tensor:
    return model.class_loss(model.last(data.x, data.edge_index))


def saved_bytes(parts: Iterable[tuple[Any, Tensor]], held: Iterable[Tensor]) -> int:
    """The most that is kept for a gradient at once, when every loss goes back before the next is made.

    Args:
        parts: (any, loss), made one by one.
        held: parameters and inputs, which are there anyway.
    """
    known = {t.untyped_storage().data_ptr() for t in held}
    kept: dict[int, int] = {}
    most = 0

    def pack(t: Tensor) -> Tensor:
        place = t.untyped_storage()
        if place.data_ptr() not in known:
            kept[place.data_ptr()] = place.nbytes()
        return t.detach()

    steps = iter(parts)
    while True:
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            part = next(steps, None)
        if part is None:
            return most
        most = max(most, sum(kept.values()))
        part[1].backward()


def _leak(rule: Rule, graph: Any, classes: int) -> float:
    """Largest entry of the gradient of any layer's loss with respect to any other layer; 3 layers."""
    model = n.seeded(lambda: ForwardNetwork(GCNConv, [graph.num_features, 16, 16, 16], classes, rule=rule), 0)
    model.attach(graph)
    worst = 0.0
    for i, loss in model.losses(graph):
        others = [p for j, conv in enumerate(model.convs) if j != i for p in conv.parameters()]
        found = torch.autograd.grad(loss, others, allow_unused=True, materialize_grads=True)
        worst = max(worst, *(float(g.abs().max()) for g in found))
    return worst


def _accuracies(graph: Any, rules: Iterable[Rule], hidden: int, epochs: int, seed: int) -> dict[str, float]:
    d, k = graph.num_features, int(graph.y.max()) + 1
    torch.manual_seed(seed)
    found = {BACK: fit_nodes(n.NodeNetwork(GCNConv, [d, hidden, k]), graph, epochs=epochs)[0]}
    joint = n.seeded(lambda: _Backward(GCNConv, [d, hidden, hidden], k), seed)
    joint.attach(graph)
    found[BACK_VIRTUAL] = fit_nodes(joint, graph, epochs=epochs, loss=_backward_loss)[0]
    for rule in rules:
        model = n.seeded(partial(ForwardNetwork, GCNConv, [d, hidden, hidden], k, rule=rule), seed)
        found[rule] = fit_forward(model, graph, epochs=epochs, decay=5e-4)[0]
    return found


def _bytes(graph: Any, classes: int, depth: int) -> dict[str, int]:
    d, held = graph.num_features, [graph.x, graph.edge_index]
    network = n.seeded(partial(n.NodeNetwork, GCNConv, [d] + [64] * (depth - 1) + [classes]), 0)
    whole = ((i, node_cross_entropy(network, graph)) for i in range(1))
    found = {BACK: saved_bytes(whole, [*held, *network.parameters()])}
    for rule in FORWARD:
        model = n.seeded(partial(ForwardNetwork, GCNConv, [d] + [64] * depth, classes, rule=rule), 0)
        model.attach(graph)
        found[rule] = saved_bytes(model.losses(graph), [*held, *model.parameters()])
    return found


def measure(smoke: bool, seed: int = 0) -> Measured:
    """A block model with noisy features, all rules; Cora where it is there, without the slow rules."""
    seeds, splits, epochs, nodes = (2, 0, 2, 100) if smoke else (10, 3, 60, 500)
    found: dict[tuple[str, str], list[float]] = {}

    def add(name: str, rows: dict[str, float]) -> None:
        for rule, value in rows.items():
            found.setdefault((name, rule), []).append(value)

    numbers: dict[str, float] = {}
    for s in range(seed, seed + seeds):
        blocks = stochastic_blocks(
            nodes, 4, degree=5, homophily=0.7, features=32, shares=(0.64, 0.16), seed=s
        )
        add("blocks", _accuracies(blocks, (*WRONG, *FORWARD), 64, epochs, s))
    splits = splits if available("cora") else 0
    for s in range(seed, seed + splits):
        torch.manual_seed(s)
        cora = RandomNodeSplit(num_val=0.16, num_test=0.2)(load("cora"))
        add("Cora", _accuracies(cora, FORWARD, 64, epochs, s))
    for (name, rule), values in found.items():
        numbers |= n.summary(f"accuracy, {name}, {rule}", values)
    graphs = ("blocks", "Cora") if splits else ("blocks",)
    for name in graphs:
        for rule in FORWARD:
            gap = [a - b for a, b in zip(found[name, BACK], found[name, rule], strict=True)]
            numbers |= n.summary(f"{rule} below backpropagation, {name}", gap)
    ahead = [
        a - max(b)
        for a, *b in zip(found["blocks", "single"], *(found["blocks", w] for w in WRONG), strict=True)
    ]
    numbers |= n.summary("single above the better forward-forward, blocks", ahead)
    numbers["largest gradient of a layer's loss with respect to another layer"] = max(
        _leak(rule, blocks, 4) for rule in (*WRONG, *FORWARD)
    )
    depths = (2, 4, 8)
    kept = {d: _bytes(blocks, 4, d) for d in depths}
    for rule in (BACK, *FORWARD):
        numbers |= {f"bytes kept for a gradient, {rule}, depth {d}": kept[d][rule] for d in depths}
        numbers[f"bytes at depth 8 over depth 2, {rule}"] = kept[8][rule] / kept[2][rule]
    near = [numbers[f"single below backpropagation, {name}, high"] < NEAR for name in graphs]
    above = numbers["single above the better forward-forward, blocks, low"] > 0
    growth = {rule: numbers[f"bytes at depth 8 over depth 2, {rule}"] for rule in (BACK, "single")}
    flat = growth["single"] < FLAT and growth[BACK] > GROWS
    verdict = (
        "reproduced" if all(near) and above and flat else "partly" if any(near) or above else "not reproduced"
    )
    gaps = ", ".join(
        f"{numbers[f'single below backpropagation, {name}']:.3f} on {name} "
        f"(at most {numbers[f'single below backpropagation, {name}, high']:.3f})"
        for name in graphs
    )
    rows = [
        {"rule": rule, "graph": name, "accuracy": sum(values) / len(values)}
        for (name, rule), values in found.items()
    ]
    return Measured(
        numbers=numbers,
        verdict="inconclusive" if smoke else verdict,  # type: ignore[arg-type]
        decided_by=f"single-forward learning is {gaps} below backpropagation (threshold {NEAR}) and "
        f"{numbers['single above the better forward-forward, blocks']:.3f} above the better forward-forward rule "
        f"(at least {numbers['single above the better forward-forward, blocks, low']:.3f}); from depth 2 to 8 what it "
        f"keeps for gradients grows {growth['single']:.2f} times, with backpropagation {growth[BACK]:.2f} times; "
        f"the layer above as an input: {numbers['input below backpropagation, blocks']:+.3f} below backpropagation "
        f"on blocks",
        figure=bars(
            "Test accuracy by rule of learning", rows, category="rule", value="accuracy", series="graph"
        ),
        conditions=(
            f"A contextual block model of {nodes} nodes, 4 classes and noisy features, two layers of GCN, the paper's "
            f"64 % of labels and 16 % for validation, {epochs} epochs a layer, one learning rate (0.01) for all.",
            f"Cora with random splits: {splits} ({'read' if splits else 'not there'}); without the forward-forward "
            f"rules, which need a pass for every class.",
            "Link prediction, SAGE and GAT are not measured.",
        ),
    )


STUDY = Study(
    paper="forwardgnn",
    claim="A GCN whose layers learn one by one, each from the products of nodes with the classes' virtual nodes, is at "
    "most 0.03 less accurate than one trained by backpropagation, more accurate than forward-forward learning with "
    "wrong labels, and what it keeps for gradients does not grow with depth.",
    null="It is further below, or not above forward-forward learning, or keeps as much as backpropagation.",
    control="Backpropagation on the same graph with the same virtual nodes (is it locality or the nodes that cost?); "
    "equal layers, widths, splits and epochs; the gradient between layers is measured to be zero.",
    threshold="Upper end of the gap below 0.03 on every graph, lower end of the lead over forward-forward above 0, "
    "kept bytes at depth 8 less than 1.1 times those at depth 2 (backpropagation: more than 2.5).",
    measure=measure,
    uses=("microtome.learn.forwardgnn.ForwardNetwork", "microtome.learn.forwardgnn.fit_forward"),
    example="from torch_geometric.nn import GCNConv\n"
    "from microtome.data.graph_generators import stochastic_blocks\n"
    "from microtome.learn.forwardgnn import ForwardNetwork, fit_forward\n"
    "graph = stochastic_blocks(500, 4, features=32)\n"
    "print(fit_forward(ForwardNetwork(GCNConv, [32, 64, 64], 4, rule='single'), graph, epochs=40))",
    relates={
        "dfa-scales": "both train graph networks without errors that go back through the layers; losses of the layers' "
        "own are 0.073 of accuracy below backpropagation on blocks, 0.011 on Cora",
        "collaborative-forward-forward": "says that layers which learn alone do not work together; given the layer "
        "above as an input they are 0.016 above backpropagation on blocks, alone 0.073 below",
        "momentum-auxiliary-network": "saves memory by local losses as well; what is kept for gradients is the same at "
        "depth 8 as at depth 2, with backpropagation 6.2 times as much",
    },
)
