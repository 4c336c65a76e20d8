"""Graph kernels against counts one by one, and the protocol of folds against what it must not do."""

from __future__ import annotations

from collections import Counter

import networkx
import pytest
import torch

from microtome.data import graph_generators as make
from microtome.errors import UsageError

pytest.importorskip("torch_geometric")
pytest.importorskip("sklearn")


def _some_graphs(count=7, labels=3, seed=0):
    from torch_geometric.data import Data

    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        nodes = int(torch.randint(4, 9, (), generator=generator))
        pairs = torch.triu_indices(nodes, nodes, 1)
        pairs = pairs[:, torch.rand(pairs.shape[1], generator=generator) < 0.35]
        x = torch.nn.functional.one_hot(torch.randint(labels, (nodes,), generator=generator), labels).float()
        found.append(Data(x=x, edge_index=torch.cat([pairs, pairs.flip(0)], 1), num_nodes=nodes))
    return found


def _networkx(graph):
    made = networkx.Graph()
    made.add_nodes_from(range(graph.num_nodes))
    made.add_edges_from(graph.edge_index.T.tolist())
    return made


def _dots(counters):
    return torch.tensor([[float(sum(a[k] * b[k] for k in a)) for b in counters] for a in counters]).double()


def test_subtree_kernels_count_common_colours_as_strings_do():
    from torch_geometric.data import Batch

    from microtome.graphs.kernels import subtree_kernels

    graphs = _some_graphs()
    batch = Batch.from_data_list(graphs)
    found = subtree_kernels(batch.edge_index, batch.batch, len(graphs), x=batch.x, rounds=3)
    names = [[str(v) for v in g.x.argmax(1).tolist()] for g in graphs]
    total = torch.zeros(len(graphs), len(graphs)).double()
    for r in range(4):
        total = total + _dots([Counter(n) for n in names])
        assert torch.equal(found[r], total)
        names = [
            [f"({n[v]}:{','.join(sorted(n[u] for u in _networkx(g)[v]))})" for v in range(g.num_nodes)]
            for g, n in zip(graphs, names, strict=True)
        ]


def test_shortest_path_kernel_counts_pairs_by_ends_and_distance():
    from torch_geometric.data import Batch

    from microtome.graphs.kernels import shortest_path_kernel

    graphs = _some_graphs(seed=1)
    batch = Batch.from_data_list(graphs)
    for longest in (None, 2):
        found = shortest_path_kernel(batch.edge_index, batch.batch, len(graphs), x=batch.x, longest=longest)
        counters = []
        for g in graphs:
            label = g.x.argmax(1).tolist()
            lengths = dict(networkx.all_pairs_shortest_path_length(_networkx(g)))
            counters.append(Counter(
                (label[a], label[b], d) for a, row in lengths.items() for b, d in row.items()
                if 0 < d <= (longest or 99)
            ))  # fmt: skip
        assert torch.equal(found, _dots(counters))


def test_normalised_kernels_have_ones_on_the_diagonal_and_forgive_emptiness():
    from microtome.graphs.kernels import cosine

    found = cosine(torch.tensor([[4.0, 2.0, 0.0], [2.0, 9.0, 0.0], [0.0, 0.0, 0.0]]).double())
    expected = torch.tensor([[1.0, 1 / 3, 0.0], [1 / 3, 1.0, 0.0], [0.0, 0.0, 0.0]]).double()
    assert torch.allclose(found, expected, atol=1e-15)


def test_kernels_refuse_a_wrong_number_of_graphs():
    from microtome.graphs.kernels import subtree_kernels

    with pytest.raises(UsageError, match="MT504"):
        subtree_kernels(torch.zeros(2, 0, dtype=torch.long), torch.tensor([0, 1]), 1)


