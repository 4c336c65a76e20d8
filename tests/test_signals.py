"""Every signal equals what plain autograd gives, each is computed once, and what fails fails alone."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from asking import Failed, read, read_many
from torch import nn

from microtome.errors import MicrotomeError, Refusal, UsageError
from microtome.folds import Collect, CrossCovariance, Moments, Rows, Sample, Sum
from microtome.laws.subjects import images, language, tokens, vectors
from microtome.passes import Run
from microtome.signals import (
    Constant,
    ParameterChange,
    Transform,
    Variation,
    across,
    activation,
    class_score,
    correct,
    derive,
    example_gradient_norms,
    features,
    gradient,
    hessian_vector_products,
    inputs,
    labels,
    loss,
    outputs,
    prediction_ids,
    predictions,
    probabilities,
    rows,
    score,
    signal,
    targets,
)
from microtome.subject import Subject


def everything(subject: Subject) -> tuple[torch.Tensor, torch.Tensor]:
    batches = list(subject.batches())
    return torch.cat([b.leaves()[0] for b in batches]), torch.cat([b.targets for b in batches])


def collected(subject: Subject, *signals, size: int | None = 7):
    """Values of signals for all rows, in order."""
    found = read(subject, Collect(signals=(rows, *signals)), size=size)[1:]
    return found[0] if len(signals) == 1 else found


# ---------------------------------------------------------------------------------- against plain autograd


def test_gradients_by_the_inputs():
    subject = images()
    x, y = everything(subject)
    x.requires_grad_()
    expected = torch.autograd.grad(F.cross_entropy(subject.model(x), y, reduction="sum"), x)[0]
    torch.testing.assert_close(collected(subject, gradient(loss)), expected)


def test_gradients_by_the_parameters():
    subject = images()
    x, y = everything(subject)
    total = F.cross_entropy(subject.model(x), y, reduction="sum")
    expected = torch.cat(
        [g.reshape(-1) for g in torch.autograd.grad(total, list(subject.model.parameters()))]
    )
    torch.testing.assert_close(read(subject, Sum(signals=(gradient(loss, "parameters"),)), size=5), expected)


@pytest.mark.parametrize(
    "layer", ["stem", "F.relu", "mix", "relu", "mix#2", "relu#2", "pool", "fc", "F.relu#2", "head"]
)
def test_gradients_by_a_layer(layer):
    subject = images()
    x, y = everything(subject)
    # The layer's own output plus zero: the gradient by the zero is the gradient by the layer.
    from microtome.signals.capture import first_tensor, replace_first, watching

    zeros: list[torch.Tensor] = []

    def see(_: str, output):
        zeros.append(torch.zeros_like(first_tensor(output)).requires_grad_())
        return replace_first(output, first_tensor(output) + zeros[0])

    with watching(subject.model, see, frozenset({layer})):
        total = F.cross_entropy(subject.model(x.clone()), y, reduction="sum")
    expected = torch.autograd.grad(total, zeros[0])[0]
    torch.testing.assert_close(collected(subject, gradient(loss, layer)), expected)


def test_gradients_by_the_embedding_where_inputs_are_integers():
    subject = tokens()
    x, _ = everything(subject)
    found, where = collected(subject, gradient(score), inputs)
    site = subject.model.embed(x).detach().requires_grad_()
    torch.testing.assert_close(where, site.detach())
    h = site
    q, k, v = subject.model.qkv(subject.model.norm(h)).split(8, dim=2)
    h = h + F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
    expected = torch.autograd.grad(subject.model.head(h.mean(1)).max(1).values.sum(), site)[0]
    torch.testing.assert_close(found, expected)


def test_several_gradients_of_several_scalars_at_once():
    subject = vectors()
    x, y = everything(subject)
    x.requires_grad_()
    out = subject.model(x)
    by_loss = torch.autograd.grad(F.cross_entropy(out, y, reduction="sum"), x, retain_graph=True)[0]
    by_score = torch.autograd.grad(out.max(1).values.sum(), x)[0]
    asked = [Collect(signals=(rows, gradient(s), gradient(s, "fc1"), features("fc2"))) for s in (loss, score)]
    (_, a, a1, f), (_, b, b1, _) = read(subject, asked, size=11)
    torch.testing.assert_close(a, by_loss)
    torch.testing.assert_close(b, by_score)
    torch.testing.assert_close(a1 @ subject.model.fc1.weight.detach(), by_loss)
    torch.testing.assert_close(b1 @ subject.model.fc1.weight.detach(), by_score)
    torch.testing.assert_close(f, collected(subject, features("fc2")))


@pytest.mark.parametrize("build", [images, vectors, language], ids=lambda b: b.__name__)
def test_hessian_vector_products(build):
    subject = build()
    x, y = everything(subject)
    model = subject.model
    sizes = {n: p for n, p in model.named_parameters()}
    flat = torch.cat([p.detach().reshape(-1) for p in sizes.values()])

    def total(vector: torch.Tensor) -> torch.Tensor:
        out = torch.func.functional_call(model, subject.split_parameters(vector), (x.clone(),))
        if out.dim() == 3:
            return F.cross_entropy(out[:, :-1].flatten(0, 1), y[:, 1:].flatten(), reduction="sum")
        return F.cross_entropy(out, y, reduction="sum")

    generator = torch.Generator().manual_seed(0)
    vectors_ = torch.randn(2, len(flat), dtype=torch.float64, generator=generator)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = torch.stack([torch.autograd.functional.hvp(total, flat, v)[1] for v in vectors_])
    found = read(subject, Sum(signals=(hessian_vector_products(loss, Constant(vectors_)),)), size=9)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("build", [images, tokens], ids=lambda b: b.__name__)
def test_gradient_norms_of_single_examples(build):
    subject = build()
    x, y = everything(subject)
    parameters = list(subject.model.parameters())
    expected = []
    for i in range(len(x)):
        one = F.cross_entropy(subject.model(x[i : i + 1].clone()), y[i : i + 1])
        expected.append(torch.stack([g.square().sum() for g in torch.autograd.grad(one, parameters)]))
    torch.testing.assert_close(collected(subject, example_gradient_norms(loss)), torch.stack(expected))


# --------------------------------------------------------------------------------- other inputs, weights


@dataclass(frozen=True)
class Shift(Transform):
    by: float

    def apply(self, x, site):
        return x + self.by


@dataclass(frozen=True)
class SignStep(Transform):
    by: float

    def apply(self, x, site):
        return x + self.by * site.ask(gradient(loss), x).sign()


@dataclass(frozen=True)
class StepOnSome(Transform):
    """Asks for the rows with even ids alone."""

    def apply(self, x, site):
        chosen = (site.rows % 2 == 0).nonzero()[:, 0]
        moved = x.clone()
        if len(chosen):
            moved[chosen] += site.ask(gradient(score), x[chosen], chosen)
        return moved


@dataclass(frozen=True)
class Multiples(Variation):
    count: int = 5

    def copies(self, x, rows, start, stop):
        return torch.stack([x * (1 + 0.1 * i) for i in range(start, stop)], dim=1)


@dataclass(frozen=True)
class Scaled(ParameterChange):
    by: float

    def change(self, subject, parameters):
        return {n: parameters[n] * self.by for n in subject.parameters}


def direct(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(x.clone())


def test_under_is_the_same_signal_on_changed_inputs():
    subject = images()
    x, _ = everything(subject)
    torch.testing.assert_close(collected(subject, outputs.under(Shift(0.2))), direct(subject.model, x + 0.2))
    twice = collected(subject, outputs.under(Shift(0.2), Shift(0.1)))
    torch.testing.assert_close(twice, collected(subject, outputs.under(Shift(0.2)).under(Shift(0.1))))
    torch.testing.assert_close(twice, direct(subject.model, x + 0.3))
    torch.testing.assert_close(collected(subject, inputs.under(Shift(0.2))), x + 0.2)


def test_a_transform_may_ask_for_gradients_of_all_or_some():
    subject = images()
    x, y = everything(subject)
    leaf = x.clone().requires_grad_()
    step = torch.autograd.grad(F.cross_entropy(subject.model(leaf), y, reduction="sum"), leaf)[0].sign()
    torch.testing.assert_close(collected(subject, inputs.under(SignStep(0.1))), x + 0.1 * step)
    found = collected(subject, inputs.under(StepOnSome()))
    by_score = torch.autograd.grad(subject.model(leaf).max(1).values.sum(), leaf)[0]
    torch.testing.assert_close(found[::2], (x + by_score)[::2])
    torch.testing.assert_close(found[1::2], x[1::2])


def test_under_moves_the_embedding_where_inputs_are_integers():
    subject = tokens()
    x, _ = everything(subject)
    torch.testing.assert_close(
        collected(subject, inputs.under(Shift(0.5))), subject.model.embed(x).detach() + 0.5
    )
    moved = collected(subject, outputs.under(Shift(0.5)))
    handle = subject.model.embed.register_forward_hook(lambda m, a, o: o + 0.5)
    torch.testing.assert_close(moved, direct(subject.model, x))
    handle.remove()


def test_at_is_the_same_signal_at_other_parameters():
    subject = images()
    x, _ = everything(subject)
    state = {n: p * 1.5 for n, p in subject.parameters.items()}
    with torch.no_grad():
        expected = torch.func.functional_call(subject.model, state, (x.clone(),))
    torch.testing.assert_close(collected(subject, outputs.at(Scaled(1.5))), expected)
    torch.testing.assert_close(
        collected(subject, outputs.at(Scaled(3.0), Scaled(0.5))), collected(subject, outputs.at(Scaled(1.5)))
    )
    torch.testing.assert_close(collected(subject, outputs), direct(subject.model, x))


def test_of_is_the_same_signal_on_a_second_network():
    first, second = images(), images()
    with torch.no_grad():
        second.model.head.weight.mul_(2)
    x, _ = everything(first)
    both = collected(first, outputs, outputs.of(second), activation("fc").of(second))
    torch.testing.assert_close(both[0], direct(first.model, x))
    torch.testing.assert_close(both[1], direct(second.model, x))
    torch.testing.assert_close(both[2], collected(first, activation("fc")))


def test_worlds_combine():
    first, second = images(), images()
    with torch.no_grad():
        second.model.head.weight.mul_(2)
    x, _ = everything(first)
    found = collected(first, outputs.of(second).at(Scaled(1.2)).under(Shift(0.3)))
    state = {n: p * 1.2 for n, p in second.parameters.items()}
    with torch.no_grad():
        expected = torch.func.functional_call(second.model, state, (x + 0.3,))
    torch.testing.assert_close(found, expected)


def test_across_gives_every_copy():
    subject = images()
    x, _ = everything(subject)
    expected = torch.stack([direct(subject.model, x * (1 + 0.1 * i)).max(1).values for i in range(5)], dim=1)
    for size in (None, 2, 48):
        torch.testing.assert_close(collected(subject, across(score, Multiples()), size=size), expected)


def test_across_with_weights_keeps_only_the_sum():
    subject = images()
    x, _ = everything(subject)
    weights = (0.1, 0.2, 0.3, 0.2, 0.2)
    expected = torch.zeros_like(x)
    for i, w in enumerate(weights):
        leaf = (x * (1 + 0.1 * i)).requires_grad_()
        expected += w * torch.autograd.grad(subject.model(leaf).max(1).values.sum(), leaf)[0]
    torch.testing.assert_close(collected(subject, across(gradient(score), Multiples(), weights)), expected)


def test_across_refuses_what_has_several_values_an_example():
    with pytest.raises(Failed, match="several values an example"):
        collected(language(), across(loss, Multiples()))


def test_a_constant_of_examples_finds_its_rows():
    subject = images()
    _, y = everything(subject)
    chosen = Constant(y[[3, 9, 30]], torch.tensor([3, 9, 30]))
    found = read(subject, Collect(signals=(rows, class_score(chosen)), over=Rows((30, 3, 9))), size=2)
    out = collected(subject, outputs)
    torch.testing.assert_close(found[1], out[[3, 9, 30], y[[3, 9, 30]]])


# ---------------------------------------------------------------------------------------- expressions


def _twice(value):
    return 2 * value


def _boom(value):
    raise RuntimeError("a derived signal that breaks")


def _refuses(value):
    raise Refusal("there is nothing to see here")


def test_equal_expressions_are_one():
    assert gradient(loss).under(Shift(0.1)) == gradient(loss).under(Shift(0.1))
    assert hash(gradient(loss).under(Shift(0.1))) == hash(gradient(loss).under(Shift(0.1)))
    assert gradient(loss).under(Shift(0.1)) != gradient(loss).under(Shift(0.2))
    assert gradient(loss) != gradient(score)
    assert gradient(loss) != gradient(loss, "parameters")
    assert derive(_twice, loss) == derive(_twice, loss) != derive(_twice, score)
    assert derive(_twice, loss, factor=1) != derive(_twice, loss, factor=2)
    assert across(score, Multiples(3)) == across(score, Multiples(3)) != across(score, Multiples(4))
    assert Moments(signals=(loss,)) == Moments(signals=(loss,))
    assert Moments(signals=(loss,)) != Moments(signals=(loss,), over=Sample(5))


def test_constants_are_equal_when_their_contents_are():
    a, b = torch.arange(4.0), torch.arange(4.0)
    assert Constant(a) == Constant(b) and hash(Constant(a)) == hash(Constant(b))
    assert Constant(a) != Constant(a + 1)
    assert Constant(a) != Constant(a.double())
    assert Constant(a, torch.arange(4)) != Constant(a)
    large = torch.zeros(1 << 17)
    assert Constant(large) != Constant(large)


def test_labels_and_rows_are_the_same_in_every_world():
    assert labels.under(Shift(1.0)).at(Scaled(2.0)).text().startswith("labels")
    assert rows.under(Shift(1.0)) == rows
    assert targets.of(images()) == targets


def test_a_signal_whose_parameter_names_nothing_fails_at_once():
    with pytest.raises(UsageError, match="did you mean 'logits'"):

        @signal
        def wrong(logit):
            return logit


def test_a_gradient_of_mixed_worlds_is_refused():
    with pytest.raises(ValueError, match="mixes worlds"):
        gradient(derive(_twice, loss.under(Shift(0.1)), score))


def test_texts_name_what_and_where():
    assert loss.text() == "loss"
    assert "loss" in gradient(loss).text()
    assert ".under(Shift(by=0.1))" in loss.under(Shift(0.1)).text()


# ------------------------------------------------------------------------------------ how often, and where


class Counting(nn.Module):
    """Counts its forwards and the rows in them."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.seen: list[int] = []

    def forward(self, x):
        self.seen.append(len(x))
        return self.inner(x)


