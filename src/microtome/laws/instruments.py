"""Laws of instruments. Each is tried on tiny subjects that meet the instrument's needs."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import math
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from microtome.errors import Refusal, SubjectError, UsageError
from microtome.finding import Examination, Finding, decode_examination, encode_json, strip_cost
from microtome.folds.base import Fold
from microtome.instrument import Instrument
from microtome.laws import subjects
from microtome.laws.base import Broken, Law, require
from microtome.laws.compare import difference, finding_numbers
from microtome.laws.folds import check_fold
from microtome.laws.state import unchanged
from microtome.passes import Run, make_plan
from microtome.signals.capture import random_states, restore_random
from microtome.signals.expression import Signal
from microtome.subject import Subject

MOST_LINES = 120
BUDGET = 1 << 28
FORBIDDEN = {
    "register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook", "register_hook",
    "backward", "batches", "manual_seed", "rand", "randn", "randint", "randperm", "rand_like", "randn_like",
    "functional_call", "requires_grad_", "train", "eval",
}  # fmt: skip
"""Calls that belong to the engine: hooks, autograd, loops over data, modes, unaddressed random numbers."""


# --------------------------------------------------------------------------------------------- running


class _Recorder(Run):
    """A run that keeps what was asked for and what came back."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.asked: list[Fold] = []
        self.given: list[tuple[Tensor, int]] = []

    def _step(self, one: Any, resume: Any) -> bool:
        def noted(generator: Any) -> Any:
            class Watched:
                def send(_, answer: Any) -> Any:
                    tensors = (t for t in pytree.tree_leaves(answer) if isinstance(t, Tensor))
                    self.given += [(t, t._version) for t in tensors]
                    return generator.send(answer)

                def throw(_, error: BaseException) -> Any:
                    return generator.throw(error)

                def __next__(_) -> Any:
                    return next(generator)

            return resume(Watched())

        again = super()._step(one, noted)
        if again:
            self.asked += one.folds
        return again


def run(instrument: Instrument, subject: Subject, **options: Any) -> Finding:
    """One instrument on one subject."""
    return Run(subject, {instrument.name(): instrument}, budget=BUDGET, **options).execute()[
        instrument.name()
    ]


_known: dict[tuple[Any, str], Finding] = {}


def baseline(instrument: Instrument, kind: str) -> Finding:
    """The finding on a kind of subject, taken once."""
    key = (instrument, kind)
    if key not in _known:
        subject = subjects.KINDS[kind]()
        lacking = instrument.needs.lacks(subject)
        _known[key] = Finding(status="refused", reason=lacking) if lacking else run(instrument, subject)
    return _known[key]


def suited(instrument: Instrument) -> list[str]:
    """Kinds of subject on which it measures.

    Raises:
        Broken: when there is none.
    """
    kinds = [kind for kind in subjects.KINDS if baseline(instrument, kind).status == "measured"]
    if not kinds:
        reasons = "; ".join(f"{k}: {baseline(instrument, k).reason}" for k in subjects.KINDS)
        raise Broken(f"it measures on none of the law's subjects ({reasons})")
    return kinds


def _answered(finding: Finding, where: str) -> None:
    """Measured with finite numbers, or refused with a reason."""
    require(finding.status in ("measured", "refused"), f"on {where}: {finding.status}, {finding.reason}")
    if finding.status == "refused":
        require(len(finding.reason) > 8, f"on {where}: refused without a reason")
        return
    require(finding.headline in finding.quantities, f"on {where}: its headline is none of its quantities")
    for path, number in finding_numbers(finding):
        if isinstance(number, np.ndarray) and number.dtype.kind == "f":
            require(bool(np.isfinite(number).all()), f"on {where}: {path} holds NaN or infinity")
        elif isinstance(number, float):
            require(math.isfinite(number), f"on {where}: {path} is {number}")
    for name, figure in finding.figures.items():
        text = json.dumps(figure.spec)
        require(
            "NaN" not in text and "Infinity" not in text, f"on {where}: figure '{name}' draws NaN or infinity"
        )


# ------------------------------------------------------------------------------------- as it is written


