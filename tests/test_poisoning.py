"""Attacks on a graph's edges against dense derivatives, brute force and their own budgets."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from microtome.data.graph_generators import stochastic_blocks
from microtome.errors import UsageError

pytest.importorskip("torch_geometric")

from microtome.graphs import poisoning as p
from microtome.graphs.resistance import undirected


def _graph(nodes=40, seed=0, **more):
    return stochastic_blocks(nodes, 3, degree=5, features=6, shares=(0.3, 0.2), seed=seed, **more)


def _dense(edge_index, nodes):
    a = torch.zeros(nodes, nodes, dtype=torch.float64)
    a[edge_index[0], edge_index[1]] = 1
    return a


def _loss(a, x, y, mask, aimed, penalty):
    """The attacker's loss with the surrogate fitted on a dense adjacency."""
    loops = a + torch.eye(len(a), dtype=a.dtype)
    scale = loops.sum(1).rsqrt()
    step = scale[:, None] * loops * scale
    f = step @ step @ x
    gram = f[mask].T @ f[mask]
    ridge = penalty * gram.diagonal().mean().detach() * torch.eye(len(gram), dtype=a.dtype)
    w = torch.linalg.inv(gram + ridge) @ f[mask].T @ y[mask]
    z = f[~mask] @ w
    margins = [(z[i].clone().index_fill(0, c, -9e9).max() - z[i, c]) for i, c in enumerate(aimed[~mask])]
    return torch.stack(margins).tanh().mean()


def test_the_derivative_of_every_edge_is_that_of_dense_autograd_through_training():
    graph = _graph()
    n, mask = 40, graph.train_mask
    one_hot = F.one_hot(graph.y, 3).double()
    attack = p.GradientFlips(penalty=0.01)
    x = graph.x.double()
    aimed = attack.aims(graph, graph.x, one_hot.float())
    a = _dense(graph.edge_index, n).requires_grad_()
    (g,) = torch.autograd.grad(_loss(a, x, one_hot, mask, aimed, 0.01), a)
    step, degree = p.propagation(graph.edge_index, n)
    found = attack.derivative(step @ (step @ graph.x), graph, one_hot.float(), aimed, torch.zeros(0))
    q, s, r = p.edge_gradient(step, degree, graph.x, found)
    off = ~torch.eye(n, dtype=torch.bool)
    ours = q @ s.T + r[:, None] + r
    assert torch.allclose(ours[off].double(), (g + g.T)[off], atol=2e-4 * float(g.abs().max()) * 10)


def test_a_round_takes_the_flips_of_largest_first_order_gain():
    graph = _graph(seed=3)
    n, one_hot = 40, F.one_hot(graph.y, 3)
    attack = p.GradientFlips(share=0.08, rounds=1, per_node=40, penalty=0.01)
    taken = attack.flips(graph)
    scaled = graph.x / graph.x.norm(dim=1).mean()
    aimed = attack.aims(graph, scaled, one_hot.float())
    a = _dense(graph.edge_index, n).requires_grad_()
    loss = _loss(a, scaled.double(), one_hot.double(), graph.train_mask, aimed, 0.01)
    (g,) = torch.autograd.grad(loss, a)
    gain = (g + g.T) * (1 - 2 * a.detach())
    low = a.detach().sum(1) < 2
    gain[(low[:, None] | low) & (a > 0)] = -torch.inf
    u, v = torch.triu_indices(n, n, 1)
    best = gain[u, v].argsort(descending=True)[: attack.count(graph)]
    assert {(int(u[i]), int(v[i])) for i in best} == {tuple(e) for e in taken.T.tolist()}


def test_more_rounds_hurt_the_surrogate_more_than_random_edges_do():
    graph = _graph(120, seed=1)
    one_hot = F.one_hot(graph.y, 3).double()
    attack = p.GradientFlips(share=0.2)
    aimed = attack.aims(graph, graph.x, one_hot.float())

    def loss(g):
        dense = _dense(g.edge_index, 120)
        return float(_loss(dense, g.x.double(), one_hot, g.train_mask, aimed, 1e-3))

    worst, random = loss(attack(graph)), loss(p.InsertBetweenClasses(share=0.2)(graph))
    assert loss(graph) < random < worst


@pytest.mark.parametrize(
    "attack",
    [p.InsertBetweenClasses(share=0.2), p.DICE(share=0.2), p.GradientFlips(share=0.2, rounds=4)],
    ids=lambda a: type(a).__name__,
)
def test_an_attack_keeps_its_budget_its_marks_and_the_given_graph(attack):
    graph = _graph(90, seed=2)
    before = graph.edge_index.clone()
    poisoned = attack(graph)
    assert torch.equal(graph.edge_index, before)
    old = {tuple(e) for e in undirected(before, 90).T.tolist()}
    pairs, marks = p.injected(poisoned)
    new = {tuple(e) for e in pairs.T.tolist()}
    assert len(old ^ new) == attack.count(graph) == round(0.2 * len(old))
    assert {tuple(e) for e in pairs[:, marks].T.tolist()} == new - old
    assert torch.equal(attack(graph).edge_index, poisoned.edge_index)
    assert poisoned.is_undirected()


