"""Linear regions: patterns, exact maps, crossings, planes and the equivalent tree, against dense sampling."""

from __future__ import annotations

from typing import Any

import interpret_zoo as zoo
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.errors import SubjectError
from microtome.interpret import capture
from microtome.interpret.crossings import code, curve_crossings, line_crossings
from microtome.interpret.decision_tree import DecisionTree, grown
from microtome.interpret.patterns import affine, boundary_distance, pattern, switches
from microtome.interpret.planes import plane_regions
from microtome.specimens.planted_regions import relu_net


class Varied(nn.Module):
    """Every kind of switch: PReLU, overlapping max-pool, maximum, hardtanh, leaky ReLU, amax, ReLU6, abs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.prelu = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.PReLU(4)
        self.pool, self.head = nn.MaxPool2d(3, 2, padding=1), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(self.prelu(self.norm(self.conv(x))))
        y = torch.maximum(y, y.flip(1)) + F.hardtanh(y)
        y = F.leaky_relu(y, 0.2).amax((2,)).flatten(1)
        return F.relu6(self.head(y)).abs()


class Folds(nn.Module):
    """Maxima and clamps of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(F.hardtanh(torch.maximum(h, -h.flip(1))).clamp(-0.9, 0.5))


def _net(name: str) -> tuple[nn.Module, Any, tuple[int, ...]]:
    torch.manual_seed(0)
    made: dict[str, Any] = {
        "varied": (lambda: Varied(), (1, 8, 8)),
        "folds": (lambda: Folds(), (2,)),
        "mlp": (zoo.mlp, (5,)),
        "flat": (
            lambda: nn.Sequential(
                nn.Linear(2, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)
            ),
            (2,),
        ),
    }
    build, shape = made[name]
    model = build().double().eval()
    return model, capture(model, (torch.randn(3, *shape, dtype=torch.float64),)), shape


def _drawn(shape: tuple[int, ...], n: int, seed: int = 1) -> Tensor:
    return torch.randn(n, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


NETS = ["varied", "folds", "mlp", "flat"]


@pytest.mark.parametrize("name", NETS)
def test_the_affine_map_of_a_region_is_the_network_there(name):
    model, graph, shape = _net(name)
    x = _drawn(shape, 6)
    weight, constant = affine(graph, (x,))
    with torch.no_grad():
        torch.testing.assert_close(torch.einsum("nkd,nd->nk", weight, x.flatten(1)) + constant, model(x))
    slopes = [torch.func.jacrev(lambda v: model(v.reshape(1, *shape))[0])(each.flatten()) for each in x]
    torch.testing.assert_close(weight, torch.stack(slopes))


@pytest.mark.parametrize("name", NETS)
def test_nothing_changes_within_the_distance_and_something_just_beyond(name):
    _, graph, shape = _net(name)
    x = _drawn(shape, 4)
    distance, switch = boundary_distance(graph, graph.bind((x,)))
    own = code(pattern(graph, (x,)), len(x))
    assert (switch >= 0).all()
    for i in range(len(x)):
        steps = _drawn((x[i].numel(),), 300, i)
        steps = (distance[i] * 0.999 * steps / steps.norm(dim=1, keepdim=True)).reshape(-1, *shape)
        assert (code(pattern(graph, (x[i] + steps,)), 300) == own[i]).all()
    if len(shape) == 1 and shape[0] == 2:  # all directions can be tried
        angle = torch.linspace(0, 2 * torch.pi, 20001, dtype=torch.float64)
        round_ = torch.stack([angle.cos(), angle.sin()], 1)
        for i in range(len(x)):
            beyond = code(pattern(graph, (x[i] + 1.001 * distance[i] * round_,)), len(round_))
            assert (beyond != own[i]).any()


POINTS = 50_000


def _sampled(graph: Any, start: Tensor, end: Tensor) -> list[int]:
    """Steps of dense sampling over which the pattern changes."""
    t = torch.linspace(0, 1, POINTS + 1, dtype=torch.float64).reshape(-1, *[1] * start.dim())
    codes = torch.cat([code(pattern(graph, (start + (end - start) * s,)), len(s)) for s in t.split(10_000)])
    return (codes[1:] != codes[:-1]).any(1).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("name", NETS)
def test_crossings_of_a_line_are_those_that_dense_sampling_finds(name):
    _, graph, shape = _net(name)
    start, end = 2 * _drawn(shape, 3), 2 * _drawn(shape, 3, 2)
    found = line_crossings(graph, start, end)
    for i in range(3):
        at = found.at[found.line == i]
        assert sorted(set((at * POINTS).long().tolist())) == _sampled(graph, start[i], end[i])
        edges = torch.tensor([0.0, *at, 1.0], dtype=torch.float64)
        assert (edges.diff() > 0).all()
        middle = ((edges[1:] + edges[:-1]) / 2).reshape(-1, *[1] * len(shape))
        codes = code(pattern(graph, (start[i] + (end[i] - start[i]) * middle,)), len(middle))
        assert (codes[1:] != codes[:-1]).any(1).all()  # patterns differ on either side


def test_a_curve_that_is_a_line_crosses_as_the_line_does():
    _, graph, shape = _net("mlp")
    start, end = 3 * _drawn(shape, 2), 3 * _drawn(shape, 2, 2)
    lines = line_crossings(graph, start, end)
    for i in range(2):
        found = curve_crossings(graph, lambda t, i=i: start[i] + (end[i] - start[i]) * t[:, None])
        torch.testing.assert_close(found.at, lines.at[lines.line == i], rtol=0, atol=1e-8)


def test_a_circle_around_one_corner():
    graph = capture(relu_net([[1, 0], [0, 1]], [0, 0], [[1, 1]]), (torch.zeros(2, 2, dtype=torch.float64),))
    found = curve_crossings(
        graph, lambda t: torch.stack([(2 * torch.pi * t).cos(), (2 * torch.pi * t).sin()], 1),
        low=0.05, high=1.05,
    )  # fmt: skip
    torch.testing.assert_close(
        found.at, torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=torch.float64), atol=1e-8, rtol=0
    )


