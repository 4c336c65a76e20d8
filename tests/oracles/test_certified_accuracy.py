"""Certified margins against interval arithmetic by hand, against corners and attacks; radii against a plain search."""

import itertools

import numpy as np
import pytest
import torch
from asking import Failed
from asking import read as ask
from torch import nn

from microtome.folds import All, Collect, Rows
from microtome.instruments.security.certified_accuracy import CertifiedAccuracy
from microtome.laws.subjects import tokens
from microtome.passes.run import run_instruments
from microtome.signals import rows
from microtome.signals.bounds import METHODS, certified_margin, certified_radius, output_bounds
from microtome.signals.reinitialise import Reinitialised
from microtome.subject import Subject

RADIUS = 0.03


def network(outputs: int = 3, dtype=torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, outputs)).to(
        dtype
    )


def data(model, size: int = 16, dtype=torch.float64):
    torch.manual_seed(1)
    x = torch.rand(40, 6, dtype=dtype)
    with torch.no_grad():
        out = model(x)
    y = out.argmax(1) if out.shape[1] > 1 else (out[:, 0] > out.median()).long()
    y[::7] = (y[::7] + 1) % max(out.shape[1], 2)  # some answers are wrong
    return [(x[i : i + size], y[i : i + size]) for i in range(0, 40, size)]


def by_hand(model: nn.Sequential, x: np.ndarray, label: int, radius: float) -> float:
    """Interval arithmetic of one example, number by number; the last layer is subtracted first."""
    low, high = np.clip(x - radius, 0, 1), np.clip(x + radius, 0, 1)
    layers = [m for m in model if isinstance(m, nn.Linear)]
    for layer in layers[:-1]:
        w, b = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        ends = np.zeros((2, len(w)))
        for i, k in itertools.product(range(w.shape[0]), range(w.shape[1])):
            products = sorted((w[i, k] * low[k], w[i, k] * high[k]))
            ends[:, i] += products
        low, high = np.maximum(ends[0] + b, 0), np.maximum(ends[1] + b, 0)
    w, b = layers[-1].weight.detach().numpy(), layers[-1].bias.detach().numpy()
    worst = np.inf
    for j in range(len(w)):
        if j != label:
            row = w[label] - w[j]
            worst = min(
                worst,
                b[label] - b[j] + sum(min(r * u, r * v) for r, u, v in zip(row, low, high, strict=True)),
            )
    return float(worst)


@pytest.mark.parametrize("size", [7, 40])
def test_intervals_agree_with_arithmetic_by_hand(size):
    model = network()
    subject = Subject(model, data(model, size), bounds=(0, 1))
    _, found = ask(subject, Collect(signals=(rows, certified_margin(RADIUS, "interval"))))
    x, y = (torch.cat(c) for c in zip(*data(model), strict=True))
    truth = [by_hand(model, a.numpy(), int(b), RADIUS) for a, b in zip(x, y, strict=True)]
    assert found.numpy() == pytest.approx(np.array(truth), abs=1e-9)


@pytest.mark.parametrize("outputs", [1, 3])
def test_bounds_hold_at_all_corners_and_are_ordered(outputs):
    model = network(outputs)
    subject = Subject(model, data(model), bounds=(0, 1), task="classification")
    _, *found = ask(subject, Collect(signals=(rows, *(certified_margin(0.1, m) for m in METHODS))))
    x, y = (torch.cat(c) for c in zip(*data(model), strict=True))
    signs = torch.tensor(list(itertools.product((-0.1, 0.1), repeat=6)), dtype=x.dtype)
    signs = torch.cat([signs, 0.1 * (2 * torch.rand(200, 6, dtype=x.dtype) - 1)])
    with torch.no_grad():
        out = model((x[:, None] + signs).clamp(0, 1))
    if outputs == 1:
        least = ((2 * y - 1)[:, None] * out[..., 0]).amin(1)
    else:
        own = out.gather(2, y[:, None, None].expand(-1, len(signs), 1))[..., 0]
        others = out.scatter(2, y[:, None, None].expand(-1, len(signs), 1), -torch.inf).amax(2)
        least = (own - others).amin(1)
    interval, mixed, linear = found
    assert bool((linear <= least).all())
    assert bool((interval <= mixed + 1e-9).all())
    # Entry by entry another slope of a ReLU may do better, so that only the mean is ordered.
    assert float(interval.mean()) < float(mixed.mean()) < float(linear.mean())


