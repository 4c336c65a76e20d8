"""Homophily, colours, resistance, sampling and explainers of graphs, against other libraries and direct loops."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from microtome.data import graph_generators as make
from microtome.errors import UsageError

pytest.importorskip("torch_geometric")
networkx = pytest.importorskip("networkx")


def _networkx(edge_index, nodes):
    made = networkx.Graph()
    made.add_nodes_from(range(nodes))
    made.add_edges_from(edge_index.T.tolist())
    return made


def _blocks(**kwargs):
    return make.stochastic_blocks(60, 3, degree=5, features=6, seed=2, **kwargs)


# ------------------------------------------------------------------------------------------- homophily


def test_homophily_is_that_of_pytorch_geometric():
    from torch_geometric.utils import homophily

    from microtome.graphs import homophily as ours

    graph = _blocks(homophily=0.6)
    counts = ours.class_edges(graph.edge_index, graph.y, 3)
    assert ours.edge_homophily(counts) == pytest.approx(homophily(graph.edge_index, graph.y, method="edge"))
    theirs = homophily(graph.edge_index, graph.y, method="edge_insensitive")
    assert ours.class_homophily(counts, torch.bincount(graph.y)) == pytest.approx(theirs)


def test_informativeness_and_adjustment_by_a_direct_sum():
    from microtome.graphs import homophily as ours

    graph = _blocks(homophily=0.2, pattern=0.7)
    edges = graph.edge_index.T.tolist()
    counts = ours.class_edges(graph.edge_index, graph.y, 3)
    joint = {}
    for a, b in edges:
        pair = int(graph.y[a]), int(graph.y[b])
        joint[pair] = joint.get(pair, 0) + 1 / len(edges)
    ends = [sum(v for (a, _), v in joint.items() if a == c) for c in range(3)]
    entropy = -sum(p * torch.tensor(p).log().item() for p in ends)
    mutual = sum(v * torch.tensor(v / (ends[a] * ends[b])).log().item() for (a, b), v in joint.items())
    assert ours.label_informativeness(counts) == pytest.approx(mutual / entropy, abs=1e-6)
    chance = sum(p * p for p in ends)
    same = sum(v for (a, b), v in joint.items() if a == b)
    assert ours.adjusted_homophily(counts) == pytest.approx((same - chance) / (1 - chance))


def test_twins_are_what_a_comparison_of_all_pairs_finds():
    from microtome.graphs.homophily import twins, without_twins

    graph = make.plant_duplicates(make.stochastic_blocks(80, 2, degree=4, features=2, seed=1), 0.3, seed=1)
    into = [set() for _ in range(80)]
    for a, b in graph.edge_index.T.tolist():
        if a != b:
            into[b].add(a)
    group = twins(graph.edge_index, graph.y, 80)
    for a, b in itertools.combinations(range(80), 2):
        same = bool(into[a]) and into[a] == into[b] and int(graph.y[a]) == int(graph.y[b])
        assert same == (int(group[a]) >= 0 and int(group[a]) == int(group[b]))
    kept = without_twins(graph.edge_index, group)
    left = group[kept]
    assert len(left[left >= 0].unique()) == len(left[left >= 0]) == len(group[group >= 0].unique())


# --------------------------------------------------------------------------------------------- colours


def test_colours_part_the_graphs_that_networkx_parts():
    from torch_geometric.data import Batch

    from microtome.graphs.refinement import weisfeiler_leman

    graphs = make.small_graphs(6)
    batch = Batch.from_data_list(graphs)
    _, ours = weisfeiler_leman(batch.edge_index, batch.batch, len(graphs), x=batch.x, rounds=6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = [
            networkx.weisfeiler_lehman_graph_hash(_networkx(g.edge_index, g.num_nodes), iterations=6)
            for g in graphs
        ]
    pairs = set(zip(ours.tolist(), theirs, strict=True))
    assert len(pairs) == len(set(ours.tolist())) == len(set(theirs)) < len(graphs)


def test_the_atlas_has_as_many_classes_as_the_literature_counts():
    from torch_geometric.data import Batch

    from microtome.graphs.refinement import weisfeiler_leman

    graphs = make.small_graphs()
    batch = Batch.from_data_list(graphs)
    _, colours = weisfeiler_leman(batch.edge_index, batch.batch, len(graphs), rounds=7)
    _, count = colours.unique(return_counts=True)
    assert len(graphs) == 1252 and len(count) == 1226 and int((count == 2).sum()) == 26


def test_a_partition_joins_what_is_equal_to_rounding():
    from microtome.graphs.refinement import partition

    base = torch.randn(7, 4, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    rows = base[[0, 3, 0, 5, 3, 6]] + 1e-9 * torch.randn(6, 4, dtype=torch.double)
    found = partition(rows, 1e-6).tolist()
    assert found[0] == found[2] and found[1] == found[4] and len(set(found)) == 4


# ------------------------------------------------------------------------------------------ resistance


def test_resistances_are_those_of_networkx():
    from microtome.graphs import resistance

    graph = make.barbell(5, 2)
    nodes = graph.num_nodes
    pairs = torch.combinations(torch.arange(nodes)).T
    expected = networkx.resistance_distance(_networkx(graph.edge_index, nodes))
    wanted = torch.tensor([expected[int(a)][int(b)] for a, b in pairs.T], dtype=torch.double)
    assert torch.allclose(resistance.resistances(graph.edge_index, nodes, pairs), wanted)
    inverse = resistance.pseudoinverse(graph.edge_index, nodes)
    assert torch.allclose(resistance.pair_resistance(inverse, pairs), wanted)
    assert resistance.total_resistance(inverse) == pytest.approx(float(wanted.sum()))


def test_parts_that_are_not_joined_have_no_resistance_between_them():
    from microtome.graphs.resistance import resistances

    edges = torch.tensor([[0, 1, 3], [1, 2, 4]])
    found = resistances(edges, 6, torch.tensor([[0, 0, 3, 5, 2], [2, 3, 4, 5, 5]]))
    assert found.tolist() == [2.0, float("inf"), 1.0, 0.0, float("inf")]


def test_many_graphs_are_inverted_at_once():
    from torch_geometric.data import Batch

    from microtome.graphs import resistance

    graphs = make.small_graphs(5)
    batch = Batch.from_data_list(graphs)
    found, sizes = resistance.pseudoinverses(batch.edge_index, batch.batch, len(graphs))
    for graph, inverse, size in zip(graphs, found, sizes.tolist(), strict=True):
        expected = torch.linalg.pinv(resistance.laplacian(graph.edge_index, size))
        assert torch.allclose(inverse[:size, :size], expected, atol=1e-9)
        assert float(inverse[size:].abs().sum() + inverse[:, size:].abs().sum()) < 1e-9


def test_an_edge_more_is_a_change_of_rank_one():
    from microtome.graphs import resistance

    graph = make.ring_of_cliques(4, 4)
    nodes = graph.num_nodes
    inverse = resistance.pseudoinverse(graph.edge_index, nodes)
    more = torch.cat([graph.edge_index, torch.tensor([[0], [9]])], 1)
    expected = resistance.pseudoinverse(more, nodes)
    assert torch.allclose(resistance.with_edge(inverse, 0, 9), expected, atol=1e-12)
    gain = resistance.decrease(inverse, torch.tensor([[0], [9]]))
    fall = resistance.total_resistance(inverse) - resistance.total_resistance(expected)
    assert float(gain) == pytest.approx(fall, abs=1e-9)


def test_rewiring_takes_the_best_edge_of_all_each_time():
    from microtome.graphs import resistance

    graph = make.barbell(4, 1)
    nodes, edges = graph.num_nodes, graph.edge_index
    found, gains = resistance.best_edges(edges, nodes, 3)
    for edge, gain in zip(found.T.tolist(), gains.tolist(), strict=True):
        before = resistance.total_resistance(resistance.pseudoinverse(edges, nodes))
        present = {tuple(sorted(e)) for e in edges.T.tolist()}
        falls = {}
        for pair in itertools.combinations(range(nodes), 2):
            if pair not in present:
                more = torch.cat([edges, torch.tensor(pair)[:, None]], 1)
                falls[pair] = before - resistance.total_resistance(resistance.pseudoinverse(more, nodes))
        assert falls[tuple(edge)] == pytest.approx(max(falls.values())) == pytest.approx(gain)
        edges = torch.cat([edges, torch.tensor(edge)[:, None]], 1)
    graph.edge_attr = torch.ones(graph.num_edges, 2)
    changed = resistance.LowerTotalResistance(3)(graph)
    assert changed.num_edges == graph.num_edges + 6 == len(changed.edge_attr)
    assert changed.is_undirected()


# -------------------------------------------------------------------------------------------- sampling


class _Sage(nn.Module):
    def __init__(self):
        from torch_geometric.nn import SAGEConv

        super().__init__()
        self.conv1, self.conv2 = SAGEConv(6, 8), SAGEConv(8, 3)

    def forward(self, x, edge_index):
        return self.conv2(F.relu(self.conv1(x, edge_index)), edge_index)


def test_all_neighbours_sampled_give_the_answers_of_the_whole_graph():
    from microtome.graphs.loader import NeighbourLoader

    graph = _blocks()
    graph.edge_attr = torch.arange(graph.num_edges)
    torch.manual_seed(0)
    model = _Sage().eval()
    loader = NeighbourLoader(graph, [-1, -1], graph.test_mask, batch_size=4)
    with torch.no_grad():
        whole = model(graph.x, graph.edge_index)
        for batch in loader:
            seeds = batch.n_id[: batch.batch_size]
            assert torch.allclose(
                model(batch.x, batch.edge_index)[: batch.batch_size], whole[seeds], atol=1e-6
            )
            assert torch.equal(batch.n_id[batch.edge_index], graph.edge_index[:, batch.e_id])
            assert torch.equal(batch.edge_attr, batch.e_id) and torch.equal(batch.y, graph.y[batch.n_id])
    assert sum(b.batch_size for b in loader) == int(graph.test_mask.sum())


def test_neighbours_are_drawn_without_repeats_and_uniformly():
    from microtome.graphs.loader import CSR

    star = torch.stack([torch.arange(1, 11), torch.zeros(10, dtype=torch.long)])
    csr = CSR(star, 11)
    counts = torch.zeros(11)
    for seed in range(2000):
        _, source, edge = csr.sample(torch.tensor([0, 3]).numpy(), 3, seed)
        assert len(set(source.tolist())) == 3 and (star[0][edge].numpy() == source).all()
        counts[source] += 1
    # 2000 draws of 3 in 10: a share of 0.3 with a standard error of 0.0102.
    assert float((counts[1:] / 2000 - 0.3).abs().max()) < 0.045


def test_a_loader_is_examined_and_gives_the_same_batches_twice():
    from microtome import Subject
    from microtome.graphs.loader import neighbor_loader

    graph = _blocks()
    torch.manual_seed(0)
    loader = neighbor_loader(graph, [3, 2], graph.test_mask, batch_size=6)
    first, second = ([b.e_id.tolist() for b in loader] for _ in range(2))
    assert first == second
    subject = Subject(_Sage().eval(), loader)
    assert subject.examples == int(graph.test_mask.sum()) and subject.task.kind == "node-classification"
    targets = torch.cat([b.targets for b in subject.batches()])
    assert torch.equal(targets, graph.y[graph.test_mask])
    shuffled = neighbor_loader(graph, [3, 2], graph.test_mask, batch_size=6, shuffle=True)
    assert [b.e_id.tolist() for b in shuffled] != [b.e_id.tolist() for b in shuffled]


def test_sampling_without_edges_is_refused_in_a_sentence():
    from torch_geometric.data import Data

    from microtome.graphs.loader import NeighbourLoader

    with pytest.raises(UsageError, match="MT450"):
        NeighbourLoader(Data(x=torch.ones(3, 1)), [2])


# ------------------------------------------------------------------------------------------ explainers

CONFIG = {"mode": "multiclass_classification", "task_level": "node", "return_type": "raw"}


class _Gcn(nn.Module):
    def __init__(self, bias=True):
        from torch_geometric.nn import GCNConv

        super().__init__()
        self.conv1, self.conv2 = GCNConv(6, 8, bias=bias), GCNConv(8, 3, bias=bias)

    def forward(self, x, edge_index):
        x = F.dropout(x, 0.5, self.training)
        return self.conv2(F.relu(self.conv1(x, edge_index)), edge_index)


def _explainer(model, algorithm, node="attributes"):
    from torch_geometric.explain import Explainer

    return Explainer(
        model, algorithm, "model", model_config=CONFIG, node_mask_type=node, edge_mask_type="object"
    )


@pytest.mark.parametrize("network", [_Gcn, _Sage])
@pytest.mark.parametrize("node", ["attributes", "object", "common_attributes", None])
def test_masks_are_those_of_pytorch_geometric(network, node):
    from torch_geometric.explain import GNNExplainer

    from microtome.graphs.explainer import SubgraphGNNExplainer

    graph = make.stochastic_blocks(200, 3, degree=3, features=6, seed=2)
    graph.x = graph.x * (graph.x > 0.4)
    torch.manual_seed(0)
    model = network().eval()
    found = []
    for kind in (GNNExplainer, SubgraphGNNExplainer):
        torch.manual_seed(5)
        found.append(_explainer(model, kind(epochs=15), node)(graph.x, graph.edge_index, index=7))
    assert torch.allclose(found[0].edge_mask, found[1].edge_mask, atol=1e-5)
    assert 0 < int((found[1].edge_mask > 0).sum()) < graph.num_edges
    if node:
        assert torch.allclose(found[0].node_mask, found[1].node_mask, atol=1e-5)


def test_many_nodes_at_once_are_each_as_by_themselves():
    from torch_geometric.explain import GNNExplainer

    from microtome.graphs.explainer import SubgraphGNNExplainer

    graph = make.stochastic_blocks(200, 3, degree=3, features=6, seed=2)
    torch.manual_seed(0)
    model = _Gcn().eval()
    algorithm = SubgraphGNNExplainer(epochs=10, batch=3)
    _explainer(model, algorithm)
    target = model(graph.x, graph.edge_index).argmax(1)
    many = algorithm.explain(model, graph.x, graph.edge_index, [3, 50, 120, 7], target=target, seed=9)
    assert all(p.grad is None for p in model.parameters())
    for node, found in zip([3, 50, 120, 7], many, strict=True):
        torch.manual_seed(9)
        alone = _explainer(model, GNNExplainer(epochs=10))(graph.x, graph.edge_index, index=node)
        assert torch.allclose(alone.edge_mask, found.edge_mask, atol=1e-5)
        assert torch.allclose(alone.node_mask, found.node_mask, atol=1e-5)


def test_a_network_that_reads_the_whole_graph_is_explained_on_the_whole_graph():
    from torch_geometric.explain import GNNExplainer
    from torch_geometric.nn import PairNorm

    from microtome.graphs.explainer import SubgraphGNNExplainer

    class Normed(_Gcn):
        def __init__(self):
            super().__init__()
            self.norm = PairNorm()

        def forward(self, x, edge_index):
            return self.conv2(F.relu(self.norm(self.conv1(x, edge_index))), edge_index)

    graph = _blocks()
    torch.manual_seed(0)
    model = Normed().eval()
    found = []
    for kind in (GNNExplainer, SubgraphGNNExplainer):
        torch.manual_seed(5)
        found.append(_explainer(model, kind(epochs=5))(graph.x, graph.edge_index, index=7))
    assert torch.allclose(found[0].edge_mask, found[1].edge_mask, atol=1e-5)
    algorithm = SubgraphGNNExplainer(epochs=5)
    _explainer(model, algorithm)
    with pytest.raises(UsageError, match="MT447"):
        algorithm.explain(model, graph.x, graph.edge_index, [7], target=graph.y)


def _terms(model, x, edge_index, node, target):
    """Every product a two-layer GCN's logit is the sum of, shared out among its edges and feature."""
    from torch_geometric.nn.conv.gcn_conv import gcn_norm

    edges, norm = gcn_norm(edge_index, None, len(x))
    m = edge_index.shape[1]
    first, second = model.conv1.lin.weight, model.conv2.lin.weight
    gates = (model.conv1(x, edge_index) > 0).to(x.dtype)
    of_x, of_edges = torch.zeros_like(x), torch.zeros(m, dtype=x.dtype)
    for j, (u, v) in enumerate(edges.T.tolist()):
        if v != node:
            continue
        through = second[target] * gates[u] * norm[j]
        for i, (w, t) in enumerate(edges.T.tolist()):
            if t != u:
                continue
            products = (through @ first) * x[w] * norm[i]
            passed = [e for e in (i, j) if e < m]
            of_x[w] += products / (len(passed) + 1)
            for e in passed:
                of_edges[e] += products.sum() / (len(passed) + 1)
        if model.conv1.bias is not None and j < m:  # the product of a bias and one edge
            of_edges[j] += (through * model.conv1.bias).sum()
    return of_x, of_edges


