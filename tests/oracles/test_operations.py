"""The program's costs against torch's counter and against tensors counted one by one."""

import pytest
import torch
from reliability_subjects import read
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from microtome.instruments.architect.operations import Operations


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().amax((2, 3)))


@pytest.mark.parametrize("rows", [4, 20])
def test_agrees_with_torch(rows):
    model = Mixed().eval()
    x = torch.rand(40, 1, 8, 8)
    finding = read(Operations(examples=rows, repeats=1), model, [(x, torch.arange(40) % 3)])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    q = finding.quantities
    assert q["operations"].value == pytest.approx(counter.get_total_flops() / 40)
    assert q["other operations"].value == 4 * 36 + 4 * 36 + 4  # batch-norm, ReLU, largest of the positions
    weights = 36 + 4 + 16 + 15  # once each a call
    entries = 64 + 144 + 2 * 144 + 2 * 144 + 144 + 4 + 4 + 3
    assert q["bytes"].value == pytest.approx(4 * (entries + weights / rows))
    table = finding.tables["operations"].rows
    assert [line[1] for line in table] == ["convolution", "batch_norm", "relu", "amax", "linear"]
    assert sum(line[6] for line in table) == pytest.approx(q["energy"].value)
    assert q["time"].value > 0
