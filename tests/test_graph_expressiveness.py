"""Aggregators, algorithms on graphs, polynomials of graphs, learned monoids: against counts and direct loops."""

from __future__ import annotations

import itertools

import networkx
import pytest
import torch

from microtome.errors import UsageError

pytest.importorskip("torch_geometric")


def _dense(graph, n=None):
    found = torch.zeros(n or graph.num_nodes, n or graph.num_nodes, dtype=torch.double)
    found[graph.edge_index[0], graph.edge_index[1]] = 1
    return found


# ---- aggregators of multisets


def test_collisions_are_counted_as_by_pairs():
    from torch_geometric.nn.aggr import MultiAggregation

    from microtome.graphs import multisets as m

    sets = m.multisets(3, 4)
    assert len(sets) == 20 and len({tuple(s) for s in sets.tolist()}) == 20
    index = torch.arange(20).repeat_interleave(3)
    exact = m.exact_statistics(sets)
    assert m.colliding_pairs(exact, ["mean"]) > m.colliding_pairs(exact, ["mean", "max"]) > 0
    for names in (["mean"], ["max", "std"], ["mean", "min", "std"]):
        out = MultiAggregation(list(names))(sets.double().reshape(-1, 1), index)
        pairs = sum(
            bool((out[a] - out[b]).abs().max() < 1e-9) for a, b in itertools.combinations(range(20), 2)
        )
        assert m.colliding_pairs(exact, names) == pairs
    assert m.colliding_pairs(exact, m.AGGREGATORS) == 0


def test_sets_of_equal_power_sums_are_so():
    from microtome.graphs.multisets import EQUAL_POWER_SUMS, power_sums

    for n, (a, b) in EQUAL_POWER_SUMS.items():
        assert len(a) == len(b) == n
        assert power_sums(a, n - 1) == power_sums(b, n - 1) and power_sums(a, n)[-1] != power_sums(b, n)[-1]
    assert power_sums((1, 2, 3), 2) == [6, 14]


# ---- answers of algorithms


def test_the_answers_are_those_of_networkx():
    from microtome.data.graph_algorithms import KINDS, algorithm_graphs

    graphs = [g for kind in KINDS for g in algorithm_graphs(4, (9, 12), kinds=[kind], seed=3)]
    assert {g.kind for g in graphs} == set(KINDS)
    seen = set()
    for g in graphs:
        n = g.num_nodes
        plain = networkx.from_numpy_array(_dense(g).numpy())
        assert (
            9 <= n <= 12
            and min(dict(plain.degree).values()) >= 1
            and networkx.number_of_selfloops(plain) == 0
        )
        hops = dict(networkx.all_pairs_shortest_path_length(plain))
        source = int(g.x[:, 0].argmax())
        assert float(g.x[:, 0].sum()) == 1
        eccentricity = [max(hops[v].values()) for v in range(n)]
        dense = _dense(g)
        laplacian = (dense.sum(1).diag() - dense) @ g.x[:, 1].double()
        expected = torch.tensor([[hops[source].get(v, 0), eccentricity[v]] for v in range(n)]).double()
        assert torch.equal(g.node_y[:, :2].double(), expected)
        assert torch.allclose(g.node_y[:, 2].double(), laplacian, atol=1e-5)
        connected = networkx.is_connected(plain)
        seen.add(connected)
        assert g.graph_y[0, :2].tolist() == [float(connected), float(max(eccentricity))]
        assert abs(float(g.graph_y[0, 2]) - float(torch.linalg.eigvalsh(dense).abs().max())) < 1e-4
    assert seen == {True, False}


