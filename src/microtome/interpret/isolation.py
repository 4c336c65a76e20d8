"""Can one example of a batch reach the answer of another?

``isolation(graph, args)`` follows through the captured program which examples each entry may depend on (the rules are
in ``isolation_rules``) and either proves that no answer depends on another example's inputs, or names the operations in
which examples meet. It is sound for what it proves: an operation without a rule counts as a leak, weights are taken to
be any numbers, and no input is run, so that a trigger cannot hide. It is run for two sizes of batch that divide no
number in the program, so that nothing is apart by coincidence; where the program fixes its batch, for that size.

``cross_rows(model, args)`` is the other direction: change one example, and look whether another's answer changes. It
proves leaks and never their absence. ``audit(model, args)`` does both for a network in the mode it is in.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils import _pytree as pytree

from microtome.errors import MicrotomeError, SubjectError
from microtome.interpret import isolation_rules  # noqa: F401 - registers its rules
from microtome.interpret.capture import capture
from microtome.interpret.graph import Graph, Node
from microtome.interpret.interpreter import forward
from microtome.interpret.isolation_domain import Isolation, Leak, Rows, Unfollowed

_PRIMES = (5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61)


@dataclass(frozen=True, kw_only=True)
class Isolated:
    """What the program says.

    Attributes:
        proved: whether no entry of any output depends on two examples.
        leaks: where examples meet that reach an output, in order of the program.
        followed: operations on values that depend on examples.
        sizes: of the batch, for which it was followed.
    """

    proved: bool
    leaks: tuple[Leak, ...]
    followed: int
    sizes: tuple[int, ...]


def isolation(graph: Graph, inputs: Mapping[Node, Any] | None = None) -> Isolated:
    """Follow the examples of the inputs (by node) through the program.

    Inputs whose first dimension is that of the batch hold one entry an example, others none. Of the former only shapes
    matter; without ``inputs`` the latter are zeros.
    """
    inputs = inputs if inputs is not None else _blank(graph)
    order = {node: i for i, node in enumerate(graph.nodes)}
    leaks: dict[Leak, None] = {}
    followed, labels, sizes = 0, [], _sizes(graph, inputs)
    for rows in sizes:
        found, count, label = _followed(graph, inputs, rows)
        leaks.update(dict.fromkeys(found))
        labels.append(label)
        followed = max(followed, count)
    if not leaks and any(label != labels[0] for label in labels):
        leaks[Leak(graph.output, "lies along axes that depend on the size of the batch")] = None
    ordered = sorted(leaks, key=lambda one: order[one.node])
    return Isolated(proved=not ordered, leaks=tuple(ordered), followed=followed, sizes=sizes)


def _blank(graph: Graph) -> dict[Node, Any]:
    """Zeros of the captured shapes.

    Raises:
        SubjectError: MT351 for inputs that are plain numbers, whose values are not known.
    """
    given: dict[Node, Any] = {}
    for node in graph.inputs:
        if node.shape is None or node.dtype is None:
            raise SubjectError(
                "MT351", f"the input '{node.name}' is a number", fix="give the arguments of a call"
            )
        given[node] = torch.zeros([2 if isinstance(s, str) else s for s in node.shape], dtype=node.dtype)
    return given


def _sizes(graph: Graph, inputs: Mapping[Node, Any]) -> tuple[int, ...]:
    """Two primes that divide no number of the program; the batch's own size where it is fixed."""
    if not graph.dynamic:
        return (next(len(value) for value in inputs.values() if isinstance(value, Tensor) and value.dim()),)
    held = {size for node in graph.nodes for size in node.shape or () if isinstance(size, int)}
    held |= {
        n
        for node in graph.nodes
        for n in pytree.tree_leaves((node.args, dict(node.kwargs)))
        if type(n) is int
    }
    held |= {size for tensor in graph.state.values() for size in tensor.shape}
    free = [p for p in _PRIMES if all(n == 0 or n % p for n in held if abs(n) < 1 << 31)]
    return tuple(free[:2]) if len(free) > 1 else (67, 71)


