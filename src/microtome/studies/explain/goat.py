"""Do exact shares of a graph network's logit name planted edges better and more steadily than others?"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch_geometric.data import Batch
from torch_geometric.explain import Explainer, Explanation, GNNExplainer

from microtome.data.graph_generators import houses_on_trunk, two_motifs
from microtome.figures import bars
from microtome.graphs.edge_gradient import EdgeGradient
from microtome.graphs.edge_occlusion import EdgeOcclusion
from microtome.graphs.explainer import SubgraphGNNExplainer
from microtome.graphs.fidelity import fidelity_gaps
from microtome.graphs.goat import GOAt
from microtome.graphs.motif_recovery import graph_recovery, node_recovery, recovery
from microtome.learn.graph_training import fit_graphs, fit_nodes, graph_accuracy
from microtome.studies.explain import _motifs as m
from microtome.studies.graphs import _networks as n
from microtome.study import Measured, Study

COMPLETE = 1e-4
RIVALS = ("gradient x input", "edge occlusion", "GNNExplainer")
DECIDING = ("motif-edge AUC", "fidelity", "discriminability", "stability")


def of_graphs(seed: int, count: int, shown: int, epochs: int, steps: int) -> dict[tuple[str, str], float]:
    """Houses and rings on trees: {(measure, method): value} of one network."""
    graphs = two_motifs(count + shown, seed=seed)
    build = partial(n.GraphNetwork, n.isomorphism, 10, 16, 2, 3)
    model = fit_graphs(n.seeded(build, seed), graphs[:count], epochs=epochs, seed=seed)
    test = graphs[count:]
    batch = Batch.from_data_list(test)
    algorithms = (GOAt(), EdgeGradient(), EdgeOcclusion(), GNNExplainer(epochs=steps))
    asked = m.explainer(model, GOAt(), "graph")
    target = asked.get_target(asked.get_prediction(batch.x, batch.edge_index, batch=batch.batch))
    found = {("accuracy", "two motifs"): graph_accuracy(model, test)}
    torch.manual_seed(seed)
    drawn = recovery([torch.randn(g.num_edges) for g in test], [g.edge_truth for g in test])
    ranked = {"random": drawn}
    for name, algorithm in zip(("GOAt", *RIVALS), algorithms, strict=True):
        ranked[name] = graph_recovery(
            m.explainer(model, algorithm, "graph"), test, together=name != "GNNExplainer"
        )
    for name, told in ranked.items():
        kept = torch.cat([m.largest(s, g) for s, g in zip(told.scores, test, strict=True)])
        made = Explanation(
            x=batch.x, edge_index=batch.edge_index, batch=batch.batch, target=target, edge_mask=kept
        )
        made._model_args = ["batch"]
        found["motif-edge AUC", name] = told.mean
        for kind, (one, two) in {"fidelity": (1.0, 0.0), "robust fidelity": (0.3, 0.7)}.items():
            plus, minus = fidelity_gaps(asked, made, alpha1=one, alpha2=two, samples=20, soft=True, seed=seed)
            found[kind, name] = float((plus - minus).mean())
        found["discriminability", name] = m.apart(model, kept, batch)
        found["stability", name] = m.likeness(told.scores, test)
    whole = asked(batch.x, batch.edge_index, batch=batch.batch)
    with torch.no_grad():
        logits = model(batch.x, batch.edge_index, batch.batch).gather(1, target[:, None]).sum()
    shared = float(logits) - whole.baseline
    found["residual of completeness", "GOAt"] = whole.completeness_error / abs(shared)
    slopes = Explainer(
        model, EdgeGradient(), "model", model_config={**m.CONFIG, "task_level": "graph"},
        edge_mask_type="object", node_mask_type="attributes",
    )(batch.x, batch.edge_index, batch=batch.batch)  # fmt: skip
    summed = float(slopes.node_mask.sum() + slopes.edge_mask.sum())
    found["residual of completeness", "gradient x input"] = abs(summed - shared) / abs(shared)
    return found


def of_nodes(seed: int, houses: int, shown: int, epochs: int, steps: int) -> dict[tuple[str, str], float]:
    """Houses on a trunk: accuracy and the recovery of each node's own house."""
    graph = houses_on_trunk(4 * houses, houses, seed=seed)
    build = partial(n.NodeNetwork, m.normalised, [1, 20, 20, 4], dropout=0.0)
    model = n.seeded(build, seed)
    accuracy, _ = fit_nodes(model, graph, epochs=epochs, decay=0.0)
    nodes = ((graph.motif >= 0) & ~graph.train_mask).nonzero()[:shown, 0]
    target = model.eval()(graph.x, graph.edge_index).argmax(1)
    found = {("accuracy", "houses"): accuracy}
    algorithms: tuple[Any, ...] = (
        GOAt(), EdgeGradient(), EdgeOcclusion(), SubgraphGNNExplainer(epochs=steps)
    )  # fmt: skip
    for name, algorithm in zip(("GOAt", *RIVALS), algorithms, strict=True):
        asked = m.explainer(model, algorithm, "node")
        if name in ("GOAt", "GNNExplainer"):
            told = algorithm.explain(model, graph.x, graph.edge_index, nodes, target=target)
        else:
            told = [asked(graph.x, graph.edge_index, index=int(v)) for v in nodes]
        found["motif-edge AUC of nodes", name] = node_recovery(told, graph, nodes.tolist(), hops=3).mean
    return found


