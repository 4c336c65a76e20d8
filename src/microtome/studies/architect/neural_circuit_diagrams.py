"""A diagram corresponds to code: it is made into a module again and its cost is read off, forward and backward."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from microtome.figures import scatter
from microtome.interpret import capture
from microtome.interpret.cost import backward_flops, costs, total
from microtome.interpret.regenerate import regenerate
from microtome.interpret.terms import Copy, Einsum, Normalise, Parallel, Pointwise, Rename, Term
from microtome.interpret.wiring import wiring
from microtome.nn import families
from microtome.study import Measured, Study, rows_of

Made = tuple[nn.Module, tuple[Tensor, ...]]


def _architectures(batch: int, size: int) -> dict[str, Callable[[], Made]]:
    image = (batch, 3, size, size)
    return {
        "mlp": lambda: (families.mlp(256, 512), (torch.randn(batch, 256),)),
        "convolutions": lambda: (families.Varied(32), (torch.randn(batch, 4, size, size),)),
        "resnet": lambda: (families.ResNet(32), (torch.randn(image),)),
        "unet": lambda: (families.UNet(16), (torch.randn(image),)),
        "vit": lambda: (families.ViT(64, size), (torch.randn(image),)),
        "gpt": lambda: (families.GPT(64), (torch.randint(0, 50, (batch, 32)),)),
    }


def _terms() -> dict[str, Term]:
    scores = Einsum("n a t k, n a s k -> n a t s") >> Normalise("n a t s")
    return {
        "dense": Einsum("n i -> n h", weight="h i")
        >> Pointwise("n h", "gelu")
        >> Einsum("n h -> n o", weight="o h"),
        "attention": Copy("n t i", 3)
        >> Parallel(Copy("n t i", 1), Rename("n t i", "n s i"), Rename("n t i", "n s i"))
        >> Parallel(
            Einsum("n t i -> n a t k", weight="a k i"),
            Einsum("n s i -> n a s k", weight="a k i"),
            Einsum("n s i -> n a s v", weight="a v i"),
        )
        >> Parallel(scores, Copy("n a s v", 1))
        >> Einsum("n a t s, n a s v -> n a t v")
        >> Einsum("n a t v -> n t i", weight="i a v"),
        "convolution": Einsum("n i x y p q -> n o x y", weight="o i p q") >> Pointwise("n o x y", "relu"),
    }


SIZES = {
    "n": 4,
    "i": 12,
    "h": 20,
    "o": 5,
    "a": 3,
    "t": 7,
    "s": 7,
    "k": 6,
    "v": 8,
    "x": 6,
    "y": 5,
    "p": 3,
    "q": 3,
}


def measure(smoke: bool) -> Measured:
    """Six architectures and three terms: differences, products, and the ratio of backward to forward."""
    repeats = 1 if smoke else 40
    numbers: dict[str, float] = {}
    differences, errors, ratios, times = [], [], [], []
    architectures = _architectures(4 if smoke else 32, 16 if smoke else 32)
    for name in ("mlp", "convolutions", "gpt") if smoke else architectures:
        torch.manual_seed(0)
        model, args = architectures[name]()
        model.eval()
        graph = capture(model, args)
        again = regenerate(graph)
        with torch.no_grad():
            difference = float((again(*args) - model(*args)).abs().max())
        found = costs(graph, args)
        forward, backward = total(found).flops, backward_flops(graph, found)
        real, unaided = _counted(_apart(model), args), _counted(model, args)
        numbers[f"{name}: difference"] = difference
        numbers[f"{name}: multiply-adds"] = forward / 2
        numbers[f"{name}: backward to forward, predicted"] = backward / forward
        numbers[f"{name}: backward to forward, counted"] = real[1] / real[0]
        numbers[f"{name}: backward to forward, counted with groups whole"] = unaided[1] / unaided[0]
        numbers[f"{name}: backward to forward, time"] = taken = _timed(model, args, repeats)
        numbers[f"{name}: letters in the diagram"] = len(wiring(graph))
        differences.append(difference)
        errors.append(abs(forward / real[0] - 1))
        ratios.append(abs(backward / real[1] - 1))
        times.append(abs(taken / (backward / forward) - 1))
    for name, term in _terms().items():
        module = term.module(SIZES)
        values = [torch.randn([SIZES[axis] for axis in axes]) for axes in term.inputs]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(*values)
        numbers[f"term {name}: multiply-adds"] = term.products(SIZES)
        errors.append(abs(2 * term.products(SIZES) / counter.get_total_flops() - 1))
    numbers |= {
        "largest difference": max(differences),
        "largest error of multiply-adds": max(errors),
        "largest error of backward multiply-adds": max(ratios),
        "median error of the time ratio": statistics.median(times),
        "largest error of the time ratio": max(times),
    }
    exact = max(differences) < 1e-6 and max(errors) == 0 and max(ratios) == 0
    timed = max(times) < 0.25
    return Measured(
        numbers=numbers,
        verdict="inconclusive"
        if smoke
        else "reproduced"
        if exact and timed
        else "partly"
        if exact
        else "not reproduced",
        decided_by=f"regenerated modules differ by at most {max(differences):.1e} (threshold 1e-6); multiply-adds "
        f"forward and backward are off by {max(errors):.1%} and {max(ratios):.1%} (threshold 0%; grouped convolutions "
        "counted group by group, for torch counts their backward as dense); the predicted ratio of backward to forward "
        f"misses that of measured time by {statistics.median(times):.0%} in the median and {max(times):.0%} at most "
        "(threshold 25%)",
        figure=scatter(
            "Cost of a backward over that of a forward",
            [
                row | {"time": numbers[f"{row['network']}: backward to forward, time"]}
                for row in rows_of(numbers, "{network}: backward to forward, predicted")
            ],
            x="value",
            y="time",
            label="network",
            x_title="predicted from the diagram",
            y_title="measured time",
            diagonal=True,
        ),
    )


class _Groups(nn.Module):
    """A grouped convolution as one convolution a group: torch counts the weights' gradient of a whole one as dense."""

    def __init__(self, whole: nn.Conv2d) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, x: Tensor) -> Tensor:
        """As the whole."""
        of = self.whole
        biases: Any = [None] * of.groups if of.bias is None else of.bias.chunk(of.groups)
        parts = zip(x.chunk(of.groups, 1), of.weight.chunk(of.groups), biases, strict=True)
        options: Any = (of.stride, of.padding, of.dilation)
        return torch.cat(
            [nn.functional.conv2d(part, weight, bias, *options) for part, weight, bias in parts], 1
        )


