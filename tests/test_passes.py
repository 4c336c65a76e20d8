"""Runs: rounds, slices, memory, stopping and going on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from asking import Ask, Failed, read, read_many
from torch import nn

import microtome as mt
from microtome.errors import SubjectError
from microtome.finding import Finding, Quantity
from microtome.folds import Collect, Covariance, Moments, Rows, Sample, Sum
from microtome.instrument import Asking, Instrument
from microtome.laws.subjects import images, vectors
from microtome.passes import Run, make_plan
from microtome.passes.memory import parse_bytes, row_bytes, rows_per_slice
from microtome.passes.state import StateFolder
from microtome.signals import (
    Variation,
    across,
    derive,
    example_gradient_norms,
    features,
    gradient,
    inputs,
    logits,
    loss,
    outputs,
    prediction_ids,
    rows,
    score,
)
from microtome.signals.evaluate import Program
from microtome.signals.expression import ParameterChange
from microtome.signals.perturb import Noise
from microtome.signals.program import wait_for_each_other
from microtome.subject import Subject


class Counting(nn.Module):
    """Notes the rows of every forward."""

    def __init__(self, most: int | None = None) -> None:
        super().__init__()
        self.inner = vectors().model
        self.seen: list[int] = []
        self.most = most

    def forward(self, x):
        self.seen.append(len(x))
        if self.most is not None and len(x) > self.most:
            raise torch.OutOfMemoryError("no room")
        return self.inner(x)


def counting(batch: int = 48, most: int | None = None) -> tuple[Subject, Counting]:
    model = Counting()
    subject = Subject(model, list(vectors(batch=batch).data))
    model.seen.clear()
    model.most = most
    return subject, model


class Notes:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.rounds: list[tuple[int, int, tuple[str, ...]]] = []
        self.rows = 0
        self.findings: list[Finding] = []

    def round_started(self, index, rows, instruments):
        self.rounds.append((index, rows, instruments))

    def advanced(self, rows):
        self.rows += rows

    def round_finished(self, index, seconds):
        pass

    def found(self, finding):
        self.findings.append(finding)

    def note(self, text):
        self.notes.append(text)


# ------------------------------------------------------------------------------------------- rounds, rows


def test_all_who_ask_share_the_rounds():
    subject, model = counting()
    notes = Notes()
    one, two = Moments(signals=(loss,)), Moments(signals=(score,))
    read_many(subject, {"a": [one, two, one], "b": [one], "c": [two, one]}, watcher=notes)
    assert [(i, names) for i, _, names in notes.rounds] == [
        (1, ("a", "b", "c")),
        (2, ("a", "c")),
        (3, ("a",)),
    ]
    assert model.seen == [48, 48, 48]
    assert notes.rows == 3 * 48


def test_an_answer_comes_as_soon_as_it_is_there():
    subject, _ = counting()
    notes = Notes()
    one = Moments(signals=(loss,))
    read_many(subject, {"late": [one, one], "early": [one]}, watcher=notes)
    assert [f.instrument for f in notes.findings] == ["early", "late"]


@pytest.mark.parametrize("over", [Sample(11, 4), Rows((0, 17, 47, 3)), Sample(1, 0)], ids=str)
def test_chosen_rows_are_the_same_for_any_batch_size(over):
    fold = Collect(signals=(rows, logits, inputs), over=over)
    expected = read(vectors(batch=48), fold)
    assert torch.equal(expected[0], over.rows(48))
    for batch, size in ((1, None), (5, 2), (7, 48), (48, 1)):
        found = read(vectors(batch=batch), fold, size=size)
        assert torch.equal(found[0], expected[0])
        torch.testing.assert_close(found[1], expected[1])
        assert torch.equal(found[2], expected[2])


def test_several_choices_of_rows_share_a_pass_over_the_data():
    class Loader(list):
        passes = 0

        def __iter__(self):
            Loader.passes += 1
            return super().__iter__()

    subject = Subject(vectors().model, Loader(vectors(batch=5).data))
    Loader.passes = 0
    asked = {f"a{i}": [Collect(signals=(rows, logits), over=Sample(5 + i, i))] for i in range(5)}
    read_many(subject, asked)
    assert Loader.passes == 1


def test_few_rows_are_kept_for_later_rounds():
    class Loader(list):
        passes = 0

        def __iter__(self):
            Loader.passes += 1
            return super().__iter__()

    subject = Subject(vectors().model, Loader(vectors(batch=5).data))
    Loader.passes = 0
    some = [Collect(signals=(rows, logits), over=Sample(9)), Collect(signals=(rows, loss), over=Sample(9))]
    first, second = read(subject, *some)
    assert Loader.passes == 1
    assert torch.equal(first[0], second[0])
    Loader.passes = 0
    read(subject, *some, budget=1 << 11)  # too little room to keep any
    assert Loader.passes == 2


def test_coverage_says_how_many_rows_were_seen():
    asked = {
        "few": Ask(asked=[Collect(signals=(rows, logits), over=Sample(9))], answers=[]),
        "all": Ask(
            asked=[[Moments(signals=(features("fc1"),)), Moments(signals=(features("fc2"),))]], answers=[]
        ),
    }
    found = Run(vectors(), asked, budget=1 << 30).execute()
    assert (found["few"].coverage.rows, found["few"].coverage.rows_total) == (9, 48)
    assert (found["all"].coverage.rows, found["all"].coverage.layers) == (48, 2)


# ----------------------------------------------------------------------------------------------- memory


@dataclass(frozen=True)
class Many(Variation):
    count: int = 40

    def copies(self, x, rows, start, stop):
        return x[:, None].expand(-1, stop - start, *x.shape[1:])


def test_no_forward_holds_more_rows_than_a_slice():
    subject, model = counting()
    asked = {
        "plain": [Moments(signals=(loss,))],
        "copies": [Collect(signals=(rows, across(score, Many())))],
        "summed": [Collect(signals=(rows, across(gradient(score), Many(), (0.025,) * 40)))],
        "gradients": [Sum(signals=(gradient(loss, "parameters"),))],
    }
    read_many(subject, asked, size=6)
    assert max(model.seen) == 6


def test_slices_grow_with_the_budget():
    subject = images()
    program = Program([loss, gradient(loss)])
    sizes = [rows_per_slice(subject, program, 1 << power) for power in range(10, 32, 2)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 1
    for power, size in zip(range(10, 32, 2), sizes, strict=True):
        assert size == 1 or size * row_bytes(subject, program) <= 1 << power
    assert rows_per_slice(subject, Program([loss]), 1 << 16) >= rows_per_slice(subject, program, 1 << 16)


@pytest.mark.parametrize("most", [1, 5, 17, 47])
def test_when_memory_runs_out_slices_are_halved_and_nothing_counts_twice(most):
    subject, _ = counting(most=most)
    notes = Notes()
    asked = [
        Moments(signals=(loss,)),
        Collect(signals=(prediction_ids, outputs)),
        Sum(signals=(gradient(loss, "parameters"),)),
        Covariance(signals=(features("inner.fc1"),)),
        Collect(signals=(rows, across(score, Many(7)))),
    ]
    found = read(subject, asked, watcher=notes)
    expected = read(vectors_counting(), asked)
    assert found[0].count == 48
    torch.testing.assert_close(found[1][1], expected[1][1])
    torch.testing.assert_close(found[2], expected[2])
    torch.testing.assert_close(found[3].covariance, expected[3].covariance)
    torch.testing.assert_close(found[4][1], expected[4][1])
    assert "memory ran out" in notes.notes[0]
    assert notes.rows == 48


def vectors_counting() -> Subject:
    return counting()[0]


@dataclass(frozen=True)
class Scaled(ParameterChange):
    """All parameters times a number; writes down each time that it is done."""

    by: float
    done: tuple[list[float]] = field(default=([],), compare=False)

    def change(self, subject, parameters):
        self.done[0].append(self.by)
        return {name: p * self.by for name, p in parameters.items()}


@pytest.mark.parametrize("most", [None, 5])
def test_parameters_are_changed_once_for_several_slices(monkeypatch, most):
    at = [Scaled(1 + k / 8) for k in range(4)]
    asked = [
        Moments(signals=(loss,)),
        Collect(signals=(rows, outputs, outputs.at(at[1]))),
        *(Moments(signals=(loss.at(change),)) for change in at),
        Moments(signals=(loss.under(Noise(0.1)).at(at[2]),)),
        Covariance(signals=(features("inner.fc1").at(at[3]),)),
        Sum(signals=(gradient(loss, "parameters").at(at[3]),)),
    ]
    expected = read(vectors_counting(), asked)
    monkeypatch.setattr("microtome.passes.groups.kept_bytes", lambda budget: 0)
    monkeypatch.setattr("microtome.passes.run.kept_bytes", lambda budget: 1)
    at[0].done[0].clear()
    subject, _ = counting(most=most)
    notes = Notes()
    found = read(subject, asked, size=8, watcher=notes)
    assert notes.rows == 48
    if most is None:  # six slices of 8 rows
        assert sorted(at[0].done[0]) == [change.by for change in at]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(
            tuple(a) if isinstance(a, tuple) else a, tuple(b) if isinstance(b, tuple) else b
        )


def test_what_is_large_is_not_held_until_the_network_has_other_parameters():
    here, there = features("inner.fc1"), features("inner.fc1").at(Scaled(2.0))
    assert wait_for_each_other([here, there])
    assert wait_for_each_other([derive(torch.add, here, there)])
    assert not wait_for_each_other([rows, there])
    assert not wait_for_each_other([loss, loss.at(Scaled(2.0))])


def test_what_was_learned_about_memory_is_kept_for_later_rounds():
    subject, model = counting(most=12)
    one, two = Moments(signals=(loss,)), Moments(signals=(score,))
    read(subject, one, two)
    failures = [n for n in model.seen if n > 12]
    assert failures == [48, 24]


def test_one_row_that_does_not_fit_is_an_error_that_names_it():
    subject, _ = counting(most=0)
    with pytest.raises(SubjectError, match=r"MT302 one example needs more memory than there is \(row 0\)"):
        read(subject, Moments(signals=(loss,)))


def test_examples_that_reach_one_another_are_not_halved():
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.most = vectors().model, 10**9

        def forward(self, x):
            if len(x) > self.most:
                raise torch.OutOfMemoryError("no room")
            return self.inner(x - x.mean(0))

    model = Centred()
    subject = Subject(model, list(vectors(batch=16).data))
    assert not subject.independent_rows
    with torch.no_grad():
        expected = torch.cat([model(x) for x, _ in subject.data])
    for size in (None, 3):
        torch.testing.assert_close(read(subject, Collect(signals=(rows, outputs)), size=size)[1], expected)
    chosen = read(subject, Collect(signals=(rows, outputs), over=Rows((2, 20))))
    torch.testing.assert_close(chosen[1], expected[[2, 20]])
    two = read(subject, Collect(signals=(rows, outputs)), Collect(signals=(rows, loss, outputs)))[1]
    torch.testing.assert_close(two[2], expected)
    model.most = 8
    with pytest.raises(SubjectError, match="the whole batch, which cannot be cut"):
        read(subject, Moments(signals=(loss,)))


def test_budgets_are_written_as_people_write_them():
    assert parse_bytes("2GiB") == parse_bytes("2 g") == 2 << 30
    assert parse_bytes("500MB") == 500 << 20
    assert parse_bytes("0.5k") == 512
    assert parse_bytes(77) == 77


def test_gradients_of_single_examples_obey_the_budget():
    subject, model = counting()
    read(subject, Collect(signals=(rows, example_gradient_norms(loss))), size=5)
    assert max(model.seen) <= 5


# ------------------------------------------------------------------------------------------ data, twice


def test_padded_batches_of_different_length_are_not_joined():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(x.sum(1) / x.shape[1])

    model = Mean().double()
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 5), (3, 5), (3, 2), (2, 5), (4, 7))
    x = [torch.randn(n, t, 4, dtype=torch.float64, generator=generator) for n, t in shapes]
    data = [(v, torch.zeros(len(v)).long()) for v in x]
    with torch.no_grad():
        expected = torch.cat([model(x) for x, _ in data])
    for size in (None, 4):
        torch.testing.assert_close(
            read(Subject(model, data), Collect(signals=(rows, outputs)), size=size)[1], expected
        )


def test_what_a_batch_shares_is_not_mixed_up():
    class Tempered(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = vectors().model

        def forward(self, x, temperature):
            return self.inner(x) / temperature

    data = [{"x": x, "temperature": torch.tensor(1.0 + i), "y": y} for i, (x, y) in enumerate(vectors().data)]
    model = Tempered()
    with torch.no_grad():
        expected = torch.cat([model(b["x"], b["temperature"]) for b in data])
    torch.testing.assert_close(read(Subject(model, data), Collect(signals=(rows, outputs)))[1], expected)


def test_a_one_time_iterator_is_kept():
    subject = Subject(vectors().model, iter(list(vectors().data)))
    assert "kept in memory" in "; ".join(subject.statements)
    assert read(subject, *[Moments(signals=(loss,))] * 2)[1].count == 48


def test_a_loader_that_shrinks_is_noticed():
    class Shrinking:
        left = 4

        def __iter__(self):
            Shrinking.left -= 1
            return iter(list(vectors().data)[: max(Shrinking.left, 1)])

    with pytest.raises(SubjectError, match="MT210 this pass gave 16 examples, the data was counted at 32"):
        read(Subject(vectors().model, Shrinking()), Moments(signals=(loss,)))


def test_another_order_on_the_second_pass_is_refused_and_what_was_measured_is_kept():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.cat(c) for c in zip(*vectors().data, strict=True))

    class Shuffled:
        def __iter__(self):
            order = torch.randperm(48, generator=generator).split(16)
            return iter([(x[o], y[o]) for o in order])

    one = Moments(signals=(loss,))
    askers = {"short": Ask(asked=[one], answers=[]), "long": Ask(asked=[one, one], answers=[])}
    findings = Run(Subject(vectors().model, Shuffled()), askers, budget=1 << 10).execute()
    assert findings["short"].status == "measured"
    assert findings["long"].status == "failed"
    assert findings["long"].reason.startswith("MT210 batch 0 holds other rows than on the first pass")


# ------------------------------------------------------------------------------------- stopping, going on


ROUNDS = [
    [Moments(signals=(loss,)), Collect(signals=(prediction_ids, logits))],
    [Sum(signals=(gradient(loss, "parameters"),))],
    [Covariance(signals=(features("fc1"),)), Moments(signals=(score,), over=Sample(20))],
]


class StopAfter(Notes):
    def __init__(self, slices: int) -> None:
        super().__init__()
        self.left, self.run = slices, None

    def advanced(self, rows):
        super().advanced(rows)
        self.left -= 1
        if self.left == 0:
            self.run.stop()


def run_with(watcher, folder, size=8) -> tuple[dict[str, Finding], Ask, Run]:
    ask = Ask(asked=ROUNDS, answers=[])
    early = Ask(asked=ROUNDS[:1], answers=[])
    askers = {"early": early, "ask": ask}
    run = Run(vectors(batch=13), askers, budget=1 << 30, watcher=watcher, folder=folder, save_every=0)
    run._limit = size
    if watcher is not None:
        watcher.run = run
    return run.execute(), ask, run


def flat(answers) -> list[torch.Tensor]:
    leaves = torch.utils._pytree.tree_leaves(
        [[list(r) for r in a] if isinstance(a, list) else a for a in answers]
    )
    return [t for t in leaves if isinstance(t, torch.Tensor)]


@pytest.mark.parametrize("slices", [1, 3, 6, 7, 11, 14])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, slices):
    _, whole, _ = run_with(None, None)
    stopped, _, run = run_with(StopAfter(slices), tmp_path / "state")
    assert run.stopped
    assert stopped["ask"].status == "missing" and "stopped" in stopped["ask"].reason
    assert (stopped["early"].status == "measured") == (slices > 6)
    notes = Notes()
    finished, again, run = run_with(notes, tmp_path / "state")
    assert finished["ask"].status == finished["early"].status == "measured" and not run.stopped
    assert all(torch.equal(a, b) for a, b in zip(flat(whole.answers), flat(again.answers), strict=True))
    assert not (tmp_path / "state").exists()
    assert notes.rows < 48 + 48 + 48 + 20


def test_states_of_another_request_are_not_mistaken(tmp_path):
    run_with(StopAfter(8), tmp_path / "state")
    folder = StateFolder(tmp_path / "state")
    order = [f for f in ROUNDS[0]]
    assert folder.load(1, [*order, Moments(signals=(score,))]) is None
    assert folder.load(9, order) is None
    damaged = next((tmp_path / "state").glob("*.safetensors"))
    damaged.write_bytes(b"not this")
    assert folder.load(1, order) is None or folder.load(2, ROUNDS[1]) is None


def test_going_on_with_other_data_is_refused(tmp_path):
    run_with(StopAfter(3), tmp_path / "state")
    x, y = (torch.cat(c) for c in zip(*vectors().data, strict=True))
    other = Subject(vectors().model, [(x + 1, y)])
    with pytest.raises(SubjectError, match="MT210"):
        run = Run(other, {"early": Ask(asked=ROUNDS[:1], answers=[]), "ask": Ask(asked=ROUNDS, answers=[])},
                  budget=1 << 30, folder=tmp_path / "state")  # fmt: skip
        run.execute()


def test_an_instrument_that_breaks_does_not_take_others_with_it():
    @dataclass(frozen=True, kw_only=True)
    class Breaks(Instrument):
        """Does it break?"""

        when: int = 0

        def examine(self, subject: Subject) -> Asking:
            for i in range(3):
                if i == self.when:
                    raise ZeroDivisionError("on purpose")
                yield Moments(signals=(loss,))
            return Finding(headline="x", quantities={"x": Quantity(value=float("nan"))})

    @dataclass(frozen=True, kw_only=True)
    class Yields(Breaks):
        """Does it yield something else?"""

        def examine(self, subject: Subject) -> Asking:
            yield 3
            return Finding()

    instruments = {f"when {i}": Breaks(when=i) for i in range(4)} | {"odd": Yields()}
    found = Run(vectors(), {**instruments, "good": Ask(asked=ROUNDS, answers=[])}, budget=1 << 30).execute()
    assert found["good"].status == "measured"
    for name in instruments:
        assert found[name].status == "failed"
    assert "ZeroDivisionError: on purpose (test_passes.py:" in found["when 1"].reason
    assert "must be finite" in found["when 3"].reason
    assert "yields folds, got a int" in found["odd"].reason


def test_an_instrument_may_catch_what_happened_to_its_folds():
    @dataclass(frozen=True, kw_only=True)
    class Careful(Instrument):
        """What if the targets are missing?"""

        def examine(self, subject: Subject) -> Asking:
            try:
                yield Moments(signals=(loss,))
            except mt.Refusal as refusal:
                moments = yield Moments(signals=(score,))
                return Finding(
                    headline="x", quantities={"x": Quantity(value=moments.count)}, summary=str(refusal)
                )
            return Finding()

    bare = Subject(vectors().model, [x for x, _ in vectors().data])
    found = Run(bare, {"careful": Careful()}, budget=1 << 30).execute()["careful"]
    assert found.value == 48 and found.summary == "the data has no targets"


# --------------------------------------------------------------------------- real signals, real processes


ONLY = ("accuracy", "gradient_noise", "hessian_spectrum", "linear_cka")
OPTIONS = {"dynamics/hessian_spectrum": {"steps": 3, "trace_probes": 2}}
RUNNER = textwrap.dedent(
    """
    import sys, time
    import torch
    torch.set_num_threads(1)
    import microtome as mt
    from test_passes import ONLY, OPTIONS, sliced

    class Watcher:
        def round_started(self, index, rows, instruments): print("round", index, flush=True)
        def advanced(self, rows):
            print("rows", rows, flush=True)
            time.sleep(0.03)
        def round_finished(self, index, seconds): pass
        def found(self, finding): print("found", finding.instrument, finding.status, flush=True)
        def note(self, text): print("note", text, flush=True)

    exam = mt.examine(
        sliced(), only=ONLY, options=OPTIONS, store=sys.argv[1], watcher=Watcher(), save_every=0
    )
    print("status", exam.status, flush=True)
    """
)


def sliced() -> Subject:
    """Few rows a slice, so that there is something to interrupt."""
    subject = images(batch=5)
    subject.bytes_per_row = 1 << 25
    return subject


def run_until(store: Path, number: int, after: str, then: int) -> tuple[int, list[str]]:
    """Run in a process of its own; send a signal when ``then`` lines have come, counted from ``after``."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    lines: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-c", RUNNER, str(store)], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.strip())
            if after in lines and len(lines) - lines.index(after) == then:
                os.kill(process.pid, number)
                if number == signal.SIGKILL:
                    break
    return process.returncode, lines


