"""Walks follow the exact law; embeddings tell two cliques apart."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.stats import chisquare

from microtome.data.graph_generators import stochastic_blocks
from microtome.errors import UsageError
from microtome.graphs.random_walks import Walker, windows
from microtome.nn.node2vec import EDGES, Node2Vec


def both(pairs) -> torch.Tensor:
    edges = torch.tensor(pairs).T
    return torch.cat([edges, edges.flip(0)], 1)


EDGE_INDEX = both([[0, 1], [1, 2], [2, 0], [2, 3], [3, 4], [4, 5], [5, 3], [0, 4]])


@pytest.mark.parametrize(("p", "q"), [(1.0, 1.0), (0.25, 4.0), (4.0, 0.25)])
def test_the_next_node_follows_the_law(p, q):
    walker = Walker(EDGE_INDEX, 7, p=p, q=q)
    walks = walker.walks(torch.arange(6).repeat(4000), 8, seed=1)
    triples = windows(walks, 3)
    for t, v in ((0, 2), (2, 3), (3, 4), (4, 0)):
        after = triples[(triples[:, 0] == t) & (triples[:, 1] == v)][:, 2]
        law = walker.law(t, v)
        # By hand: back, a neighbour of both, or further away.
        near = {int(b) for a, b in EDGE_INDEX.T.tolist() if a == v}
        of_t = {int(b) for a, b in EDGE_INDEX.T.tolist() if a == t}
        weight = {u: 1 / p if u == t else 1.0 if u in of_t else 1 / q for u in near}
        for u, w in weight.items():
            assert float(law[u]) == pytest.approx(w / sum(weight.values()))
        seen = torch.bincount(after, minlength=7)
        assert int(seen[law == 0].sum()) == 0
        own = law > 0
        assert chisquare(seen[own].numpy(), (law[own] * len(after)).numpy()).pvalue > 1e-4


def test_walks_are_along_edges_and_the_same_for_a_seed():
    walker = Walker(EDGE_INDEX, 7, p=0.5, q=2.0)
    walks = walker.walks(torch.arange(7), 5, seed=3)
    assert torch.equal(walks, walker.walks(torch.arange(7), 5, seed=3))
    assert not torch.equal(walks, walker.walks(torch.arange(7), 5, seed=4))
    allowed = {tuple(e) for e in EDGE_INDEX.T.tolist()}
    for walk in walks[:6].tolist():
        assert all(step in allowed for step in itertools.pairwise(walk))
    assert walks[6].tolist() == [6] * 6  # nobody is next to it


def test_windows_are_runs():
    assert windows(torch.tensor([[1, 2, 3, 4]]), 3).tolist() == [[1, 2, 3], [2, 3, 4]]


def test_parameters_that_mean_nothing_are_refused():
    with pytest.raises(UsageError, match="above 0"):
        Walker(EDGE_INDEX, 7, p=0.0)


def test_embeddings_tell_cliques_apart():
    cliques = [[a, b] for start in (0, 6) for a in range(start, start + 6) for b in range(a + 1, start + 6)]
    torch.manual_seed(0)
    found = Node2Vec(both([*cliques, [0, 6]]), 12, 8, length=6, context=3).fit(epochs=30)().detach()
    alike = torch.corrcoef(found)
    same = torch.block_diag(torch.ones(6, 6), torch.ones(6, 6)).bool() & ~torch.eye(12, dtype=torch.bool)
    assert float(alike[same].mean()) > float(alike[~same & ~torch.eye(12, dtype=torch.bool)].mean()) + 0.5


def test_the_loss_is_the_formula():
    torch.manual_seed(0)
    model = Node2Vec(EDGE_INDEX, 7, 4)
    z = model().detach()
    company, strangers = torch.tensor([[0, 1, 2]]), torch.tensor([[5, 6]])
    near = torch.stack([z[0] @ z[1], z[0] @ z[2]]).sigmoid().log().mean()
    far = torch.stack([-(z[0] @ z[5]), -(z[0] @ z[6])]).sigmoid().log().mean()
    assert float(model.loss(company, strangers).detach()) == pytest.approx(float(-near - far), rel=1e-5)
    assert set(EDGES) == {"Hadamard", "average", "L1", "L2"}


def test_plain_walks_find_planted_blocks():
    # Too few updates leave the embeddings at their random start, where any bias looks as good as any other.
    graph = stochastic_blocks(200, 4, degree=10, homophily=0.9, features=4, seed=0)
    torch.manual_seed(0)
    z = torch.nn.functional.normalize(Node2Vec(graph.edge_index, 200).fit()().detach(), dim=1)
    same = graph.block[:, None] == graph.block
    gap = (z @ z.T)[same].mean() - (z @ z.T)[~same].mean()
    assert gap > 0.2
