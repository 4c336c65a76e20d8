"""Relevance against peers, slow formulas and what must be conserved, on networks of every family."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from typing import Any

import interpret_zoo as zoo
import networks
import pytest
import torch
import torch.nn.functional as F
from peer_stubs import without_torchvision
from torch import Tensor, nn

from microtome.errors import SubjectError, UsageError
from microtome.interpret import capture, concrete, coverage, requirements, sources
from microtome.interpret.relevance import (
    COMPOSITES,
    Composite,
    Relevance,
    composite,
    of_class,
    propagate,
    relevance,
)
from microtome.interpret.relevance_rules import AlphaBeta, Box, Epsilon, Flat, Gamma, Rule, Square
from microtome.subject import Subject

BOUNDS = (-0.2, 0.8)


def _settled(model: nn.Module, *shape: int) -> nn.Module:
    """Batch-norm with statistics that fit, biases that are not zero, float64."""
    with torch.no_grad():
        model.train()(torch.rand(64, *shape))
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval().double()


class Stack(nn.Module):
    """Convolution, batch-norm, ReLU, twice, a grouped convolution and a head."""

    def __init__(self, peer_sum: nn.Module | None = None) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4, eps=1e-12)
        self.act = nn.ReLU()
        self.conv, self.norm2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4, eps=1e-12)
        self.sum = peer_sum
        self.act2, self.pool = nn.ReLU(), nn.MaxPool2d(2)
        self.group, self.act3 = nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.ReLU()
        self.mean, self.flat = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.fc, self.act4, self.head = nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(x)))
        y = self.norm2(self.conv(x))
        if self.sum is not None:
            y = self.sum(torch.stack([x, y], -1))
        x = self.act3(self.group(self.pool(self.act2(y))))
        return self.head(self.act4(self.fc(self.flat(self.mean(x)))))


class StackAsWritten(Stack):
    """The same with functional ReLUs and a plain residual sum."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.norm2(self.conv(x)))
        x = F.relu(self.group(F.max_pool2d(x, 2)))
        return self.head(F.relu(self.fc(x.mean((2, 3)))))


def _zennit() -> Any:
    if importlib.util.find_spec("zennit") is None:
        pytest.skip("zennit is not installed")
    with without_torchvision(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import zennit
    return zennit


def _peer(zennit: Any, name: str, x: Tensor) -> Any:
    merge = [zennit.canonizers.SequentialMergeBatchNorm()]
    made = zennit.composites
    if name == "epsilon":
        kinds = [((zennit.types.Convolution, nn.Linear), zennit.rules.Epsilon(1e-6))]
        return made.LayerMapComposite(layer_map=made.layer_map_base() + kinds, canonizers=merge)
    if name == "epsilon-gamma-box":
        low, high = (torch.full_like(x[:1], b) for b in BOUNDS)
        return made.EpsilonGammaBox(low, high, canonizers=merge)
    return made.COMPOSITES[name.replace("-", "_")](canonizers=merge)


PEERS = [name for name in COMPOSITES if name.startswith("epsilon")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("residual", [False, True])
def test_equal_to_zennit(name, residual):
    zennit = _zennit()
    torch.manual_seed(0)
    model = _settled(Stack(zennit.layer.Sum() if residual else None), 1, 10, 10)
    x = torch.rand(5, 1, 10, 10, dtype=torch.float64) - 0.2
    classes = model(x).argmax(1)
    with zennit.attribution.Gradient(model, _peer(zennit, name, x)) as attributor:
        theirs = attributor(x, of_class(classes))[1]
    ours = relevance(capture(model, (x,)), (x,), of_class(classes), composite(name, bounds=BOUNDS))
    assert float((ours.map - theirs).abs().max() / theirs.abs().max()) < 1e-7
    if residual:  # as people write it: functional ReLUs, a plain +; the peer sees neither
        written = StackAsWritten().double()
        written.load_state_dict(model.state_dict())
        written.eval()
        again = relevance(capture(written, (x,)), (x,), of_class(classes), composite(name, bounds=BOUNDS))
        torch.testing.assert_close(again.map, ours.map)


@pytest.mark.filterwarnings("ignore")
def test_equal_to_captum():
    captum = pytest.importorskip("captum.attr", reason="captum is not installed")
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    )
    head = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps, self.head = model, head

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.maps(x).flatten(1))

    whole, x = Whole().double().eval(), torch.rand(6, 1, 12, 12, dtype=torch.float64)
    classes = whole(x).argmax(1)
    made = Composite(convolution=Epsilon(1e-9), dense=Epsilon(1e-9), stabiliser=1e-9)
    ours = relevance(capture(whole, (x,)), (x,), of_class(classes), made)
    theirs = captum.LRP(whole).attribute(x, target=classes)
    assert float((ours.map - theirs).abs().max() / theirs.abs().max()) < 1e-5


