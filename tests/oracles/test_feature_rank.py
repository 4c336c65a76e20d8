"""Ranks against a singular value decomposition of the features themselves."""

import math

import pytest
import torch
from represent_subjects import activations, batches, close, data, network, read, subject
from torch import nn

from microtome.instruments.represent.feature_rank import FeatureRank
from microtome.signals.reinitialise import Reinitialised
from microtome.subject import Subject


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_singular_values(dtype):
    finding = read(subject(dtype), FeatureRank())
    rows = {row[0]: row for row in finding.tables["layers"].rows}
    for name, value in activations(dtype).items():
        x = value.mean((2, 3)) if value.dim() == 4 else value
        variance = torch.linalg.svdvals(x.double() - x.double().mean(0)).square()
        p = variance / variance.sum()
        _, _, effective, participation, stable, numerical, _ = rows[name]
        assert effective == pytest.approx(math.exp(-float((p * p.log()).sum())), rel=1e-5)
        assert participation == pytest.approx(float(1 / p.square().sum()), rel=1e-5)
        assert stable == pytest.approx(float(1 / p.max()), rel=1e-5)
        assert numerical == int(torch.linalg.matrix_rank(x - x.mean(0)))


def test_slices_do_not_matter():
    close(read(subject(size=64), FeatureRank()), read(subject(size=7), FeatureRank(), 7))


def test_rank_stops_at_n_less_one_and_dead_layers_have_none():
    x, y = data(torch.float64, n=5)
    assert read(Subject(network(), batches(x, y)), FeatureRank()).quantities["numerical rank"].value == 4
    net = network()
    with torch.no_grad():
        net.fc.weight.zero_()
    dead = read(Subject(net, batches(*data())), FeatureRank(untrained=False))
    assert dead.value == 0 and dead.quantities["numerical rank"].value == 0
    assert read(Subject(network(), batches(x[:1], y[:1])), FeatureRank()).status == "refused"


class Norms(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.shift = nn.Parameter(torch.randn(6) * 3 + 5)
        self.attend = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = self.body(x) + self.shift
        return self.head(self.attend(x[:, None], x[:, None], x[:, None])[0][:, 0])


def test_reinitialised_draws_everything_anew_and_leaves_all_as_found():
    torch.manual_seed(0)
    net = Norms()
    x, y = torch.randn(70, 4), torch.arange(70) % 3
    before = {k: v.clone() for k, v in net.state_dict().items()}
    of, state = Subject(net, batches(x, y, 64)), torch.get_rng_state()
    first = Reinitialised(3).change(of, {**of.parameters, **of.buffers})
    again = Reinitialised(3).change(Subject(net, batches(x, y, 7)), {**of.parameters, **of.buffers})
    other = Reinitialised(4).change(of, {**of.parameters, **of.buffers})
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert set(first) == {k for k, v in before.items() if v.is_floating_point()}
    for name, value in first.items():
        torch.testing.assert_close(value, again[name])
    for name in ("body.0.weight", "shift", "attend.in_proj_weight", "head.weight"):
        assert not torch.allclose(first[name], before[name]) and not torch.allclose(
            first[name], other[name]
        ), name
    assert abs(float(first["shift"].mean()) - 5) < 6
    # Batch norm has the statistics of the first examples, so that it normalises.
    hidden = nn.functional.linear(x[:32], first["body.0.weight"], first["body.0.bias"])
    torch.testing.assert_close(first["body.1.running_mean"], hidden.mean(0))