def test_the_kinds_are_what_they_are_called():
    from microtome.data.graph_algorithms import algorithm_graphs

    def made(kind, n=12):
        (g,) = algorithm_graphs(1, (n, n), kinds=[kind], toggled=0.0, seed=1)
        return networkx.from_numpy_array(_dense(g).numpy())

    assert networkx.is_isomorphic(made("line"), networkx.path_graph(12))
    assert networkx.is_isomorphic(made("star"), networkx.star_graph(11))
    assert networkx.is_isomorphic(made("grid"), networkx.grid_2d_graph(3, 4))
    assert networkx.is_isomorphic(made("caveman"), networkx.caveman_graph(3, 4))
    assert networkx.is_isomorphic(made("ladder"), networkx.ladder_graph(6))
    assert made("ladder", 13).number_of_edges() == 17
    for kind in ("tree", "caterpillar", "lobster"):
        assert networkx.is_tree(made(kind))
    spine = made("lobster")
    for _ in range(2):
        spine.remove_nodes_from([v for v, d in dict(spine.degree).items() if d <= 1])
    assert max(dict(spine.degree).values(), default=0) <= 2
    assert networkx.is_connected(made("preferential"))
    with pytest.raises(UsageError, match="MT452 no kind of graph is called 'stars'; did you mean 'star'"):
        algorithm_graphs(1, kinds=["stars"])
    with pytest.raises(UsageError, match="MT452"):
        algorithm_graphs(1, (9, 5))


# ---- polynomials


def _multigraphs(degree, **options):
    from microtome.graphs.multigraphs import connected_multigraphs

    return connected_multigraphs(degree, **options)


def test_multigraphs_are_as_many_as_are_known():
    from microtome.graphs.multigraphs import basis, count_basis

    # Connected loopless multigraphs (A076864), all of them (A050535), with loops (A007717), connected graphs (A002905).
    assert [len(some) for some in _multigraphs(5)] == [1, 1, 2, 5, 12, 33]
    assert [len(some) for some in _multigraphs(5, parallel=False)] == [1, 1, 1, 3, 5, 12]
    assert [len(basis(10, d)) for d in range(6)] == [1, 1, 3, 8, 23, 66]
    assert [count_basis(10, d) for d in range(6)] == [1, 1, 3, 8, 23, 66]
    assert [len(basis(8, d, loops=True)) for d in range(5)] == [1, 2, 7, 23, 79]
    assert [count_basis(8, d, loops=True) for d in range(5)] == [1, 2, 7, 23, 79]


@pytest.mark.parametrize("roots", [0, 1])
def test_the_polynomials_are_independent_and_all(roots):
    """The monomials' orbits, counted by listing them, are as many as the rank of the values at integer matrices."""
    from microtome.graphs.equivariant_polynomials import evaluate, exact_rank
    from microtome.graphs.multigraphs import basis, count_basis

    n, degree = 4, 3
    pairs = list(itertools.combinations_with_replacement(range(n), 2))
    keep = [(*range(roots), *p) for p in itertools.permutations(range(roots, n))]
    orbits = {
        min(tuple(sorted(tuple(sorted((p[a], p[b]))) for a, b in monomial)) for p in keep)
        for monomial in itertools.combinations_with_replacement(pairs, degree)
    }
    named = basis(n, degree, roots=roots, loops=True)
    assert len(named) == len(orbits) == count_basis(n, degree, roots=roots, loops=True)
    x = torch.randint(0, 4, (2 * len(named), n, n), generator=torch.Generator().manual_seed(0)).double()
    x = x + x.mT
    columns = []
    for pieces in named:
        values = [evaluate([p], x)[..., 0] for p in pieces]
        values = [v if v.ndim > roots else v[:, None] for v in values]
        columns.append(torch.stack(torch.broadcast_tensors(*values)).prod(0).reshape(len(x), -1)[:, 0])
    assert exact_rank(torch.stack(columns, 1)) == len(named)


@pytest.mark.parametrize("roots", [0, 1])
def test_a_polynomial_is_the_sum_over_all_maps(roots):
    from microtome.graphs.equivariant_polynomials import evaluate
    from microtome.graphs.multigraphs import elimination

    n = 4
    torch.manual_seed(1)
    x = torch.randn(2, n, n, dtype=torch.double)
    x = x + x.mT
    kept = [p for some in _multigraphs(4, roots=roots, loops=True) for p in some if p.nodes <= 4]
    out = evaluate(kept, x)
    for i, p in enumerate(kept):
        expected = torch.zeros(2, n, dtype=torch.double)
        for j in itertools.product(range(n), repeat=p.nodes):
            term = torch.ones(2, dtype=torch.double)
            for r, s, m in p.edges:
                term = term * x[:, j[r], j[s]] ** m
            expected[:, j[0]] += term
        assert torch.allclose(out[..., i], expected if roots else expected.sum(1))
        plain = networkx.Graph([(r, s) for r, s, _ in p.edges if r != s])
        if plain.number_of_edges() and networkx.is_forest(plain):
            assert elimination(p)[0] == 1