# ----------------------------------------------------------------------------------------------- slow formulas


def _direct(rule: Rule, x: Tensor, weight: Tensor, bias: Tensor, relevance: Tensor) -> Tensor:
    """[i], [j, i], [j], [j] -> [i], sum by sum."""
    share = torch.zeros_like(x)
    for j in range(len(weight)):
        z, b, w = x * weight[j], bias[j], weight[j]
        positive, negative = z.clamp(min=0), z.clamp(max=0)
        if isinstance(rule, Epsilon):
            parts = [(1.0, z, z.sum() + b)]
        elif isinstance(rule, AlphaBeta):
            over, under = (b.clamp(min=0), b.clamp(max=0)) if rule.bias else (0.0, 0.0)
            parts = [
                (rule.alpha, positive, positive.sum() + over),
                (-rule.beta, negative, negative.sum() + under),
            ]
        elif isinstance(rule, Gamma):
            own, extra = (positive, b.clamp(min=0)) if z.sum() + b > 0 else (negative, b.clamp(max=0))
            parts = [(1.0, z + rule.gamma * own, (z + rule.gamma * own).sum() + b + rule.gamma * extra)]
        elif isinstance(rule, Box):
            boxed = z - rule.low * w.clamp(min=0) - rule.high * w.clamp(max=0)
            parts = [(1.0, boxed, boxed.sum())]
        elif isinstance(rule, Square):
            parts = [(1.0, w.square(), w.square().sum())]
        else:
            parts = [(1.0, torch.ones_like(w), torch.tensor(float(len(w))))]
        for factor, contribution, total in parts:
            share += factor * contribution / total * relevance[j] if total != 0 else 0.0
    return share


RULES = [
    Epsilon(1e-12),
    AlphaBeta(2.0, 1.0, stabiliser=1e-12),
    AlphaBeta(1.0, 0.0, bias=False, stabiliser=1e-12),
    Gamma(0.3, stabiliser=1e-12),
    Box(-1.5, 2.0, stabiliser=1e-12),
    Square(1e-12),
    Flat(1e-12),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("kind", ["linear", "convolution", "transposed", "product", "left product"])
def test_rules_by_the_formula(rule, kind):
    torch.manual_seed(1)
    layers = {
        "linear": nn.Linear(6, 4),
        "convolution": nn.Conv2d(2, 4, 2, groups=2, stride=2),
        "transposed": nn.ConvTranspose2d(4, 2, 2, groups=2),
    }

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight if kind == "product" else (self.weight.T @ x.mT).mT.contiguous()

    model = layers.get(kind, Product()).double()
    shape = {"linear": (6,), "convolution": (2, 4, 4), "transposed": (4, 2, 2)}.get(kind, (6,))
    shape = (3, 6) if kind == "left product" else shape
    x = torch.randn(2, *shape, dtype=torch.float64)
    graph = capture(model, (x,))
    with torch.no_grad():
        seed = torch.randn_like(model(x))
    found = relevance(graph, (x,), seed, Composite(convolution=rule, dense=rule)).map
    for i in range(2):
        one = x[i].reshape(-1)

        def whole(value: Tensor) -> Tensor:
            return model(value.reshape(1, *shape)).reshape(-1)

        weight = torch.autograd.functional.jacobian(whole, one)
        bias = whole(torch.zeros_like(one)).detach()
        if isinstance(rule, Flat):  # ones at every connection there is
            weight = (weight != 0).double()
            expected = (weight / weight.sum(1, keepdim=True) * seed[i].reshape(-1)[:, None]).sum(0)
        else:
            expected = _direct(rule, one, weight, bias, seed[i].reshape(-1))
        # A stabiliser is absolute; flat is told apart from the rest by counts, which are at least 1.
        torch.testing.assert_close(found[i].reshape(-1), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", COMPOSITES)
def test_batch_norm_is_merged(name):
    """The same map as of the network whose batch-norms were folded into weights beforehand."""

    class Norms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4)
            self.up, self.norm2 = nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False), nn.BatchNorm2d(6)
            self.fc, self.norm3, self.head = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.norm(self.conv(x)))
            x = F.relu(self.norm2(self.up(x)))
            return self.head(F.relu(self.norm3(self.fc(x.mean((2, 3))))))

    torch.manual_seed(2)
    model = _settled(Norms(), 2, 6, 6)
    folded = copy.deepcopy(model)
    fuse = torch.nn.utils.fusion
    folded.conv, folded.norm = fuse.fuse_conv_bn_eval(folded.conv, folded.norm), nn.Identity()
    folded.fc, folded.norm3 = fuse.fuse_linear_bn_eval(folded.fc, folded.norm3), nn.Identity()
    scale = folded.norm2.weight / (folded.norm2.running_var + folded.norm2.eps).sqrt()
    shift = folded.norm2.bias - folded.norm2.running_mean * scale
    folded.up.weight = nn.Parameter(
        (folded.up.weight.unflatten(0, (2, 2)) * scale.reshape(2, 1, 3, 1, 1)).flatten(0, 1)
    )
    folded.up.bias, folded.norm2 = nn.Parameter(shift), nn.Identity()
    x = torch.rand(4, 2, 6, 6, dtype=torch.float64)
    made, seed = composite(name, bounds=(0.0, 1.0)), of_class(torch.tensor([0, 1, 2, 0]))
    maps = [relevance(capture(m.eval(), (x,)), (x,), seed, made).map for m in (model, folded)]
    torch.testing.assert_close(maps[0], maps[1], rtol=1e-6, atol=1e-9)