@pytest.mark.parametrize("bias", [False, True])
def test_goat_is_the_sum_over_all_products(bias):
    from microtome.graphs.goat import GOAt

    graph = make.stochastic_blocks(20, 3, degree=3, features=6, seed=2)
    graph.x = graph.x.double()
    torch.manual_seed(1)
    model = _Gcn(bias).double().eval()
    if bias:
        nn.init.normal_(model.conv1.bias)
        nn.init.normal_(model.conv2.bias)
    target = model(graph.x, graph.edge_index).argmax(1)
    algorithm = GOAt()
    _explainer(model, algorithm)
    with torch.no_grad():
        for node, found in zip(
            (4, 11), algorithm.explain(model, graph.x, graph.edge_index, [4, 11], target=target), strict=True
        ):
            of_x, of_edges = _terms(model, graph.x, graph.edge_index, node, int(target[node]))
            assert torch.allclose(found.node_mask, of_x, atol=1e-10)
            assert torch.allclose(found.edge_mask, of_edges, atol=1e-10)
            assert found.completeness_error < 1e-10


def test_goat_says_when_a_network_is_no_sum_of_products():
    from torch_geometric.nn import GATConv

    from microtome.graphs.goat import GOAt

    class Gat(_Gcn):
        def __init__(self):
            super().__init__()
            self.conv1 = GATConv(6, 8)

    graph = _blocks()
    torch.manual_seed(0)
    model = Gat().eval()
    found = _explainer(model, GOAt())(graph.x, graph.edge_index, index=3)
    assert found.completeness_error > 1e-3