def documented(instrument: Instrument) -> None:
    """Its docstring asks a question, and a reader is told how to read the answer."""
    require(
        instrument.question().endswith("?"),
        f"the first line of its docstring asks nothing: {instrument.question()!r}",
    )
    lines = inspect.cleandoc(type(instrument).__doc__ or "").splitlines()
    require(len(lines) > 2, "its docstring says nothing beyond the question")
    require(len(instrument.how_to_read) > 40, "how_to_read does not tell a reader how to read it")


def optioned(instrument: Instrument) -> None:
    """Its options are typed fields with defaults, survive JSON, and unknown ones are refused."""
    kind = type(instrument)
    for field in dataclasses.fields(kind):
        has = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        require(has, f"option '{field.name}' has no default")
        require(bool(field.type), f"option '{field.name}' has no type")
    frozen = kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    keywords = all(field.kw_only for field in dataclasses.fields(kind))
    require(frozen and keywords, "it is no dataclass with frozen=True and kw_only=True")
    given = json.loads(json.dumps(instrument.options()))
    require(kind.configured(given) == instrument, "its options do not survive JSON")
    require(hash(instrument) == hash(kind.configured(given)), "equal instruments have different hashes")
    try:
        kind.configured({"no such option": 1})
    except UsageError:
        return
    raise Broken("an unknown option is not refused")


def in_the_bibliography(instrument: Instrument) -> None:
    """The papers it names are known."""
    from microtome.papers import papers

    known = {paper.slug for paper in papers()}
    for slug in instrument.papers:
        require(slug in known, f"no paper is called '{slug}'")


def thin(instrument: Instrument) -> None:
    """Its file declares and computes: no hooks, no autograd, no loop over data, at most 120 lines of code."""
    path = inspect.getsourcefile(type(instrument))
    if path is None:
        return
    source = Path(path).read_text(encoding="utf-8")
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            require(
                node.func.attr not in FORBIDDEN,
                f"line {node.lineno} calls .{node.func.attr}(), which is the engine's work",
            )
        if isinstance(node, ast.Attribute):
            require(node.attr != "autograd", f"line {node.lineno} uses autograd, which is the engine's work")
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] + [getattr(node, "module", "") or ""]
            for name in names:
                require(
                    not name.startswith(
                        ("torch.autograd", "torch.func", "microtome.signals.capture", "matplotlib")
                    ),
                    f"line {node.lineno} imports {name}, which is the engine's work",
                )
    count = code_lines(source, tree)
    require(count <= MOST_LINES, f"{count} lines of code; at most {MOST_LINES}: split a signal or a fold off")


def code_lines(source: str, tree: ast.Module) -> int:
    """Lines that are neither blank, comment, docstring nor import."""
    texts: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            texts.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            for statement in body:
                if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                    texts.update(range(statement.lineno, (statement.end_lineno or statement.lineno) + 1))
    lines = source.splitlines()
    return sum(
        1
        for i, line in enumerate(lines, 1)
        if line.strip() and not line.strip().startswith("#") and i not in texts
    )


def calibrated(instrument: Instrument) -> None:
    """Some specimen knows its answer."""
    require(
        any(truth.instrument == instrument.name() for _, truth in truths()),
        "no specimen knows its answer: write one in microtome.specimens, or name one by the entry point",
    )


_truths: list[Any] = []


def truths() -> list[Any]:
    """(builder, truth) of every specimen, built once."""
    from microtome.specimen import specimens

    if not _truths:
        _truths.extend((build, truth) for build in specimens().values() for truth in build().truths)
    return _truths


# ------------------------------------------------------------------------------------------ as it works


def answers(instrument: Instrument) -> None:
    """On every kind of subject it measures, or refuses with a reason; it never fails."""
    suited(instrument)
    for kind in subjects.KINDS:
        _answered(baseline(instrument, kind), kind)


def degenerate(instrument: Instrument) -> None:
    """One example, one class, equal inputs, a dead layer, one unit, all right: measured or refused."""
    for name, build in subjects.DEGENERATE.items():
        subject = build()
        if instrument.needs.lacks(subject) is None:
            _answered(run(instrument, subject), name)


def cut_free(instrument: Instrument) -> None:
    """Neither the loader's batches nor the rows in a slice change the answer."""
    for kind in _spread(suited(instrument)):
        expected = baseline(instrument, kind)
        for batch, size in ((7, None), (48, 5), (1, 16)):
            run_ = Run(subjects.KINDS[kind](batch=batch), {instrument.name(): instrument}, budget=BUDGET)
            run_._limit = size
            _agree(
                instrument,
                expected,
                run_.execute()[instrument.name()],
                f"{kind}, batches of {batch}, slices of {size or 'any'}",
            )