def _apart(model: nn.Module) -> nn.Module:
    """A copy whose grouped convolutions are taken apart."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and child.groups > 1:
                setattr(parent, name, _Groups(child))
    return model


def _counted(model: nn.Module, args: tuple[Any, ...]) -> tuple[int, int]:
    """Torch's own count of a forward and of a backward to the parameters."""
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as counter:
            result = model(*args)
        forward = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            result.square().sum().backward()
    model.zero_grad(set_to_none=True)
    return forward, counter.get_total_flops()


def _timed(model: nn.Module, args: tuple[Any, ...], repeats: int) -> float:
    """Median seconds of a backward over those of a forward."""
    forward, backward = [], []
    with sdpa_kernel(SDPBackend.MATH):
        for turn in range(repeats + 1):
            first = time.perf_counter()
            result = model(*args).square().sum()
            middle = time.perf_counter()
            result.backward()
            if turn or repeats == 1:
                forward.append(middle - first)
                backward.append(time.perf_counter() - middle)
            model.zero_grad(set_to_none=True)
    return statistics.median(backward) / statistics.median(forward)


STUDY = Study(
    paper="neural-circuit-diagrams",
    claim="A diagram of axes, maps and rearrangements corresponds to code: a module made from it computes the same "
    "(below 1e-6 on six architectures), multiply-adds read off it are those a counter sees, and so is the cost of the "
    "backward pass; the predicted ratio of backward to forward holds for measured time within 25%.",
    null="The rebuilt module computes something else, or the counts differ from a counter's.",
    control="The counts are compared with torch's own counter, the module with the original on the same "
    "inputs.",
    threshold="Outputs within 1e-6 on six architectures, counts equal; measured ratio of backward to "
    "forward within 25 % of the predicted.",
    measure=measure,
)
