"""Energies of hypergraphs against sums over pairs, their descent against a solve, and the graphs they reduce to."""

from __future__ import annotations

import itertools

import pytest
import torch

from microtome.data.hypergraphs import clique_graph, planted_hypergraph
from microtome.errors import UsageError

pytest.importorskip("torch_geometric")

INDEX = torch.tensor([[0, 1, 2, 1, 2, 3, 4, 5, 0], [0, 0, 0, 1, 1, 2, 2, 2, 2]])  # node 6 is in none


def _inputs(channels=3, nodes=7):
    return torch.randn(2, nodes, channels, generator=torch.Generator().manual_seed(0)).double()


def _members():
    return [INDEX[0, INDEX[1] == e].tolist() for e in range(3)]


def _descent(**options):
    from microtome.nn.phenomnn import HypergraphDescent

    made = HypergraphDescent(3, **options).double()
    torch.manual_seed(1)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return made


@pytest.mark.parametrize("compatible", [False, True])
@pytest.mark.parametrize("normalise", [False, True])
def test_energies_are_sums_over_pairs_and_means(normalise, compatible):
    clique, star = 0.7, 1.3
    made = _descent(clique=clique, star=star, compatible=compatible, normalise=normalise)
    y, f = _inputs()
    unit = torch.eye(3).double()
    c, s = (made.of_clique, made.of_star) if compatible else (unit, unit)
    pairs = [(i, j) for m in _members() for i, j in itertools.permutations(m, 2)]
    degree = [float(sum(i == v for i, _ in pairs)) for v in range(7)]
    held = [float(sum(v in m for m in _members())) for v in range(7)]
    rows = y / torch.tensor([d + 1 for d in degree]).double().sqrt()[:, None] if normalise else y
    total = (y - f).square().sum()
    for i, j in pairs:
        total = total + clique * (rows[i] @ c - rows[j]).square().sum() / 2
    if normalise:  # each node's loop
        total = total + clique * sum((rows[i] @ c - rows[i]).square().sum() / 2 for i in range(7))
    rows = y / torch.tensor([max(h, 1) for h in held]).double().sqrt()[:, None] if normalise else y
    for m in _members():
        mean = rows[m].mean(0)
        total = total + star * sum((rows[i] @ s - mean).square().sum() for i in m)
    assert float((made.energy(y, f, INDEX) - total).abs().detach()) < 1e-10


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("compatible", [False, True])
def test_a_step_goes_down_the_slope_that_automatic_differentiation_finds(normalise, compatible):
    made = _descent(
        clique=0.7, star=1.3, compatible=compatible, normalise=normalise, positive=False, steps=1, step=0.5
    )
    f = _inputs()[0]
    y = f.clone().requires_grad_()
    slope = torch.autograd.grad(made.energy(y, f, INDEX), y)[0]
    scale = (f - made(f, INDEX)) / (slope / 2)
    expected = torch.full((7,), 0.5 / 3).double()
    if not normalise:
        degree = torch.tensor([5.0, 3, 3, 3, 3, 3, 0])  # of the clique graph with multiplicity
        held = torch.tensor([2.0, 2, 2, 1, 1, 1, 0])
        expected = 0.5 / (1 + 0.7 * degree + 1.3 * held).double()
    seen = torch.isfinite(scale) & (slope.abs() > 1e-9)
    assert torch.allclose(scale[seen], expected[:, None].expand(-1, 3)[seen], rtol=1e-8)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("normalise", [False, True])