def counted() -> tuple[Subject, list[int]]:
    model = Counting(vectors().model)
    x, y = everything(vectors())
    subject = Subject(model, [(x, y)])
    model.seen.clear()
    return subject, model.seen


def test_one_forward_serves_all_who_ask():
    subject, seen = counted()
    asked = {
        "a": [Moments(signals=(loss,))],
        "b": [[Moments(signals=(s,)) for s in (confident, features("inner.fc1"), features("inner.fc2"))]],
        "c": [Collect(signals=(prediction_ids, correct, predictions, probabilities))],
        "d": [CrossCovariance(signals=(features("inner.fc1"), features("inner.fc2")))],
        "e": [Moments(signals=(gradient(loss),))],
        "f": [[Moments(signals=(gradient(loss, "inner.fc1"),)), Moments(signals=(gradient(score),))]],
        "g": [Sum(signals=(gradient(loss, "parameters"),))],
    }
    read_many(subject, asked)
    assert seen == [48]


confident = derive(_twice, probabilities)


def test_every_world_costs_one_forward():
    subject, seen = counted()
    worlds = [
        loss,
        loss.under(Shift(0.1)),
        score.under(Shift(0.1)),
        loss.at(Scaled(2.0)),
        score.at(Scaled(2.0)),
    ]
    read_many(subject, {f"a{i}": [Moments(signals=(s,))] for i, s in enumerate(worlds)})
    assert seen == [48, 48, 48]


