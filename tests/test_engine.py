"""The passes engine against plain autograd, and what it promises about sharing, memory and stopping."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import microtome as mt
import microtome.progress
from microtome.errors import Refusal, SubjectError
from microtome.finding import Finding, Quantity
from microtome.folds import Collect, Moments, Rows, Sample, Sum
from microtome.instrument import Asking, Instrument
from microtome.passes import Run
from microtome.signals import (
    Constant,
    ParameterChange,
    Transform,
    Variation,
    across,
    activation,
    class_score,
    derive,
    example_gradient_norms,
    gradient,
    hessian_vector_products,
    loss,
    rows,
    signal,
)
from microtome.signals.evaluate import Evaluator, Failure, Program
from microtome.subject import Subject


class Net(nn.Module):
    """An in-place ReLU after a batch-norm, a functional one, a module called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(64, 16)
        self.head = nn.Linear(16, 3)
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        x = self.relu(self.norm(self.conv(x)))
        x = self.relu(self.fc(x.flatten(1)))
        return self.head(F.relu(x - 0.1))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    made = Net().double()
    made.norm.running_mean.uniform_(-0.5, 0.5)
    return made.eval()


def data(n: int = 40, batch: int = 16) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n, 1, 4, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (n,), generator=generator)
    return [(x[i : i + batch], y[i : i + batch]) for i in range(0, n, batch)]


def values(subject: Subject, *signals: Any) -> list[Any]:
    got: dict[Any, Any] = {}
    batch = next(iter(subject.batches()))
    Evaluator(subject).run(Program(signals), batch, got.__setitem__)
    return [got[s] for s in signals]


@dataclass(frozen=True)
class Shifted(Transform):
    by: float

    def apply(self, x: Tensor, site: Any) -> Tensor:
        return x + self.by


@dataclass(frozen=True)
class Without(ParameterChange):
    name: str

    def change(self, subject: Subject, parameters: Any) -> dict[str, Tensor]:
        return {self.name: torch.zeros_like(parameters[self.name])}


@dataclass(frozen=True)
class Scaled(Variation):
    count: int

    def copies(self, x: Tensor, rows: Tensor, start: int, stop: int) -> Tensor:
        factors = (torch.arange(start, stop, dtype=x.dtype) + 1) / self.count
        return x[:, None] * factors.reshape(1, -1, *[1] * (x.dim() - 1))


def test_gradients_are_autograds(net: Net) -> None:
    subject = Subject(net, data())
    by_inputs, by_parameters, by_layer = values(
        subject, gradient(loss), gradient(loss, "parameters"), gradient(loss, "norm")
    )
    x, y = data()[0]
    x = x.clone().requires_grad_()
    kept: list[Tensor] = []
    handle = net.norm.register_forward_hook(lambda m, a, o: (kept.append(o), o.clone())[1])
    total = F.cross_entropy(net(x), y, reduction="sum")
    handle.remove()
    wanted = torch.autograd.grad(total, [x, kept[0], *net.parameters()])
    assert torch.allclose(by_inputs, wanted[0], atol=1e-12)
    assert torch.allclose(by_layer, wanted[1], atol=1e-12)
    assert torch.allclose(by_parameters, torch.cat([g.reshape(-1) for g in wanted[2:]]), atol=1e-12)


def test_second_derivatives_and_single_examples(net: Net) -> None:
    subject = Subject(net, data())
    generator = torch.Generator().manual_seed(3)
    vectors = torch.randn(2, subject.parameter_count, generator=generator, dtype=torch.float64)
    products, norms = values(
        subject, hessian_vector_products(loss, Constant(vectors)), example_gradient_norms(loss)
    )
    x, y = data()[0]

    def total(flat: Tensor) -> Tensor:
        parameters = subject.split_parameters(flat)
        return F.cross_entropy(torch.func.functional_call(net, parameters, (x,)), y, reduction="sum")

    at = torch.cat([p.reshape(-1) for p in subject.parameters.values()])
    for vector, product in zip(vectors, products, strict=True):
        assert torch.allclose(product, torch.autograd.functional.hvp(total, at, vector)[1], atol=1e-10)
    for i in range(len(x)):
        gradients = torch.autograd.grad(
            F.cross_entropy(net(x[i : i + 1]), y[i : i + 1]), list(net.parameters())
        )
        assert torch.allclose(norms[i], torch.stack([g.square().sum() for g in gradients]), atol=1e-12)