def _spread(kinds: list[str]) -> list[str]:
    """The first kind, and one of another sort when there is one."""
    other = next((k for k in ("tokens", "language", "regression") if k in kinds and k != kinds[0]), None)
    return [kinds[0]] + ([other] if other else [])


def _agree(
    instrument: Instrument, a: Finding, b: Finding, where: str, rtol: float = 1e-5, atol: float = 1e-7
) -> None:
    require(a.status == b.status, f"{where}: {a.status} becomes {b.status} ({a.reason or b.reason})")
    if not instrument.deterministic:
        require(a.quantities.keys() == b.quantities.keys(), f"{where}: other quantities")
        return
    gap = difference(finding_numbers(a), finding_numbers(b), rtol, atol)
    require(gap is None, f"{where}: {gap}")


def seeded(instrument: Instrument) -> None:
    """The same seed gives the same finding, whatever state the random generators are in."""
    kind = suited(instrument)[0]
    expected = baseline(instrument, kind)
    states = random_states()
    try:
        torch.manual_seed(123)
        np.random.seed(123)
        random.seed(123)
        again = run(instrument, subjects.KINDS[kind]())
    finally:
        restore_random(states)
    if instrument.deterministic:
        gap = difference(finding_numbers(expected), finding_numbers(again), 0.0, 0.0)
        require(gap is None and expected.same_measurement(again), f"two runs differ: {gap or 'in words'}")


def leaves_as_found(instrument: Instrument) -> None:
    """Model, data and global state are the same after as before, also when the network raises."""
    kind = suited(instrument)[0]
    subject = subjects.KINDS[kind]()
    with _marked(subject), unchanged(subject.model, subject.data):
        run(instrument, subject)
    broken = subjects.broken_subject()
    if instrument.needs.lacks(broken) is not None:
        return
    with _marked(broken), unchanged(broken.model, broken.data):
        try:
            finding = run(instrument, broken)
        except SubjectError as error:
            require("broken on purpose" in str(error), f"a network that raises is reported as: {error}")
        else:
            # What calls the network on other rows alone cannot notice; on changed inputs the finding says it.
            if "broken on purpose" not in finding.reason:
                _answered(finding, "a network that raises")


@contextmanager
def _marked(subject: Subject) -> Iterator[None]:
    """Train mode, frozen parameters and a gradient that must all be found again."""
    model = subject.model
    modes = {m: m.training for m in model.modules()}
    parameters = list(model.parameters())
    model.train()
    for parameter in parameters[::2]:
        parameter.requires_grad_(False)
    parameters[-1].grad = torch.ones_like(parameters[-1])
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter in parameters:
            parameter.requires_grad_(True)
        parameters[-1].grad = None


def reads_only(instrument: Instrument) -> None:
    """It does not write into the results it is given: others are given the same ones."""
    kind = suited(instrument)[0]
    recorder = _Recorder(subjects.KINDS[kind](), {instrument.name(): instrument}, budget=BUDGET)
    recorder.execute()
    changed = [list(t.shape) for t, version in recorder.given if t._version != version]
    require(not changed, f"it writes into a result of shape {changed[0] if changed else ''}")


def empty_batches(instrument: Instrument) -> None:
    """Batches without rows change nothing; data without any is an error that says so."""
    with_empty = subjects.with_empty_batches()
    if instrument.needs.lacks(with_empty) is None:
        expected, found = run(instrument, subjects.images()), run(instrument, with_empty)
        _agree(instrument, expected, found, "with empty batches", 1e-9, 1e-12)
    try:
        Subject(subjects.image_model(), [])
    except SubjectError as error:
        require(error.code == "MT209", f"no data is reported as: {error}")
        return
    raise Broken("data without batches is taken")


def bad_inputs(instrument: Instrument) -> None:
    """NaN or infinity among the inputs is one error that names the batch."""
    for value in (subjects.NAN, subjects.INF):
        subject = subjects.with_bad_row(value)
        if instrument.needs.lacks(subject) is not None:
            return
        try:
            finding = run(instrument, subject)
        except SubjectError as error:
            require(
                error.code == "MT206" and "batch 1" in str(error),
                f"an input of {value} is reported as: {error}",
            )
        else:
            _answered(finding, f"an input of {value}")
            samples = (
                finding.status == "refused"
                or finding.rounds == 0
                or (finding.coverage and finding.coverage.rows < subjects.ROWS)
            )
            require(bool(samples), f"an input of {value} goes unnoticed")


