"""Molecules and their circular fingerprints against counting by hand."""

from __future__ import annotations

import pytest
import torch

from microtome.errors import UsageError

pytest.importorskip("torch_geometric")


def test_planted_groups_are_whole_and_counted():
    from microtome.data.molecules import ELEMENTS, GROUPS, WEIGHTS, molecules

    names, seen = list(GROUPS), set()
    for graph in molecules(60, noise=0.0, seed=3):
        counts = [0] * len(names)
        source, target = graph.edge_index
        for number in set(graph.instance.tolist()) - {-1}:
            atoms = (graph.instance == number).nonzero()[:, 0]
            kind = int(graph.planted[atoms[0]])
            counts[kind] += 1
            elements = [ELEMENTS[int(i)] for i in graph.x[atoms, : len(ELEMENTS)].argmax(1)]
            assert tuple(elements) == GROUPS[names[kind]][0]
            crossing = (graph.instance[source] == number) & (graph.instance[target] != number)
            assert int(crossing.sum()) == 1  # one bond to the skeleton
            seen.add(kind)
        assert counts == graph.counts[0].tolist()
        value = sum(WEIGHTS.get(name, 0.0) * c for name, c in zip(names, counts, strict=True))
        assert float(graph.y) == pytest.approx(value)
        degree = torch.bincount(target, minlength=graph.num_nodes)
        assert int(degree.max()) <= 4
        assert torch.equal(graph.x[:, len(ELEMENTS) : len(ELEMENTS) + 6].argmax(1), degree)
        pieces = torch.matrix_power(_adjacency(graph) + torch.eye(graph.num_nodes), graph.num_nodes)
        assert bool((pieces > 0).all())
    assert len(seen) == len(GROUPS)


def _adjacency(graph):
    found = torch.zeros(graph.num_nodes, graph.num_nodes)
    found[graph.edge_index[0], graph.edge_index[1]] = 1
    return found


def test_smiles_are_the_molecules_they_write():
    from microtome.data.molecules import ELEMENTS, from_smiles

    aspirin = from_smiles("CC(=O)Oc1ccccc1C(=O)O")
    assert aspirin.num_nodes == 13 and aspirin.num_edges == 26
    assert int(aspirin.x[:, -1].sum()) == 6
    assert int(aspirin.x[:, ELEMENTS.index("O")].sum()) == 4
    spiro = from_smiles("C1CC12CC%10.Br%10[C@@H]2[nH]")
    assert sorted(map(tuple, spiro.edge_index[:, : spiro.num_edges // 2].sort(0).values.T.tolist())) == [
        (0, 1), (0, 2), (1, 2), (2, 3), (2, 6), (3, 4), (4, 5), (5, 6), (6, 7),
    ]  # fmt: skip
    for bad in ("C1CC", "C(C", "CC)", "", "C?C"):
        with pytest.raises(UsageError, match="MT501"):
            from_smiles(bad)


def test_fingerprints_mark_a_place_for_each_neighbourhood():
    from torch_geometric.data import Batch

    from microtome.data.molecules import molecules
    from microtome.graphs.circular_fingerprint import circular_bits, circular_fingerprints

    graphs = molecules(12, seed=1)
    batch = Batch.from_data_list(graphs)
    found = circular_fingerprints(
        batch.x, batch.edge_index, batch.batch, radius=3, length=1 << 20, counts=True
    )
    for k, graph in enumerate(graphs):
        names = [tuple(row) for row in graph.x.tolist()]
        kinds = set()
        for _ in range(3):
            heard = [[] for _ in names]
            for a, b in graph.edge_index.T.tolist():
                heard[b].append(names[a])
            names = [(own, tuple(sorted(map(repr, rest)))) for own, rest in zip(names, heard, strict=True)]
            kinds |= {repr(n) for n in names}
        assert int((found[k] > 0).sum()) == len(kinds)  # at such a length no two meet
        assert int(found[k].sum()) == 3 * graph.num_nodes
    order = torch.randperm(graphs[0].num_nodes, generator=torch.Generator().manual_seed(0))
    turned = graphs[0].clone()
    turned.x, turned.edge_index = graphs[0].x[order], torch.argsort(order)[graphs[0].edge_index]
    plain = circular_bits(graphs[0].x, graphs[0].edge_index)
    assert torch.equal(circular_bits(turned.x, turned.edge_index), plain[:, order])
    with pytest.raises(UsageError, match="MT501"):
        circular_bits(turned.x, turned.edge_index, radius=0)


def test_tanimoto_is_one_less_the_shared_part():
    from microtome.graphs.circular_fingerprint import tanimoto_distances

    f = torch.rand(7, 20, generator=torch.Generator().manual_seed(0)).double()
    f[3] = 0
    found = tanimoto_distances(f)
    for i in range(7):
        for j in range(7):
            top = float(torch.maximum(f[i], f[j]).sum())
            expected = 1 - float(torch.minimum(f[i], f[j]).sum()) / top if top else 0.0
            assert abs(float(found[i, j]) - expected) < 1e-12


def test_an_unknown_group_is_refused_in_a_sentence():
    from microtome.data.molecules import molecules

    with pytest.raises(UsageError, match="MT501"):
        molecules(2, weights={"ether": 1.0})
    with pytest.raises(UsageError, match="MT501"):
        molecules(2, atoms=(5, 2))
