"""Excitation pullbacks, guided backprop and DeconvNet, by hand on one layer and by their limits."""

import numpy as np
import pytest
import torch
from torch import nn

from microtome.instruments.explain.deconvnet import DeconvNet
from microtome.instruments.explain.excitation_pullbacks import ExcitationPullbacks
from microtome.instruments.explain.guided_backprop import GuidedBackprop
from microtome.instruments.explain.input_gradient import InputGradient
from microtome.passes.run import run_instruments
from microtome.subject import Subject


class Functional(nn.Module):
    """ReLU as a function, where hooks on modules see nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.relu(self.first(x)))


def subject(dtype=torch.float64):
    torch.manual_seed(0)
    x = torch.rand(30, 6, dtype=dtype)
    return Subject(
        Functional().to(dtype), [(x[:15], torch.zeros(15).long()), (x[15:], torch.zeros(15).long())]
    )


def read(instrument, given=None):
    return run_instruments(given or subject(), {"i": instrument})["i"]


def by_hand(finding, gate):
    given = subject()
    x = torch.cat([b[0] for b in given.data])[finding.arrays["rows"]]
    first, head = given.model.first, given.model.head
    with torch.no_grad():
        before = first(x)
        signal = head.weight[torch.as_tensor(finding.arrays["classes"])]
        return (gate(before, signal) @ first.weight).abs().numpy()


@pytest.mark.parametrize(
    ("instrument", "gate"),
    [
        (GuidedBackprop(), lambda a, g: g.clamp(min=0) * (a > 0)),
        (DeconvNet(), lambda a, g: g.clamp(min=0)),
        (ExcitationPullbacks(temperature=0.5), lambda a, g: g * torch.sigmoid(a / 0.5)),
    ],
)
def test_agrees_with_the_gate_by_hand(instrument, gate):
    finding = read(instrument)
    assert finding.arrays["maps"] == pytest.approx(by_hand(finding, gate), rel=1e-5)
    assert -1 <= finding.quantities["likeness to the gradient"].value <= 1


def test_a_cold_pullback_is_the_gradient():
    cold, plain = read(ExcitationPullbacks(temperature=0.0)), read(InputGradient())
    assert cold.arrays["maps"] == pytest.approx(plain.arrays["maps"])
    assert cold.quantities["likeness to the gradient"].value == pytest.approx(1)
    assert cold.value == pytest.approx(plain.value)
    nearly = read(ExcitationPullbacks(temperature=1e-4)).arrays["maps"]
    assert np.abs(nearly - plain.arrays["maps"]).max() < 1e-3


def test_a_hot_pullback_takes_the_network_as_linear():
    hot = read(ExcitationPullbacks(temperature=1e6))
    assert hot.arrays["maps"] == pytest.approx(by_hand(hot, lambda a, g: g / 2), rel=1e-4)


def test_refuses_without_a_relu():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3))
    given = Subject(model, [(torch.rand(20, 6), torch.zeros(20).long())])
    for instrument in (GuidedBackprop(), DeconvNet(), ExcitationPullbacks()):
        assert "no ReLU" in read(instrument, given).reason
    assert "temperature" in read(ExcitationPullbacks(temperature=-1.0)).reason


def test_the_control_speaks():
    """Beside the map stands the one of a network with randomised weights, and a grade for the difference."""
    finding = read(GuidedBackprop())
    assert {"gain of an untrained network's map", "likeness to an untrained network's map"} <= set(
        finding.quantities
    )
    assert finding.threshold is not None
