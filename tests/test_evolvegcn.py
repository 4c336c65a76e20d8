"""Evolving weights against PyTorch's cells and direct loops; the drifting block model against what it plants."""

from __future__ import annotations

import math

import pytest
import torch

from microtome.errors import UsageError

pytest.importorskip("torch_geometric")

from microtome.data.drifting_blocks import drifting_blocks
from microtome.nn.evolvegcn import EvolveGCN, EvolvingConv, MatrixCell


def test_a_matrix_lstm_is_an_lstm_cell_on_every_column():
    torch.manual_seed(0)
    cell = MatrixCell(3, 4, "lstm").double()
    torch.nn.init.normal_(cell.bias)
    given, h, c = torch.randn(3, 3, 4, dtype=torch.double).unbind()
    new_h, new_c = cell(given, (h, c))
    for column in range(4):
        plain = torch.nn.LSTMCell(3, 3).double()
        order = (1, 0, 3, 2)  # PyTorch: input, forget, candidate, output
        plain.weight_ih.data = torch.cat([cell.see[g] for g in order])
        plain.weight_hh.data = torch.cat([cell.keep[g] for g in order])
        plain.bias_ih.data = torch.cat([cell.bias[g, :, column] for g in order])
        plain.bias_hh.data.zero_()
        found = plain(given[None, :, column], (h[None, :, column], c[None, :, column]))
        assert torch.allclose(new_h[:, column], found[0][0])
        assert torch.allclose(new_c[:, column], found[1][0])


def test_a_matrix_gru_entry_by_entry():
    torch.manual_seed(0)
    cell = MatrixCell(2, 3, "gru").double()
    torch.nn.init.normal_(cell.bias)
    given, h, c = torch.randn(3, 2, 3, dtype=torch.double).unbind()
    found, same = cell(given, (h, c))
    assert same is c

    def gate(g, state, i, j):
        return float(
            (sum(cell.see[g, i, k] * given[k, j] + cell.keep[g, i, k] * state[k, j] for k in range(2))
             + cell.bias[g, i, j]).detach()
        )  # fmt: skip

    def sigmoid(v):
        return 1 / (1 + math.exp(-v))

    reset = torch.tensor([[sigmoid(gate(1, h, i, j)) for j in range(3)] for i in range(2)])
    for i in range(2):
        for j in range(3):
            z = sigmoid(gate(0, h, i, j))
            expected = (1 - z) * h[i, j] + z * math.tanh(gate(2, reset * h, i, j))
            assert float(found[i, j].detach()) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("version", ["O", "H"])
def test_a_snapshot_is_convolved_with_the_weights_of_its_time(version):
    data = drifting_blocks(4, 9, 3, features=5, seed=1)
    torch.manual_seed(1)
    layer = EvolvingConv(5, 4, version).double()
    torch.nn.init.normal_(layer.cell.bias)
    x = data.x.double()
    found = layer(x, data.edge_index, [9] * 4)
    w, c = layer.first, torch.zeros(5, 4, dtype=torch.double)
    for t in range(4):
        rows = x[9 * t : 9 * t + 9]
        if version == "H":
            score = [float((r @ layer.direction / layer.direction.norm()).detach()) for r in rows]
            best = sorted(range(9), key=lambda v: -score[v])[:4]
            given = torch.stack([rows[v] * math.tanh(score[v]) for v in best], 1)
        else:
            given = w
        w, c = layer.cell(given, (w, c))
        a = torch.eye(9, dtype=torch.double)
        inside = (data.edge_index[0] // 9 == t).nonzero()[:, 0]
        source, target = data.edge_index[:, inside] - 9 * t
        a[target, source] = 1
        scale = a.sum(1).rsqrt()
        assert torch.allclose(found[9 * t : 9 * t + 9], scale[:, None] * a * scale @ rows @ w)


def test_a_summary_of_few_nodes_repeats_the_last():
    torch.manual_seed(0)
    layer = EvolvingConv(3, 5, "H")
    x = torch.randn(2, 3)
    score = x @ layer.direction / layer.direction.norm()
    order = score.argsort(descending=True)[[0, 1, 1, 1, 1]]
    assert torch.allclose(layer.summary(x), (x[order] * score[order, None].tanh()).T)


@pytest.mark.parametrize("version", ["O", "H"])
def test_the_past_does_not_hear_the_future_and_all_nodes_may_change(version):
    data = drifting_blocks(5, 12, 3, churn=1.0, features=4, seed=0)
    torch.manual_seed(0)
    network = EvolveGCN(4, 6, 3, version=version).eval()
    whole = network(data.x, data.edge_index, data.batch)
    assert whole.shape == (60, 3)
    early = data.edge_index[:, data.edge_index[0] < 36]
    assert torch.allclose(network(data.x[:36], early, data.batch[:36]), whole[:36], atol=1e-6)
    whole[data.batch == 4].sum().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in network.parameters())


def test_drifting_blocks_turn_keep_and_lose_their_nodes():
    data = drifting_blocks(
        6, 400, 4, turn=30.0, jump=(4, 45.0), churn=0.25, homophily=0.75, signal=20.0, degree=6, seed=3
    )
    source, target = data.edge_index
    assert torch.equal(data.batch[source], data.batch[target])
    assert float((data.y[source] == data.y[target]).float().mean()) == pytest.approx(0.75, abs=0.03)
    assert len(source) / len(data.y) == pytest.approx(6, abs=0.3)
    y, new = data.y.view(6, -1), data.new.view(6, -1)
    assert new[0].all()
    assert new[1:].sum(1).tolist() == [100] * 5
    assert torch.equal(y[1:][~new[1:]], y[:-1][~new[1:]])
    for t in range(6):
        for c in range(4):
            mean = data.x.view(6, 400, -1)[t][y[t] == c].mean(0)
            angle = math.radians(30 * t + 45 * (t >= 4) + 90 * c)
            assert mean[:2].tolist() == pytest.approx([20 * math.cos(angle), 20 * math.sin(angle)], abs=0.5)
            assert float(mean[2:].abs().max()) < 0.5
    smooth = drifting_blocks(6, 400, 4, turn=30.0, churn=0.25, homophily=0.75, signal=20.0, degree=6, seed=3)
    before = data.batch < 4
    assert torch.equal(smooth.x[before], data.x[before])
    assert torch.equal(smooth.edge_index, data.edge_index)
    assert [int(data[f"{k}_mask"].sum()) // 400 for k in ("train", "val", "test")] == [4, 0, 2]
    with pytest.raises(UsageError, match="churn 2"):
        drifting_blocks(churn=2)