def test_treewidths_and_refusals():
    from microtome.graphs.equivariant_polynomials import AddPolynomials, evaluate
    from microtome.graphs.multigraphs import Multigraph, elimination

    def multigraph(graph):
        return Multigraph(len(graph), tuple((a, b, 1) for a, b in graph.edges))

    assert [elimination(multigraph(networkx.complete_graph(k)))[0] for k in (2, 3, 4)] == [1, 2, 3]
    assert elimination(multigraph(networkx.cycle_graph(6)))[0] == 2
    four = multigraph(networkx.complete_graph(4))
    with pytest.raises(UsageError, match="MT454 a polynomial of treewidth 3"):
        evaluate([four], torch.zeros(1, 200, 200))
    with pytest.raises(UsageError, match="MT454"):
        AddPolynomials([four])
    with pytest.raises(UsageError, match="MT454"):
        evaluate([four, four._replace(roots=1)], torch.zeros(1, 3, 3))


def test_features_of_nodes_count_triangles():
    from microtome.data.graph_generators import small_graphs
    from microtome.graphs.equivariant_polynomials import AddPolynomials

    triangle = next(p for p in _multigraphs(3, roots=1)[3] if p.nodes == 3 and len(p.edges) == 3)
    for graph in small_graphs(5)[30:40]:
        expected = networkx.triangles(networkx.from_numpy_array(_dense(graph).numpy()))
        out = AddPolynomials([triangle], scale=torch.tensor([2.0]))(graph.clone())
        assert out.x.shape == (5, 2) and out.x[:, 1].tolist() == [expected[v] for v in range(5)]
    fitted = AddPolynomials([triangle]).fit(small_graphs(5)[30:40])
    columns = torch.cat([fitted(g.clone()).x[:, 1] for g in small_graphs(5)[30:40]])
    assert abs(float(columns.mean())) < 1e-6 and abs(float(columns.std(unbiased=False)) - 1) < 1e-6


# ---- learned monoids


def _tree(layer, rows):
    """Pairs of neighbours, level by level; an odd one out goes up as it is."""
    while len(rows) > 1:
        odd = rows[len(rows) // 2 * 2 :]
        rows = [
            (layer.gru_cell(a[None], b[None]) + layer.gru_cell(b[None], a[None]))[0] / 2
            for a, b in zip(rows[::2], rows[1::2], strict=False)
        ] + odd
    return rows[0]


def test_a_learned_monoid_is_a_tree_over_each_set():
    from torch_geometric.nn.aggr import LCMAggregation

    from microtome.nn.lcm_aggregator import LearnedMonoid

    torch.manual_seed(0)
    layer = LearnedMonoid(3, 4).double()
    torch.nn.init.normal_(layer.empty)
    sizes = torch.tensor([5, 1, 0, 8, 3, 6])
    index = torch.arange(6).repeat_interleave(sizes)
    x = torch.randn(int(sizes.sum()), 3, dtype=torch.double)
    out = layer(x, index, dim_size=6)
    for i, rows in enumerate(x.split(sizes.tolist())):
        expected = _tree(layer, list(layer.lin(rows).relu())) if len(rows) else layer.empty
        assert torch.allclose(out[i], expected)
    plain = LCMAggregation(3, 4).double()
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if k != "empty"})
    equal = torch.arange(3).repeat_interleave(6)
    assert torch.allclose(layer(x[:18], equal), plain(x[:18], equal))
    # Beside a larger set the plain one reads zeros: this is what is mended.
    assert not torch.allclose(plain(x, index, dim_size=6)[4], plain(x[14:17], index[14:17] * 0)[0])
    assert torch.allclose(out[4], layer(x[14:17], index[14:17] * 0)[0])
    assert layer(x[:0], index[:0], dim_size=2).shape == (2, 4)
    with pytest.raises(UsageError, match="MT455"):
        LearnedMonoid(3, 4, project=False)