def _followed(graph: Graph, inputs: Mapping[Node, Any], rows: int) -> tuple[list[Leak], int, list[Any]]:
    given = {node: _labelled(graph, node, value, rows) for node, value in inputs.items()}
    domain = Isolation(rows=rows)
    outputs = [node for node in graph.outputs if isinstance(node, Node)]
    try:
        with torch.no_grad():
            values = forward(graph, given, domain, targets=outputs).values
    except Unfollowed as error:
        node = domain.followed[-1] if domain.followed else graph.output
        stuck = next((n for n in graph.operations if n.place() == error_place(error)), node)
        return [Leak(stuck, "has a result whose size is not known beforehand")], len(domain.followed), []
    found: list[Leak] = []
    labels: list[Any] = []
    for node in outputs:
        value = values[node]
        if isinstance(value, Rows):
            found += value.leaks
            labels.append((value.axis, value.inner))
    return found, len(set(domain.followed)), labels


def error_place(error: MicrotomeError) -> str:
    """The place an error names."""
    text = str(error)
    return text[text.rfind("(") + 1 : text.rfind(")")] if "(" in text else ""


def _labelled(graph: Graph, node: Node, value: Any, rows: int) -> Any:
    """An input as its examples; what holds none stays as it is."""
    if not isinstance(value, Tensor) or not value.dim() or node not in graph.batched:
        return value
    shape = torch.Size([rows, *value.shape[1:]])
    return Rows(shape, value.dtype, value.device, 0)


# --- by changing one example


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """The largest change of an example's answer when another one changed; ``of`` and ``by`` say which."""

    change: float
    of: int
    by: int
    tried: int


def cross_rows(
    call: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    probes: Sequence[Tensor] = (),
    most: int = 8,
) -> Crossing:
    """Change one example after another, in ``most`` of the rows, and compare the answers of all others.

    An example becomes its own negative ten times as large, zero (token ids: the reverse, and the first one repeated),
    another example, and each of ``probes`` (one example's input, for a trigger that is known). The same is done in
    batches whose last example is a probe. Answers are taken in a batch of the same size, so that a network whose
    examples are apart gives exactly the same.
    """
    kwargs = dict(kwargs or {})
    leaves, tree = pytree.tree_flatten((tuple(args), kwargs))
    batched = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.dim()]
    count = len(leaves[batched[0]]) if batched else 0
    batched = [i for i in batched if len(leaves[i]) == count]

    def answers(changed: Sequence[Any]) -> list[Tensor]:
        again, named = pytree.tree_unflatten(list(changed), tree)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            out = call(*again, **named)
        found = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor) and t.dim() and len(t) == count]
        return [t.double() if t.is_floating_point() else t for t in found]

    worst = Crossing(change=0.0, of=-1, by=-1, tried=0)
    tried = 0
    for base in (leaves, *(_put(leaves, batched, count - 1, probe) for probe in probes)):
        plain = answers(base)
        if not plain:  # no output holds an answer an example
            return worst
        for row in range(min(count, most)):
            for changed in _changed(base, batched, row, probes):
                tried += 1
                each = _gaps(plain, answers(changed), count)
                each[row] = 0.0
                if float(each.max()) > worst.change:
                    worst = Crossing(change=float(each.max()), of=int(each.argmax()), by=row, tried=0)
    return Crossing(change=worst.change, of=worst.of, by=worst.by, tried=tried)


def _gaps(before: Sequence[Tensor], after: Sequence[Tensor], count: int) -> Tensor:
    """[n] largest change of each example's answers; infinite where a number became none."""
    most = torch.zeros(count, dtype=torch.float64)
    for a, b in zip(before, after, strict=True):
        moved = (a != b) & ~(a.isnan() & b.isnan())
        gap = torch.where(moved, (b.double() - a.double()).abs().nan_to_num(nan=math.inf), 0.0)
        most = torch.maximum(most, gap.reshape(count, -1).amax(1).cpu())
    return most