def test_fidelity_at_its_ends_is_that_of_pytorch_geometric():
    from torch_geometric.explain.metric import fidelity

    from microtome.graphs.fidelity import robust_fidelity
    from microtome.graphs.goat import GOAt

    graph = _blocks()
    torch.manual_seed(0)
    model = _Gcn().eval()
    explainer = _explainer(model, GOAt(), node=None)
    for node in range(12):
        found = explainer(graph.x, graph.edge_index, index=node)
        found.edge_mask = (found.edge_mask > found.edge_mask.quantile(0.97)).float()
        assert robust_fidelity(explainer, found, alpha1=1.0, alpha2=0.0) == pytest.approx(
            fidelity(explainer, found)
        )
    plus, minus = robust_fidelity(explainer, found, alpha1=0.0, alpha2=1.0, soft=True)
    assert plus == pytest.approx(0, abs=1e-6) and minus == pytest.approx(0, abs=1e-6)
    with pytest.raises(UsageError, match="MT449"):
        robust_fidelity(explainer, found, alpha1=2.0)


def test_robust_fidelity_is_the_mean_over_its_draws():
    from microtome.graphs.fidelity import robust_fidelity

    class _Sum(nn.Module):
        """Class 1 with a logit of as many messages as arrive."""

        def __init__(self):
            from torch_geometric.nn import SimpleConv

            super().__init__()
            self.conv = SimpleConv(aggr="sum")

        def forward(self, x, edge_index):
            arrived = self.conv(x, edge_index)
            return torch.cat([torch.zeros_like(arrived), arrived.log()], 1)

    from torch_geometric.explain import Explanation

    from microtome.graphs.goat import GOAt

    nodes = 9
    edges = torch.stack([torch.arange(1, nodes), torch.zeros(nodes - 1, dtype=torch.long)])
    explainer = _explainer(_Sum().eval(), GOAt(), node=None)
    mask = torch.tensor([1.0] * 4 + [0.0] * 4)
    found = Explanation(edge_mask=mask, x=torch.ones(nodes, 1), edge_index=edges)
    found._model_args, found.target, found.index = [], torch.ones(nodes, dtype=torch.long), torch.tensor([0])
    # With s of 8 messages the probability of class 1 is s / (s + 1).
    draws = [sum(c) for c in itertools.product((0, 1), repeat=4)]
    expected = 8 / 9 - sum((4 + s) / (5 + s) for s in draws) / len(draws)
    plus, minus = robust_fidelity(explainer, found, alpha1=0.5, alpha2=0.5, samples=2000, soft=True)
    assert plus == pytest.approx(expected, abs=0.003) and minus == pytest.approx(expected, abs=0.003)