def precisions(instrument: Instrument) -> None:
    """It works in float32 and float64, which agree, and measures or refuses in bfloat16."""
    if "images" not in suited(instrument):
        return
    expected = baseline(instrument, "images")
    single = run(instrument, subjects.images(dtype=torch.float32))
    _answered(single, "float32")
    require(single.status == "measured", f"in float32 it is {single.status}: {single.reason}")
    if instrument.deterministic:
        a, b = expected.value, single.value
        require(
            math.isclose(a, b, rel_tol=2e-2, abs_tol=2e-3),
            f"{expected.headline} is {a:.6g} in float64, {b:.6g} in float32",
        )
    _answered(run(instrument, subjects.images(dtype=torch.bfloat16)), "bfloat16")


def forms(instrument: Instrument) -> None:
    """Tuple and dict batches, F.relu and ReLU modules make no difference."""
    if "images" not in suited(instrument):
        return
    expected = baseline(instrument, "images")
    _agree(instrument, expected, run(instrument, subjects.images(form="dict")), "dict batches", 1e-9, 1e-12)
    modules = run(instrument, subjects.images(modules=True))
    require(modules.status == "measured", f"with ReLU modules it is {modules.status}: {modules.reason}")
    if instrument.deterministic:
        a, b = expected.value, modules.value
        require(
            math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9),
            f"{expected.headline} is {a:.6g} with F.relu, {b:.6g} with modules",
        )


def survives_saving(instrument: Instrument) -> None:
    """Its finding is the same after being written to a store and read back."""
    from microtome.store import open_store

    finding = baseline(instrument, suited(instrument)[0])
    exam = Examination(
        id="law", created="2000-01-01T00:00:00+00:00", subject={}, findings={finding.instrument: finding}
    )
    read = decode_examination(encode_json(exam)).findings[finding.instrument]
    read = msgspec.structs.replace(read, arrays=finding.arrays)
    require(read == finding or encode_json(read) == encode_json(finding), "JSON changes it")
    with tempfile.TemporaryDirectory() as folder, open_store(folder) as store:
        store.save(exam)
        stored = store.load("law")[finding.instrument]
    require(finding.same_measurement(stored), "the store changes it")


