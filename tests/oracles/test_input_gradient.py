"""Input gradients by hand, and insertion and deletion by masking one input after another."""

import numpy as np
import pytest
import torch
from torch import nn

from microtome.instruments.explain.input_gradient import InputGradient
from microtome.passes.run import run_instruments
from microtome.signals.variations import random_ranking
from microtome.subject import Subject

IDS = (1, 4, 6, 20, 33)


def network(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 3)).to(
        dtype
    )
    with torch.no_grad():
        model[3].weight *= 10  # so that the input matters
    return model


def data(dtype: torch.dtype, size: int):
    torch.manual_seed(1)
    x, y = torch.rand(40, 2, 6, 6, dtype=dtype), torch.randint(0, 3, (40,))
    return [(x[i : i + size], y[i : i + size]) for i in range(0, 40, size)]


def read(model, batches, **options):
    return run_instruments(Subject(model, batches), {"i": InputGradient(**options)})["i"]


def areas(model, x, order, klass):
    """Area under the probability as pixels are inserted, and deleted, in this order."""
    found = []
    for insert in (True, False):
        curve = []
        for j in range(17):
            first = order[: round(len(order) * j / 16)]
            mask = torch.zeros(36) if insert else torch.ones(36)
            mask[first] = 1.0 if insert else 0.0
            with torch.no_grad():
                out = model((x * mask.reshape(6, 6).to(x.dtype))[None])
            curve.append(float(out.softmax(1)[0, klass]))
        found.append(
            np.trapezoid(curve, dx=1 / 16) if hasattr(np, "trapezoid") else np.trapz(curve, dx=1 / 16)
        )
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_the_gradient_and_the_masks_by_hand(dtype):
    model, batches = network(dtype), data(dtype, 16)
    finding = read(model, batches, examples=IDS)
    x = torch.cat([b[0] for b in batches])[list(IDS)].requires_grad_()
    logits = model(x)
    classes = logits.argmax(1)
    slope = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), x)[0].abs().sum(1)
    assert finding.arrays["maps"] == pytest.approx(slope.numpy(), rel=1e-5)
    assert finding.arrays["classes"].tolist() == classes.tolist()
    chance = random_ranking(torch.tensor(IDS), 36, 0)
    gaps = []
    for i in range(len(IDS)):
        order = slope[i].flatten().argsort(descending=True)
        own = areas(model, x[i].detach(), order, int(classes[i]))
        other = areas(model, x[i].detach(), chance[i].argsort(), int(classes[i]))
        assert finding.arrays["areas"][0, i] == pytest.approx(own, rel=1e-5)
        assert finding.arrays["areas"][2, i] == pytest.approx(other, rel=1e-5)
        gaps.append(own[0] - own[1] - other[0] + other[1])
    with torch.no_grad():
        ends = [model(v).softmax(1).gather(1, classes[:, None]).mean() for v in (x, torch.zeros_like(x))]
    assert finding.value == pytest.approx(np.mean(gaps) / float(ends[0] - ends[1]), rel=1e-4)
    assert finding.arrays["samples"].mean() == pytest.approx(finding.value)


def test_batch_size_does_not_matter():
    readings = [read(network(torch.float64), data(torch.float64, size)) for size in (7, 64)]
    for name, quantity in readings[0].quantities.items():
        assert readings[1].quantities[name].value == pytest.approx(quantity.value, rel=1e-6)


def test_one_example_has_no_interval():
    finding = read(network(torch.float32), data(torch.float32, 16), examples=(3,))
    assert finding.status == "measured"
    assert finding.interval is None


def test_refuses_what_it_cannot_judge():
    class Deaf(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.tensor([1.0, 0.0]))

        def forward(self, x):
            return 0.0 * x.flatten(1)[:, :2] + self.bias

    batches = [(torch.rand(20, 2, 6, 6), torch.arange(20) % 2)]
    assert "baseline" in read(Deaf(), batches).reason
    assert "does not exist" in read(network(torch.float32), data(torch.float32, 16), examples=(99,)).reason


@pytest.mark.parametrize("outputs", [1, 3])
def test_regression_is_judged_by_nearness(outputs):
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, outputs))
    finding = read(model, [(torch.randn(30, 10), torch.randn(30, outputs))])
    assert finding.status == "measured"
    assert any("nearness" in caveat for caveat in finding.caveats)


def test_tokens():
    torch.manual_seed(2)

    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(11, 6)
            self.rnn = nn.GRU(6, 8, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, tokens):
            return self.head(self.rnn(self.embed(tokens))[0][:, -1])

    finding = read(Tagger(), [(torch.randint(0, 11, (20, 7)), torch.randint(0, 3, (20,)))])
    assert finding.status == "measured"
    assert finding.arrays["maps"].shape == (16, 7)


def test_the_room_shares_its_rounds():
    """The class, the answer to nothing and the random order are computed once for all four."""
    from microtome.passes import Run
    from microtome.registry import instrument

    def forwards(*names):
        subject = Subject(network(torch.float64), data(torch.float64, 40))
        run = Run(subject, {n: instrument(n).configured({}) for n in names}, budget=1 << 29)
        run.evaluator.trace = trace = []
        found = run.execute()
        assert all(f.status == "measured" and f.rounds == 3 for f in found.values())
        return sum(rows for kind, rows, _ in trace if kind == "forward")

    methods = ("input_gradient", "integrated_gradients", "smoothgrad", "xgrad_cam")
    names = [f"explain/{method}" for method in methods]
    apart = sum(forwards(name) for name in names)
    shared = 3 * 16 * (30 + 2)  # for three of the four: the random order, the answer to all and to nothing
    assert forwards(*names) <= apart - shared