def test_inputs_targets_and_rows_cost_no_forward():
    subject, seen = counted()
    read(subject, [Moments(signals=(inputs,)), Collect(signals=(rows, targets))])
    assert seen == []


def test_rounds_are_shared():
    subject, seen = counted()
    rounds = [Moments(signals=(loss,)), Moments(signals=(score,)), Moments(signals=(confident,))]
    read_many(
        subject, {"a": rounds, "b": [Moments(signals=(score,)), Moments(signals=(loss,))], "c": rounds[:1]}
    )
    assert seen == [48, 48, 48]


# ------------------------------------------------------------------------------------- in-place operations


class InPlace(nn.Module):
    """Every layer's output is overwritten by the next."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.relu(self.fc1(x))
        y = self.fc2(x)
        y += x
        return self.head(F.relu(y, inplace=True))


class OutOfPlace(InPlace):
    def forward(self, x):
        x = F.relu(self.fc1(x))
        return self.head(F.relu(self.fc2(x) + x))


def in_place_subject() -> tuple[Subject, InPlace, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = InPlace().double()
        x, y = torch.randn(20, 4, dtype=torch.float64), torch.arange(20) % 3
    return Subject(model, [(x, y)]), model, x


def _outer(a, b):
    return a[:, :, None] * b[:, None, :]


@pytest.mark.parametrize("with_gradient", [False, True])
def test_in_place_operations_do_not_reach_captured_activations(with_gradient):
    subject, model, x = in_place_subject()
    with torch.no_grad():
        first = model.fc1(x)
        second = model.fc2(F.relu(first))
    assert {"fc1", "fc2"} <= subject.overwritten
    asked = [
        Collect(signals=(rows, features("fc1"), activation("fc1"), features("fc2"))),
        CrossCovariance(signals=(features("fc1"), features("head"))),
        Collect(signals=(rows, derive(_outer, features("fc1"), features("fc2")))),
    ]
    if with_gradient:
        asked.append(Sum(signals=(gradient(loss, "parameters"),)))
    found = read(subject, asked, size=6)
    torch.testing.assert_close(found[0][1], first)
    torch.testing.assert_close(found[0][2], first)
    torch.testing.assert_close(found[0][3], second)
    torch.testing.assert_close(found[2][1], _outer(first, second))
    torch.testing.assert_close(found[1][1], first.mean(0))


def test_gradients_are_right_in_spite_of_in_place_operations():
    subject, model, _ = in_place_subject()
    plain = OutOfPlace().double()
    plain.load_state_dict(model.state_dict())
    for layer in (None, "fc1", "fc2"):
        expected = collected(Subject(plain, list(subject.data)), gradient(loss, layer or "inputs"))
        found = collected(subject, gradient(loss, layer or "inputs"))
        torch.testing.assert_close(found, expected)


# -------------------------------------------------------------------------------- what fails fails alone


def outcomes(subject: Subject, **asked) -> dict[str, str]:
    """Status and reason of each asker."""
    from asking import Ask

    run = Run(subject, {n: Ask(asked=[f], answers=[]) for n, f in asked.items()}, budget=1 << 30)
    return {n: f"{f.status} {f.reason}" for n, f in run.execute().items()}


def test_a_derived_signal_that_raises_fails_only_those_who_asked():
    found = outcomes(
        images(),
        good=Moments(signals=(loss,)),
        bad=Moments(signals=(derive(_boom, loss),)),
        above=Moments(signals=(derive(_twice, derive(_boom, loss)),)),
        refusing=Moments(signals=(derive(_refuses, loss),)),
        gradient=Moments(signals=(gradient(loss),)),
    )
    assert found["good"] == found["gradient"] == "measured "
    assert found["bad"].startswith("failed RuntimeError: a derived signal that breaks")
    assert found["above"].startswith("failed RuntimeError: a derived signal that breaks")
    assert found["refusing"] == "refused there is nothing to see here"


def test_a_gradient_that_cannot_be_taken_fails_alone():
    found = outcomes(
        images(),
        good=Moments(signals=(loss,)),
        bad=Moments(signals=(gradient(derive(_boom, loss)),)),
        other=Moments(signals=(gradient(loss),)),
        curvature=Sum(signals=(hessian_vector_products(derive(_boom, loss), Constant(torch.ones(1, 500))),)),
        examples=Collect(signals=(rows, example_gradient_norms(derive(_boom, loss)))),
        copies=Collect(signals=(rows, across(derive(_boom, loss), Multiples()))),
    )
    assert found["good"] == found["other"] == "measured "
    for name in ("bad", "curvature", "examples", "copies"):
        assert found[name].startswith("failed RuntimeError: a derived signal that breaks"), found[name]


class _Breaks(Transform):
    def apply(self, x, site):
        raise RuntimeError("a transform that breaks")


class _BreaksParameters(ParameterChange):
    def change(self, subject, parameters):
        raise RuntimeError("a change that breaks")


def test_another_world_that_breaks_fails_alone():
    broken = images()
    broken.model.register_forward_pre_hook(_boom_hook)
    found = outcomes(
        images(),
        good=Moments(signals=(loss,)),
        under=Moments(signals=(loss.under(_Breaks()),)),
        at=Moments(signals=(loss.at(_BreaksParameters()),)),
        of=Moments(signals=(loss.of(broken),)),
    )
    assert found["good"] == "measured "
    assert "a transform that breaks" in found["under"]
    assert "a change that breaks" in found["at"]
    assert found["of"].startswith("failed") and "second network" in found["of"]


def _boom_hook(module, args):
    raise RuntimeError("a second network that breaks")


class Undifferentiable(nn.Module):
    """Works without a graph alone."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        y = self.fc(x)
        if y.requires_grad:
            raise RuntimeError("no graph, please")
        return y