def test_attention_and_norms_held_fixed():
    """LRP-0 with gates that get nothing is input times gradient of the network with gates and scales detached."""

    class Attend(nn.Module):
        def __init__(self, fixed: bool) -> None:
            super().__init__()
            self.fixed = fixed
            self.qkv, self.out = nn.Linear(6, 18, bias=False), nn.Linear(6, 6, bias=False)
            self.gate, self.head = nn.Linear(6, 6), nn.Linear(6, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            hold = torch.Tensor.detach if self.fixed else (lambda value: value)
            centred = x - x.mean(-1, keepdim=True)
            scale = hold((centred.square().mean(-1, keepdim=True) + 1e-5).rsqrt())
            normed = centred * scale if self.fixed else F.layer_norm(x, (6,))
            q, k, v = self.qkv(normed).chunk(3, -1)
            y = x + self.out(hold(torch.softmax(q @ k.mT / 2, -1)) @ v)
            y = F.relu(y) * hold(torch.sigmoid(self.gate(y)))
            y = y * hold((y.square().mean(-1, keepdim=True) + 1e-3).rsqrt())
            return self.head(y.mean(1))

    torch.manual_seed(3)
    model, fixed = Attend(False).double(), Attend(True).double()
    fixed.load_state_dict(model.state_dict())
    x = torch.randn(4, 5, 6, dtype=torch.float64)
    seed = of_class(torch.tensor([0, 1, 2, 1]))
    found = relevance(capture(model, (x,)), (x,), seed, composite("zero"))
    leaf = x.clone().requires_grad_()
    out = fixed(leaf)
    torch.testing.assert_close(out, model(x))
    slope = torch.autograd.grad(out.gather(1, torch.tensor([[0], [1], [2], [1]])).sum(), leaf)[0]
    torch.testing.assert_close(found.map, x * slope, rtol=1e-6, atol=1e-8)
    assert float(found.conservation_error.max()) < 1e-8  # there is no bias on the way of what is conserved


def test_halves_in_attention():
    """A product of two parts and a softmax, as AttnLRP has them."""

    class Weighed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            scores, values = x.chunk(2, -1)
            return torch.softmax(scores, -1) @ values.mT

    x = torch.randn(3, 4, 6, dtype=torch.float64)
    graph = capture(Weighed(), (x,))
    seed = torch.randn(3, 4, 4, dtype=torch.float64)
    found = relevance(graph, (x,), seed, Composite(gates="half", stabiliser=0.0)).map
    scores, values = x.chunk(2, -1)
    weights = scores.softmax(-1)
    each = seed / (weights @ values.mT) / 2
    to_weights = weights * (each @ values)
    to_values = values * (each.mT @ weights)
    to_scores = scores * (to_weights - weights * to_weights.sum(-1, keepdim=True))
    torch.testing.assert_close(found, torch.cat([to_scores, to_values], -1))


# --------------------------------------------------------------------------------------------- what is conserved


class Bare(nn.Module):
    """No bias: residual sums, a module used three times, functional ReLUs, pools, a gate. LRP-0 conserves the logit."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again = nn.Conv2d(1, 4, 3, bias=False), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.relu, self.gate = nn.ReLU(), nn.Linear(4, 4)
        self.head = nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for _ in range(3):
            x = self.relu(x + self.again(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]
        return self.head(F.avg_pool2d(F.max_pool2d(x, 2), 2).amax((2, 3)))


def test_a_network_without_biases_conserves():
    torch.manual_seed(4)
    model = Bare().double()
    x = torch.rand(6, 1, 10, 10, dtype=torch.float64)
    graph, seed = capture(model, (x,)), of_class(model(x).argmax(1))
    found = relevance(graph, (x,), seed, composite("zero"))
    torch.testing.assert_close(found.total, model(x).amax(1))
    assert float(found.conservation_error.max()) < 1e-10
    assert set(found.absorbed) and max(abs(v) for v in found.absorbed.values()) < 1e-10


def _cases() -> list[Any]:
    users = ("hf_bert", "hf_gpt2", "resnet", "shared_weights", "two_inputs", "lstm", "gcn")
    return [*zoo.MODELS, *users]


def _case(name: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    if name in zoo.MODELS and name != "lstm":
        model, args = zoo.build(name, torch.float64)
        return capture(model, args), args, {}
    model, data = getattr(networks, name)()
    subject = Subject(model, data)
    batch = next(iter(subject.batches()))
    args, kwargs = batch.call()
    return subject.graph_of(batch), args, dict(kwargs)


@pytest.mark.parametrize("name", _cases())
def test_every_network_is_covered_and_its_books_balance(name):
    graph, args, kwargs = _case(name)
    assert coverage(graph, Relevance()).missing == ()
    for which in COMPOSITES:
        made = composite(which, bounds=(-3.0, 3.0))
        found = relevance(graph, args, torch.relu, made, kwargs)
        assert all(bool(torch.isfinite(value).all()) for value in found.maps.values())
        booked = float(found.total.sum()) + sum(found.absorbed.values())
        size = float(found.score.sum()) + sum(abs(v) for v in found.absorbed.values())
        assert booked == pytest.approx(float(found.score.sum()), abs=1e-5 * size)


def test_deep_taylor_is_positive_and_conserves_where_biases_are_not_positive():
    torch.manual_seed(5)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )
    with torch.no_grad():
        for layer in (model[0], model[2], model[5]):
            layer.bias.copy_(-layer.bias.abs() / 10)
        model[5].weight.abs_()
    model = model.double()
    x = torch.rand(8, 1, 8, 8, dtype=torch.float64)
    out = model(x)
    assert bool((out.amax(1) > 0).all())
    for bounds in (None, (0.0, 1.0)):
        found = relevance(
            capture(model, (x,)), (x,), of_class(out.argmax(1)), composite("deep-taylor", bounds=bounds)
        )
        assert bool((found.map >= 0).all())
        torch.testing.assert_close(found.total, out.amax(1), rtol=1e-4, atol=1e-6)


def test_relevance_of_a_layer():
    model, (x,) = zoo.build("mlp", torch.float64)
    graph = capture(model, (x,))
    node = graph.node("1")
    domain, seed = Relevance(composite("zero")), of_class(torch.zeros(3, dtype=torch.long))
    keep, shapes = requirements(graph, domain, [graph.output], [node])
    with torch.no_grad():
        run = concrete(graph, (x,), keep={*keep, node}, shapes=shapes)
        found, _ = propagate(run, domain, seed(run.output), [node])
        leaf = run.values[node].clone().requires_grad_()
    slope = torch.autograd.grad(model[2:](leaf)[:, 0].sum(), leaf)[0]
    torch.testing.assert_close(found[node], leaf.detach() * slope)


# ------------------------------------------------------------------------------------------------------ refusals


def test_a_missing_rule_names_the_operation_and_the_place():
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.rfft(self.layer(x)).abs()

    x = torch.rand(3, 4)
    graph = capture(Sorted(), (x,))
    assert coverage(graph, Relevance()).missing
    with pytest.raises(
        SubjectError, match=r"MT310 the domain 'relevance' has no rule .*test_interpret_relevance"
    ):
        relevance(graph, (x,), torch.ones(3, 3), composite("epsilon"))


def test_batch_norm_by_batch_statistics_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)).eval()
    x = torch.rand(3, 4)
    with pytest.raises(SubjectError, match=r"MT310 .*batch_norm"):
        relevance(capture(model, (x,)), (x,), torch.ones(3, 4), composite("epsilon"))


def test_composites_are_refused_clearly():
    with pytest.raises(UsageError, match="did you mean 'epsilon-plus'"):
        composite("epsilon-pluss")
    with pytest.raises(UsageError, match="bounds"):
        composite("epsilon-gamma-box")


def test_sources_are_the_default_places():
    model, args = zoo.build("gpt", torch.float64)
    graph = capture(model, args)
    found = relevance(graph, args, torch.relu, composite("epsilon"))
    assert set(found.maps) == set(sources(graph))
