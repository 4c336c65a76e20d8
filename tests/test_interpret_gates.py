"""Gradients through changed ReLUs, and the parts of a score that inputs and biases hold."""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import interpret_zoo as zoo
import pytest
import torch
import torch.nn.functional as F
from peer_stubs import without_torchvision
from torch import Tensor, nn

from microtome.interpret import capture, forward, sources
from microtome.interpret.bias_gradients import decomposed, saliency
from microtome.interpret.gates import (
    DeconvNet,
    ExcitationPullback,
    Gradients,
    GuidedBackprop,
    pulled_back,
)


def _slope(outputs: Tensor) -> Tensor:
    return torch.linspace(-1, 2, outputs.numel(), dtype=outputs.dtype).reshape(outputs.shape)


def _autograd(graph: Any, args: Any) -> list[Tensor]:
    with torch.no_grad():
        plain = forward(graph, graph.bind(args), keep=set(sources(graph)))
    leaves = [plain.values[node].clone().requires_grad_() for node in sources(graph)]
    swapped = {n: (lambda _, x=x: x) for n, x in zip(sources(graph), leaves, strict=True)}
    out = forward(graph, graph.bind(args), replace=swapped).values[graph.output]
    return list(torch.autograd.grad((out * _slope(out.detach())).sum(), leaves))


@pytest.mark.parametrize("name", zoo.MODELS)
def test_gradients_are_those_of_autograd(name):
    model, args = zoo.build(name, torch.float64)
    graph = capture(model, args)
    expected = _autograd(graph, args)
    domains = (Gradients(), ExcitationPullback(0.0))
    for domain in domains:
        found = pulled_back(graph, args, _slope, domain)
        for node, value in zip(sources(graph), expected, strict=True):
            torch.testing.assert_close(found[node], value, rtol=1e-9, atol=1e-12)
    found, _ = decomposed(graph, args, _slope)
    for node, value in zip(sources(graph), expected, strict=True):
        torch.testing.assert_close(found.slope[node], value, rtol=1e-9, atol=1e-12)


class Gate(torch.autograd.Function):
    """A ReLU whose backward is given."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: str, temperature: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.kind, ctx.temperature = kind, temperature
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (x,), grad = ctx.saved_tensors, grads[0]
        if ctx.kind == "guided":
            return grad.clamp(min=0) * (x > 0), None, None
        if ctx.kind == "deconvnet":
            return grad.clamp(min=0), None, None
        return grad * torch.sigmoid(x / ctx.temperature), None, None


class Gated(nn.Module):
    """Functional ReLUs, a reused ReLU module, a residual sum, pools; the backward of its ReLUs can be given."""

    def __init__(self, kind: str = "") -> None:
        super().__init__()
        self.kind = kind
        self.conv, self.again = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.head, self.act = nn.BatchNorm2d(4), nn.Linear(4, 3), nn.ReLU()

    def relu(self, x: Tensor) -> Tensor:
        return Gate.apply(x, self.kind, 0.7) if self.kind else self.act(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.conv(x)))
        x = self.relu(x + self.again(x))
        x = F.max_pool2d(self.relu(self.again(x)) if self.kind else F.relu(self.again(x)), 2)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("kind", "domain"),
    [("guided", GuidedBackprop()), ("deconvnet", DeconvNet()), ("soft", ExcitationPullback(0.7))],
)
def test_gates_by_autograd(kind, domain):
    torch.manual_seed(0)
    model, by_hand = Gated().double(), Gated(kind).double()
    by_hand.load_state_dict(model.state_dict())
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    found = next(iter(pulled_back(capture(model, (x,)), (x,), _slope, domain).values()))
    leaf = x.clone().requires_grad_()
    out = by_hand.eval()(leaf)
    expected = torch.autograd.grad((out * _slope(out.detach())).sum(), leaf)[0]
    torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["GuidedBackprop", "DeconvNet"])
def test_equal_to_peers_where_every_relu_is_a_module(name):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )
    model, x = model.double(), torch.randn(4, 1, 8, 8, dtype=torch.float64)
    slope = F.one_hot(torch.tensor([0, 1, 2, 0]), 3).double()
    domain = {"GuidedBackprop": GuidedBackprop(), "DeconvNet": DeconvNet()}[name]
    found = next(iter(pulled_back(capture(model, (x,)), (x,), slope, domain).values()))
    compared = 0
    if importlib.util.find_spec("captum") is not None:
        import captum.attr

        peer = {"GuidedBackprop": "GuidedBackprop", "DeconvNet": "Deconvolution"}[name]
        theirs = getattr(captum.attr, peer)(model).attribute(
            x.clone().requires_grad_(), target=slope.argmax(1)
        )
        torch.testing.assert_close(found, theirs.detach())
        compared += 1
    if importlib.util.find_spec("zennit") is not None:
        with without_torchvision(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import zennit.attribution
            import zennit.composites
        with zennit.attribution.Gradient(model, getattr(zennit.composites, name)()) as attributor:
            torch.testing.assert_close(found, attributor(x, slope)[1])
        compared += 1
    if not compared:
        pytest.skip("neither captum nor zennit is installed")


class Bent(nn.Module):
    """Piecewise linear in every way there is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(9, 3)
        self.shift, self.token = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(20 * self.first(x)) - self.shift
        x = F.leaky_relu(F.hardtanh(self.second(x)) + 0.3, 0.2)
        x = torch.maximum(x, 0.5 - x) + torch.minimum(x, self.shift) + x.clamp(-0.2, 0.4)
        x = torch.where(x > 0.1, x, self.shift)
        return self.head(torch.cat([x, self.token.expand(x.shape[0], -1)], 1))


