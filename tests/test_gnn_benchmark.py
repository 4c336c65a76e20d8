"""The comparison of graph networks: budgets, splits, encodings, and what is measured, against direct sums."""

from __future__ import annotations

import itertools

import pytest
import torch

from microtome.data.graph_generators import circular_skip_links
from microtome.errors import UsageError

pytest.importorskip("torch_geometric")


def _tiny(level="graph"):
    from microtome.data.block_tasks import cluster_graphs
    from microtome.learn.gnn_benchmark import split_task

    if level == "graph":
        return split_task("csl", "graph", circular_skip_links(5, seed=1), seed=0)
    return split_task(
        "cluster", "node", cluster_graphs(10, blocks=3, sizes=(5, 8), inside=0.9, between=0.1, seed=0), seed=0
    )


def test_the_width_is_the_largest_the_budget_allows():
    from microtome.learn.gnn_benchmark import parameters, width_for
    from microtome.nn.benchmark_networks import NETWORKS, build_network

    graphs = circular_skip_links(1)
    for level, (name, step) in itertools.product(("graph", "node"), NETWORKS.items()):

        def build(width, name=name, level=level):
            return build_network(name, 1, 10, graphs, width, depth=3, level=level)

        width = width_for(build, 9000, step=step)
        assert width % step == 0
        assert parameters(build(width)) <= 9000 < parameters(build(width + step))
    with pytest.raises(UsageError, match="MT451 even at width 1"):
        width_for(lambda w: torch.nn.Linear(100, w), 50)


@pytest.mark.parametrize("level", ["graph", "node"])
def test_every_network_answers_whatever_the_order_of_nodes(level):
    from torch_geometric.data import Batch

    from microtome.nn.benchmark_networks import NETWORKS, build_network

    task = _tiny(level)
    batch = Batch.from_data_list(list(task.train)[:4])
    batch.x = torch.randn(batch.num_nodes, 3, generator=torch.Generator().manual_seed(0))
    order = torch.cat(
        [
            torch.randperm(int(n)) + int(s)
            for n, s in zip(torch.bincount(batch.batch), batch.ptr[:-1], strict=True)
        ]
    )
    moved = torch.empty_like(batch.x)
    moved[order] = batch.x
    for name in NETWORKS:
        torch.manual_seed(0)
        model = build_network(name, 3, 5, task.train, 8, depth=2, level=level).eval()
        with torch.no_grad():
            out = model(batch.x, batch.edge_index, batch.batch)
            again = model(moved, order[batch.edge_index], batch.batch)
        assert out.shape == (4 if level == "graph" else batch.num_nodes, 5)
        assert torch.allclose(out, again if level == "graph" else again[order], atol=1e-5), name


def test_edges_are_read_from_both_ends_and_scored_by_f1():
    from sklearn.metrics import f1_score
    from torch_geometric.data import Batch

    from microtome.data.travelling_salesman import tour_graphs
    from microtome.learn.gnn_benchmark import compare, f1, score, split_task
    from microtome.nn.benchmark_networks import NETWORKS, build_network

    task = split_task("TSP", "edge", tour_graphs(10, cities=7, neighbours=4), seed=0)
    batch = Batch.from_data_list(list(task.test))
    for name in NETWORKS:
        if name == "PathNN":
            with pytest.raises(UsageError, match="MT451 PathNN"):
                build_network(name, 2, 2, task.train, 8, depth=2, level="edge")
            continue
        torch.manual_seed(0)
        model = build_network(name, 2, 2, task.train, 8, depth=2, level="edge").eval()
        with torch.no_grad():
            out = model(batch.x, batch.edge_index, batch.batch)
        assert out.shape == (batch.num_edges, 2)
        assert score(model, batch, task) == pytest.approx(f1_score(batch.y, out.argmax(1)))
    assert f1(torch.zeros(3), torch.zeros(3)) == 0.0
    (result,) = compare(task, ["MLP"], budget=500, seeds=[0], epochs=2)
    assert 0 <= result.test <= 1 and result.parameters <= 500


