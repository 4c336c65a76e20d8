"""Rounding weight by weight, and its cost by running a rounded copy."""

import copy

import pytest
import torch
import torch.nn.functional as F
from reliability_subjects import data, network, read, same
from torch import nn

from microtome.instruments.compress.quantization_sensitivity import QuantizationSensitivity
from microtome.signals.parameters import Rounded, rounded
from microtome.subject import Subject

BITS = (8, 4, 3, 2)


def slowly(weight, bits, channel=0):
    """Each weight by itself, in Python's own arithmetic."""
    made, levels = weight.clone(), 2 ** (bits - 1) - 1
    for i in range(weight.shape[channel]):
        row = made.select(channel, i)
        step = max(abs(v) for v in row.flatten().tolist()) / levels
        row.copy_(
            torch.tensor([round(v / step) * step if step else 0.0 for v in row.flatten().tolist()]).view_as(
                row
            )
        )
    return made


def copied(model, names, bits):
    model = copy.deepcopy(model)
    for name in names:
        tensor = dict(model.named_parameters())[name].data
        tensor.copy_(slowly(tensor, bits))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_a_rounded_copy(dtype):
    model, batches = network(dtype), data(dtype)
    finding = read(QuantizationSensitivity(bits=BITS), model, batches)
    x, y = (torch.cat([b[i] for b in batches]) for i in range(2))

    def accuracy(of):
        with torch.no_grad():
            return float((of(x).argmax(1) == y).double().mean())

    assert finding.quantities["unrounded accuracy"].value == pytest.approx(accuracy(model))
    sets = {"0.weight": ["0.weight"], "2.weight": ["2.weight"], "all together": ["0.weight", "2.weight"]}
    rows = finding.tables["tensors"].rows
    assert {row[0] for row in rows} == set(sets)
    for name, _, fewest, *drops in rows:
        for bits, drop in zip(BITS, drops, strict=True):
            assert drop == pytest.approx(
                accuracy(model) - accuracy(copied(model, sets[name], bits)), abs=1e-9
            )
        borne = [b for i, b in enumerate(BITS) if all(d <= 0.01 + 1e-12 for d in drops[: i + 1])]
        assert fewest == min(borne, default=8 * model[0].weight.element_size())


def test_regression_reads_the_loss():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    x = torch.randn(30, 4)
    y = model(x).detach() + 0.1
    finding = read(QuantizationSensitivity(), model, [(x, y)])
    with torch.no_grad():
        added = F.mse_loss(copied(model, ["0.weight", "2.weight"], 2)(x), y) - F.mse_loss(model(x), y)
    assert finding.quantities["loss added at 2 bits"].value == pytest.approx(float(added), rel=1e-4)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_each_channel_has_its_own_step(bits):
    torch.manual_seed(0)
    weight = torch.randn(5, 3, 2, 2) * torch.logspace(-3, 3, 5)[:, None, None, None]
    weight[2] = 0
    made = rounded(weight, bits)
    torch.testing.assert_close(made, slowly(weight, bits), rtol=1e-6, atol=0)
    levels = 2 ** (bits - 1) - 1
    for row, old in zip(made, weight, strict=True):
        assert len(row.unique()) <= 2 * levels + 1
        assert float((row - old).abs().max()) <= float(old.abs().max()) / levels / 2 * (1 + 1e-6)
        assert float(row.abs().max()) == pytest.approx(float(old.abs().max()), rel=1e-6)


def test_outputs_of_a_transposed_convolution_are_its_second_dimension():
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(2, 3, 2), nn.Flatten(), nn.Linear(27, 2))
    subject = Subject(model, [(torch.randn(4, 2, 2, 2), torch.tensor([0, 1, 0, 1]))])
    made = Rounded(("0.weight", "2.weight"), 3).change(subject, dict(model.named_parameters()))
    torch.testing.assert_close(made["0.weight"], slowly(model[0].weight.detach(), 3, 1))
    torch.testing.assert_close(made["2.weight"], slowly(model[2].weight.detach(), 3, 0))


def test_the_largest_tensors_first_and_bits_that_make_sense():
    model, batches = network(torch.float32), data(torch.float32)
    finding = read(QuantizationSensitivity(bits=BITS, worlds=8), model, batches)
    alone = [row[0] for row in finding.tables["tensors"].rows if row[0] != "all together"]
    assert alone == [max(("0.weight", "2.weight"), key=lambda n: dict(model.named_parameters())[n].numel())]
    assert "only the 1 largest of 2" in finding.caveats[0]
    for bits in ((1,), (17,), ()):
        refused = read(QuantizationSensitivity(bits=bits), model, batches)
        assert refused.status == "refused" and "2 to 16 bits" in refused.reason


def test_the_seed_and_the_cut_do_not_matter_beyond_the_rows():
    model, batches = network(torch.float32), data(torch.float32)
    joined = [tuple(torch.cat([b[i] for b in batches]) for i in range(2))]
    one, two = (read(QuantizationSensitivity(bits=BITS), model, d) for d in (batches, joined))
    same(one, two)
