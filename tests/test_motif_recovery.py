"""Edge scores against planted edges, and the plain explanations that are ranked, against direct loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from microtome.data import graph_generators as make
from microtome.errors import UsageError

pytest.importorskip("torch_geometric")
pytest.importorskip("networkx")

CONFIG = {"mode": "multiclass_classification", "return_type": "raw"}


def _explainer(model, algorithm, level="graph", **more):
    from torch_geometric.explain import Explainer

    config = {**CONFIG, "task_level": level}
    return Explainer(model, algorithm, "model", model_config=config, edge_mask_type="object", **more)


def _graph_network(seed=0):
    from microtome.studies.graphs import _networks as n

    return n.seeded(lambda: n.GraphNetwork(n.isomorphism, 10, 8, 2, 2), seed).eval()


def test_areas_are_counted_pair_by_pair_in_every_group():
    from microtome.graphs.motif_recovery import grouped_auc

    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(5, (60,), generator=generator).double() - 2
    truth = (torch.rand(60, generator=generator) < 0.4).float()
    group = torch.randint(6, (60,), generator=generator)
    truth[group == 2] = 1  # nothing to compare with
    auc, asked = grouped_auc(scores, truth, group)
    assert asked.tolist() == [0, 1, 3, 4, 5]
    for value, g in zip(auc.tolist(), asked.tolist(), strict=True):
        ours = [(float(s), bool(t)) for s, t, h in zip(scores, truth, group, strict=True) if h == g]
        wins = [
            1.0 if a > b else 0.5 if a == b else 0.0
            for a, planted in ours
            if planted
            for b, other in ours
            if not other
        ]
        assert abs(value - sum(wins) / len(wins)) < 1e-12


def test_scores_without_a_planted_edge_are_refused_in_a_sentence():
    from microtome.graphs.motif_recovery import recovery

    with pytest.raises(UsageError, match="MT500"):
        recovery([torch.rand(3)], [torch.zeros(3)])
    with pytest.raises(UsageError, match="MT500"):
        recovery([torch.rand(3)], [torch.ones(2)])
    with pytest.raises(UsageError, match="MT500"):
        recovery([torch.tensor([float("nan"), 1.0])], [torch.tensor([0.0, 1.0])])


def test_planted_edges_as_scores_are_recovered_whole():
    from torch_geometric.explain import ExplainerAlgorithm, Explanation

    from microtome.graphs.motif_recovery import graph_recovery

    graphs = make.two_motifs(6, seed=3)

    class Oracle(ExplainerAlgorithm):
        """Knows the graphs by their edges; tells one direction of an edge only."""

        def supports(self):
            return True

        def forward(self, model, x, edge_index, *, target, **kwargs):
            truth = next(g.edge_truth for g in graphs if torch.equal(g.edge_index, edge_index))
            return Explanation(edge_mask=truth * (edge_index[0] < edge_index[1]))

    explainer = _explainer(_graph_network(), Oracle())
    assert graph_recovery(explainer, graphs).mean == 1
    assert graph_recovery(explainer, graphs, undirected=False).mean == pytest.approx(0.75)


@pytest.mark.parametrize("name", ["edge_gradient.EdgeGradient", "edge_occlusion.EdgeOcclusion", "goat.GOAt"])
def test_graphs_together_are_explained_as_each_alone(name):
    import importlib

    from microtome.graphs.motif_recovery import graph_recovery

    module, kind = name.split(".")
    algorithm = getattr(importlib.import_module(f"microtome.graphs.{module}"), kind)()
    explainer = _explainer(_graph_network(), algorithm)
    graphs = make.two_motifs(5, seed=4)
    alone, whole = (graph_recovery(explainer, graphs, together=t) for t in (False, True))
    for a, b in zip(alone.scores, whole.scores, strict=True):
        assert torch.allclose(a, b, atol=1e-4 * float(a.abs().max()))
    assert alone.low <= alone.mean <= alone.high


@torch.no_grad()
def test_occlusion_is_the_answer_without_the_edge():
    from microtome.graphs.edge_occlusion import EdgeOcclusion

    model = _graph_network().double()
    graph = make.two_motifs(1, trunk=6, seed=5)[0]
    x, edges, zeros = graph.x.double(), graph.edge_index, torch.zeros(graph.num_nodes, dtype=torch.long)
    found = _explainer(model, EdgeOcclusion(copies=3))(x, edges, batch=zeros)
    label = int(model(x, edges, zeros).argmax())
    for i, (a, b) in enumerate(edges.T.tolist()):
        kept = [j for j, (u, v) in enumerate(edges.T.tolist()) if {u, v} != {a, b}]
        loss = model(x, edges, zeros)[0, label] - model(x, edges[:, kept], zeros)[0, label]
        assert abs(float(2 * found.edge_mask[i] - loss)) < 1e-10  # both directions have half


@torch.no_grad()
def test_occlusion_of_a_node_silences_messages_and_keeps_degrees():
    from torch_geometric.explain.algorithm.utils import clear_masks, set_masks
    from torch_geometric.nn import GCNConv

    from microtome.graphs.edge_occlusion import EdgeOcclusion
    from microtome.studies.graphs import _networks as n

    graph = make.stochastic_blocks(30, 3, degree=3, features=4, seed=2)
    model = n.seeded(lambda: n.NodeNetwork(GCNConv, [4, 6, 3]), 0).eval()
    found = _explainer(model, EdgeOcclusion(copies=5), "node")(graph.x, graph.edge_index, index=7)
    label = int(model(graph.x, graph.edge_index)[7].argmax())
    for i, (a, b) in enumerate(graph.edge_index.T.tolist()):
        mask = torch.tensor([float({u, v} != {a, b}) for u, v in graph.edge_index.T.tolist()])
        set_masks(model, nn.Parameter(mask), graph.edge_index, apply_sigmoid=False)
        without = model(graph.x, graph.edge_index)[7, label]
        clear_masks(model)
        loss = model(graph.x, graph.edge_index)[7, label] - without
        assert abs(float(2 * found.edge_mask[i] - loss)) < 1e-5


@torch.no_grad()
def test_gradients_of_edges_are_slopes_by_their_weight():
    from torch_geometric.explain.algorithm.utils import clear_masks, set_masks

    from microtome.graphs.edge_gradient import EdgeGradient
    from microtome.studies.graphs import _networks as n

    graph = make.stochastic_blocks(20, 3, degree=3, features=4, seed=2)
    x = graph.x.double()
    model = n.seeded(lambda: n.NodeNetwork(n.isomorphism, [4, 6, 3]), 0).double().eval()
    found = _explainer(model, EdgeGradient(), "node", node_mask_type="attributes")(
        x, graph.edge_index, index=3
    )
    label, step = int(model(x, graph.edge_index)[3].argmax()), 1e-6
    for i in range(0, graph.num_edges, 7):
        answers = []
        for sign in (-1, 1):
            mask = torch.ones(graph.num_edges, dtype=torch.double)
            mask[i] += sign * step
            set_masks(model, nn.Parameter(mask), graph.edge_index, apply_sigmoid=False)
            answers.append(float(model(x, graph.edge_index)[3, label]))
            clear_masks(model)
        assert abs((answers[1] - answers[0]) / (2 * step) - float(found.edge_mask[i])) < 1e-6
    assert found.node_mask.shape == x.shape


def test_nodes_are_judged_by_their_own_house_within_reach():
    from torch_geometric.explain import Explanation

    from microtome.graphs.motif_recovery import node_recovery

    graph = make.houses_on_trunk(20, 4, seed=1)
    nodes = (graph.motif == 2).nonzero()[:, 0].tolist()
    source, target = graph.edge_index
    own = ((graph.motif[source] == 2) & (graph.motif[target] == 2)).float()
    perfect = [Explanation(edge_mask=own) for _ in nodes]
    found = node_recovery(perfect, graph, nodes, hops=3)
    assert found.mean == 1 and len(found.auc) == len(nodes)
    others = [Explanation(edge_mask=graph.edge_truth - own) for _ in nodes]
    assert node_recovery(others, graph, nodes, hops=3).mean <= 0.5
    reached = node_recovery(perfect, graph, nodes, hops=1).scores[0]
    inside = [i for i, (_, v) in enumerate(graph.edge_index.T.tolist()) if v == nodes[0]]
    assert len(reached) == len(inside)


def _examined(subject, chosen):
    from microtome.signals.edge_explanations import edge_explanations, unpacked
    from microtome.signals.evaluate import Evaluator, Program

    signal, got = edge_explanations(), {}
    batch = next(iter(subject.batches())).take(torch.tensor(chosen))
    Evaluator(subject).run(Program([signal]), batch, got.__setitem__)
    return unpacked(got[signal])


def _silenced(model, x, edges, gone, *more):
    """The answer when no message goes along the pairs that are gone."""
    from torch_geometric.explain.algorithm.utils import clear_masks, set_masks

    mask = torch.tensor([float(tuple(sorted(e)) not in gone) for e in edges.T.tolist()], dtype=x.dtype)
    set_masks(model, nn.Parameter(mask, requires_grad=False), edges, apply_sigmoid=False)
    answer = model(x, edges, *more)
    clear_masks(model)
    return answer


@torch.no_grad()
@pytest.mark.parametrize("level", ["node", "graph"])
def test_an_examination_explains_as_the_whole_graph_does_edge_by_edge(level):
    from torch_geometric.data import Batch
    from torch_geometric.nn import GCNConv

    from microtome import Subject
    from microtome.signals.edge_explanations import METHODS, SHARES
    from microtome.studies.graphs import _networks as n

    if level == "node":
        graph = make.stochastic_blocks(40, 3, degree=3, features=4, shares=(0.3, 0.2), seed=4)
        graph.x = graph.x.double()
        model = n.seeded(lambda: n.NodeNetwork(GCNConv, [4, 6, 3]), 0).double().eval()
        found, nodes = _examined(Subject(model, graph), [1, 5]), graph.test_mask.nonzero()[:, 0][[1, 5]]
        cases = [(graph.x, graph.edge_index, (), int(v)) for v in nodes]
    else:
        graphs = make.two_motifs(6, trunk=5, seed=4)
        for g in graphs:
            g.x = g.x.double()
        model = _graph_network().double()
        found = _examined(Subject(model, [Batch.from_data_list(graphs)]), [2, 4])
        zeros = torch.zeros(10, dtype=torch.long)
        cases = [(graphs[i].x, graphs[i].edge_index, (zeros,), 0) for i in (2, 4)]
    for k, (x, edges, more, row) in enumerate(cases):
        answer = model(x, edges, *more)[row]
        label = int(answer.argmax())
        assert int(found.label[k]) == label
        assert abs(float(found.probability[k] - answer.softmax(0)[label])) < 1e-9
        assert float(found.explained[k]) > 1 - 1e-9
        pairs = sorted({tuple(sorted(e)) for e in edges.T.tolist()})
        losses = {p: float(answer[label] - _silenced(model, x, edges, {p}, *more)[row, label]) for p in pairs}
        named = [
            (int(a), int(b), s) for a, b, s in found.edges[k, METHODS.index("occlusion")].tolist() if a >= 0
        ]
        assert len(named) == int(found.pairs[k])
        assert [losses[a, b] for a, b, _ in named] == pytest.approx([s for *_, s in named], abs=1e-9)
        told = {(a, b) for a, b, _ in named}
        assert all(abs(losses[p]) < 1e-12 for p in pairs if p not in told)  # what cannot be heard
        assert [s for *_, s in named] == pytest.approx(
            sorted((s for *_, s in named), reverse=True), abs=1e-12
        )
        for i in range(len(METHODS)):
            order = [(int(a), int(b)) for a, b, _ in found.edges[k, i].tolist() if a >= 0]
            for j, share in enumerate(SHARES):
                first = set(order[: math.ceil(share * len(order))])
                for side, gone in enumerate((first, set(order) - first)):
                    expected = _silenced(model, x, edges, gone, *more)[row].softmax(0)[label]
                    assert abs(float(found.judged[k, i, j, side] - expected)) < 1e-9


def test_a_network_that_hears_farther_than_its_convolutions_is_refused():
    from microtome import Subject
    from microtome.examination import examine

    class Centred(nn.Module):
        def __init__(self):
            from torch_geometric.nn import GCNConv

            super().__init__()
            self.conv = GCNConv(4, 3)

        def forward(self, x, edge_index):
            found = self.conv(x, edge_index)
            return found - 3 * found.mean(0)

    graph = make.stochastic_blocks(40, 3, degree=3, features=4, shares=(0.3, 0.2), seed=4)
    told = examine(Subject(Centred().eval(), graph), only=["graphs/edge_attribution"])[
        "graphs/edge_attribution"
    ]
    assert told.status == "refused" and "answers otherwise on a node's subgraph" in told.reason


def test_too_many_edges_to_silence_are_refused_and_few_rows_at_once_change_nothing(monkeypatch):
    from microtome import Subject
    from microtome.examination import examine
    from microtome.signals import edge_explanations as module
    from microtome.studies.graphs import _networks as n

    graph = make.stochastic_blocks(40, 3, degree=3, features=4, shares=(0.3, 0.2), seed=4)
    model = n.seeded(lambda: n.NodeNetwork(n.isomorphism, [4, 6, 3]), 0).eval()
    whole = _examined(Subject(model, graph), [1, 5])
    monkeypatch.setattr(module, "ROWS", 1)
    assert torch.allclose(_examined(Subject(model, graph), [1, 5]).judged, whole.judged, atol=1e-6)
    monkeypatch.setattr(module, "MOST", 10)
    told = examine(Subject(model, graph), only=["graphs/edge_attribution"])["graphs/edge_attribution"]
    assert told.status == "refused" and "too many to silence" in told.reason
