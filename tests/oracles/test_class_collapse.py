"""Collapse measures against their definitions, class by class and pair by pair."""

import pytest
import torch
from represent_subjects import activations, batches, close, data, network, read, subject

from microtome.instruments.represent.class_collapse import ClassCollapse
from microtome.subject import Subject


def slow(h, y, weight, predicted):
    """Papyan, Han & Donoho 2020, for balanced classes."""
    k = int(y.max()) + 1
    means = torch.stack([h[y == c].mean(0) for c in range(k)])
    centred = means - means.mean(0)
    within = sum((h[y == c] - means[c]).T @ (h[y == c] - means[c]) for c in range(k)) / len(h)
    length = centred.norm(dim=1)
    cosines = torch.stack(
        [centred[i] @ centred[j] / (length[i] * length[j]) for i in range(k) for j in range(k) if i != j]
    )
    nearest = torch.stack([(h - m).norm(dim=1) for m in means]).argmin(0)
    spread = [(h[y == c] - means[c]).square().sum(1).mean() for c in range(k)]
    pairs = [
        (spread[i] + spread[j]) / (2 * (means[i] - means[j]).square().sum())
        for i in range(k)
        for j in range(i)
    ]
    return {
        "NC1": torch.trace(within @ torch.linalg.pinv(centred.T @ centred / k, rtol=1e-10)) / k,
        "NC2 equal length": length.std(correction=0) / length.mean(),
        "NC2 equal angle": cosines.std(correction=0),
        "NC2 simplex": (cosines + 1 / (k - 1)).abs().mean(),
        "NC3": (weight / weight.norm() - centred / centred.norm()).square().sum(),
        "NC4": (nearest != predicted).double().mean(),
        "CDNV": torch.stack(pairs).mean(),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_the_definitions(dtype):
    finding, (_, y) = read(subject(dtype, n=100), ClassCollapse()), data(dtype, n=100)
    h, net = activations(dtype)["tanh"][:100].double(), network(dtype)
    predicted = activations(dtype)["head"][:100].argmax(1)
    for name, value in slow(h, y, net.head.weight.detach().double(), predicted).items():
        assert finding.quantities[name].value == pytest.approx(float(value), rel=1e-4), name


def test_slices_do_not_matter():
    close(read(subject(), ClassCollapse()), read(subject(size=7), ClassCollapse(), 7))


def test_one_class_regression_and_a_dead_layer_are_refused():
    x, y = data()
    assert "one class" in read(Subject(network(), batches(x, 0 * y)), ClassCollapse()).reason
    assert (
        read(Subject(network(), batches(x, torch.randn(101, 4).double())), ClassCollapse()).status
        == "refused"
    )
    net = network()
    with torch.no_grad():
        net.fc.weight.zero_()
    assert "equal" in read(Subject(net, batches(x, y)), ClassCollapse()).reason


def test_two_classes_with_one_output():
    x, y = data(classes=2)
    net = network(classes=1)
    finding = read(Subject(net, batches(x, y)), ClassCollapse())
    assert finding.quantities["NC2 simplex"].value == pytest.approx(
        0, abs=1e-9
    )  # two centred means always oppose
    assert finding.quantities["NC2 simplex, classifier"].value == pytest.approx(0, abs=1e-9)


class LastPosition(torch.nn.Module):
    """Reads one position of a sequence, not their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = torch.nn.Linear(5, 6), torch.nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.mix(x))[:, -1])


def test_a_classifier_that_reads_something_else_is_noticed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, x = LastPosition(), torch.randn(40, 7, 5)
    assert "does not read" in read(Subject(net, batches(x, torch.arange(40) % 3)), ClassCollapse()).reason
