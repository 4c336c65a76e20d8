"""What is read off each member while a population trains is what reading that member alone gives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import microtome as mt
from microtome.data.digits import digits
from microtome.errors import UsageError
from microtome.folds import Covariance, Moments
from microtome.population import Population, Recipe, Recorder, Recording, every, train
from microtome.registry import instrument
from microtome.signals import confidence, features, gradient, inputs, loss

ACCURACY, CALIBRATION = "reliability/accuracy", "reliability/calibration"


@pytest.fixture(scope="module")
def data():
    x, y = next(iter(digits("train", batch_size=200)))
    return x.flatten(1), y


def population():
    build = lambda: nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))  # noqa: E731
    return Population.of(build, range(4))


def recorded(data, folder, **options):
    x, y = data
    trained, copies = population(), {}
    recorder = Recorder(folder, data=[(x[:70], y[:70]), (x[70:], y[70:])], **options)
    keep = lambda m: copies.update({m.step: m.population.copy()})  # noqa: E731
    train(trained, x, y, Recipe(rate=0.5, steps=6), observers=[(recorder, every(3)), (keep, every(3))])
    return recorder.recording if folder is None else Recording.open(folder, population()), copies


@pytest.mark.parametrize("on_disk", [False, True])
def test_signals_of_each_member_are_those_of_the_member_alone(data, tmp_path, on_disk):
    x, y = data
    spread = Covariance(signals=(features("1"),))
    asked = {
        "confidence": confidence,
        "hidden": features("1"),
        "saliency": gradient(loss, "inputs"),
        "slope": gradient(loss, "parameters"),
        "spread": spread,
        "size": Moments(signals=(inputs,)),
    }
    kept, copies = recorded(data, tmp_path if on_disk else None, signals=asked, members=[0, 3])
    assert kept.steps == [0, 3, 6] and kept.examined == (0, 3)
    for t, step in enumerate(kept.steps):
        for i, member in enumerate(kept.examined):
            network = copies[step].member(member)
            given = x.clone().requires_grad_()
            logits = network(given)
            losses = F.cross_entropy(logits, y, reduction="sum")
            slopes = torch.autograd.grad(losses, [given, *network.parameters()])
            hidden = network[:2](x).double()
            alone = {
                "confidence": logits.softmax(1).max(1).values,
                "hidden": hidden,
                "saliency": slopes[0],
                "slope": torch.cat([g.flatten() for g in slopes[1:]]),
                "spread/count": torch.tensor(len(x)),
                "spread/mean": hidden.mean(0),
                "spread/covariance": hidden.T.cov(),
                "size/variance": x.double().var(0),
            }
            for name, value in alone.items():
                found = kept.value(name)
                assert found.shape[:2] == (3, 2), name
                assert torch.allclose(found[t, i].double(), value.double(), atol=1e-4), name


@pytest.mark.parametrize("on_disk", [False, True])
def test_findings_of_each_member_are_those_of_the_member_alone(data, tmp_path, on_disk):
    x, y = data
    chosen = [instrument(name)() for name in (ACCURACY, CALIBRATION)]
    kept, copies = recorded(data, tmp_path if on_disk else None, instruments=chosen)
    course = kept.quantity(CALIBRATION)
    assert course.shape == (3, 4) and set(kept.findings) == {ACCURACY, CALIBRATION}
    right = torch.stack([copies[s].predict(x).argmax(-1) == y for s in kept.steps]).double().mean(-1)
    assert torch.allclose(kept.quantity(ACCURACY), right)
    for step, member, found in kept.found(CALIBRATION):
        batches = [(x[:70], y[:70]), (x[70:], y[70:])]
        alone = mt.examine(copies[step].member(member), batches, only=[CALIBRATION], calibration="none")
        assert found.same_measurement(alone[CALIBRATION])
        assert course[kept.steps.index(step), member] == alone[CALIBRATION].value
    low = kept.quantity(CALIBRATION, next(iter(found.quantities)))
    assert low.shape == (3, 4)


def test_on_disk_only_one_member_is_held(data, tmp_path):
    recorder = Recorder(tmp_path, signals={"hidden": features("1")}, data=[data])
    train(population(), *data, Recipe(steps=4), observers=[(recorder, every(2))])
    assert not recorder.recording._readings and not recorder.recording.values
    assert len(list(tmp_path.glob("seen_*"))) == 3 * 4
    assert recorder.recording.value("hidden").shape == (3, 4, len(data[0]), 12)


def test_what_cannot_be_read_is_said(data, tmp_path):
    x, y = data

    def go(given=(x, y), **options):
        recorder = Recorder(data=[given], **options)
        train(population(), x, y, Recipe(steps=1), observers=[(recorder, every(1))])
        return recorder.recording

    with pytest.raises(UsageError, match="MT518 the signals cannot be taken: the data has no targets"):
        go(x, signals={"loss": loss})
    with pytest.raises(UsageError, match=r"MT518 there is no member 4 to examine.*0 to 3"):
        go(signals={"loss": loss}, members=[4])
    with pytest.raises(UsageError, match="MT434 signals need data"):
        Recorder(signals={"loss": loss})
    with pytest.raises(UsageError, match="MT518 a signal and a measure are both called 'a'"):
        Recorder(signals={"a": loss}, measures={"a": lambda p: p.vectors()}, data=[data])
    refused = go(x, instruments=[instrument(ACCURACY)()])
    with pytest.raises(UsageError, match=r"MT518 reliability/accuracy measured nothing at step 0: refused"):
        refused.quantity(ACCURACY)
    kept = go(signals={"loss": loss})
    with pytest.raises(UsageError, match=r"MT432 'los' was not recorded; did you mean 'loss'"):
        kept.value("los")
    with pytest.raises(UsageError, match="MT432 'reliability/accuracy' was not recorded"):
        kept.quantity(ACCURACY)


def test_a_recording_goes_on_in_its_folder(data, tmp_path):
    x, y = data
    asked = {"signals": {"confidence": confidence}, "probes": {"own": (x, y)}, "data": [(x, y)]}
    recipe = {"optimizer": "adam", "rate": 0.01, "batch_size": 64}
    whole, parts = population(), population()
    once = Recorder(tmp_path / "whole", **asked)
    train(whole, x, y, Recipe(steps=6, **recipe), observers=[(once, every(2))])
    first = Recorder(tmp_path / "parts", **asked)
    train(parts, x, y, Recipe(steps=4, **recipe), observers=[(first, every(2))])
    again, state, start = Recording.open(tmp_path / "parts", population()).resume()
    second = Recorder(tmp_path / "parts", **asked)
    train(again, x, y, Recipe(steps=6, **recipe), observers=[(second, every(2))], state=state, start=start)
    for kept in (second.recording, Recording.open(tmp_path / "parts", population())):
        assert kept.steps == [0, 2, 4, 6]
        for name in ("confidence", "own/loss", "train/loss"):
            assert torch.equal(kept.value(name)[1:], once.recording.value(name)[1:]), name
        assert torch.equal(kept.population(2).vectors(), once.recording.population(2).vectors())
    other = Recorder(tmp_path / "parts", **asked, members=[0])
    with pytest.raises(UsageError, match="MT518 the folder holds the recording of other members"):
        train(again, x, y, Recipe(steps=8, **recipe), observers=[(other, every(2))], state=state, start=6)
    anew = Recorder(tmp_path / "parts", probes={"own": (x, y)})
    train(population(), x, y, Recipe(steps=1, **recipe), observers=[(anew, every(2))])
    assert Recording.open(tmp_path / "parts").steps == [0, 1]