def measure(smoke: bool, seed: int = 0) -> Measured:
    """Trained GINs on planted motifs, five explanations of each answer."""
    seeds, count, shown, epochs, houses, steps = (2, 40, 8, 8, 12, 5) if smoke else (5, 200, 40, 200, 80, 100)
    runs = [
        of_graphs(s, count, shown, epochs, steps) | of_nodes(s, houses, shown, epochs, steps)
        for s in range(20 + seed, 20 + seed + seeds)
    ]
    numbers: dict[str, float] = {}
    for what, method in runs[0]:
        numbers |= n.summary(f"{what}, {method}", [run[what, method] for run in runs])
    least: dict[str, tuple[float, float, str]] = {}
    for what in (*DECIDING, "motif-edge AUC of nodes"):
        for rival in RIVALS:
            name = f"{what}, GOAt less {rival}"
            numbers |= n.summary(name, [run[what, "GOAt"] - run[what, rival] for run in runs])
        gaps = {r: f"{what}, GOAt less {r}" for r in RIVALS}
        least[what] = min((numbers[f"{name}, low"], numbers[name], r) for r, name in gaps.items())
    residual = max(run["residual of completeness", "GOAt"] for run in runs)
    numbers["residual of completeness, GOAt, largest"] = residual
    won = [what for what in DECIDING if least[what][0] > 0]
    complete = residual < COMPLETE
    trained = min(numbers["accuracy, two motifs"], numbers["accuracy, houses"]) > 0.85
    verdict = (
        "inconclusive" if smoke or not trained
        else "reproduced" if complete and len(won) == len(DECIDING)
        else "partly" if complete and won else "not reproduced"
    )  # fmt: skip
    told = "; ".join(
        f"{w} {least[w][1]:+.3f} (at least {least[w][0]:+.3f}) to {least[w][2]}" for w in DECIDING
    )
    names = ("GOAt", *RIVALS, "random")
    drawn = [
        {
            "measure": what, "method": k, "value": numbers[f"{what}, {k}"],
            "low": numbers[f"{what}, {k}, low"], "high": numbers[f"{what}, {k}, high"],
        }
        for what in ("motif-edge AUC", "fidelity", "robust fidelity", "stability") for k in names
    ]  # fmt: skip
    return Measured(
        numbers=numbers,
        verdict=verdict,  # type: ignore[arg-type]
        decided_by=f"shares miss the logit by {residual:.1e} of it (threshold {COMPLETE:.0e}); GOAt is ahead of every "
        f"rival with its whole interval in {len(won)} of {len(DECIDING)} measures; to its closest rival: {told}; of "
        f"single nodes' houses the AUC is {numbers['motif-edge AUC of nodes, GOAt']:.3f}",
        figure=bars(
            "Explanations of houses and rings", drawn, category="measure", value="value", series="method",
            band=("low", "high"), horizontal=False,
        ),
        conditions=(
            "BA-2Motifs and BA-Shapes generated here, GINs of three layers (of nodes with batch norm, which is "
            "affine once trained); real graphs of the paper are not used.",
            "Explanations have as many edges as the motif; fidelity is the loss of probability without them less that "
            "with them alone. AUC is of each graph alone, then averaged.",
            "Stability is the cosine of two graphs' scores, motif edges aligned by rank; discriminability the distance "
            "of the classes' mean embeddings of explanations in deviations within a class (the paper has no such "
            "division).",
            "In a first run (seeds 0 to 4) node networks without batch norm reached an accuracy of 0.736, "
            "below what was asked; they have it now, with new seeds. Thresholds and measures are as they were.",
        ),
    )  # fmt: skip


STUDY = Study(
    paper="goat",
    claim="Shares of a GIN's logit add up to it, and rank planted motif edges, keep the answer, part the classes and "
    "resemble one another across graphs of one motif better than gradient times input, edge occlusion and "
    "GNNExplainer.",
    null="Some rival explains as well, or better.",
    control="Random scores; equally many edges in every explanation; the same networks and graphs.",
    threshold="Residual below 1e-4 of the logit; lower end of the paired interval over networks above 0 against each "
    "rival, in all four measures (in one for 'partly'); accuracies above 0.85.",
    measure=measure,
    uses=(
        "microtome.graphs.goat.GOAt",
        "microtome.graphs.motif_recovery.graph_recovery",
        "microtome.graphs.edge_occlusion.EdgeOcclusion",
        "microtome.graphs.edge_gradient.EdgeGradient",
    ),
    example="import torch\nfrom torch_geometric.explain import Explainer\nfrom torch_geometric.nn.models import GIN\n"
    "from microtome.data.graph_generators import houses_on_trunk\nfrom microtome.graphs.goat import GOAt\n"
    "graph, model = houses_on_trunk(40, 8), GIN(1, 8, 2, 4).eval()\n"
    "config = {'mode': 'multiclass_classification', 'task_level': 'node', 'return_type': 'raw'}\n"
    "ask = Explainer(model, GOAt(), 'model', model_config=config, edge_mask_type='object')\n"
    "print(ask(graph.x, graph.edge_index, index=45).completeness_error)",
    relates={"robust-fidelity-for-gnn-explanations": "its robust measure judges these explanations too"},
)
