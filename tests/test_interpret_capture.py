from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from interpret_zoo import MODELS, build
from torch import Tensor, nn

from microtome.errors import MicrotomeError, SubjectError
from microtome.interpret import (
    Domain,
    backward,
    capture,
    concrete,
    coverage,
    forward,
    requirements,
    rule,
    sources,
)
from microtome.interpret.interval import Interval, Intervals
from microtome.nn.digits_cnn import DigitsCNN

aten = torch.ops.aten


@pytest.mark.parametrize("name", MODELS)
def test_captured_program_computes_what_the_model_computes(name: str) -> None:
    model, args = build(name)
    graph = capture(model, args)
    more = tuple(torch.cat([a, a])[:5] for a in args)  # another batch size than the example's
    with torch.no_grad():
        torch.testing.assert_close(concrete(graph, more).result, model(*more), rtol=1e-5, atol=1e-6)
    assert graph.dynamic
    assert not graph.notes


def test_nodes_know_the_module_call_and_the_line() -> None:
    graph = capture(DigitsCNN().eval(), (torch.rand(2, 1, 8, 8),))
    second = graph.node("block1.relu#2")
    assert (second.path, second.call, second.operation) == ("block1.relu", 1, "aten.relu.default")
    assert (
        "digits_cnn.py" in graph.node("block1.conv1").where or "conv.py" in graph.node("block1.conv1").where
    )
    assert graph.node("block1.conv1").shape is not None and graph.node("block1.conv1").shape[1:] == (16, 8, 8)
    assert set(graph.state) >= {"stem.weight", "norm.running_mean"}
    with pytest.raises(MicrotomeError, match=r"MT304.*did you mean"):
        graph.node("block1.conv3")


def test_model_is_left_as_found() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    model[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.rand(2, 3)
    state, own = torch.get_rng_state(), random.getstate()
    graph = capture(model, (x,))
    assert [m.training for m in model.modules()] == [True, True, False, True]
    assert torch.equal(state, torch.get_rng_state()) and own == random.getstate()
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    assert graph.state["0.weight"] is model[0].weight
    assert "eval mode" in graph.notes[0]


def test_a_batch_of_one_does_not_fix_the_batch() -> None:
    graph = capture(nn.Linear(3, 2), (torch.rand(1, 3),))
    assert graph.dynamic
    assert concrete(graph, (torch.rand(7, 3),)).output.shape == (7, 2)


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class Fixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(3, 4) + 1


def test_what_export_cannot_do_is_one_clear_error() -> None:
    with pytest.raises(SubjectError, match=r"MT301 Branch cannot be captured") as caught:
        capture(Branch(), (torch.rand(3, 4),))
    assert "test_interpret_capture.py" in caught.value.where
    assert "torch.where" in caught.value.fix


def test_what_export_cannot_do_prints_nothing(capfd) -> None:
    with pytest.raises(SubjectError, match="MT301"):
        capture(Branch(), (torch.rand(3, 4),))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.AdaptiveMaxPool1d(1), (2, 3, 6)),
        (nn.AdaptiveMaxPool2d((2, 1)), (2, 3, 6, 4)),
        (nn.AdaptiveMaxPool3d(2), (2, 3, 4, 4, 6)),
        (nn.AdaptiveMaxPool2d(4), (2, 3, 6, 6)),  # windows that overlap: it stays what it is
    ],
)
def test_adaptive_maxima_are_maxima_of_equal_windows_where_they_can(layer: nn.Module, shape: tuple[int, ...]):
    graph = capture(layer, (torch.randn(shape),))
    x = torch.randn(5, *shape[1:])
    assert torch.equal(concrete(graph, (x,)).output, layer(x))
    names = {node.operation for node in graph.operations}
    assert ("aten.adaptive_max_pool2d.default" in names) == (shape[2:] == (6, 6))


class Settings:
    use_cache = True


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config, self.map = Settings(), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, object]:
        return self.map(x), (Settings() if self.config.use_cache else None)


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config, self.decoder = Settings(), Decoder()

    def forward(self, x: Tensor) -> tuple[Tensor, object]:
        return self.decoder(x)


def test_caches_of_inner_parts_are_switched_off_and_on_again() -> None:
    model = Whole()
    assert capture(model, (torch.rand(2, 3),)).output.shape[1:] == (3,)
    assert model.config.use_cache and model.decoder.config.use_cache


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.cell(packed)[1][0]


def test_sizes_that_are_values_are_no_matter_of_arguments() -> None:
    with pytest.raises(SubjectError, match="depend on sizes instead of values"):
        capture(Packed(), (torch.rand(3, 4, 3), torch.tensor([2, 4, 3])))


def test_a_program_with_a_fixed_batch_says_so() -> None:
    graph = capture(Fixed().eval(), (torch.rand(3, 4),))
    assert not graph.dynamic
    assert "fixes the first dimension" in graph.notes[0] or "sizes only" in graph.notes[0]
    with pytest.raises(MicrotomeError, match="MT306"):
        concrete(graph, (torch.rand(4, 4),))


class Named(nn.Module):
    def forward(self, x: Tensor, *, scale: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        return {"out": x * scale if mask is None else x * scale * mask}


def test_keyword_arguments_and_structured_outputs() -> None:
    model, x, s = Named(), torch.rand(3, 2), torch.rand(3, 2)
    graph = capture(model, (x,), {"scale": s})
    assert torch.equal(concrete(graph, (x,), {"scale": s}).result["out"], x * s)
    with pytest.raises(MicrotomeError, match="MT305"):
        concrete(graph, (x,))


def test_masked_attention_rows_without_a_key_are_zero_as_in_the_original() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)

    x, mask = torch.randn(2, 4, 3), torch.rand(2, 4, 4) > 0.4
    mask[0, 1] = False
    graph = capture(Masked(), (x, mask))
    torch.testing.assert_close(concrete(graph, (x, mask)).result, Masked()(x, mask))