class Convolved(nn.Module):
    """Everything FullGrad counts in a picture: biases of convolutions, batch-norm, residual sums, pools."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.again, self.head = nn.Conv2d(4, 4, 3, padding=1, stride=2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        x = F.relu(self.again(x + self.norm(self.conv(x[:, :2]))))
        return self.head(F.max_pool2d(x, 2).mean((2, 3)))


@pytest.mark.parametrize(
    "make", [lambda: (Bent(), (5,)), lambda: (Convolved(), (2, 8, 8)), lambda: (zoo.mlp(), (5,))]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_input_and_biases_are_the_whole_score(make, dtype, tolerance):
    torch.manual_seed(0)
    model, shape = make()
    model = zoo._settle(model, torch.randn(32, *shape)).to(dtype)
    x = torch.randn(6, *shape, dtype=dtype)
    graph = capture(model, (x,))
    with torch.no_grad():
        out = model(x)
    found, _ = decomposed(graph, (x,), _slope)
    score = (out * _slope(out)).double().sum(1)
    assert float((found.total - score).abs().max() / score.abs().mean()) < tolerance
    # One at a time gives the same parts.
    one, _ = decomposed(capture(model, (x[:1],)), (x[:1],), _slope(out)[:1])
    torch.testing.assert_close(one.biases, found.biases[:1], rtol=1e-4, atol=1e-5)


def test_what_smooth_networks_lack_is_their_implicit_bias():
    """For sum_j v_j tanh(w_j x + b_j) the implicit bias of a unit is tanh(z) - z tanh'(z)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    with torch.no_grad():
        z = model[0](x)
        implicit = (z.tanh() - z * (1 - z.tanh() ** 2)) @ model[2].weight.T
        out = model(x)
    found, _ = decomposed(capture(model, (x,)), (x,), _slope)
    missing = (out * _slope(out)).sum(1) - found.total
    torch.testing.assert_close(missing, (implicit * _slope(out)).sum(1))


def test_examples_are_told_apart_where_time_comes_first():
    model, (x,) = zoo.build("lstm", torch.float64)
    whole, _ = decomposed(capture(model, (x,)), (x,), torch.ones_like)
    for i in range(3):
        one, _ = decomposed(capture(model, (x[i : i + 1],)), (x[i : i + 1],), torch.ones_like)
        torch.testing.assert_close(one.biases, whole.biases[i : i + 1])


def test_the_map_is_that_of_the_paper():
    torch.manual_seed(0)
    model = zoo._settle(Convolved(), torch.randn(32, 2, 8, 8)).double()
    x = torch.rand(3, 2, 8, 8, dtype=torch.float64)
    found, places = decomposed(capture(model, (x,)), (x,), _slope)
    assert len([part for part in found.maps.values() if part.dim() == 4]) == 5
    expected = torch.zeros(3, 8, 8, dtype=torch.float64)
    for part in [x * next(iter(found.slope.values())), *(p for p in found.maps.values() if p.dim() == 4)]:
        for i in range(3):
            size = part[i].abs()
            size = (size - size.min()) / (size.max() - size.min() + 1e-6)
            expected[i] += F.interpolate(size[None], size=(8, 8), mode="bilinear", align_corners=True)[0].sum(
                0
            )
    torch.testing.assert_close(saliency(found, places, (8, 8)), expected)


def test_parts_of_batch_norm_are_beta_less_the_scaled_mean():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3)
    model = zoo._settle(nn.Sequential(norm, nn.ReLU(), nn.Flatten()), torch.randn(32, 3, 4, 4)).double()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2), norm.bias.normal_()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    found, _ = decomposed(capture(model, (x,)), (x,), torch.ones_like)
    shift = norm.bias - norm.running_mean * norm.weight / (norm.running_var + norm.eps).sqrt()
    part = next(iter(found.maps.values()))
    torch.testing.assert_close(part, (norm(x) > 0) * shift[:, None, None])
