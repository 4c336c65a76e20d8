"""Every registered instrument and specimen is held to the laws, without being told."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from microtome.finding import Finding, Quantity
from microtome.folds import Collect, Fold, Moments
from microtome.folds.base import State
from microtome.instrument import Asking, HasClasses, HasTargets, Instrument
from microtome.laws import (
    INSTRUMENT_LAWS,
    SPECIMEN_LAWS,
    Broken,
    check_fold,
    check_instrument,
    check_specimen,
    parametrize_laws,
)
from microtome.laws.subjects import images
from microtome.registry import instrument, instrument_names
from microtome.signals import correct, loss, prediction_ids
from microtome.specimen import Specimen, Truth, specimens
from microtome.subject import Subject

KNOWN: Mapping[tuple[str, str], str] = {}
"""(law, leaf) -> why it is broken for now."""


def _mark(law: str, leaf: str) -> list[pytest.MarkDecorator]:
    reason = KNOWN.get((law, leaf))
    return [pytest.mark.xfail(raises=Broken, strict=True, reason=reason)] if reason else []


INSTRUMENTS = [
    pytest.param(name, law, id=f"{law.name}-{name}", marks=_mark(law.name, name))
    for name in instrument_names()
    for law in INSTRUMENT_LAWS
]
SPECIMENS = [
    pytest.param(build, law, id=f"{law.name}-{name}", marks=_mark(law.name, name))
    for name, build in specimens().items()
    for law in SPECIMEN_LAWS
]


@pytest.mark.parametrize(("name", "law"), INSTRUMENTS)
def test_instrument(name, law):
    law(instrument(name)())


@pytest.mark.parametrize(("build", "law"), SPECIMENS)
def test_specimen(build, law):
    law(build)


def test_known_failures_are_about_leaves_that_exist():
    laws = {law.name for law in (*INSTRUMENT_LAWS, *SPECIMEN_LAWS)}
    leaves = {*instrument_names(), *specimens()}
    assert all(law in laws and leaf in leaves for law, leaf in KNOWN)


# ---------------------------------------------------------------------------- the laws catch what they forbid


@dataclass(frozen=True, kw_only=True)
class MeanLoss(Instrument):
    """How large is the loss?

    The mean over predictions, in nats; one pass. Says nothing about which answers are wrong.
    """

    needs = HasTargets & HasClasses
    how_to_read = "The mean loss on this data: lower is better, and zero is certain and right everywhere."

    def answer(self, mean: float, extra: Any = None) -> Finding:
        return Finding(
            headline="loss",
            summary=f"The mean loss is {mean:.3g} nats.",
            quantities={"loss": Quantity(value=mean, unit="nat", better="lower")},
        )

    def examine(self, subject: Subject) -> Asking:
        moments = yield Moments(signals=(loss,))
        return self.answer(float(moments.mean))


IN_A_TEST = {"calibrated": "no specimen is registered for it", "thin": "this file is longer than a leaf"}


def test_a_good_instrument_obeys_all_laws_but_for_its_specimen():
    check_instrument(MeanLoss, expected_failures=IN_A_TEST)


def test_an_expected_failure_that_does_not_fail_is_reported():
    with pytest.raises(Broken, match="obeyed, though it was expected"):
        check_instrument(MeanLoss(), expected_failures={**IN_A_TEST, "seeded": "never was"})


@parametrize_laws(MeanLoss)
def test_laws_can_be_tested_one_by_one(instrument, law):
    if law.name not in IN_A_TEST:
        law(instrument)


@dataclass(frozen=True, kw_only=True)
class _MeanOfMeans(Fold):
    """Forgets how many rows each shard had."""

    def lift(self, *values: Tensor) -> State | None:
        return {"mean": values[0].double().mean()}

    def merge(self, a: State, b: State) -> State:
        return {"mean": (a["mean"] + b["mean"]) / 2}

    def result(self, state: State) -> Tensor:
        return state["mean"]


@dataclass(frozen=True, kw_only=True)
class _Overwriting(Moments):
    """Writes into the values it is given."""

    def lift(self, *values: Tensor) -> State | None:
        values[0].mul_(1.0)
        return super().lift(*values)


@dataclass(frozen=True, kw_only=True)
class _Growing(Fold):
    """Keeps every row without saying so."""

    def lift(self, *values: Tensor) -> State | None:
        return {"all": values[0].clone()}

    def merge(self, a: State, b: State) -> State:
        return {"all": torch.cat([a["all"], b["all"]])}

    def result(self, state: State) -> Tensor:
        return state["all"].sum()


@pytest.mark.parametrize(
    ("fold", "says"),
    [
        (_MeanOfMeans(signals=(loss,)), "cut into"),
        (_Overwriting(signals=(loss,)), "writes into the values"),
        (_Growing(signals=(loss,)), "grows with the rows"),
    ],
)
def test_bad_folds_are_caught(fold, says):
    with pytest.raises(Broken, match=says):
        check_fold(fold, images())


def test_good_folds_pass():
    check_fold(Moments(signals=(loss,)), images())
    check_fold(Collect(signals=(prediction_ids, correct)), images())


class _BatchCounting(MeanLoss):
    """How many slices were there?

    An answer that depends on how the data was cut, which none may.
    """

    def examine(self, subject: Subject) -> Asking:
        mean = yield _MeanOfMeans(signals=(loss,))
        return self.answer(float(mean))


class _Writing(MeanLoss):
    """Does it write into what it is given?

    It does, and others are given the same.
    """

    def examine(self, subject: Subject) -> Asking:
        moments = yield Moments(signals=(loss,))
        moments.mean.add_(1.0)
        return self.answer(float(moments.mean))


class _Random(MeanLoss):
    """Is it the same twice?

    It is not, for it adds a random number.
    """

    def examine(self, subject: Subject) -> Asking:
        moments = yield Moments(signals=(loss,))
        return self.answer(float(moments.mean) + random.SystemRandom().random())


class _Hooking(MeanLoss):
    """Does it leave something behind?

    A hook.
    """

    def examine(self, subject: Subject) -> Asking:
        moments = yield Moments(signals=(loss,))
        subject.model.register_forward_hook(lambda *_: None)
        return self.answer(float(moments.mean))


class _Careless(MeanLoss):
    """Does it break on a single example?

    It divides by what may be zero.
    """

    def examine(self, subject: Subject) -> Asking:
        moments = yield Moments(signals=(loss,))
        return self.answer(float(moments.mean) / (moments.count - 1))


class _Mute(MeanLoss):
    """No question here."""

    needs = MeanLoss.needs
    how_to_read = ""


@dataclass(frozen=True, kw_only=True)
class _Needy(MeanLoss):
    """What is missing?

    A default of its option, so that nobody can run it without reading the source.
    """

    strength: float = field()


CAUGHT = {
    _BatchCounting: {"cut free", "folds obey"},
    _Writing: {"reads only"},
    _Random: {"seeded"},
    _Hooking: {"leaves as found"},
    _Careless: {"degenerate"},
    _Mute: {"documented"},
}


@pytest.mark.parametrize("kind", CAUGHT)
def test_bad_instruments_are_caught(kind):
    for law in INSTRUMENT_LAWS:
        if law.name in CAUGHT[kind]:
            with pytest.raises(Broken):
                law(kind())


def test_options_without_defaults_are_caught():
    law = next(law for law in INSTRUMENT_LAWS if law.name == "optioned")
    with pytest.raises(Broken, match="'strength' has no default"):
        law(_Needy(strength=1.0))


def _specimen(truth: float, tolerance: float) -> Specimen:
    subject = images()
    planted = Truth("reliability/accuracy", "majority share", truth, tolerance, "counted by hand")
    return Specimen("a test", subject, (planted,))


def test_specimens_that_are_wrong_or_tell_nothing_are_caught():
    with pytest.raises(Broken, match="read right"):
        check_specimen(lambda: _specimen(0.9, 0.01))
    with pytest.raises(Broken, match="telling"):
        check_specimen(lambda: _specimen(0.5, 0.5))