# ---------------------------------------------------------------------------------------- examinations


def test_a_changed_graph_is_another_world_and_the_graph_is_left_alone():
    from microtome import Subject
    from microtome.signals import outputs
    from microtome.signals.evaluate import Evaluator, Program
    from microtome.signals.graphs import AddEdges, DropEdges, FlipFeatures, ShuffleFeatures

    graph = _blocks()
    before = graph.edge_index.clone(), graph.x.clone()
    torch.manual_seed(0)
    model = _Gcn().eval()
    subject = Subject(model, graph)
    worlds = {
        c: outputs.under(c) for c in (DropEdges(0.3), AddEdges(0.5), FlipFeatures(0.4), ShuffleFeatures())
    }
    batch = next(iter(subject.batches()))
    got = {}
    Evaluator(subject).run(Program([outputs, *worlds.values()]), batch, got.__setitem__)
    for change, signal in worlds.items():
        changed = change.change(batch)
        x, edges = changed.args
        assert not torch.equal(got[signal], got[outputs])
        assert torch.allclose(got[signal], model(x, edges)[graph.test_mask], atol=1e-6)
        pairs = {tuple(e) for e in edges.T.tolist()}
        assert all((b, a) in pairs for a, b in pairs)
    dropped = DropEdges(0.3).change(batch).args[1].shape[1] / graph.num_edges
    assert abs(dropped - 0.7) < 4 * (0.21 / (graph.num_edges / 2)) ** 0.5
    assert torch.equal(graph.edge_index, before[0]) and torch.equal(graph.x, before[1])


