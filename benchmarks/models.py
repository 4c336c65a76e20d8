"""The networks the benchmarks run on, trained for a moment on generated classes; deterministic."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.nn.digits_cnn import DigitsCNN

STEPS = 20

FIRST = (
    "compress/cost",
    "compress/magnitude_pruning",
    "dynamics/gradient_noise",
    "dynamics/hessian_spectrum",
    "dynamics/loss_landscape",
    "explain/input_gradient",
    "explain/integrated_gradients",
    "explain/smoothgrad",
    "explain/xgrad_cam",
    "reliability/accuracy",
    "reliability/calibration",
    "reliability/misclassification_likelihood_matrix",
    "reliability/rics_one_pixel_translation",
    "reliability/risk_coverage",
    "represent/activation_statistics",
    "represent/class_collapse",
    "represent/feature_rank",
    "represent/linear_cka",
    "represent/linear_probes",
    "represent/neural_codes_hash_encoders",
    "represent/vci",
    "security/adversarial_accuracy",
)
"""The first set of instruments, which figures are compared on."""


class _Block(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.short: nn.Module = nn.Identity()
        if stride != 1 or inside != outside:
            self.short = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.short(x))


class ResNet18(nn.Module):
    """ResNet-18 (11.2 million parameters), as He et al. 2015 have it."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        widths, layers, inside = (64, 128, 256, 512), [], 64
        for i, width in enumerate(widths):
            layers += [_Block(inside, width, 1 if i == 0 else 2), _Block(width, width, 1)]
            inside = width
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[n, 3, 64, 64] -> [n, classes]."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Generated:
    """``count`` examples made batch by batch from a seed, so that memory holds one batch whatever the count.

    Ten classes: each has a template, an example is 0.6 x template + 0.4 x noise, within 0..1.
    """

    def __init__(self, shape: tuple[int, ...], count: int, batch: int = 64) -> None:
        self.shape, self.count, self.batch = shape, count, batch
        self.templates = torch.rand(10, *shape, generator=torch.Generator().manual_seed(7))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, self.count, self.batch):
            generator = torch.Generator().manual_seed(start)
            n = min(self.batch, self.count - start)
            y = torch.randint(0, 10, (n,), generator=generator)
            yield 0.6 * self.templates[y] + 0.4 * torch.rand(n, *self.shape, generator=generator), y


def build(name: str, count: int) -> tuple[nn.Module, Generated]:
    """("cnn" or "resnet", number of examples) -> model and data."""
    makers: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
        "cnn": (DigitsCNN, (1, 8, 8)),
        "resnet": (ResNet18, (3, 64, 64)),
    }
    make, shape = makers[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
        for x, y in Generated(shape, 64 * STEPS):
            optimiser.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimiser.step()
        model.zero_grad(set_to_none=True)
    return model.eval(), Generated(shape, count)
