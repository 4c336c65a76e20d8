"""Graph data: what is read from a folder, and generators with planted truth."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from microtome.data import graph_generators as make
from microtome.data import graphs
from microtome.errors import UsageError

pytest.importorskip("torch_geometric")
networkx = pytest.importorskip("networkx")


def _needs(name):
    return pytest.mark.skipif(
        not graphs.available(name),
        reason=f"{name} is not there: set {graphs.ENVIRONMENT} to a folder with it",
    )


def _networkx(graph):
    made = networkx.Graph()
    made.add_nodes_from(range(graph.num_nodes))
    made.add_edges_from(graph.edge_index.T.tolist())
    return made


def test_what_is_absent_is_said_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.delenv(graphs.ENVIRONMENT, raising=False)
    with pytest.raises(UsageError, match="MT443 no folder of graph data is named"):
        graphs.load("cora")
    with pytest.raises(UsageError, match="does not exist"):
        graphs.load("cora", tmp_path / "nowhere")
    with pytest.raises(UsageError, match="'cora' is not there"):
        graphs.load("cora", tmp_path)
    with pytest.raises(UsageError, match="did you mean 'cora'"):
        graphs.load("corra", tmp_path)
    (tmp_path / "planetoid" / "Cora" / "raw").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"files are missing: ind\.cora\.x"):
        graphs.load("cora", tmp_path)


@_needs("cora")
def test_cora_is_the_published_graph_and_its_folder_is_left_alone():
    folder = Path(os.environ[graphs.ENVIRONMENT]) / "planetoid" / "Cora"
    before = sorted(p.name for p in folder.iterdir())
    data = graphs.load("cora")
    assert (data.num_nodes, data.num_edges, data.x.shape[1]) == (2708, 10556, 1433)
    assert (int(data.train_mask.sum()), int(data.test_mask.sum())) == (140, 1000)
    assert sorted(p.name for p in folder.iterdir()) == before


@_needs("texas")
def test_one_of_several_splits_is_chosen():
    first, second = graphs.load("texas"), graphs.load("texas", split=3)
    assert first.train_mask.dim() == 1 and not torch.equal(first.train_mask, second.train_mask)
    with pytest.raises(UsageError, match="no split 10"):
        graphs.load("texas", split=10)


@_needs("mutag")
def test_mutag_is_a_set_of_188_graphs():
    assert len(graphs.load("mutag")) == 188


@_needs("minesweeper")
def test_our_mines_follow_the_published_rule():
    data = graphs.load("minesweeper")
    ours = make.minesweeper(100)
    assert torch.equal(
        torch.sort(ours.edge_index[0] * 10000 + ours.edge_index[1]).values,
        torch.sort(data.edge_index[0] * 10000 + data.edge_index[1]).values,
    )
    assert torch.equal(make.mine_features(data.edge_index, data.y, data.x[:, 0] == 1), data.x)
    assert int(ours.y.sum()) == int(data.y.sum()) == 2000


@pytest.mark.parametrize("homophily", [0.1, 0.5, 0.9])
def test_blocks_have_the_homophily_that_is_dialled(homophily):
    graph = make.stochastic_blocks(2000, 4, homophily=homophily, seed=1)
    a, b = graph.edge_index
    same = (graph.block[a] == graph.block[b]).double()
    error = 4 * np.sqrt(homophily * (1 - homophily) / (len(same) / 2))
    assert abs(float(same.mean()) - homophily) < error
    assert abs(graph.num_edges / 2000 - 10) < 0.1


def test_dials_of_pattern_features_and_labels():
    graph = make.stochastic_blocks(4000, 4, homophily=0, pattern=1, signal=3, label_correlation=0.6, seed=2)
    a, b = graph.edge_index
    assert set(((graph.block[a] - graph.block[b]) % 4).tolist()) == {1, 3}
    assert abs(float((graph.y == graph.block).double().mean()) - (0.6 + 0.4 / 4)) < 0.04
    means = torch.stack([graph.x[graph.block == c].mean(0) for c in range(4)])
    assert torch.allclose(means[:, :4], 3 * torch.eye(4), atol=0.15)
    again = make.stochastic_blocks(4000, 4, homophily=0, pattern=1, signal=3, label_correlation=0.6, seed=2)
    assert torch.equal(graph.edge_index, again.edge_index) and torch.equal(graph.x, again.x)
    with pytest.raises(UsageError, match="MT445"):
        make.stochastic_blocks(homophily=1.5)


def test_added_edges_follow_the_pattern_but_for_the_noise():
    graph = make.stochastic_blocks(300, 3, homophily=1.0)
    for noise, share in ((0.0, 1.0), (0.6, 0.4 + 0.6 / 3)):
        more = make.add_edges_by_pattern(graph, 3000, noise=noise, seed=3)
        a, b = more.edge_index[:, graph.num_edges : graph.num_edges + 3000]
        assert abs(float(((graph.y[b] - graph.y[a]) % 3 == 1).double().mean()) - share) < 0.04


def test_duplicates_are_exact_twins():
    graph = make.plant_duplicates(make.stochastic_blocks(300, 3, seed=4), 0.3, seed=5)
    a, b = graph.edge_index
    copies = (graph.twin_of >= 0).nonzero()[:, 0]
    assert len(copies) == 90
    for copy in copies.tolist():
        original = int(graph.twin_of[copy])
        assert sorted(a[b == copy].tolist()) == sorted(a[b == original].tolist())
        assert graph.y[copy] == graph.y[original]


def test_rings_and_barbells_are_what_their_names_say():
    ring = _networkx(make.ring_of_cliques(6, 4))
    assert ring.number_of_edges() == 6 * 6 + 6 and networkx.is_connected(ring)
    assert sorted(d for _, d in ring.degree) == [3] * 12 + [4] * 12
    assert networkx.is_isomorphic(_networkx(make.barbell(5, 2)), networkx.barbell_graph(5, 2))
    assert networkx.is_isomorphic(
        _networkx(make.circular_skip_link(3, 11)), networkx.circulant_graph(11, [1, 3])
    )


def test_skip_links_are_ten_different_regular_graphs():
    found = make.circular_skip_links(copies=2)
    assert len(found) == 20
    assert all(set(dict(_networkx(g).degree).values()) == {4} for g in found)
    first = [_networkx(g) for g in found[::2]]
    spectra = {tuple(np.round(networkx.laplacian_spectrum(g), 6)) for g in first}
    assert len(spectra) == 10
    assert networkx.faster_could_be_isomorphic(_networkx(found[0]), _networkx(found[1]))


def test_motifs_are_where_they_are_said_to_be():
    graph = make.houses_on_trunk(60, 10, seed=1)
    planted = graph.edge_index[:, graph.edge_truth > 0]
    assert planted.shape[1] == 2 * 6 * 10
    assert bool((graph.motif[planted[0]] == graph.motif[planted[1]]).all())
    one = _networkx(graph).subgraph((graph.motif == 3).nonzero()[:, 0].tolist())
    assert networkx.is_isomorphic(one, networkx.house_graph())
    for i, small in enumerate(make.two_motifs(4, seed=2)):
        inside = small.edge_index[:, small.edge_truth > 0]
        expected = networkx.cycle_graph(5) if i % 2 else networkx.house_graph()
        made = networkx.Graph(inside.T.tolist())
        assert networkx.is_isomorphic(made, expected) and int(small.y) == i % 2


def test_all_small_graphs_are_there_once():
    # The number of graphs on n unlabelled nodes, OEIS A000088.
    counts = torch.bincount(torch.tensor([g.num_nodes for g in make.small_graphs()])).tolist()
    assert counts == [0, 1, 2, 4, 11, 34, 156, 1044]
    assert len(make.small_graphs(4)) == 18