class _StopAfter:
    """Asks a run to stop after some slices."""

    def __init__(self, slices: int) -> None:
        self.left, self.run = slices, None

    def advanced(self, rows: int) -> None:
        self.left -= 1
        if self.left == 0 and self.run is not None:
            self.run.stop()

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def resumes(instrument: Instrument) -> None:
    """A run that is stopped anywhere and resumed ends with the finding of an undisturbed one."""
    kind = suited(instrument)[0]

    def made(folder: Path | None, watcher: Any = None) -> Run:
        run_ = Run(
            subjects.KINDS[kind](),
            {instrument.name(): instrument},
            budget=BUDGET,
            folder=folder,
            watcher=watcher,
            save_every=0.0,
        )
        run_._limit = 16
        return run_

    counter = _StopAfter(-1)
    expected = made(None, counter).execute()[instrument.name()]
    slices = -1 - counter.left
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "state"
        for stop in dict.fromkeys((1, slices // 2, slices - 1)):
            if not 0 < stop <= slices:  # one that reads the program alone takes no slice
                continue
            watcher = _StopAfter(stop)
            first = made(folder, watcher)
            watcher.run = first  # type: ignore[assignment]
            interrupted = first.execute()[instrument.name()]
            require(
                interrupted.status == "missing",
                f"stopped after {stop} of {slices} slices it is {interrupted.status}",
            )
            again = made(folder).execute()[instrument.name()]
            if instrument.deterministic:
                gap = difference(finding_numbers(expected), finding_numbers(again), 0.0, 0.0)
                require(
                    gap is None and expected.same_measurement(again),
                    f"resumed after {stop} of {slices} slices it differs: {gap or _words(expected, again)}",
                )


def _words(a: Finding, b: Finding) -> str:
    left, right = (
        msgspec.to_builtins(strip_cost(a), enc_hook=str),
        msgspec.to_builtins(strip_cost(b), enc_hook=str),
    )
    return next(
        (f"{k}: {left[k]!r} and {right[k]!r}"[:300] for k in left if left[k] != right[k]), "in arrays"
    )


def planned(instrument: Instrument) -> None:
    """A plan can be made without running the model, and announces as many rounds as are taken."""
    kind = suited(instrument)[0]
    subject = subjects.KINDS[kind]()

    def refuse(*args: Any) -> None:
        raise Broken("planning runs the model")

    handle = subject.model.register_forward_pre_hook(refuse)
    try:
        plan = make_plan(subject, {instrument.name(): instrument}, BUDGET)
    finally:
        handle.remove()
    require(instrument.name() in plan.instruments, "the plan does not hold it")
    require(bool(plan.text()), "the plan says nothing")
    taken, announced = baseline(instrument, kind).rounds, instrument.rounds(subject)
    require(taken <= announced, f"it takes {taken} rounds and announces {announced}")


def folds_obey(instrument: Instrument) -> None:
    """The folds it asks for obey the laws of folds."""
    kind = suited(instrument)[0]
    subject = subjects.KINDS[kind]()
    recorder = _Recorder(subject, {instrument.name(): instrument}, budget=BUDGET)
    recorder.execute()
    seen: dict[Any, int] = {}
    for fold in recorder.asked:
        sort = (type(fold), tuple(s.name or s.kind for s in fold.signals))
        seen[sort] = seen.get(sort, 0) + 1
        if seen[sort] > 1 or len(seen) > 8 or any(_timed(s) for x in fold.signals for s in x.walk()):
            continue
        try:
            check_fold(fold, subject)
        except Refusal:
            continue


def _timed(signal: Signal) -> bool:
    if signal.kind == "interpreted":
        return not signal.arguments[1].repeatable
    return signal.kind == "profile"


def worded(instrument: Instrument) -> None:
    """Its finding says a sentence, names units, and grades only by a threshold that has a source."""
    finding = baseline(instrument, suited(instrument)[0])
    require(finding.summary.strip() != "", "its summary is empty")
    for name, quantity in finding.quantities.items():
        require(quantity.unit != "", f"quantity '{name}' has no unit ('1' for a pure number)")
        bounded = quantity.low is not None and quantity.high is not None
        if bounded:
            require(quantity.low <= quantity.high, f"quantity '{name}': its interval is upside down")  # type: ignore[operator]
            require(quantity.how != "", f"quantity '{name}' does not say how its interval was found")
    if finding.threshold is not None:
        require(
            finding.threshold.quantity in finding.quantities, "its threshold is on none of its quantities"
        )
        require(len(finding.threshold.source) > 5, "its threshold has no source")
        require(finding.grade is not None, "it has a threshold and no grade")
    arrays = finding.arrays
    if "samples" in arrays:
        require(
            "rows" in arrays and arrays["rows"].shape == arrays["samples"].shape[:1],
            "arrays 'samples' and 'rows' do not pair",
        )
        require(len(np.unique(arrays["rows"])) == len(arrays["rows"]), "array 'rows' holds an id twice")


def together(instrument: Instrument) -> None:
    """Another instrument in the same passes does not change its answer."""
    from microtome.registry import instrument as registered

    kind = suited(instrument)[0]
    others = [registered("reliability/accuracy")()]
    chosen = {o.name(): o for o in others if o.name() != instrument.name()}
    subject = subjects.KINDS[kind]()
    found = Run(subject, {**chosen, instrument.name(): instrument}, budget=BUDGET).execute()[
        instrument.name()
    ]
    _agree(instrument, baseline(instrument, kind), found, "beside another", 1e-9, 1e-12)


INSTRUMENT_LAWS: tuple[Law, ...] = tuple(
    Law(check.__name__.replace("_", " "), check)
    for check in (
        documented, optioned, in_the_bibliography, thin, calibrated, answers, degenerate, cut_free, seeded,
        leaves_as_found, reads_only, empty_batches, bad_inputs, precisions, forms, survives_saving, resumes,
        planned, folds_obey, worded, together,
    )
)  # fmt: skip

__all__ = ["INSTRUMENT_LAWS", "baseline", "run", "suited"]