def test_the_radius_is_that_of_a_plain_search():
    model = network()
    subject = Subject(model, data(model), bounds=(0, 1))
    ladder = (0.01, 0.02, 0.04, 0.3)
    for method in ("interval", "linear"):
        halved, plain = (certified_radius(ladder, method, k) for k in (6, 0))
        fine = [0.3 * (i + 1) / 300 for i in range(300)]
        margins = [certified_margin(r, method) for r in (*ladder, *fine)]
        _, reach, rung, *bound = ask(
            subject, Collect(signals=(rows, halved, plain, *margins), over=Rows(tuple(range(12))))
        )
        certain = np.stack([b.numpy() > 0 for b in bound])
        for i in range(12):
            steps = list(itertools.takewhile(lambda k: certain[k, i], range(4)))  # noqa: B023
            assert float(rung[i]) == (ladder[len(steps) - 1] if steps else 0.0)
            held = itertools.takewhile(lambda k: certain[4 + k, i], range(300))  # noqa: B023
            truth = max((fine[k] for k in held), default=0.0)
            if certain[4, i]:
                assert float(reach[i]) == pytest.approx(truth, abs=0.26 / 64 + 0.001)


def test_wrong_answers_have_no_radius_and_pgd_never_breaks_a_certificate():
    model = network()
    subject = Subject(model, data(model), bounds=(0, 1))
    options = {"strengths": (0.01, 0.03, 0.1), "at": 0.03, "examples": 40, "linear_steps": 3}
    finding = run_instruments(subject, {"i": CertifiedAccuracy(**options)})["i"]
    x, y = (torch.cat(c) for c in zip(*data(model), strict=True))
    wrong = (model(x).argmax(1) != y).numpy()
    assert wrong.any()
    assert (finding.arrays["certified_radius"][wrong] == 0).all()
    assert (finding.arrays["certified_radius"] >= finding.arrays["interval_radius"]).all()
    assert finding.quantities["violations"].value == 0
    for _, pgd, linear, interval in finding.tables["strengths"].rows:
        assert interval <= linear <= pgd
    assert 0 < finding.value < 1


def test_a_false_certificate_is_an_alarm(monkeypatch):
    """With bounds that claim everything, what PGD breaks is counted, and the finding is graded."""
    from microtome.signals import bounds

    monkeypatch.setattr(bounds, "margin_bound", lambda scene, labels, *rest: torch.ones(len(labels)))
    model = network()
    subject = Subject(model, data(model), bounds=(0, 1))
    finding = run_instruments(subject, {"i": CertifiedAccuracy(strengths=(0.3,), at=0.3, examples=40)})["i"]
    assert finding.quantities["violations"].value > 0
    assert finding.grade == "alarm"
    assert "unsound" in finding.caveats[0]


def test_output_bounds_hold_and_follow_the_weights():
    model = network()
    subject = Subject(model, data(model), bounds=(0, 1))
    for move in (lambda s: s, lambda s: s.at(Reinitialised(3))):
        for method in METHODS:
            low, high = (move(s) for s in output_bounds(0.05, method))
            from microtome.signals import outputs

            _, below, above, out = ask(subject, Collect(signals=(rows, low, high, move(outputs))))
            assert bool((below < out).all())
            assert bool((out < above).all())


def test_tokens_are_bounded_around_their_embedding():
    subject = tokens()
    _, interval, linear = ask(
        subject,
        Collect(
            signals=(rows, certified_margin(1e-4, "interval"), certified_margin(1e-4)), over=Rows((0, 5, 9))
        ),
    )
    assert bool(torch.isfinite(interval).all())
    assert bool((linear >= interval).all())


def test_an_example_without_a_bound_does_not_cost_the_others_theirs():
    class Log(nn.Module):
        def forward(self, x):
            return torch.stack([x.sum(1).log(), x[:, 0] * 0], dim=1)

    x = torch.tensor([[1.0, 1.0], [0.05, 0.01], [3.0, 2.0]], dtype=torch.float64)
    subject = Subject(Log(), [(x, torch.tensor([0, 1, 0]))])
    _, found = ask(subject, Collect(signals=(rows, certified_margin(0.1)), over=All()))
    assert float(found[0]) == pytest.approx(np.log(1.8), abs=0.02)
    assert float(found[2]) == pytest.approx(np.log(4.8), abs=0.02)
    assert float(found[1]) == -np.inf or float(found[1]) < 0


def test_refusals():
    model = network()
    regression = Subject(model, [(torch.rand(8, 6).double(), torch.rand(8, 3).double())])
    assert "classes" in run_instruments(regression, {"i": CertifiedAccuracy()})["i"].reason
    with pytest.raises(Failed, match="class labels"):
        ask(regression, Collect(signals=(rows, certified_margin(0.1))))
    subject = Subject(model, data(model), bounds=(0, 1))
    assert "strengths" in run_instruments(subject, {"i": CertifiedAccuracy(strengths=(-1.0,))})["i"].reason
