"""Lipschitz bounds against dense Jacobians, singular values and sampling."""

from __future__ import annotations

import itertools
import math

import interpret_zoo as zoo
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.errors import SubjectError
from microtome.interpret import capture, concrete, sources
from microtome.interpret.interval import Interval
from microtome.interpret.lipschitz import Norm, jacobians, lipschitz, matrix_norm, needed
from microtome.specimens.planted_regions import relu_net

NORMS: tuple[Norm, ...] = ("2", "inf", "1")


def _graph(model: nn.Module, *shape: int):
    model = model.double().eval()
    return model.requires_grad_(False), capture(model, (torch.randn(3, *shape, dtype=torch.float64),))


def _dense(model: nn.Module, x: Tensor) -> Tensor:
    """[n, k, d] Jacobians by autograd, one example at a time."""
    jacobian = torch.autograd.functional.jacobian
    each = [jacobian(lambda v: model(v[None])[0].flatten(), v).flatten(1) for v in x]
    return torch.stack(each).detach()


CONVS = [
    (nn.Conv2d(2, 3, 3, padding=1), (2, 6, 6)),
    (nn.Conv2d(2, 4, 3, stride=2, padding=1), (2, 7, 7)),
    (nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2), (4, 6, 6)),
    (nn.Conv2d(3, 3, 2, groups=3), (3, 5, 4)),
    (nn.Conv1d(2, 5, 4, stride=3), (2, 13)),
    (nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1, output_padding=1), (3, 4, 4)),
    (nn.ConvTranspose2d(4, 4, 2, stride=2, groups=2), (4, 3, 3)),
    (nn.Conv3d(1, 2, 2), (1, 3, 4, 3)),
]


@pytest.mark.parametrize(("layer", "shape"), CONVS)
def test_norms_of_convolutions(layer, shape):
    torch.manual_seed(0)
    layer.reset_parameters()
    model, graph = _graph(layer, *shape)
    matrix = _dense(model, torch.zeros(1, *shape, dtype=torch.float64))
    for norm in ("inf", "1"):
        assert lipschitz(graph, norm).value == pytest.approx(float(matrix_norm(matrix, norm)))
    exact = float(torch.linalg.matrix_norm(matrix[0], ord=2))
    found = lipschitz(graph)
    (step,) = found.steps
    assert exact * (1 - 1e-9) <= found.value <= 1.25 * exact
    assert step.estimate is not None
    assert step.estimate <= exact * (1 + 1e-9)
    assert step.estimate == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize("norm", NORMS)
def test_linear_layers_in_a_row_are_one_matrix(norm):
    torch.manual_seed(0)
    model, graph = _graph(nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 7), nn.Linear(7, 3)), 4)
    product = model[2].weight @ model[1].weight @ model[0].weight
    assert lipschitz(graph, norm).value == pytest.approx(float(matrix_norm(product[None], norm)))


def test_the_hat_has_four_for_a_bound_and_two_for_its_slope():
    _, graph = _graph(relu_net([[1], [1]], [0, -1], [[2, -4]]), 1)
    # |(2, -4)|_2 |(1, 1)|_2 = sqrt(20) sqrt(2); in the norm infinity (2 + 4) 1, in the norm 1 max(2, 4) 2.
    assert lipschitz(graph).value == pytest.approx(math.sqrt(40))
    assert lipschitz(graph, "inf").value == pytest.approx(6)
    assert lipschitz(graph, "1").value == pytest.approx(8)
    for middle, slope in ((-0.5, 0.0), (0.5, 2.0), (1.5, math.sqrt(40))):
        box = Interval.around(torch.tensor([[middle]]), 0.4)
        assert lipschitz(graph, box=box).value == pytest.approx(slope)