def test_a_network_that_cannot_be_differentiated_is_still_measured():
    x, y = torch.randn(12, 4), torch.arange(12) % 3
    found = outcomes(
        Subject(Undifferentiable(), [(x, y)]),
        good=Collect(signals=(rows, loss, features("fc"))),
        bad=Moments(signals=(gradient(loss),)),
    )
    assert found["good"] == "measured "
    assert found["bad"].startswith("failed RuntimeError: no graph, please")


def test_an_unknown_layer_is_a_usage_error_that_names_the_nearest():
    with pytest.raises(MicrotomeError, match=r"no layer is called 'steam' .*did you mean 'stem'"):
        images().layer("steam")


class Sums(nn.Module):
    """Many sums that nothing but a rectifier sees: freed at once, their addresses come up again."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(8, 8) for _ in range(40))
        self.act = nn.ReLU()
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        for part in self.parts:
            x = self.act(part(x) + x)
        return self.head(x)


def test_which_layers_are_representations_does_not_depend_on_addresses():
    subject = Subject(Sums(), [(torch.randn(12, 8), torch.arange(12) % 3)])
    assert subject.representations == subject.layers


def test_a_signal_that_is_done_with_leaves_at_once():
    """The collector of cycles rests during a run, so a signal that referred to itself would keep its vectors."""
    import gc
    import weakref

    vectors = torch.zeros(2, 3)
    gone = weakref.ref(vectors)
    signal = hessian_vector_products(loss, Constant(vectors))
    gc.disable()
    try:
        assert signal in signal.walk()
        del vectors, signal
        assert gone() is None
    finally:
        gc.enable()
