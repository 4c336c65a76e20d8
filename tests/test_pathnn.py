"""Paths against a direct search, and networks of paths against a loop over them."""

from __future__ import annotations

import networkx
import pytest
import torch

from microtome.data import graph_generators as make
from microtome.errors import UsageError

pytest.importorskip("torch_geometric")


def _searched(edge_index, nodes, length, kind):
    """Paths by a recursive search from each root, against the edges."""
    into = [sorted({u for u, w in edge_index.T.tolist() if w == v and u != v}) for v in range(nodes)]
    graph = networkx.DiGraph([(v, u) for v in range(nodes) for u in into[v]])
    graph.add_nodes_from(range(nodes))
    far = dict(networkx.all_pairs_shortest_path_length(graph))
    found = []

    def walk(path):
        if len(path) > 1:
            found.append(tuple(path))
        if len(path) <= length:
            for u in into[path[-1]]:
                if u not in path:
                    walk([*path, u])

    for v in range(nodes):
        walk([v])
    if kind != "all_simple":
        found = [p for p in found if far[p[0]][p[-1]] == len(p) - 1]
    return found, far


def _random(nodes, p, seed, directed=False):
    generator = torch.Generator().manual_seed(seed)
    dense = torch.rand(nodes, nodes, generator=generator) < p
    dense = dense.fill_diagonal_(False)
    return (dense if directed else dense | dense.T).nonzero().T.contiguous()


@pytest.mark.parametrize("kind", ["all_simple", "all_shortest", "one_shortest"])
@pytest.mark.parametrize("directed", [False, True])
def test_paths_are_those_of_a_search(kind, directed):
    from microtome.graphs.paths import enumerate_paths

    edges = torch.cat(
        [_random(9, 0.22, 3, directed), torch.tensor([[2], [2]])], 1
    )  # a loop, which is ignored
    edges = torch.cat([edges, edges[:, :2]], 1)  # and edges that stand twice
    expected, far = _searched(edges, 9, 4, kind)
    found = enumerate_paths(edges, 9, 4, kind)
    listed = [tuple(p) for some in found for p in some.nodes.T.tolist()]
    assert len(found) == 4 and len(set(listed)) == len(listed) > 40
    if kind == "one_shortest":
        assert set(listed) <= set(expected)
        ends = [(p[0], p[-1]) for p in listed]
        assert len(set(ends)) == len(ends) and set(ends) == {(p[0], p[-1]) for p in expected}
    else:
        assert set(listed) == set(expected)
    for some in found:
        for path, hops in zip(some.nodes.T.tolist(), some.hops.T.tolist(), strict=True):
            assert hops == [far[path[0]][u] for u in path]


def test_a_batch_has_the_paths_of_its_graphs():
    from torch_geometric.data import Batch

    from microtome.graphs.paths import AddPaths, enumerate_paths, stored_paths

    graphs = make.small_graphs(5)[20:]
    batch = Batch.from_data_list([AddPaths(3)(g.clone()) for g in graphs])
    direct = enumerate_paths(batch.edge_index, batch.num_nodes, 3)
    for a, b in zip(stored_paths(batch, 3), direct, strict=True):
        assert a.nodes.shape == b.nodes.shape
        assert {tuple(p) for p in a.nodes.T.tolist()} == {tuple(p) for p in b.nodes.T.tolist()}


def test_paths_refuse_what_makes_no_sense():
    from microtome.graphs.paths import enumerate_paths

    edges = _random(12, 0.9, 0)
    with pytest.raises(UsageError, match="MT453 no kind of path is called 'simple'"):
        enumerate_paths(edges, 12, 2, "simple")
    with pytest.raises(UsageError, match=r"MT453 about .* more than 1000"):
        enumerate_paths(edges, 12, 5, most=1000)
    with pytest.raises(UsageError, match="MT453 paths have at least one edge"):
        enumerate_paths(edges, 12, 0)
    empty = enumerate_paths(torch.zeros(2, 0, dtype=torch.long), 3, 2)
    assert [p.nodes.shape for p in empty] == [(2, 0), (3, 0)]


@pytest.mark.parametrize("kind", ["all_simple", "all_shortest"])
def test_a_network_of_paths_sums_what_its_cell_reads(kind):
    from microtome.nn.pathnn import PathNN

    edges = _random(7, 0.3, 5)
    torch.manual_seed(0)
    network = PathNN(3, 4, 2, length=3, kind=kind).double().eval()
    x = torch.randn(7, 3, dtype=torch.double)
    paths, far = _searched(edges, 7, 3, kind)
    h = network.encode(x)
    for k, conv in enumerate(network.convs, 1):
        total = h.clone()
        for path in (p for p in paths if len(p) == k + 1):
            read = torch.stack(
                [
                    h[u]
                    if conv.distance is None
                    else torch.cat([h[u], conv.distance.weight[far[path[0]][u]]])
                    for u in reversed(path)
                ]
            )
            total[path[0]] += conv.cell(read[None])[0][0, -1]
        h = torch.relu(conv.norm(total))
    assert torch.allclose(network.embed(x, edges), h)
    given = network(x, edges, torch.zeros(7, dtype=torch.long))
    assert torch.allclose(given[0], network.last(torch.relu(network.first(h.sum(0)))))


def test_all_paths_are_blind_to_the_order_of_nodes_and_part_what_refinement_joins():
    from torch_geometric.data import Batch

    from microtome.nn.pathnn import PathNN

    hexagon = networkx.cycle_graph(6)
    triangles = networkx.disjoint_union(networkx.cycle_graph(3), networkx.cycle_graph(3))
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    graphs = []
    for g in (hexagon, triangles):
        edges = torch.tensor(list(g.edges)).T
        edges = torch.cat([edges, edges.flip(0)], 1)
        for given in (edges, order[edges]):
            graphs.append(make.small_graphs(1)[0].__class__(x=torch.ones(6, 1).double(), edge_index=given))
    batch = Batch.from_data_list(graphs)
    for kind in ("all_simple", "all_shortest"):
        torch.manual_seed(0)
        out = (
            PathNN(1, 16, 3, length=2, kind=kind)
            .double()
            .eval()(batch.x, batch.edge_index, batch.batch)
            .detach()
        )
        assert torch.allclose(out[0], out[1]) and torch.allclose(out[2], out[3])
        assert float((out[0] - out[2]).abs().max()) > 1e-4