@pytest.fixture(scope="module")
def undisturbed() -> mt.Examination:
    return mt.examine(sliced(), only=ONLY, options=OPTIONS)


def goes_on(run: mt.Examination, store: Path, undisturbed: mt.Examination) -> Notes:
    notes = Notes()
    resumed = mt.resume(run.id, sliced(), store=str(store), watcher=notes)
    assert resumed.status == "complete"
    kept = mt.load_examination(run.id, store=str(store))
    assert undisturbed.findings.keys() == kept.findings.keys()
    for name, finding in undisturbed.findings.items():
        assert finding.status == "measured"
        assert finding.same_measurement(resumed.findings[name]), name
        assert finding.same_measurement(kept.findings[name]), name
    return notes


@pytest.mark.parametrize(("after", "then"), [("round 1", 4), ("round 2", 3)])
def test_a_run_that_is_really_killed_goes_on_as_if_nothing_had_happened(tmp_path, undisturbed, after, then):
    code, lines = run_until(tmp_path, signal.SIGKILL, after, then)
    assert code == -signal.SIGKILL and after in lines
    killed = mt.load_examination(store=str(tmp_path))
    assert killed.status == "running"
    measured = [line.split()[1] for line in lines if line.startswith("found")]
    assert len(measured) == (0 if after == "round 1" else 2)
    assert set(measured) <= set(killed.findings)  # nothing that was measured is lost
    notes = goes_on(killed, tmp_path, undisturbed)
    assert notes.rounds[0][0] == (1 if after == "round 1" else 2)  # a finished round is not run again


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_keeps_what_is_finished_and_says_what_is_missing(tmp_path, undisturbed, number):
    code, lines = run_until(tmp_path, number, "round 2", 3)
    assert code == 0 and lines[-1] == "status stopped"
    assert any("once more to stop at once" in line for line in lines)
    stopped = mt.load_examination(store=str(tmp_path))
    assert stopped["accuracy"].status == stopped["linear_cka"].status == "measured"
    assert stopped["hessian_spectrum"].status == "missing" and "stopped" in stopped["hessian_spectrum"].reason
    goes_on(stopped, tmp_path, undisturbed)