def test_sensitivity_is_the_jacobian():
    from microtome import Subject
    from microtome.folds import Collect, Rows
    from microtome.signals import rows
    from microtome.signals.evaluate import Evaluator, Program
    from microtome.signals.graphs import sensitivity

    graph = _blocks()
    torch.manual_seed(0)
    model = _Gcn().eval()
    subject = Subject(model, graph)
    assert subject.node_layers == ("relu", "conv2")
    signal = sensitivity("conv2", draws=400)
    fold = Collect(signals=(rows, signal), over=Rows((1, 4)))
    batch = next(iter(subject.batches())).take(torch.tensor([1, 4]))
    got = {}
    Evaluator(subject).run(Program(fold.signals), batch, got.__setitem__)
    jacobian = torch.func.jacrev(lambda x: model(x, graph.edge_index))(graph.x)
    exact = jacobian.permute(0, 2, 1, 3).flatten(2).square().sum(2)[graph.test_mask.nonzero()[:, 0][[1, 4]]]
    assert torch.equal(got[signal] > 0, exact > 0)
    assert torch.allclose(got[signal].float(), exact, rtol=0.35, atol=1e-4)


def test_questions_about_graphs_are_refused_of_other_data():
    from microtome.laws.subjects import vectors
    from microtome.registry import instrument, instrument_names

    for name in instrument_names():
        if name.startswith("graphs/"):
            lacking = instrument(name).needs.lacks(vectors())
            assert lacking is not None and "graph" in lacking


@pytest.mark.slow
def test_a_hundred_thousand_nodes_are_examined_inside_two_gibibytes():
    import subprocess
    import sys

    code = """
import resource, torch
import torch.nn.functional as F
from torch_geometric.nn import SAGEConv
import microtome as mt
from microtome.data.graph_generators import stochastic_blocks
from microtome.graphs.loader import NeighbourLoader

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = SAGEConv(32, 32), SAGEConv(32, 5)
    def forward(self, x, edge_index):
        return self.conv2(F.relu(self.conv1(x, edge_index)), edge_index)

graph = stochastic_blocks(100_000, 5, degree=10, features=32, shares=(0.1, 0.1), seed=0)
torch.manual_seed(0)
loader = NeighbourLoader(graph, [10, 5], graph.val_mask, batch_size=512)
names = ["reliability/accuracy", "reliability/calibration", "represent/feature_rank", "graphs/homophily",
         "graphs/oversmoothing", "graphs/weisfeiler_leman", "graphs/edge_robustness"]
exam = mt.examine(Net().eval(), loader, only=names)
assert all(f.status == "measured" for f in exam), [(f.instrument, f.reason) for f in exam]
assert exam.subject["examples"] == 10_000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout.split()[-1]) < 2048