def test_the_hat_has_three_regions():
    graph = capture(relu_net([[1], [1]], [0, -1], [[2, -4]]), (torch.zeros(2, 1, dtype=torch.float64),))
    found = line_crossings(graph, torch.tensor([[-1.0]]), torch.tensor([[3.0]]))
    torch.testing.assert_close(found.at, torch.tensor([0.25, 0.5], dtype=torch.float64))
    slopes, _ = affine(graph, (torch.tensor([[-1.0], [0.5], [2.0]], dtype=torch.float64),))
    assert slopes.flatten().tolist() == [0.0, 2.0, -2.0]


@pytest.mark.parametrize(("name", "scale"), [("flat", 4.0), ("folds", 4.0), ("mlp", 5.0), ("varied", 0.1)])
def test_regions_of_a_plane_hold_every_pattern_of_a_grid(name, scale):
    _, graph, shape = _net(name)
    origin, across, up = _drawn(shape, 1)[0], *(scale * _drawn(shape, 2, 2))
    regions = plane_regions(graph, origin, across, up)
    patterns = torch.stack(regions.patterns)
    assert len(patterns.unique(dim=0)) == len(regions)
    assert float(regions.areas.sum()) == pytest.approx(1.0, abs=1e-9)
    n = 150
    uv = (torch.cartesian_prod(torch.arange(n), torch.arange(n)).double() + 0.37) / n
    spread = [uv[:, k].reshape(-1, *[1] * len(shape)) for k in (0, 1)]
    seen = code(pattern(graph, (origin + spread[0] * across + spread[1] * up,)), n * n)
    kinds, counts = seen.unique(dim=0, return_counts=True)
    known = {tuple(row): float(size) for row, size in zip(patterns.tolist(), regions.areas, strict=True)}
    for row, count in zip(kinds.tolist(), counts.tolist(), strict=True):
        assert known[tuple(row)] == pytest.approx(count / n**2, abs=0.1 / n + 4 * (count**0.5) / n**2)


@pytest.mark.parametrize("name", NETS)
def test_the_tree_is_the_network(name):
    model, graph, shape = _net(name)
    tree, x = DecisionTree.from_graph(graph), _drawn(shape, 200)
    with torch.no_grad():
        assert float((tree(x) - model(x)).abs().max()) < 1e-12
    assert len(tree.leaves) == len(code(pattern(graph, (x,)), 200).unique(dim=0))
    leaf = tree.leaves_of(x[:1])[0]
    for rule in tree.rules(leaf):
        value = float(rule.weight @ x[0].flatten()) + rule.constant
        assert value > -1e-9 if rule.above else value < 1e-9


@pytest.mark.parametrize("name", ["flat", "folds"])
def test_the_whole_tree_has_the_leaves_of_the_plane(name):
    model, graph, _ = _net(name)
    tree = grown(graph, -3.0, 3.0)
    corner, side = torch.tensor([-3.0, -3.0]), torch.eye(2) * 6
    plane = plane_regions(graph, corner, side[0], side[1])
    known = {tuple(p.tolist()) for p in plane.patterns}
    assert {tuple(torch.cat(r.leaf.pieces).tolist()) for r in tree.regions} == known
    assert 0 < tree.joined <= len(tree.regions)
    with torch.no_grad():
        out = model(torch.tensor([r.point.tolist() for r in tree.regions], dtype=torch.float64))
    answers = out.argmax(1) if out.shape[1] > 1 else (out[:, 0] > 0).long()
    assert answers.tolist() == [r.answer for r in tree.regions]


@pytest.mark.parametrize(
    ("name", "operation"),
    [("smooth", "tanh"), ("block", "layer_norm"), ("encoder", "matmul"), ("lstm", "sigmoid")],
)
def test_smooth_operations_are_named(name, operation):
    model, args = zoo.build(name)
    with pytest.raises(SubjectError, match=f"MT340.*{operation}"):
        switches(capture(model, args))