def test_classes_guide_random_attacks():
    graph = _graph(90, seed=4)
    y = graph.y
    u, v = p.InsertBetweenClasses(share=0.3).flips(graph)
    assert (y[u] != y[v]).all()
    old = {tuple(e) for e in undirected(graph.edge_index, 90).T.tolist()}
    flips = p.DICE(share=0.3).flips(graph).T.tolist()
    for i, (a, b) in enumerate(flips):
        assert ((a, b) in old) == bool(i % 2) == (y[a] == y[b])


def test_an_adaptive_attacker_keeps_below_the_suspicion():
    graph = _graph(90, seed=5)

    def distance(data, pairs):
        return (data.x[pairs[0]] - data.x[pairs[1]]).norm(dim=1)

    flips = p.GradientFlips(share=0.2, delete=False, breadth=60, suspicion=distance, tolerated=2.5).flips(
        graph
    )
    assert flips.shape[1] == p.GradientFlips(share=0.2).count(graph)
    assert float(distance(graph, flips).max()) <= 2.5
    assert float(distance(graph, p.GradientFlips(share=0.2, delete=False).flips(graph)).max()) > 2.5


def test_a_flip_done_twice_is_undone():
    graph = _graph(seed=6)
    attack = p.DICE(share=0.3)
    flips = attack.flips(graph)
    back = p.flipped(p.flipped(graph, flips), flips)
    assert torch.equal(undirected(back.edge_index, 40), undirected(graph.edge_index, 40))


def test_targeted_insertions_turn_more_targets_than_as_many_random_edges():
    graph = _graph(150, seed=7)
    targets = (~graph.train_mask).nonzero()[:15, 0]
    flips = p.TargetedInsertions(share=1.0, targets=targets, per_target=4).flips(graph)
    assert flips.shape[1] == 60
    one_hot = F.one_hot(graph.y, 3).float()
    step, _ = p.propagation(graph.edge_index, 150)
    f = step @ (step @ graph.x)
    w = p.ridge(f[graph.train_mask], one_hot[graph.train_mask], 1e-3)

    def right(g):
        step, _ = p.propagation(g.edge_index, 150)
        return int(((step @ (step @ graph.x) @ w).argmax(1) == graph.y)[targets].sum())

    everyone = torch.arange(150)
    others = everyone[~torch.isin(everyone, targets)]
    draw = torch.randint(len(others), (60,), generator=torch.Generator().manual_seed(0))
    random = torch.stack([targets.repeat_interleave(4), others[draw]])
    pairs = torch.stack([random.amin(0), random.amax(0)]).unique(dim=1)
    assert right(p.flipped(graph, flips)) < right(p.flipped(graph, pairs))


def test_the_reduction_keeps_the_leading_directions():
    x = torch.randn(80, 5) @ torch.randn(5, 200)
    found = p.reduced(x, 10)
    assert torch.allclose(found @ found.T, x @ x.T, atol=1e-2)


@pytest.mark.parametrize("attack", [p.InsertBetweenClasses, p.DICE, p.GradientFlips, p.TargetedInsertions])
def test_no_budget_changes_nothing(attack):
    graph = _graph(60, seed=8)
    same = attack(share=0.0)(graph)
    assert torch.equal(undirected(same.edge_index, 60), undirected(graph.edge_index, 60))


def test_one_round_leaves_every_node_an_edge():
    draw = torch.Generator().manual_seed(0)
    graph = _graph(60, seed=8)
    pairs = undirected(graph.edge_index, 60)
    degree = torch.bincount(graph.edge_index[0], minlength=60)
    gain, all_gone = torch.rand(pairs.shape[1], generator=draw), torch.ones(pairs.shape[1], dtype=torch.bool)
    taken = p._spread(pairs, gain, 99, all_gone, degree - 1)
    assert (gain[taken].diff() <= 0).all()
    left = torch.bincount(p.flipped(graph, pairs[:, taken]).edge_index[0], minlength=60)
    assert int(left[degree > 0].min()) == 1
    few = p._spread(pairs, gain, 2, ~all_gone, degree - 1)
    assert int(torch.bincount(pairs[:, few].flatten()).max()) == 2
    assert int(gain.argmax()) == int(few[0])


def test_bad_budgets_and_graphs_are_refused():
    graph = _graph()
    with pytest.raises(UsageError, match="MT472"):
        p.DICE(share=1.5)(graph)
    graph.edge_attr = torch.ones(graph.edge_index.shape[1], 1)
    with pytest.raises(UsageError, match="MT473"):
        p.DICE(share=0.1)(graph)
    bare = _graph()
    del bare.train_mask
    with pytest.raises(UsageError, match="train_mask"):
        p.GradientFlips()(bare)