def test_a_split_keeps_the_shares_of_each_class_and_loses_no_graph():
    task = _tiny()
    assert (len(task.train), len(task.validation), len(task.test), task.classes) == (30, 10, 10, 10)
    for part, each in ((task.train, 3), (task.validation, 1), (task.test, 1)):
        assert torch.bincount(torch.cat([g.y for g in part])).tolist() == [each] * 10
    kept = {id(g) for part in (task.train, task.validation, task.test) for g in part}
    assert len(kept) == 50


def test_encodings_are_eigenvectors_whose_signs_are_drawn():
    from torch_geometric.data import Batch

    from microtome.learn.gnn_benchmark import features

    task = _tiny().encoded(3)
    graph = task.train[0]
    dense = torch.zeros(41, 41)
    dense[graph.edge_index[0], graph.edge_index[1]] = 0.25  # 4-regular: D^-1/2 A D^-1/2
    for column in graph.pe.T:
        value = column @ dense @ column / (column @ column)
        assert torch.allclose(dense @ column, value * column, atol=1e-4)
    batch = Batch.from_data_list(list(task.train)[:6])
    plain = features(batch)
    assert torch.equal(plain[:, :1], batch.x) and torch.equal(plain[:, 1:], batch.pe)
    drawn = features(batch, torch.Generator().manual_seed(1))[:, 1:]
    ratio = torch.stack(
        [
            (drawn * batch.pe)[batch.batch == i].sum(0) / batch.pe[batch.batch == i].square().sum(0)
            for i in range(6)
        ]
    )
    assert torch.allclose(ratio.abs(), torch.ones(6, 3), atol=1e-5) and 4 < int((ratio < 0).sum()) < 14