def test_a_complete_run_is_not_resumed(tmp_path):
    exam = mt.examine(images(), only="accuracy", store=str(tmp_path))
    with pytest.raises(mt.MicrotomeError, match="is complete"):
        mt.resume(exam.id, images(), store=str(tmp_path))


# ----------------------------------------------------------------------------------------------- plans


def test_a_plan_runs_nothing_and_names_who_asks():
    subject, model = counting()
    asked = {
        "first": Ask(asked=ROUNDS[:1], answers=[]),
        "second": Ask(asked=[Moments(signals=(gradient(loss),), over=Sample(20))], answers=[]),
    }
    plan = make_plan(subject, asked, 1 << 30)
    assert model.seen == []
    assert plan.instruments == ("first", "second")
    assert [g.rows for g in plan.groups] == ["all 48 examples", "20 of 48 examples"]
    text = plan.text()
    assert "gradient(loss, inputs)  <- second" in text
    json.dumps(plan.as_dict())


def test_a_slice_costs_the_engine_little():
    """Overhead beyond the forward stays below a few milliseconds a slice; generous, for loaded machines."""
    subject = images(batch=48)
    fold = [Moments(signals=(features(x.name),)) for x in subject.layers]
    read(subject, fold)
    took = []
    for _ in range(5):
        began = time.perf_counter()
        read(subject, fold, size=48)
        took.append(time.perf_counter() - began)
    assert min(took) < 0.1


def test_failed_is_said_with_its_reason():
    with pytest.raises(Failed, match="refused: no layer"):
        raise Failed("refused: no layer")