def test_other_inputs_and_other_parameters(net: Net) -> None:
    subject = Subject(net, data())
    x, y = data()[0]
    classes = Constant(torch.zeros(len(x), dtype=torch.long), torch.arange(len(x)))
    score = class_score(classes)
    moved, cut, copies, mean = values(
        subject, loss.under(Shifted(0.3)), loss.at(Without("head.weight")), across(score, Scaled(5)),
        across(gradient(score), Scaled(4), (0.25,) * 4),
    )  # fmt: skip
    assert torch.allclose(moved, F.cross_entropy(net(x + 0.3), y, reduction="none"))
    assert torch.allclose(cut, F.cross_entropy(net.head.bias.expand(len(x), 3), y, reduction="none"))
    assert torch.allclose(copies, torch.stack([net(x * (i + 1) / 5)[:, 0] for i in range(5)], dim=1))
    slow = torch.zeros_like(x)
    for i in range(4):
        leaf = (x * (i + 1) / 4).requires_grad_()
        slow += torch.autograd.grad(net(leaf)[:, 0].sum(), leaf)[0] / 4
    assert torch.allclose(mean, slow, atol=1e-12)
    assert loss.under(Shifted(0.3)) == loss.under(Shifted(0.3)) != loss.under(Shifted(0.2))


def test_in_place_operations_do_not_reach_what_was_captured(net: Net) -> None:
    subject = Subject(net, data())
    x, _ = data()[0]
    normed = net.norm(net.conv(x))
    (seen,) = values(subject, derive(_difference, activation("norm"), activation("relu")))
    assert torch.allclose(seen, normed - normed.relu())
    # A functional call in the root is told from the module of that name.
    assert [x.name for x in subject.layers] == ["conv", "norm", "relu", "fc", "relu#2", "F.relu", "head"]


def _difference(a: Tensor, b: Tensor) -> Tensor:
    return a - b


def _broken(loss: Tensor) -> Tensor:
    raise ArithmeticError("this derived signal is broken")


def test_a_broken_signal_breaks_only_what_is_made_of_it(net: Net) -> None:
    broken, fine = values(Subject(net, data()), derive(_broken, loss), loss)
    assert isinstance(broken, Failure) and isinstance(fine, Tensor)


def test_an_unknown_signal_fails_at_import_and_names_the_nearest() -> None:
    with pytest.raises(mt.MicrotomeError, match="logits"):

        @signal
        def wrong(logit: Tensor) -> Tensor:
            return logit


@dataclass(frozen=True, kw_only=True)
class Rounds(Instrument):
    """Does it share its rounds?"""

    count: int = 2
    over: Any = Sample(1 << 30)

    def examine(self, subject: Subject) -> Asking:
        for _ in range(self.count):
            moments = yield Moments(signals=(loss,), over=self.over)
        return Finding(headline="loss", quantities={"loss": Quantity(value=float(moments.mean))})


@dataclass(frozen=True, kw_only=True)
class Ids(Instrument):
    """Which rows does it see?"""

    over: Any = Sample(7)

    def examine(self, subject: Subject) -> Asking:
        (ids,) = yield Collect(signals=(rows,), over=self.over)
        return Finding(headline="n", quantities={"n": Quantity(value=len(ids))}, arrays={"ids": ids.numpy()})


@dataclass(frozen=True, kw_only=True)
class Gradient(Instrument):
    """What is the mean gradient?"""

    def examine(self, subject: Subject) -> Asking:
        total = yield Sum(signals=(gradient(loss, "parameters"),))
        return Finding(
            headline="n", quantities={"n": Quantity(value=float(total.norm()))}, arrays={"g": total.numpy()}
        )


def run(subject: Subject, *instruments: Instrument, **options: Any) -> dict[str, Finding]:
    return Run(
        subject, {str(i): one for i, one in enumerate(instruments)}, budget=1 << 28, **options
    ).execute()


