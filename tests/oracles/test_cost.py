"""Costs counted by hand and by torch's own counter."""

import pytest
import torch
import torch.nn.functional as F
from reliability_subjects import read
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from microtome.instruments.compress.cost import Cost


class Mixed(nn.Module):
    """Module and functional layers, one weight used twice, a matrix product of its own."""

    def __init__(self, dtype):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 4, 3)
        self.twice = nn.Linear(16, 16)
        self.weight = nn.Parameter(torch.randn(16, 3))
        self.to(dtype)

    def forward(self, x):
        x = F.avg_pool2d(F.relu(self.conv(x)), 3).flatten(1)
        x = self.twice(self.twice(x))
        x = F.linear(x, self.twice.weight)
        return x @ self.weight


def batches(dtype, size):
    x = torch.rand(40, 1, 8, 8, dtype=dtype)
    return [(x[i : i + size], torch.arange(40)[i : i + size] % 3) for i in range(0, 40, size)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [7, 40])
def test_agrees_with_torch(dtype, size):
    model = Mixed(dtype)
    finding = read(Cost(), model, batches(dtype, size))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(batches(dtype, 40)[0][0])
    assert finding.value == counter.get_total_flops() / 40
    rows = finding.tables["layers"].rows
    assert sum(row[3] for row in rows) == finding.value
    assert sum(row[2] for row in rows) == sum(p.numel() for p in model.parameters())
    by_name = {row[0]: row for row in rows}
    assert by_name["conv"][3] == 2 * 4 * 9 * 36
    assert by_name["twice"][3] == by_name["twice#2"][3] == by_name["linear"][3] == 2 * 16 * 16
    assert by_name["twice#2"][2] == 0  # the same weights again
    assert by_name["elsewhere"][2:4] == (48, 2 * 48)
    width = torch.empty(0, dtype=dtype).element_size()
    assert finding.quantities["weights"].value == width * sum(p.numel() for p in model.parameters())
    assert finding.quantities["latency alone"].value > 0


def test_attention_is_counted():
    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.take, self.head = nn.Linear(8, 24), nn.Linear(8, 3)

        def forward(self, x):
            q, k, v = self.take(x).chunk(3, -1)
            return self.head(F.scaled_dot_product_attention(q, k, v).mean(1))

    finding = read(Cost(), Attend(), [(torch.rand(12, 5, 8), torch.arange(12) % 3)])
    expected = 2 * 5 * 8 * 24 + 2 * (2 * 5 * 5 * 8) + 2 * 8 * 3
    assert finding.value == expected


def test_an_example_without_targets():
    finding = read(Cost(), nn.Linear(4, 2), [torch.rand(1, 4)])
    assert finding.status == "measured"
    assert finding.value == 16