class Mixed(nn.Module):
    """Residual sum, batch-norm, overlapping max-pool, maximum, concatenation, averages, padding, constants."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.again = (
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 4, 3, padding=1),
        )
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.norm(self.conv(x)))
        y = y + 0.5 * self.again(F.pad(y, (0, 0))).tanh()
        y = F.max_pool2d(y, 3, 2, 1)
        z = torch.cat([torch.maximum(y, -y).mean((2, 3)), (y - 1).amax((2, 3)), y.flatten(1)[:, :16]], 1)
        return self.head(z).softmax(1)


class Twice(nn.Module):
    """The same value several times over: broadcasting and repeating move several entries at once."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.sum(1, keepdim=True) + torch.ones(1, 6), x.repeat(1, 2), 3 * x], 1).abs()


NETS = {
    "mixed": (Mixed, (1, 8, 8)),
    "twice": (Twice, (4,)),
    "mlp": (zoo.mlp, (5,)),
    "smooth": (zoo.smooth, (6,)),
}


@pytest.mark.parametrize(("name", "norm"), list(itertools.product(NETS, NORMS)))
def test_no_jacobian_exceeds_the_bound(name, norm):
    torch.manual_seed(1)
    build, shape = NETS[name]
    model = zoo._settle(build(), torch.randn(32, *shape))
    model, graph = _graph(model, *shape)
    x = torch.randn(40, *shape, dtype=torch.float64) * torch.logspace(-2, 1, 40)[(..., *[None] * len(shape))]
    found = matrix_norm(_dense(model, x), norm)
    assert float(found.max()) <= lipschitz(graph, norm).value * (1 + 1e-9)


def test_a_bound_of_copies_is_exact():
    _, graph = _graph(Twice(), 4)
    matrix = torch.cat([torch.ones(6, 4), torch.eye(4), torch.eye(4), 3 * torch.eye(4)]).double()
    # Parts side by side: sqrt(6 * 4 + 2 + 9) at the least, and each part's own norm is exact.
    assert lipschitz(graph).value == pytest.approx(math.sqrt(35))
    assert float(torch.linalg.matrix_norm(matrix, ord=2)) == pytest.approx(math.sqrt(35))


@pytest.mark.parametrize("name", ["mlp", "smooth", "block", "encoder", "lstm", "gru", "vit"])
def test_bounds_in_a_box_hold_in_it(name):
    model, args = zoo.build(name, torch.float64)
    graph = capture(model, args)
    x = args[0][:1]
    radius = 0.02
    found = lipschitz(graph, box=Interval.around(x, radius))
    inside = x + radius * (2 * torch.rand(30, *x.shape[1:], dtype=torch.float64) - 1)
    assert float(matrix_norm(_dense(model, inside), "2").max()) <= found.value * (1 + 1e-9)
    smaller = lipschitz(graph, box=Interval.around(x, radius / 20))
    assert smaller.value <= found.value * (1 + 1e-9)


@pytest.mark.parametrize("name", ["block", "encoder", "lstm", "convs"])
def test_what_has_no_finite_constant_is_named(name):
    model, args = zoo.build(name)
    with pytest.raises(SubjectError, match=r"MT360.*(matmul|mul)"):
        lipschitz(capture(model, args))


def test_layer_norm_has_the_bound_that_eps_gives_and_it_is_reached():
    model, graph = _graph(nn.LayerNorm(6, eps=1e-3), 6)
    found = lipschitz(graph)
    assert found.value == pytest.approx(1 / math.sqrt(1e-3))
    assert "eps" in found.notes[0]
    nearly_equal = 1e-9 * torch.randn(1, 6, dtype=torch.float64)
    assert float(matrix_norm(_dense(model, nearly_equal), "2")) == pytest.approx(found.value, rel=1e-6)


@pytest.mark.parametrize("name", ["mlp", "digits_cnn", "lstm", "gpt"])
def test_jacobians_are_those_of_autograd(name):
    model, args = zoo.build(name, torch.float64)
    graph = capture(model, args)
    (place,) = sources(graph)
    keep, shapes = needed(graph, {place: None})  # type: ignore[dict-item]
    run = concrete(graph, args, keep={*keep, place}, shapes=shapes)
    found = jacobians(run, {place: run.values[place]}, most=20)
    if place.kind == "input":
        torch.testing.assert_close(found, _dense(model, args[0])[:, :20])
    assert found.shape[1] == min(20, run.output[0].numel())