def test_no_step_goes_up_and_the_limit_is_the_solution(normalise, positive):
    made = _descent(clique=2.0, star=3.0, normalise=normalise, positive=positive, steps=400)
    f = _inputs()[0]
    trace = made.trace(f, INDEX)
    assert bool((trace.diff() <= 1e-12).all())
    y = made(f, INDEX)
    if not positive:
        assert torch.allclose(y, made.minimiser(f, INDEX), atol=1e-9)
        return
    # The conditions of Karush, Kuhn and Tucker: no slope where Y > 0, none downwards where Y = 0.
    z = y.clone().requires_grad_()
    slope = torch.autograd.grad(made.energy(z, f, INDEX), z)[0]
    assert float(slope[y > 0].abs().max()) < 1e-8 and float(slope[y == 0].min()) > -1e-8
    with pytest.raises(UsageError, match="MT505"):
        made.minimiser(f, INDEX)


@pytest.mark.parametrize("steps", [1, 5])
def test_the_clique_term_alone_is_personalised_page_rank_of_the_clique_graph(steps):
    from torch_geometric.nn import APPNP

    made = _descent(clique=4.0, star=0.0, positive=False, steps=steps)
    f = _inputs()[0]
    edges, weights = clique_graph(INDEX, 7)
    other = APPNP(steps, 1 / 5.0)
    assert torch.allclose(made(f, INDEX), other(f, edges, weights.double()), atol=1e-12)


def test_without_compatibility_the_star_term_is_a_weighted_clique_graph():
    y, f = _inputs()
    made = _descent(clique=0.0, star=1.5, normalise=False)
    total = (y - f).square().sum()
    for m in _members():
        for i, j in itertools.combinations(m, 2):
            total = total + 1.5 / len(m) * (y[i] - y[j]).square().sum()
    assert float((made.energy(y, f, INDEX) - total).abs()) < 1e-10


def test_clique_graphs_count_common_hyperedges():
    edges, weights = clique_graph(INDEX, 7)
    told = {(i, j): w for (i, j), w in zip(edges.T.tolist(), weights.tolist(), strict=True)}
    counted = {}
    for m in _members():
        for pair in itertools.permutations(m, 2):
            counted[pair] = counted.get(pair, 0) + 1
    assert told == counted


def test_planted_hypergraphs_hold_what_was_asked_for():
    graph = planted_hypergraph(400, 4, hyperedges=500, size=10, purity=0.7, seed=3)
    members = graph.edge_index[0].reshape(500, 10)
    assert all(len(set(m)) == 10 for m in members.tolist())
    largest = torch.nn.functional.one_hot(graph.y[members], 4).sum(1).amax(1).double().mean()
    assert abs(float(largest) / 10 - (0.7 + 0.3 / 4)) < 0.03  # of its class, and by chance
    assert int(graph.train_mask.sum()) == 40 and not bool((graph.train_mask & graph.test_mask).any())
    with pytest.raises(UsageError, match="MT505"):
        planted_hypergraph(20, 4, size=8)


def test_the_network_learns_what_its_hyperedges_say():
    from microtome.learn.graph_training import fit_nodes
    from microtome.nn.phenomnn import PhenomNN

    graph = planted_hypergraph(200, 2, hyperedges=120, size=6, purity=0.95, signal=0.5, features=4, seed=1)
    found = {}
    for star, clique in ((4.0, 0.5), (0.0, 0.0)):  # without either it is a perceptron
        torch.manual_seed(0)
        model = PhenomNN(4, 8, 2, steps=6, star=star, clique=clique, compatible=True)
        found[star], _ = fit_nodes(model, graph, epochs=60)
    assert found[4.0] > found[0.0] + 0.1


def test_the_network_descends_from_rectified_features():
    from microtome.nn.phenomnn import PhenomNN

    graph = planted_hypergraph(200, 4, hyperedges=60, size=10, seed=0)
    torch.manual_seed(0)
    model = PhenomNN(16, 64, 4, steps=8, clique=1.0, star=20.0).eval()
    y = model.descent(torch.relu(model.first(graph.x)), graph.edge_index)
    assert torch.equal(model(graph.x, graph.edge_index), model.last(y))


def test_senseless_options_are_refused():
    with pytest.raises(UsageError, match="MT505"):
        _descent(step=1.5)