def test_laws_are_zero_where_they_hold():
    from microtome.nn.lcm_aggregator import LearnedMonoid

    class Sum(LearnedMonoid):
        def combine(self, a, b):
            return a + b

    class Power(LearnedMonoid):
        def combine(self, a, b):
            return 2 * a + b

    torch.manual_seed(0)
    x = torch.randn(200, 3, dtype=torch.double)
    assert max(float(v) for v in Sum(3, 3).laws(x)) < 1e-12
    commutativity, associativity = Power(3, 3).laws(x)
    # 2a + b against 2b + a is a - b: twice the variance; 4a + 2b + c against 2a + 2b + c is 2a: four mean squares.
    assert abs(float(commutativity) - 2) < 0.3
    assert (
        abs(float(associativity) - 4 * float(x.square().sum(1).mean() / x.var(0, unbiased=False).sum()))
        < 1e-9
    )
    learned = LearnedMonoid(3, 3).double().laws(x)
    assert float(learned.commutativity.detach()) < 1e-25 and float(learned.associativity.detach()) > 1e-4
    assert float(LearnedMonoid(3, 3, symmetric=False).double().laws(x).commutativity.detach()) > 1e-4


def test_a_convolution_aggregates_by_a_learned_monoid():
    from torch_geometric.nn import SAGEConv
    from torch_geometric.utils import sort_edge_index

    from microtome.data.graph_generators import stochastic_blocks
    from microtome.nn.lcm_aggregator import LearnedMonoid

    graph = stochastic_blocks(20, 2, degree=3, features=3, seed=1)
    edges = sort_edge_index(graph.edge_index, sort_by_row=False)
    torch.manual_seed(0)
    conv = SAGEConv(3, 5, aggr=LearnedMonoid(3, 3))
    out = conv(graph.x, edges)
    layer = conv.aggr_module
    for v in range(20):
        rows = graph.x[edges[0][edges[1] == v]]
        read = _tree(layer, list(layer.lin(rows).relu())) if len(rows) else layer.empty
        assert torch.allclose(out[v], conv.lin_l(read) + conv.lin_r(graph.x[v]), atol=1e-5)
    out.sum().backward()
    assert float(layer.gru_cell.weight_hh.grad.abs().sum()) > 0


@pytest.mark.parametrize("ordered", [False, True])
def test_the_recurrent_control_reads_each_set_and_no_padding(ordered):
    from microtome.studies.graphs._sets import WIDTH, Recurrent, answers

    torch.manual_seed(0)
    layer = Recurrent(WIDTH, ordered=ordered)
    sizes = [3, 1, 0, 6]
    index = torch.arange(4).repeat_interleave(torch.tensor(sizes))
    x = torch.randn(10, WIDTH)
    out = layer(x, index, dim_size=4)
    for i, rows in enumerate(x.split(sizes)):
        rows = rows[rows[:, 0].argsort()] if ordered else rows
        expected = layer.gru(rows[None])[1][0, 0] if len(rows) else torch.zeros(WIDTH)
        assert torch.allclose(out[i], expected, atol=1e-6)
    given = answers(torch.tensor([0.5, -1.0, 2.0, -0.25, -3.0]))
    assert torch.allclose(given, torch.tensor([-1.75 / 16, 2.0, -1.0, -0.25, -1.0]))


def test_the_hard_pairs_are_what_they_are_called():
    from microtome.studies.graphs import _regular_pairs as pairs_of

    rook, shrikhande = (networkx.from_numpy_array(_dense(g).numpy()) for g in pairs_of.rook_and_shrikhande())
    assert not networkx.is_isomorphic(rook, shrikhande)
    for g in (rook, shrikhande):
        assert set(dict(g.degree).values()) == {6}
        shared = {(g.has_edge(a, b), len(set(g[a]) & set(g[b]))) for a, b in itertools.combinations(g, 2)}
        assert shared == {(True, 2), (False, 2)}
    assert len(pairs_of.atlas_pairs(7)) == 26
    copy = pairs_of.relabelled(pairs_of.rook_and_shrikhande()[0], 3)
    assert networkx.is_isomorphic(networkx.from_numpy_array(_dense(copy).numpy()), rook)
    labels = [
        (int(g.y), any(networkx.triangles(networkx.from_numpy_array(_dense(g).numpy())).values()))
        for g in pairs_of.triangles_or_not(6, 1)
    ]
    assert sorted(labels) == [(0, False)] * 3 + [(1, True)] * 3
