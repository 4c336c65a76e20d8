from __future__ import annotations

import pytest
import torch
from interpret_zoo import MODELS, build
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from microtome.interpret import capture
from microtome.interpret.cost import backward_flops, costs, costs_of, operation_nodes, shapes_only, total
from microtome.interpret.latency import latencies


@pytest.mark.parametrize(
    "name", [n for n in MODELS if n not in ("lstm", "encoder")]
)  # fused: torch counts nothing
def test_flops_are_torchs(name: str) -> None:
    model, args = build(name)
    found = costs(capture(model, args), args)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(*args)
    assert total(found).flops == counter.get_total_flops()
    assert total(found).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["mlp", "smooth", "digits_cnn", "block", "vit", "gpt", "gru"])
def test_flops_of_the_backward_pass_are_torchs(name: str) -> None:
    model, args = build(name)
    graph = capture(model, args)
    with sdpa_kernel(SDPBackend.MATH):
        result = model(*args)
        with FlopCounterMode(display=False) as counter:
            result.sum().backward()
    assert backward_flops(graph, costs(graph, args)) == counter.get_total_flops() > 0


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, 2, 1)],
        [nn.Conv2d(1, 2, 5, 2), nn.MaxPool2d(2), nn.Conv2d(2, 1, (3, 1), dilation=(2, 1))],
        [nn.AvgPool2d(3, 2, 1), nn.Conv2d(1, 1, 3, groups=1), nn.BatchNorm2d(1), nn.Conv2d(1, 1, 1)],
    ],
)
def test_receptive_fields_are_those_of_the_gradient(layers: list[nn.Module]) -> None:
    model = nn.Sequential(*layers).double().eval()
    for p in model.parameters():
        nn.init.ones_(p)
    x = torch.rand(2, 1, 33, 33, dtype=torch.float64, requires_grad=True)
    out = model(x)
    row, column = out.shape[2] // 2, out.shape[3] // 2
    field = costs(capture(model, (x.detach(),)), (x.detach(),))[-1].field
    assert field is not None
    # max-pool lets one entry through at a time: try several inputs
    seen = torch.zeros(33, 33, dtype=torch.bool)
    for _ in range(60):
        z = torch.rand(1, 1, 33, 33, dtype=torch.float64, requires_grad=True)
        seen |= torch.autograd.grad(model(z)[0, :, row, column].sum(), z)[0][0, 0] != 0
    for axis, place in ((0, row), (1, column)):
        touched = seen.any(1 - axis).nonzero().flatten()
        start = field[axis].start + place * field[axis].stride
        assert (start, start + field[axis].size - 1) == (int(touched[0]), int(touched[-1]))


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize("name", ["lstm", "encoder"])
def test_flops_of_what_torch_fuses(name: str) -> None:
    """Torch counts nothing inside its fused kernels; with these switched off it counts what we count."""
    model, args = build(name)
    found = costs(capture(model, args), args)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH),
            torch.backends.mkldnn.flags(enabled=False),
        ):  # fmt: skip
            model(*args)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    assert total(found).flops == counter.get_total_flops() > 0


def test_energy_and_bytes_are_counted_by_hand() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU()), torch.rand(2, 3)
    product, relu = costs(capture(model, (x,)), (x,))
    moved = 4 * (2 * 3 + 3 * 4 + 2 * 4)
    assert (product.flops, product.bytes, product.other) == (2 * 2 * 3 * 4, moved, 0)
    assert product.energy == pytest.approx(24 * 4.6 + moved * 162.5)
    assert relu.energy == pytest.approx(8 * 0.9 + 64 * 162.5)
    half = costs(capture(model.half(), (x.half(),)), (x.half(),))[0]
    assert half.energy == pytest.approx(24 * 1.5 + moved / 2 * 162.5)


@pytest.mark.parametrize("name", ["digits_cnn", "gpt", "gru"])
def test_latencies_are_of_every_operation(name: str) -> None:
    model, args = build(name)
    graph = capture(model, args)
    taken = latencies(graph, graph.bind(args), repeats=2)
    assert {cost.node for cost in costs(graph, args)} == set(operation_nodes(graph)) <= set(taken)
    assert all(0 < seconds < 1 for seconds in taken.values())


class Positions(nn.Module):
    """Makes numbers on a device it names itself, as networks with position ids do."""

    def __init__(self, counted: bool) -> None:
        super().__init__()
        self.counted, self.conv, self.places = counted, nn.Conv2d(1, 2, 3), nn.Embedding(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.conv(x).flatten(2)
        z = z + self.places(torch.arange(z.shape[2], device=x.device)).T
        return z[:, :, torch.ones(16).nonzero()[:, 0]] if self.counted else z


@pytest.mark.parametrize("counted", [False, True])  # how many there are is known from numbers alone, or not
def test_shapes_alone_suffice_where_a_program_names_its_device(counted: bool) -> None:
    x = torch.rand(2, 1, 6, 6)
    graph = capture(Positions(counted).eval(), (x,))
    known = [cost.field for cost in costs_of(graph, shapes_only(graph)) if cost.field is not None]
    assert known[0][0].size == 3
    assert total(costs_of(graph, shapes_only(graph))).flops == 2 * 2 * 9 * 16 * 2


def test_weights_that_are_computed_see_nothing_of_the_image() -> None:
    x = torch.rand(2, 1, 9, 9)
    layers = nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3)
    plain = [cost.field for cost in costs(capture(nn.Sequential(*layers).eval(), (x,)), (x,)) if cost.field]
    nn.utils.parametrizations.weight_norm(layers[0])
    nn.utils.parametrizations.spectral_norm(layers[2])
    normed = costs(capture(nn.Sequential(*layers).eval(), (x,)), (x,))
    assert [cost.field for cost in normed if cost.field][-1] == plain[-1]
    assert plain[-1][0].size == 5