def test_rounds_and_forwards_are_shared(net: Net) -> None:
    subject = Subject(net, data())
    net.calls.clear()
    findings = run(subject, Rounds(count=3), Rounds(count=2), Rounds(count=3))
    assert net.calls == [40] * 3
    assert len({f.value for f in findings.values()}) == 1


def test_the_same_rows_whatever_the_batch(net: Net) -> None:
    seen = [run(Subject(net, data(batch=b)), Ids(), Ids(over=Rows((3, 17, 39)))) for b in (1, 7, 40)]
    first, *others = [(f["0"].arrays["ids"].tolist(), f["1"].arrays["ids"].tolist()) for f in seen]
    assert len(first[0]) == 7 and first[1] == [3, 17, 39]
    assert all(other == first for other in others)
    wrong = run(Subject(net, data()), Ids(over=Rows((99,))))["0"]
    assert wrong.status == "refused" and "99" in wrong.reason


class Greedy(Net):
    """Runs out of memory beyond ``most`` rows."""

    most = 6

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most and self.armed:
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(x)

    armed = False


def test_memory_that_runs_out_halves_the_slice_and_counts_nothing_twice() -> None:
    torch.manual_seed(0)
    net = Greedy().double().eval()
    subject = Subject(net, data())
    expected = run(subject, Gradient(), Ids(over=Sample(1000)))
    notes: list[str] = []

    class Watch(mt.progress.Silent):  # type: ignore[name-defined]
        def note(self, text: str) -> None:
            notes.append(text)

    net.armed = True
    found = run(subject, Gradient(), Ids(over=Sample(1000)), watcher=Watch())
    assert found["0"].arrays["g"] == pytest.approx(expected["0"].arrays["g"], abs=1e-12)
    assert found["1"].arrays["ids"].tolist() == list(range(40))
    assert any("memory ran out" in note for note in notes)
    net.most = 0
    with pytest.raises(SubjectError, match="MT302"):
        run(subject, Gradient())


class Restless:
    """Other rows on every pass."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.passes += 1
        for x, y in data():
            yield x + 0.001 * self.passes, y


def test_data_that_changes_between_passes_is_refused(net: Net) -> None:
    subject = Subject(net, Restless())
    with pytest.raises(SubjectError, match="MT210"):
        Run(subject, {"0": Rounds(count=3)}, budget=64).execute()


def test_shuffling_loaders_and_iterators_are_read_in_order(net: Net) -> None:
    from torch.utils.data import DataLoader, TensorDataset

    x, y = (torch.cat(parts) for parts in zip(*data(), strict=True))
    loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
    shuffled = run(Subject(net, loader), Rounds(over=Rows((5,))))["0"].value
    plain = run(Subject(net, data()), Rounds(over=Rows((5,))))["0"].value
    once = run(Subject(net, iter(data())), Rounds(over=Rows((5,))))["0"].value
    assert shuffled == pytest.approx(plain, abs=1e-12) and once == pytest.approx(plain, abs=1e-12)


def test_stopping_keeps_what_is_finished(net: Net) -> None:
    subject = Subject(net, data())

    class Stop(mt.progress.Silent):  # type: ignore[name-defined]
        def round_finished(self, index: int, seconds: float) -> None:
            if index == 1:
                running.stop()

    running = Run(subject, {"a": Ids(), "b": Rounds(count=5)}, budget=1 << 28, watcher=Stop())
    findings = running.execute()
    assert running.stopped
    assert findings["a"].status == "measured" and findings["b"].status == "missing"


@dataclass(frozen=True, kw_only=True)
class Faulty(Instrument):
    """Does it raise?"""

    error: Any = ValueError("on purpose")

    def examine(self, subject: Subject) -> Asking:
        yield Moments(signals=(loss,))
        raise self.error


def test_one_fault_does_not_take_the_others_along(net: Net) -> None:
    findings = run(Subject(net, data()), Faulty(), Rounds(), Faulty(error=Refusal("does not apply")))
    assert [f.status for f in findings.values()] == ["failed", "measured", "refused"]
    assert "on purpose" in findings["0"].reason and findings["2"].reason == "does not apply"