def test_the_signs_of_encodings_are_of_their_seed_alone():
    task = _tiny()
    one = [g.pe for g in task.encoded(3, seed=1).train]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again = [g.pe for g in task.encoded(3, seed=1).train]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    other = [g.pe for g in task.encoded(3, seed=2).train]
    assert any(not torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_rankings_are_compared_pair_by_pair():
    from scipy.stats import kendalltau

    from microtome.learn.gnn_benchmark import Result, kendall, rank_stability

    rng = torch.Generator().manual_seed(0)
    for _ in range(5):
        a, b = torch.randint(0, 5, (2, 8), generator=rng).double().tolist()
        assert abs(kendall(a, b) - kendalltau(a, b).statistic) < 1e-12
    assert kendall([1, 1, 1], [1, 2, 3]) == 0

    def result(name, seed, test):
        return Result(name, "t", seed, 1, 1, test, test, 0.0)

    table = [[0.1, 0.2, 0.3], [0.1, 0.3, 0.2], [0.3, 0.2, 0.1]]
    given = [result(n, s, v) for s, row in enumerate(table) for n, v in zip("abc", row, strict=True)]
    assert abs(rank_stability(given) - (1 / 3 - 1 - 1 / 3) / 3) < 1e-12
    with pytest.raises(UsageError, match="MT451"):
        rank_stability(given[:3])


def test_a_comparison_trains_each_network_from_each_seed():
    from microtome.learn.gnn_benchmark import compare

    found = compare(
        _tiny("node"), ["MLP", "GCN"], budget=3000, seeds=(0, 1), epochs=40, rate=0.01, batch_size=2, depth=2
    )
    assert [(r.network, r.seed) for r in found] == [("MLP", 0), ("MLP", 1), ("GCN", 0), ("GCN", 1)]
    assert all(r.parameters <= 3000 and r.seconds > 0 and r.task == "cluster" for r in found)
    assert len({r.test for r in found[2:]}) == 2 or len({r.validation for r in found[2:]}) == 2
    same = compare(
        _tiny("node"), ["GCN"], budget=3000, seeds=(1,), epochs=40, rate=0.01, batch_size=2, depth=2
    )
    assert (same[0].test, same[0].validation) == (found[3].test, found[3].validation)
    # One node of a block is told: without edges nothing else can be known.
    assert max(r.test for r in found[:2]) < 0.6 < min(r.test for r in found[2:])
    with pytest.raises(UsageError, match=r"MT451 no network is called 'GNC'; did you mean .*'GCN'"):
        compare(_tiny(), ["GNC"])


def test_nodes_are_scored_by_class():
    from torch_geometric.data import Batch

    from microtome.learn.gnn_benchmark import score

    task = _tiny("node")
    batch = Batch.from_data_list(list(task.test))
    model = lambda x, edge_index, batch: torch.eye(3)[torch.zeros(len(x), dtype=torch.long)]  # noqa: E731

    class Always(torch.nn.Module):
        forward = staticmethod(model)

    assert abs(score(Always(), batch, task) - 1 / 3) < 1e-12


def test_blocks_are_as_they_are_declared():
    from microtome.data.block_tasks import cluster_graphs, pattern_graphs

    graphs = cluster_graphs(30, seed=2)
    hits = {True: [0, 0], False: [0, 0]}
    for g in graphs:
        assert g.x[:, 1:].sum(0).tolist() == [1] * 6 and torch.equal(g.x.sum(1), torch.ones(g.num_nodes))
        told = g.x[:, 1:].argmax(1)[g.x[:, 0] == 0]
        assert torch.equal(told, g.y[g.x[:, 0] == 0])
        dense = torch.zeros(g.num_nodes, g.num_nodes, dtype=torch.bool)
        dense[g.edge_index[0], g.edge_index[1]] = True
        assert torch.equal(dense, dense.T) and not bool(dense.diagonal().any())
        upper = torch.ones_like(dense).triu(1)
        for same in (True, False):
            chosen = upper & ((g.y[:, None] == g.y) == same)
            hits[same][0] += int(dense[chosen].sum())
            hits[same][1] += int(chosen.sum())
    assert abs(hits[True][0] / hits[True][1] - 0.55) < 0.01
    assert abs(hits[False][0] / hits[False][1] - 0.25) < 0.01
    planted = pattern_graphs(20, patterns=1, seed=1)
    assert all(int(g.y.sum()) == 20 for g in planted)
    # One pattern alone: the same graph on 20 nodes, with the same letters, lies in all.
    kinds = set()
    for g in planted:
        inside = g.y == 1
        edges = inside[g.edge_index[0]] & inside[g.edge_index[1]]
        degrees = torch.bincount(g.edge_index[1, edges], minlength=g.num_nodes)[inside]
        letters = g.x[inside].argmax(1)
        kinds.add(tuple(sorted(zip(degrees.tolist(), letters.tolist(), strict=True))))
    assert len(kinds) == 1
    with pytest.raises(UsageError, match="MT452"):
        pattern_graphs(1, sizes=(5, 2))


def test_published_sets_are_split_by_class():
    from microtome.data.graphs import available
    from microtome.learn.gnn_benchmark import compare, published_task

    if not available("mutag") or not available("cora"):
        pytest.skip("the published sets are not at hand")
    task = published_task("mutag")
    parts = [
        torch.bincount(torch.cat([g.y for g in part])) for part in (task.train, task.validation, task.test)
    ]
    assert sum(parts).tolist() == [63, 125] and parts[0].tolist() == [38, 75]
    (found,) = compare(task.encoded(4), ["GIN"], budget=4000, seeds=(0,), epochs=2, depth=2)
    assert 0 <= found.test <= 1
    with pytest.raises(UsageError, match="MT451 'cora' is one graph"):
        published_task("cora")


def test_training_takes_a_loss_and_keeps_the_best_epoch():
    from microtome.data.graph_generators import small_graphs
    from microtome.learn.graph_training import KeepBest, fit_graphs

    graphs = small_graphs(4)[4:]

    class Shift(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.at = torch.nn.Parameter(torch.zeros(1))

    model, seen, scores = Shift(), [], iter([3.0, 1.0, 2.0, 1.0])
    best = KeepBest(model, lambda: next(scores))

    def after(epoch):
        seen.append(float(model.at.detach()))
        best(epoch)

    fit_graphs(
        model,
        graphs,
        epochs=4,
        rate=0.1,
        batch_size=100,
        loss=lambda net, batch: -net.at.sum(),
        after_epoch=after,
    )
    assert seen == sorted(seen) and abs(seen[0] - 0.1) < 1e-6 and len(seen) == 4
    assert (best.best, best.epoch) == (1.0, 2) and float(model.at.detach()) == seen[3]
    assert float(best.restore().at.detach()) == seen[1] and not model.training
    skipping = KeepBest(model, lambda: 0.0, every=3)
    for epoch in (1, 2):
        skipping(epoch)
    assert skipping.kept == {} and skipping.restore() is model
