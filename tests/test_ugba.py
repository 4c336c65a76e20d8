"""The graph backdoor: its edges by hand, its choice of nodes by brute force, its success on planted blocks."""

from __future__ import annotations

import pytest
import torch

from microtome.data.graph_generators import stochastic_blocks
from microtome.errors import UsageError

pytest.importorskip("torch_geometric")

from microtome.graphs import ugba
from microtome.graphs.poisoning import injected
from microtome.graphs.purification import similarity


def _graph(nodes=120, seed=0):
    return stochastic_blocks(nodes, 3, degree=5, features=8, signal=1.5, shares=(0.2, 0.4), seed=seed)


def test_a_trigger_hangs_on_its_host_by_one_edge():
    graph = _graph(30)
    nodes, features = torch.tensor([4, 9]), torch.randn(2, 3, 8)
    edges = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    grown = ugba.attached(graph, nodes, features, edges)
    pairs, marks = injected(grown)
    added = {tuple(e) for e in pairs[:, marks].T.tolist()}
    assert added == {(4, 30), (30, 31), (31, 32), (9, 33)}
    old, _ = injected(graph)
    assert torch.equal(pairs[:, ~marks], old)
    assert torch.equal(grown.x[30:], features.reshape(6, 8))
    assert grown.num_nodes == len(grown.y) == 36
    assert not (grown.train_mask[30:] | grown.val_mask[30:] | grown.test_mask[30:]).any()
    assert graph.num_nodes == 30


def test_generated_pairs_are_zeros_and_ones_that_let_the_gradient_through():
    torch.manual_seed(0)
    generator = ugba.TriggerGenerator(8, 16, 4, bounded=True)
    x = torch.randn(10, 8)
    features, edges = generator(x)
    assert features.shape == (10, 4, 8)
    assert torch.allclose(features.norm(dim=2), x.norm(dim=1)[:, None].expand(-1, 4), atol=1e-5)
    assert {round(v, 4) for v in edges.detach().flatten().tolist()} <= {0.0, 1.0}
    edges.sum().backward()
    assert float(generator.edges.weight.grad.abs().sum()) > 0


def test_representatives_are_the_best_of_every_cluster():
    centres = torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0], [20.0, 20.0]])
    draw = torch.Generator().manual_seed(0)
    rows = centres.repeat_interleave(15, 0) + torch.randn(60, 2, generator=draw)
    group = torch.arange(60) // 30
    degree = torch.randint(1, 9, (60,), generator=draw)
    allowed = torch.rand(60, generator=draw) < 0.7
    found = ugba.representatives(rows, group, degree, allowed, 4)
    expected = []
    for g in range(2):
        members = [i for i in range(60) if allowed[i] and group[i] == g]
        own = {i: i // 15 for i in members}
        middle = {c: rows[[i for i in members if own[i] == c]].mean(0) for c in set(own.values())}
        far = {i: float((rows[i] - middle[own[i]]).norm()) for i in members}
        deg = {i: float(degree[i]) for i in members}

        def unit(of, i):
            return (of[i] - min(of.values())) / (max(of.values()) - min(of.values()))

        for c in middle:
            best = min((i for i in members if own[i] == c), key=lambda i: unit(far, i) + unit(deg, i))
            expected.append(best)
    assert found.tolist() == sorted(expected)


def test_the_backdoor_keeps_its_budget_and_poisons_unlabelled_nodes_of_other_classes():
    graph = _graph()
    before = graph.clone()
    state = torch.get_rng_state()
    door = ugba.UGBA(target=1, budget=8, steps=5).fit(graph)
    assert torch.equal(state, torch.get_rng_state())
    assert 0 < len(door.nodes) <= 8
    assert (graph.y[door.nodes] != 1).all()
    assert not (graph.train_mask | graph.test_mask)[door.nodes].any()
    poisoned = door.poisoned(graph)
    assert (poisoned.y[door.nodes] == 1).all()
    assert int(poisoned.train_mask.sum()) == int(graph.train_mask.sum()) + len(door.nodes)
    assert not poisoned.val_mask[door.nodes].any()
    for name in ("x", "y", "train_mask", "edge_index"):
        assert torch.equal(graph[name], before[name])
    again = ugba.UGBA(target=1, budget=8, steps=5).fit(graph)
    assert torch.equal(again.nodes, door.nodes)
    assert torch.equal(again.poisoned(graph).x, poisoned.x)


def test_alike_triggers_survive_the_pruning_that_cuts_unlike_ones():
    graph = _graph(240, seed=1)
    victims = graph.test_mask.nonzero()[:30, 0]
    kept = {}
    for alike in (0.0, 20.0):
        shown = (
            ugba.UGBA(target=0, budget=12, steps=60, alike=alike, least=0.6)
            .fit(graph)
            .triggered(graph, victims)
        )
        pairs, marks = injected(shown)
        cut = ugba.pruned(shown, 0.4)
        kept[alike] = int(injected(cut)[1].sum()) / int(marks.sum())
        alive = similarity(shown.x, pairs) >= 0.4
        assert torch.equal(injected(cut)[0], pairs[:, alive])
    assert kept[20.0] > 0.8 > kept[0.0]


def test_pruning_forgets_the_labels_at_both_ends_of_what_it_cuts():
    graph = _graph()
    pairs, _ = injected(graph)
    gone = pairs[:, similarity(graph.x, pairs) < 0.1]
    left = ugba.pruned(graph, 0.1, labels=True).train_mask
    for node in range(120):
        assert bool(left[node]) == (bool(graph.train_mask[node]) and node not in gone.flatten().tolist())


def test_a_network_trained_on_the_poisoned_graph_follows_the_trigger():
    from torch_geometric.nn import GCN

    from microtome.learn.graph_training import fit_nodes

    graph = _graph(300, seed=2)
    victims = (graph.test_mask & (graph.y != 2)).nonzero()[:40, 0]
    door = ugba.UGBA(target=2, budget=15, steps=60).fit(graph)
    poisoned = door.poisoned(graph)
    torch.manual_seed(0)
    model = GCN(8, 16, 2, 3)
    fit_nodes(model, poisoned, epochs=60)
    with torch.no_grad():
        plain = model(poisoned.x, poisoned.edge_index)[victims].argmax(1)
        shown = door.triggered(poisoned, victims)
        turned = model(shown.x, shown.edge_index)[victims].argmax(1)
    assert float((turned == 2).float().mean()) > 0.8 > 0.3 > float((plain == 2).float().mean())


def test_budgets_and_classes_that_do_not_fit_are_refused():
    for bad in (ugba.UGBA(target=3), ugba.UGBA(budget=0), ugba.UGBA(budget=500)):
        with pytest.raises(UsageError, match="MT478"):
            bad.fit(_graph())
    bare = _graph()
    del bare.val_mask
    with pytest.raises(UsageError, match="val_mask"):
        ugba.UGBA().fit(bare)