def test_every_graph_is_tested_once_a_repetition_and_classes_are_dealt_out_evenly():
    from microtome.learn.graph_protocol import repeated_folds

    labels = torch.tensor([0] * 37 + [1] * 63)
    splits = repeated_folds(labels, folds=10, repetitions=3, seed=4)
    for turn in splits:
        assert torch.cat([s.test for s in turn]).sort().values.tolist() == list(range(100))
        for s in turn:
            assert torch.cat([s.train, s.validation, s.test]).sort().values.tolist() == list(range(100))
            assert int((labels[s.test] == 0).sum()) in (3, 4) and len(s.validation) == 9
            assert int((labels[s.validation] == 0).sum()) in (3, 4)
    assert splits[0][0].test.tolist() != splits[1][0].test.tolist()
    with pytest.raises(UsageError, match="MT504"):
        repeated_folds(labels[:15], folds=10)


def test_candidates_are_chosen_by_validation_and_optimism_by_the_test_folds():
    from microtome.learn.graph_protocol import Evaluation

    validation = torch.tensor([[[0.5, 0.9, 0.9], [0.8, 0.7, 0.1]], [[0.1, 0.2, 0.3], [0.3, 0.3, 0.3]]])
    test = torch.tensor([[[0.6, 0.5, 1.0], [0.4, 0.9, 0.0]], [[0.7, 0.8, 0.2], [0.1, 0.3, 0.6]]])
    found = Evaluation(validation, test, ("a", "b", "c"))
    assert found.chosen.tolist() == [[1, 0], [2, 0]]
    assert found.accuracy.tolist() == pytest.approx([0.45, 0.15])
    assert found.mean == pytest.approx(0.3) and found.deviation == pytest.approx(0.15)
    assert found.deviation_of_folds == pytest.approx(
        torch.tensor([0.5, 0.4, 0.2, 0.1]).std(correction=0).item()
    )
    assert found.best_of_each_fold.tolist() == pytest.approx([0.95, 0.7])
    assert found.best_of_all_folds.tolist() == pytest.approx([0.7, 0.55])


def test_machines_see_no_label_they_are_asked_for():
    from torch_geometric.data import Batch

    from microtome.graphs.kernels import cosine, subtree_kernels
    from microtome.learn.graph_protocol import evaluate_kernels, repeated_folds

    graphs = make.two_motifs(40, seed=1)
    batch = Batch.from_data_list(graphs)
    grams = cosine(subtree_kernels(batch.edge_index, batch.batch, 40, rounds=3))
    splits = repeated_folds(batch.y, folds=4, repetitions=1)
    kernels = {r: grams[r] for r in range(4)}
    told = evaluate_kernels(kernels, batch.y, splits, costs=(1.0, 100.0))
    assert told.candidates[3] == (1, 100.0) and told.test.shape == (1, 4, 8)
    assert told.mean > 0.8
    split = splits[0][0]
    turned = batch.y.clone()
    turned[split.test] = 1 - turned[split.test]
    again = evaluate_kernels(kernels, turned, [[split]], costs=(1.0, 100.0))
    assert torch.equal(again.validation[0, 0], told.validation[0, 0])
    assert torch.allclose(again.test[0, 0], 1 - told.test[0, 0])


def test_networks_are_asked_after_every_epoch_and_the_same_seed_gives_the_same():
    from functools import partial

    from microtome.learn.graph_protocol import evaluate_network, repeated_folds
    from microtome.learn.graph_training import fit_graphs, graph_accuracy
    from microtome.studies.graphs import _networks as n

    graphs = make.two_motifs(24, trunk=8, seed=2)
    splits = repeated_folds(torch.tensor([int(g.y) for g in graphs]), folds=3, repetitions=2)
    build = partial(n.GraphNetwork, n.isomorphism, 10, 8, 2, 2)
    told = evaluate_network(build, graphs, splits, epochs=3, seed=5)
    assert told.test.shape == (2, 3, 3) and told.candidates == (1, 2, 3)
    split = splits[1][1]
    model = n.seeded(build, 5 + 3 + 1)
    fit_graphs(model, [graphs[i] for i in split.train.tolist()], epochs=3, rate=0.01, seed=5 + 3 + 1)
    assert graph_accuracy(model, [graphs[i] for i in split.test.tolist()]) == pytest.approx(
        float(told.test[1, 1, 2])
    )
