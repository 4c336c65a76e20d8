"""A small random classifier whose answers are partly wrong and never certain."""

import torch
from torch import nn

from microtome.passes.run import run_instruments
from microtome.subject import Subject

CLASSES = 4


def network(dtype=torch.float32, scale=1.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, CLASSES)).to(dtype)
    with torch.no_grad():
        model[2].weight *= 4 * scale
    return model


def data(dtype=torch.float32, size=50, count=200):
    torch.manual_seed(1)
    x = torch.randn(count, 6, dtype=dtype)
    with torch.no_grad():
        y = network(dtype)(x).argmax(1)
    y = torch.where(torch.rand(count) < 0.3, torch.randint(0, CLASSES, (count,)), y)
    return [(x[i : i + size], y[i : i + size]) for i in range(0, count, size)]


def read(instrument, model, batches, **options):
    return run_instruments(Subject(model, batches, **options), {"i": instrument})["i"]


def outputs(model, batches):
    x, y = (torch.cat([b[i] for b in batches]) for i in range(2))
    with torch.no_grad():
        return model(x), y


def same(a, b, tolerance=1e-6):
    assert a.status == b.status == "measured", (a.reason, b.reason)
    assert a.quantities.keys() == b.quantities.keys()
    for name, quantity in a.quantities.items():
        assert abs(quantity.value - b.quantities[name].value) <= tolerance, name
