"""Collapse measures of many members at once: loops from the definitions, closed forms and the instruments."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from microtome.data.arrays import ArrayBatches
from microtome.data.digits import tensors
from microtome.instruments.represent.vci import VariabilityCollapseIndex
from microtome.passes import run_instruments
from microtome.population.collapse import cdnv, nc1, probe_loss, scatters, vci
from microtome.subject import Subject

DRAW = torch.Generator().manual_seed(9)
LABELS = torch.arange(120) % 4
H = torch.randn(3, 120, 6, generator=DRAW).double() + 2 * torch.randn(4, 6, generator=DRAW).double()[LABELS]


def test_by_the_definitions():
    for i in range(3):
        total, between, within = scatters(H, LABELS, 4)
        centred = H[i] - H[i].mean(0)
        means = torch.stack([H[i][c == LABELS].mean(0) for c in range(4)])
        s_b = sum(torch.outer(m - H[i].mean(0), m - H[i].mean(0)) for m in means) / 4
        s_w = sum((H[i][c == LABELS] - means[c]).T @ (H[i][c == LABELS] - means[c]) for c in range(4)) / 120
        assert torch.allclose(total[i], centred.T @ centred / 120)
        assert torch.allclose(between[i], s_b) and torch.allclose(within[i], s_w)
        expected = 1 - float(torch.trace(torch.linalg.solve(total[i], s_b))) / 3
        assert float(vci(H, LABELS, 4)[i]) == pytest.approx(expected)
        assert float(nc1(H, LABELS, 4)[i]) == pytest.approx(
            float(torch.trace(s_w @ torch.linalg.pinv(s_b, rtol=1e-9))) / 4
        )
        v = [float((H[i][c == LABELS] - means[c]).square().sum(1).mean()) for c in range(4)]
        pairs = [
            (v[a] + v[b]) / (2 * float((means[a] - means[b]).square().sum()))
            for a in range(4)
            for b in range(a)
        ]
        assert float(cdnv(H, LABELS, 4)[i]) == pytest.approx(sum(pairs) / len(pairs))


def test_probe_loss_is_least_squares_and_tied_to_vci():
    design = torch.cat([H[0], torch.ones(120, 1).double()], 1)
    one_hot = nn.functional.one_hot(LABELS, 4).double()
    fitted = design @ torch.linalg.lstsq(design, one_hot).solution
    loss = probe_loss(H, LABELS, 4)
    assert float(loss[0]) == pytest.approx(float((one_hot - fitted).square().sum() / 120))
    assert torch.allclose(loss, 1 - 1 / 4 - 3 * (1 - vci(H, LABELS, 4)) / 4)


def test_ends_of_the_scale():
    points = torch.randn(4, 6, generator=DRAW)[LABELS]
    assert float(vci(points, LABELS, 4)) == pytest.approx(0, abs=1e-9)
    assert float(nc1(points, LABELS, 4)) == pytest.approx(0, abs=1e-9)
    same = torch.zeros(120, 6)
    assert float(vci(same, LABELS, 4)) == 1
    dead = torch.cat([H[0], torch.zeros(120, 3).double()], 1)
    assert float(vci(dead, LABELS, 4)) == pytest.approx(float(vci(H, LABELS, 4)[0]))


def test_the_instrument_reads_the_same():
    x, y = tensors("train", flat=True)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 10))
    finding = run_instruments(Subject(network, ArrayBatches(x, y)), {"vci": VariabilityCollapseIndex()})[
        "vci"
    ]
    with torch.no_grad():
        features = network[:2](x)
    assert finding.quantities["VCI"].value == pytest.approx(float(vci(features, y, 10)), abs=1e-5)
