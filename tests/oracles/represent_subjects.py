"""Small random networks for the tests of representations, and slow copies of their activations."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.finding import Finding
from microtome.instrument import Instrument
from microtome.passes import Run
from microtome.subject import Subject


class Net(nn.Module):
    """A convolution, a mean over positions, two linear layers."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.fc = nn.Linear(6, 9)
        self.head = nn.Linear(9, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        return self.head(torch.tanh(self.fc(x.mean((2, 3)))))


def network(dtype: torch.dtype = torch.float64, classes: int = 4) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net(classes).to(dtype).eval()


def data(dtype: torch.dtype = torch.float64, n: int = 101, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(n) % classes
    x = torch.randn(n, 1, 6, 6, generator=generator) + 0.7 * y[:, None, None, None] * torch.linspace(
        -1, 1, 36
    ).reshape(6, 6)
    return x.to(dtype), y


def batches(x: Tensor, y: Tensor, size: int = 64) -> list[tuple[Tensor, Tensor]]:
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


def subject(dtype: torch.dtype = torch.float64, size: int = 64, **options: Any) -> Subject:
    x, y = data(dtype, **options)
    return Subject(network(dtype), batches(x, y, size))


def activations(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Of the whole data, by the names the probe gives."""
    net, (x, _) = network(dtype), data(dtype)
    with torch.no_grad():
        relu = F.relu(net.conv(x))
        tanh = torch.tanh(net.fc(relu.mean((2, 3))))
        return {"relu": relu, "tanh": tanh, "head": net.head(tanh)}


def read(of: Subject, instrument: Instrument, rows: int | None = None) -> Finding:
    """Run one instrument, in slices of at most ``rows`` rows."""
    run = Run(of, {"one": instrument}, budget=1 << 30)
    run._limit = rows
    return run.execute()["one"]


def close(a: Finding, b: Finding, tolerance: float = 1e-6) -> None:
    """Both findings hold the same numbers."""
    assert a.status == b.status == "measured", (a.reason, b.reason)
    assert a.quantities.keys() == b.quantities.keys()
    for name, quantity in a.quantities.items():
        assert abs(quantity.value - b.quantities[name].value) <= tolerance * max(1, abs(quantity.value)), name
    for name, table in a.tables.items():
        for row, other in zip(table.rows, b.tables[name].rows, strict=True):
            for cell, twin in zip(row, other, strict=True):
                if isinstance(cell, float) and isinstance(twin, float):
                    assert abs(cell - twin) <= tolerance * max(1, abs(cell)), (name, row, other)
                else:
                    assert cell == twin
