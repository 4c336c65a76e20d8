"""The counts against torch.fx, which traces a module in another way."""

import torch
from reliability_subjects import read
from torch import fx, nn

from microtome.instruments.architect.wiring import Wiring


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.left, self.right = (
            nn.Conv2d(1, 4, 3, padding=1),
            nn.Conv2d(4, 4, 1),
            nn.Conv2d(4, 4, 3, 1, 1),
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        y = torch.cat([self.left(x), torch.tanh(self.right(x))], 1)
        return self.head(y.amax((2, 3)))


def test_agrees_with_fx():
    model = Branches().eval()
    finding = read(Wiring(drawings=2), model, [(torch.rand(12, 1, 8, 8), torch.arange(12) % 3)])
    nodes = list(fx.symbolic_trace(model).graph.nodes)
    inner = [n for n in nodes if n.op not in ("placeholder", "output")]
    depth = {}
    for node in nodes:
        depth[node] = max((depth[a] for a in node.all_input_nodes), default=0) + (node in inner)
    value = {name: quantity.value for name, quantity in finding.quantities.items()}
    assert value["operations"] == len(inner)
    assert value["depth"] == max(depth.values())
    assert value["merges"] == sum(len(n.all_input_nodes) > 1 for n in inner) == 1
    assert value["learned maps"] == sum(n.op == "call_module" for n in inner)
    assert value["parameters"] == sum(p.numel() for p in model.parameters())
    assert "convolution" in finding.tables["kinds"].rows[0]
