"""Lanczos and Hutchinson against the dense Hessian."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian

from microtome.instruments.dynamics import _lanczos, hessian_spectrum
from microtome.instruments.dynamics._lanczos import Lanczos
from microtome.instruments.dynamics.hessian_spectrum import HessianSpectrum
from microtome.passes.run import run_instruments
from microtome.subject import Subject


def network(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def data(dtype: torch.dtype, size: int):
    torch.manual_seed(1)
    x, y = torch.randn(50, 5, dtype=dtype), torch.randint(0, 3, (50,))
    return [(x[i : i + size], y[i : i + size]) for i in range(0, 50, size)]


def dense(model, batches):
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    shapes = {n: p.shape for n, p in model.named_parameters()}
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])

    def loss(vector):
        parts = vector.split([s.numel() for s in shapes.values()])
        values = {n: part.reshape(s) for part, (n, s) in zip(parts, shapes.items(), strict=True)}
        return nn.functional.cross_entropy(functional_call(model, values, x), y)

    return hessian(loss)(flat).double()


def read(model, batches, **options):
    return run_instruments(Subject(model, batches), {"h": HessianSpectrum(**options)})["h"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_the_dense_hessian(dtype):
    model, batches = network(dtype), data(dtype, 16)
    truth = torch.linalg.eigvalsh(dense(model, batches))
    finding = read(model, batches, steps=30, trace_probes=32)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-9
    assert finding.value == pytest.approx(float(truth[-1]), rel=tolerance)
    assert finding.quantities["least eigenvalue"].value == pytest.approx(float(truth[0]), rel=1e-3)
    assert finding.arrays["eigenvalues"][:4] == pytest.approx(truth.flip(0)[:4].numpy(), rel=1e-3)
    trace = finding.quantities["trace"]
    assert abs(trace.value - float(truth.sum())) < 4 * (trace.high - trace.value) / 1.96
    negative = float(truth.clamp(max=0).abs().sum() / truth.abs().sum())
    assert finding.quantities["negative share"].value == pytest.approx(negative, abs=0.1)


def test_each_ritz_value_is_as_near_an_eigenvalue_as_its_bound_says():
    model, batches = network(torch.float64), data(torch.float64, 50)
    truth = torch.linalg.eigvalsh(dense(model, batches)).numpy()
    finding = read(model, batches, steps=12)
    near = np.abs(finding.arrays["eigenvalues"][:, None] - truth).min(1)
    assert (near <= finding.arrays["bounds"] + 1e-10).all()
    assert finding.arrays["weights"].sum() == pytest.approx(1.0)


def test_batch_size_does_not_matter():
    readings = [read(network(torch.float64), data(torch.float64, size), steps=8) for size in (7, 64)]
    for name, quantity in readings[0].quantities.items():
        assert readings[1].quantities[name].value == pytest.approx(quantity.value, rel=1e-6)


def test_three_term_recurrence_merges_copies():
    torch.manual_seed(2)
    turned, _ = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64))
    values = torch.cat([torch.tensor([100.0, 50.0]), torch.linspace(0.1, 1, 58)]).double()
    matrix = turned @ torch.diag(values) @ turned.T
    start = torch.ones(1, 60, dtype=torch.float64) / 60**0.5
    lanczos = Lanczos(start, 50, keep=0)
    assert not lanczos.whole
    while lanczos.vectors is not None:
        lanczos.advance(lanczos.vectors @ matrix)
    largest = lanczos.spectrum().largest
    assert largest[:2].numpy() == pytest.approx([100.0, 50.0], rel=1e-8)
    assert float(largest[2]) < 1.01


def test_vectors_in_half_precision_cost_no_accuracy(monkeypatch):
    monkeypatch.setattr(_lanczos, "EXACT", 0)
    torch.manual_seed(2)
    turned, _ = torch.linalg.qr(torch.randn(400, 400, dtype=torch.float64))
    values = torch.cat([torch.tensor([100.0, 50.0, -3.0]), torch.linspace(0.1, 1, 397)]).double()
    matrix = turned @ torch.diag(values) @ turned.T
    lanczos = Lanczos(torch.ones(1, 400) / 20, 40, keep=1 << 30)
    assert lanczos.whole
    while lanczos.vectors is not None:
        lanczos.advance(lanczos.vectors.double() @ matrix)
    spectrum = lanczos.spectrum()
    assert spectrum.largest[:2].numpy() == pytest.approx([100.0, 50.0], rel=1e-5)
    assert float(spectrum.largest[2]) < 1.01  # no copy of a converged value
    assert spectrum.least == pytest.approx(-3.0, rel=1e-4)
    found, vectors = lanczos.converged(1e-3)
    overlap = (vectors.double() @ turned[:, [0, 1, 2]]).abs().amax(0)
    assert len(found) >= 3 and bool((overlap > 1 - 1e-3).all())


def test_says_when_memory_is_short(monkeypatch):
    monkeypatch.setattr(hessian_spectrum, "KEEP", 1000)
    model, batches = network(torch.float64), data(torch.float64, 50)
    finding = read(model, batches, steps=30)
    assert finding.value == pytest.approx(float(torch.linalg.eigvalsh(dense(model, batches))[-1]), rel=1e-6)
    assert any("three-term" in caveat for caveat in finding.caveats)


def test_edges():
    flat = nn.Linear(3, 2)
    single = [(torch.randn(1, 3), torch.tensor([0]))]
    assert read(flat, single).status == "measured"
    one = nn.Linear(1, 1, bias=False)
    batches = [(torch.full((4, 1), 3.0), torch.randn(4, 1))]
    finding = read(one, batches)
    assert finding.value == pytest.approx(18.0)
    assert finding.quantities["trace"].value == pytest.approx(18.0)
    nothing = [(torch.zeros(4, 1), torch.randn(4, 1))]
    assert "flat" in read(one, nothing).reason
