"""Trees whose answer is known, and actions that can count neighbours."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("torch_geometric")
from microtome.data.long_chains import long_chains
from microtome.data.root_neighbours import root_neighbours
from microtome.errors import UsageError
from microtome.nn.cooperative import CooperativeConv


def test_the_target_is_the_mean_of_neighbours_of_the_degree():
    for tree in root_neighbours(30, degree=4, seed=3):
        degree = torch.bincount(tree.edge_index[1], minlength=tree.num_nodes)
        near = tree.edge_index[0][tree.edge_index[1] == 0]
        chosen = near[degree[near] == 4]
        assert len(chosen) and torch.allclose(tree.x[chosen].mean(0), tree.target[0], atol=1e-6)
        kept = tree.edge_index[:, tree.edge_truth > 0]
        assert set(kept[0].tolist()) == set(chosen.tolist()) and (kept[1] == 0).all()
        assert tree.root.nonzero().flatten().tolist() == [0]
        assert tree.num_nodes == tree.edge_index.shape[1] // 2 + 1  # a tree


def test_degrees_other_than_the_one_asked_for_surround_it():
    degrees = torch.cat(
        [
            torch.bincount(t.edge_index[1])[t.edge_index[0][t.edge_index[1] == 0]]
            for t in root_neighbours(300, degree=6, seed=0)
        ]
    )
    others = degrees[degrees != 6].float()
    assert set(others.tolist()) == {2.0, 3.0, 4.0, 5.0, 7.0, 8.0, 9.0, 10.0}
    assert abs(float(others.mean()) - 6) < 0.2


@pytest.mark.parametrize("action", ["mean", "sum"])
def test_only_sums_can_act_by_the_number_of_neighbours(action):
    """Equal features everywhere: what differs between nodes of a star is how many neighbours they have."""
    torch.manual_seed(0)
    pairs = torch.tensor([[1, 2, 3], [0, 0, 0]])
    edge_index = torch.cat([pairs, pairs.flip(0)], 1)
    layer = CooperativeConv(2, 2, action=action).eval()
    if layer.count is not None:
        with torch.no_grad():
            layer.count.copy_(torch.randn_like(layer.count))
    x = torch.ones(4, 2)
    seen = []
    layer.decide.register_forward_hook(lambda module, given, found: seen.append(found.detach()))
    layer(x, edge_index)
    differ = float((seen[0][0] - seen[0][1]).abs().max())
    assert (differ > 1e-3) is (action == "sum")


def test_edges_are_kept_by_both_ends():
    """The mean over kept edges, by hand."""
    torch.manual_seed(0)
    edge_index = torch.tensor([[0, 1, 2, 3], [3, 3, 3, 0]])
    layer = CooperativeConv(2, 3).eval()
    x = torch.randn(4, 2)
    actions = torch.eye(4)[[0, 1, 2, 1]]  # standard, listen, broadcast, listen
    kept = layer.kept(actions, edge_index)
    assert kept.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert torch.allclose(layer.mean(x, edge_index, kept)[3], (x[0] + x[2]) / 2)


def test_the_slope_by_an_edge_where_none_is_kept_is_no_steeper_than_elsewhere():
    edge_index = torch.tensor([[0, 1], [2, 2]])
    layer, x = CooperativeConv(2, 3), torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]])
    kept = torch.zeros(2, requires_grad=True)
    layer.mean(x, edge_index, kept).sum().backward()
    assert kept.grad.tolist() == [3.0, 7.0]  # what each would bring


def test_chains_ask_at_one_end_for_the_letter_of_the_other():
    import networkx as nx

    for chain in long_chains(5, 4, letters=3, leaves=2, seed=2):
        first, last = chain.x[:, 3:].T
        assert first.nonzero().tolist() == [[0]] and last.nonzero().tolist() == [[4]]
        assert chain.root.nonzero().tolist() == [[4]] and int(chain.x[0, :3].argmax()) == int(chain.target)
        assert (chain.x[:, :3].sum(1) == 1).all() and chain.num_nodes == 5 + 3 * 2
        graph = nx.Graph(chain.edge_index.T.tolist())
        assert nx.is_tree(graph) and nx.shortest_path_length(graph, 0, 4) == 4
        assert sorted(dict(graph.degree).values()) == [1] * 8 + [4] * 3
    with pytest.raises(UsageError, match="MT513"):
        long_chains(1, 0)