class Strange(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.matrix_exp(x)


def test_a_missing_rule_names_operation_module_domain_and_remedy() -> None:
    model = nn.Sequential(nn.Linear(3, 3), Strange())
    graph = capture(model, (torch.rand(3, 3),))
    found = coverage(graph, Intervals())
    assert (found.needed, [n.path for n in found.missing]) == (2, ["1"])
    with pytest.raises(
        SubjectError, match=r"MT310 the domain 'interval' has no rule.*matrix_exp.*module '1'"
    ):
        forward(graph, {graph.inputs[0]: Interval.around(torch.rand(3, 3), 0.1)}, Intervals())


class Gradient(Domain):
    """The plain gradient, as a check of the backward walk."""

    name = "gradient"

    def missing(self, node):  # type: ignore[no-untyped-def]
        return lambda at, cotangent, *args, **kwargs: at.transpose(cotangent, *args, **kwargs)


class Guided(Gradient):
    """Guided backpropagation: one rule differs."""

    name = "guided"


@rule(Guided, aten.relu.default, keep="nothing", output=True)
def guided_relu(at, cotangent):  # type: ignore[no-untyped-def]
    return cotangent.clamp(min=0) * (at.output > 0)


@pytest.mark.parametrize("name", MODELS)
def test_backward_walk_with_transposes_is_the_gradient(name: str) -> None:
    model, args = build(name, torch.float64)
    graph, domain = capture(model, args), Gradient()
    start = sources(graph)
    keep, shapes = requirements(graph, domain, [graph.output])
    with torch.no_grad():
        run = concrete(graph, args, keep={*keep, *start}, shapes=shapes)
        found = backward(run, domain, {graph.output: torch.ones_like(run.output)})[start[0]]
    x = run.values[start[0]].clone().requires_grad_()
    given = graph.bind(args) if start[0].kind != "input" else {start[0]: x}
    value = forward(graph, given, replace={start[0]: lambda _: x}).output
    torch.testing.assert_close(found, torch.autograd.grad(value.sum(), x)[0])


def test_a_domain_inherits_rules_and_replaces_some() -> None:
    model, args = build("mlp")
    graph, domain = capture(model, args), Guided()
    keep, shapes = requirements(graph, domain, [graph.output])
    with torch.no_grad():
        run = concrete(graph, args, keep=keep, shapes=shapes)
        found = backward(run, domain, {graph.output: torch.ones_like(run.output)})[graph.inputs[0]]
        first, second = model[0](args[0]), model[2](F.relu(model[0](args[0])))
        back = (torch.ones(3, 3) @ model[4].weight).clamp(min=0) * (second > 0)
        back = (back @ model[2].weight).clamp(min=0) * (first > 0)
    torch.testing.assert_close(found, back @ model[0].weight)


def test_values_are_dropped_after_their_last_use() -> None:
    model, args = build("digits_cnn")
    graph = capture(model, args)
    assert set(concrete(graph, args).values) == {graph.output}


def test_transformers_from_a_configuration() -> None:
    transformers = pytest.importorskip("transformers")
    options = {"vocab_size": 30, "bos_token_id": 0, "eos_token_id": 0}
    gpt = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=12, **options)
    ).eval()
    ids = torch.randint(0, 30, (3, 7))
    graph = capture(gpt, (ids,))
    assert gpt.config.use_cache
    with torch.no_grad():
        torch.testing.assert_close(concrete(graph, (ids,)).output, gpt(ids).logits, rtol=1e-4, atol=1e-5)
    assert coverage(graph, Intervals()).share == 1
    bert = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=30,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=12,
        )
    ).eval()
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    given["attention_mask"][0, 5:] = 0
    graph = capture(bert, (), given)
    with torch.no_grad():
        torch.testing.assert_close(
            concrete(graph, (), given).output, bert(**given).logits, rtol=1e-4, atol=1e-5
        )
    assert coverage(graph, Intervals()).share == 1


@pytest.mark.parametrize("kind", ["GCN", "GIN"])
def test_graph_networks(kind: str) -> None:
    layers = pytest.importorskip("torch_geometric.nn")
    model = getattr(layers, kind)(4, 8, 2, 3).eval()
    edges = torch.tensor([[0, 1, 2, 3, 1], [1, 0, 3, 2, 2]])
    x = torch.rand(4, 4)
    graph = capture(model, (x, edges))
    with torch.no_grad():
        torch.testing.assert_close(concrete(graph, (x, edges)).output, model(x, edges))
    assert coverage(graph, Intervals(), start=[graph.inputs[0]]).share == 1


def test_an_operation_defined_after_a_capture_is_decomposed_too() -> None:
    capture(nn.Linear(2, 2), (torch.zeros(3, 2),))
    library = torch.library.Library("microtome_later", "DEF")
    try:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x * 2, "CompositeImplicitAutograd")

        class Twice(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return torch.ops.microtome_later.twice(x)

        graph = capture(Twice(), (torch.zeros(3, 2),))
        assert [node.target for node in graph.nodes if node.kind == "operation"] == [
            torch.ops.aten.mul.Tensor
        ]
    finally:
        library._destroy()