def _put(leaves: Sequence[Any], batched: Sequence[int], row: int, probe: Tensor) -> list[Any]:
    """One example replaced by a probe, in the inputs of its shape."""
    changed = list(leaves)
    for i in batched:
        if leaves[i].shape[1:] == probe.shape:
            changed[i] = leaves[i].clone()
            changed[i][row] = probe.to(leaves[i])
    return changed


def _changed(
    leaves: Sequence[Any], batched: Sequence[int], row: int, probes: Sequence[Tensor]
) -> Iterator[list[Any]]:
    def put(make: Callable[[Tensor], Tensor]) -> list[Any]:
        changed = list(leaves)
        for i in batched:
            changed[i] = leaves[i].clone()
            changed[i][row] = make(leaves[i])
        return changed

    def other(value: Tensor, kind: int) -> Tensor:
        own = value[row]
        if value.is_floating_point():
            return (-10 * own - 1, torch.zeros_like(own))[kind]
        return (own.flip(-1) if own.dim() else own, own.flatten()[0].expand(own.shape))[kind]

    yield put(partial(other, kind=0))
    yield put(partial(other, kind=1))
    yield put(lambda value: value[(row + 1) % len(value)])
    for probe in probes:
        yield _put(leaves, batched, row, probe)


# --- both


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What is known about the examples of a network's batches.

    Attributes:
        static: what the program says; None when it could not be captured, then ``reason`` tells why.
        crossing: the largest change of one example's answer by another one.
        verdict: "isolated" is proven; "leaks" was seen; "not proved" is neither: an operation may let examples meet,
            and no change was seen.
        writes: modules that, in this mode, keep statistics of a batch for later ones.
    """

    static: Isolated | None
    crossing: Crossing | None
    verdict: Literal["isolated", "leaks", "not proved"]
    writes: tuple[str, ...]
    reason: str = ""

    def text(self) -> str:
        """A few lines for a reader."""
        lines = [f"verdict: {self.verdict}"]
        if self.static is not None:
            lines += [leak.text() for leak in self.static.leaks]
        if self.crossing is not None:
            lines.append(
                f"largest change by another example: {self.crossing.change:.3g} in {self.crossing.tried} tries"
            )
        if self.writes:
            lines.append("statistics are kept for later batches by " + ", ".join(self.writes))
        return "\n".join(lines + ([self.reason] if self.reason else []))


def audit(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    probes: Sequence[Tensor] = (),
) -> Audit:
    """Audit a network in the mode it is in, on a batch of at least two examples; it is left as found."""
    static, reason = None, ""
    try:
        graph = capture(model, args, kwargs, mode="as is")
        static = isolation(graph, graph.bind(args, kwargs))
    except SubjectError as error:
        reason = str(error)
    try:
        crossing = cross_rows(_fresh(model), args, kwargs, probes=probes)
    except Exception as error:
        crossing, reason = None, f"{reason}; it cannot be called: {error}".lstrip("; ")
    seen = crossing is not None and crossing.change > 0
    verdict: Literal["isolated", "leaks", "not proved"] = (
        "leaks" if seen else "isolated" if static is not None and static.proved else "not proved"
    )
    return Audit(static=static, crossing=crossing, verdict=verdict, writes=keepers(model), reason=reason)


def _fresh(model: nn.Module) -> Callable[..., Any]:
    """Call a copy each time: in train mode a call changes statistics, which the next call would see."""

    def call(*args: Any, **kwargs: Any) -> Any:
        own = copy.deepcopy(model) if model.training else model
        return own(*args, **kwargs)

    return call


def keepers(model: nn.Module) -> tuple[str, ...]:
    """Modules that keep statistics of a batch in the mode they are in."""
    return tuple(
        name or type(module).__name__
        for name, module in model.named_modules()
        if isinstance(module, _NormBase) and module.training and module.running_mean is not None
    )


def by_the_batch(model: nn.Module) -> tuple[str, ...]:
    """Modules that, in train mode, normalise an example by the others of its batch."""
    return tuple(
        f"{name or 'the model'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    )


__all__ = [
    "Audit",
    "Crossing",
    "Isolated",
    "Leak",
    "audit",
    "by_the_batch",
    "cross_rows",
    "isolation",
    "keepers",
]
