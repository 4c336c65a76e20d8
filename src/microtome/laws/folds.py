"""Laws of folds: a mergeable accumulation gives the same answer however its rows are cut."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.utils import _pytree as pytree

from microtome.batches import Batch, concatenate
from microtome.errors import Refusal
from microtome.folds.base import Fold, State
from microtome.laws.base import require
from microtome.laws.compare import difference, numbers
from microtome.signals.capture import left_as_found
from microtome.signals.evaluate import Evaluator, Failure, Program
from microtome.subject import Subject


def cuts(total: int) -> tuple[tuple[int, ...], ...]:
    """Ways to cut some rows; a shard may be empty, or a single row."""
    if total < 4:
        return ((total,), (1,) * total, (0, total))
    third = total // 3
    return (
        (total,),
        (1, third, 0, total - third - 1),
        (third, third, total - 2 * third),
        (total - third - 2, 1, 1, 0, third),
    )


def check_fold(fold: Fold, subject: Subject, *, rtol: float = 1e-8, atol: float = 1e-9) -> None:
    """Hold a fold to its laws on a subject's rows.

    Merging is associative and does not depend on the order but to rounding, the empty state is neutral,
    shards of no row and of one row obey, the whole is the sum of its parts, a state survives being written
    down, merging leaves its second argument alone, lifting leaves the values alone.

    Args:
        fold: any fold.
        subject: float64, so that rounding stays far below the tolerance.

    Raises:
        Broken: saying which law, and how.
    """
    batches = list(subject.batches())
    # Batches of graphs are not joined: their nodes are numbered within each.
    whole = concatenate(batches) if batches[0].divisible else batches[0]
    rows = fold.over.rows(len(whole))
    if rows is not None and not len(rows):
        return
    whole = whole if rows is None else whole.take(rows)
    name = type(fold).__name__
    ways = cuts(len(whole))
    with left_as_found(subject.model):
        states = [[_lift(fold, subject, part) for part in _parts(whole, cut)] for cut in ways]
    expected = _read(fold, _join(fold, states[0]))
    for found, cut in zip(states, ways, strict=True):
        for way, order in _orders(found).items():
            gap = difference(expected, _read(fold, order(fold, found)), rtol, atol)
            require(gap is None, f"{name}: cut into {cut}, merged {way}: {gap}")
        after = _read(fold, _join(fold, [None, *found, None]))
        require(difference(expected, after, rtol, atol) is None, f"{name}: the empty state is not neutral")
        written = [_written(name, s) for s in found]
        gap = difference(_read(fold, _join(fold, found)), _read(fold, _join(fold, written)), 0.0, 0.0)
        require(gap is None, f"{name}: a state does not survive being written down: {gap}")
    _second_argument_alone(fold, states[-1])
    _bounded(fold, states)


def _parts(whole: Batch, cut: Sequence[int]) -> list[Batch]:
    ends = torch.tensor(cut).cumsum(0).tolist()
    return [whole.take(slice(end - size, end)) for end, size in zip(ends, cut, strict=True)]


def _lift(fold: Fold, subject: Subject, part: Batch) -> State | None:
    if len(part) == 0:
        return _lift_nothing(fold, subject, part)
    got: dict[Any, Any] = {}
    Evaluator(subject).run(Program(fold.signals), part, got.__setitem__)
    values = [got[s] for s in fold.signals]
    for value in values:
        if isinstance(value, Failure):
            raise value.error
    before = [(t, t._version) for t in pytree.tree_leaves(values) if isinstance(t, Tensor)]
    state = fold.lift(*values)
    require(all(t._version == v for t, v in before), f"{type(fold).__name__}: lifting writes into the values")
    if state is not None:
        for key, value in state.items():
            require(isinstance(value, Tensor), f"{type(fold).__name__}: state['{key}'] is no tensor")
        # Values may share memory with the network's; what is kept must not.
        state = {k: v.clone() for k, v in state.items()}
    return state


def _lift_nothing(fold: Fold, subject: Subject, part: Batch) -> State | None:
    """An empty shard, where the network and its signals can be evaluated on no rows at all."""
    if fold.additive:
        return None
    got: dict[Any, Any] = {}
    try:
        Evaluator(subject).run(Program(fold.signals), part, got.__setitem__)
    except Exception:
        return None  # the run never evaluates a slice without rows
    if any(s not in got or isinstance(got[s], Failure) for s in fold.signals):
        return None
    return fold.lift(*(got[s] for s in fold.signals))


def _copy(state: State | None) -> State | None:
    return None if state is None else {k: v.clone() for k, v in state.items()}


def _join(fold: Fold, states: Sequence[State | None]) -> State | None:
    return reduce(fold.join, [_copy(s) for s in states], None)


def _from_the_right(fold: Fold, states: Sequence[State | None]) -> State | None:
    return reduce(lambda a, b: fold.join(b, a), [_copy(s) for s in reversed(states)], None)


def _in_pairs(fold: Fold, states: Sequence[State | None]) -> State | None:
    waiting = [_copy(s) for s in states]
    while len(waiting) > 1:
        paired = [fold.join(a, b) for a, b in zip(waiting[::2], waiting[1::2], strict=False)]
        waiting = paired + (waiting[-1:] if len(waiting) % 2 else [])
    return waiting[0]


def _backwards(fold: Fold, states: Sequence[State | None]) -> State | None:
    return _join(fold, list(reversed(states)))


Way = Callable[[Fold, Sequence[State | None]], State | None]


def _orders(states: Sequence[State | None]) -> dict[str, Way]:
    if len(states) == 1:
        return {"as one": _join}
    return {
        "from the left": _join,
        "from the right": _from_the_right,
        "in pairs": _in_pairs,
        "backwards": _backwards,
    }


def _read(fold: Fold, state: State | None) -> list[tuple[str, Any]]:
    try:
        return list(numbers(fold.read(copy.copy(state))))
    except Refusal as refusal:
        return [("refusal", str(refusal))]


def _written(name: str, state: State | None) -> State | None:
    if state is None:
        return None
    return load(save({k: v.contiguous() for k, v in state.items()}))


def _second_argument_alone(fold: Fold, states: Sequence[State | None]) -> None:
    full = [s for s in states if s is not None]
    if len(full) < 2:
        return
    a, b = _copy(full[0]), _copy(full[1])
    kept = _copy(b)
    fold.join(a, b)
    assert b is not None and kept is not None
    require(
        b.keys() == kept.keys() and all(torch.equal(b[k], kept[k]) for k in b),
        f"{type(fold).__name__}: merging changes its second argument",
    )


def _bounded(fold: Fold, cuts: Sequence[Sequence[State | None]]) -> None:
    """A state may grow with the rows only up to a limit of its own."""
    if any(hasattr(fold, name) for name in ("limit", "count", "block")):
        return

    def size(state: State | None) -> int:
        return 0 if state is None else sum(v.numel() for v in state.values())

    one = max(size(s) for s in cuts[1] if s is not None)
    every = size(_join(fold, cuts[1]))
    require(every <= one, f"{type(fold).__name__}: its state grows with the rows ({one} to {every} numbers)")
