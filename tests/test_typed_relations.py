"""Graphs of typed relations against the law they are drawn from."""

from __future__ import annotations

import pytest
import torch

from microtome.data.typed_relations import typed_relations
from microtome.errors import UsageError

pytest.importorskip("torch_geometric")


def test_relations_lead_where_their_shift_says():
    graph = typed_relations(4000, 4, relations=5, alike=0.4, degree=2.0, purity=0.6, seed=1)
    assert graph.shift.tolist() == [0, 0, 1, 2, 3]
    m = graph.edge_index.shape[1] // 2
    assert torch.equal(graph.edge_index[:, m:], graph.edge_index[:, :m].flip(0))
    assert torch.equal(graph.edge_type[m:], graph.edge_type[:m] + 5)
    source, target = graph.y[graph.edge_index[:, :m]]
    for r in range(5):
        own = graph.edge_type[:m] == r
        assert int(own.sum()) == 8000
        share = torch.bincount((target - source)[own] % 4, minlength=4).double() / 8000
        expected = torch.full((4,), 0.1).double()  # 0.4 anywhere
        expected[graph.shift[r]] += 0.6
        assert float((share - expected).abs().max()) < 0.02
    means = torch.stack([graph.x[graph.y == c].mean(0) for c in range(4)])
    assert torch.allclose(means, 0.8 * torch.eye(4, 16), atol=0.15)
    parts = [graph.train_mask, graph.val_mask, graph.test_mask]
    assert [int(p.sum()) for p in parts] == [400, 800, 2800] and torch.stack(parts).sum(0).eq(1).all()


def test_alike_relations_have_no_shift_and_dials_are_checked():
    assert typed_relations(80, alike=1.0).shift.eq(0).all()
    with pytest.raises(UsageError, match="MT514"):
        typed_relations(alike=1.5)
