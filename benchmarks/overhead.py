"""Engine overhead: a whole examination against the distinct work it consists of, done bare.

The engine writes down every call of the model it makes: kind of work and rows. The same work is then timed
bare: the plain PyTorch way of that kind (a forward without graph, a forward with the gradient of the loss by
inputs or parameters, Hessian-vector products by double backward, per-example gradients by vmap), no hooks, no
folds, on as many rows as that signal has, cut in whatever way is fastest (a signal on 64 rows cannot be computed
in a batch of 512). The ratio is examination / sum of bare work. Everything else the examination does counts as
overhead: the probe, statistics, spectra, figures, changed parameters.

A signal is more than a call of the network: a Gram matrix, the softmax of logits, pruned parameters are signals or
parts of them too. What those cost is timed where the examination computes each of them once, and a second ratio has it
in the denominator: examination / (bare calls + arithmetic of signals). The first ratio is the stricter one.

Examination and bare work take turns, so that a machine that is busy with something else is so for both; processor
time of the process is printed next to wall time, for with one thread it is what a quiet machine's clock would show.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from benchmarks.models import FIRST, build
from microtome.examination import configure
from microtome.passes import Run
from microtome.subject import Subject


@dataclass(frozen=True)
class Cost:
    """Seconds on the clock, and of this process on the processor."""

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.wall + other.wall, self.cpu + other.cpu)


class Clock:
    """Runs from when it is made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> Cost:
        """What has gone by."""
        return Cost(time.perf_counter() - self._wall, time.process_time() - self._cpu)


def bare(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Callable[[int], None]]:
    """The plain way of each kind of work on these rows; the argument is the number of vectors."""
    parameters = list(model.parameters())

    def forward(_: int) -> None:
        with torch.no_grad():
            model(x)

    def inputs(_: int) -> None:
        leaf = x.clone().requires_grad_()
        for p in parameters:
            p.requires_grad_(False)
        torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)
        for p in parameters:
            p.requires_grad_(True)

    def by_parameters(_: int) -> None:
        torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), parameters)

    def curvature(vectors: int) -> None:
        first = torch.autograd.grad(
            F.cross_entropy(model(x), y, reduction="sum"), parameters, create_graph=True
        )
        for i in range(vectors):
            torch.autograd.grad(
                first, parameters, [torch.ones_like(p) for p in parameters], retain_graph=i < vectors - 1
            )

    held: list[tuple[Tensor, ...]] = []

    def products(vectors: int) -> None:
        if not held:
            loss = F.cross_entropy(model(x), y, reduction="sum")
            held.append(torch.autograd.grad(loss, parameters, create_graph=True))
        for _ in range(vectors):
            torch.autograd.grad(
                held[0], parameters, [torch.ones_like(p) for p in parameters], retain_graph=True
            )

    def examples(_: int) -> None:
        values = {n: p.detach() for n, p in model.named_parameters()}

        def one(v: dict[str, Tensor], row: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy(functional_call(model, v, (row[None],)), target[None])

        for start in range(0, len(x), 8):
            piece = slice(start, start + 8)
            vmap(grad(one), in_dims=(None, 0, 0))(values, x[piece], y[piece])

    # A gradient by a layer alone needs a forward and part of a backward: counted as a forward, to be strict.
    return {
        "forward": forward, "inputs": inputs, "parameters": by_parameters, "layers": forward,
        "curvature": curvature, "products": products, "examples": examples,
    }  # fmt: skip


def once(work: Callable[[], None]) -> Cost:
    """What a call costs after one warm-up; of short ones the median of five."""
    work()
    costs = []
    while len(costs) < (5 if sum(c.wall for c in costs) < 0.1 else 1):
        clock = Clock()
        work()
        costs.append(clock.read())
    return Cost(statistics.median(c.wall for c in costs), statistics.median(c.cpu for c in costs))


def floor(name: str, trace: list[tuple[str, int, int]]) -> dict[str, Cost]:
    """What the traced work costs bare, by kind."""
    model, _ = build(name, 1)
    sizes = (1, 8, 32, 64, 128, 256, 512) if name == "cnn" else (1, 8, 32, 64)
    shape = (1, 8, 8) if name == "cnn" else (3, 64, 64)
    calls = Counter(
        (kind, vectors if kind in ("curvature", "products") else 0, rows) for kind, rows, vectors in trace
    )
    found: dict[str, Cost] = {}
    for kind, vectors in dict.fromkeys((kind, vectors) for kind, vectors, _ in calls):
        needed = max(rows for other, v, rows in calls if (other, v) == (kind, vectors))
        known = {0: Cost()}
        for size in sizes:
            x, y = torch.rand(size, *shape), torch.randint(0, 10, (size,))
            work = bare(model, x, y)[kind]
            known[size] = once(lambda work=work, vectors=vectors: work(vectors))  # type: ignore[misc]
            if size >= needed:
                break
        walls, cpus = ({n: getattr(c, part) for n, c in known.items()} for part in ("wall", "cpu"))
        for (other, v, rows), count in calls.items():
            if (other, v) == (kind, vectors):
                more = Cost(count * cheapest(walls, rows), count * cheapest(cpus, rows))
                found[kind] = found.get(kind, Cost()) + more
    return found


def cheapest(known: dict[int, float], rows: int) -> float:
    """Seconds for this many rows, cut into equal batches of the best size; between sizes linear."""

    def time_of(n: int) -> float:
        if n in known:
            return known[n]
        below, above = max(s for s in known if s < n), min((s for s in known if s > n), default=0)
        if not above:
            return n / below * known[below]
        return known[below] + (n - below) / (above - below) * (known[above] - known[below])

    return min((rows // s) * time_of(s) + time_of(rows % s) for s in {*known, rows} if 0 < s <= rows)


@contextmanager
def arithmetic() -> Iterator[list[Cost]]:
    """Collects what the signals cost that are computed from others, and the changes made to parameters."""
    from microtome.signals import evaluate, program

    found: list[Cost] = []

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def inside(*args: Any, **kwargs: Any) -> Any:
            clock = Clock()
            try:
                return function(*args, **kwargs)
            finally:
                found.append(clock.read())

        return inside

    places = ((program, "_apply"), (evaluate.Evaluator, "_parameters"))
    kept = [getattr(place, name) for place, name in places]
    for (place, name), function in zip(places, kept, strict=True):
        setattr(place, name, timed(function))
    try:
        yield found
    finally:
        for (place, name), function in zip(places, kept, strict=True):
            setattr(place, name, function)


def examination(
    name: str, count: int, only: tuple[str, ...]
) -> tuple[Cost, list[tuple[str, int, int]], dict[str, float], Cost]:
    """What the whole examination costs, its trace, each instrument's own seconds, and the signals' arithmetic."""
    model, data = build(name, count)
    shown = list(data) if count <= 1024 else data  # making the examples is not part of the examination
    trace: list[tuple[str, int, int]] = []
    clock = Clock()
    run = Run(Subject(model, shown), configure(only), budget=2 << 30)
    run.evaluator.trace = trace
    with arithmetic() as spent:
        findings = run.execute()
    cost = clock.read()
    broken = {f.instrument: f.reason for f in findings.values() if f.status == "failed"}
    if broken:
        raise SystemExit(f"failed: {broken}")
    return cost, trace, {f.instrument: f.seconds for f in findings.values()}, sum(spent, Cost())


def main() -> None:
    """Print a few lines a network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=["cnn", "resnet"])
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", action="append", help="instruments; else the first set")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.networks:
        turns, only = [], tuple(arguments.only or FIRST)
        if name == "cnn":
            examination(name, arguments.rows, only)  # warms up
        for _ in range(arguments.repeats if name == "cnn" else 1):
            whole, trace, own, spent = examination(name, arguments.rows, only)
            turns.append((whole, floor(name, trace), own, spent))
        totals = [sum(kinds.values(), Cost()) for _, kinds, _, _ in turns]
        print(f"{name}: N={arguments.rows} threads={arguments.threads} repeats={len(turns)}")
        for part, words in (("wall", "wall time"), ("cpu", "processor time")):
            pairs = [(getattr(w, part), getattr(t, part)) for (w, *_), t in zip(turns, totals, strict=True)]
            sums = [getattr(spent, part) for *_, spent in turns]
            fuller = [w / (t + a) for (w, t), a in zip(pairs, sums, strict=True)]
            ratios = ", ".join(f"{w / t:.2f}" for w, t in pairs)
            print(
                f"  {words}: examination {statistics.median(w for w, _ in pairs):.2f} s, "
                f"bare work {statistics.median(t for _, t in pairs):.2f} s, "
                f"ratio {statistics.median(w / t for w, t in pairs):.2f} (turn by turn {ratios}); "
                f"arithmetic of signals {statistics.median(sums):.2f} s, ratio with it {statistics.median(fuller):.2f}"
            )
        _, kinds, own, _ = turns[-1]
        listed = sorted(kinds.items(), key=lambda item: -item[1].cpu)
        print("  bare processor seconds by kind: " + ", ".join(f"{k} {c.cpu:.2f}" for k, c in listed))
        slow = sorted(own.items(), key=lambda item: -item[1])[:8]
        print("  own seconds of instruments: " + ", ".join(f"{k} {v:.2f}" for k, v in slow))


if __name__ == "__main__":
    main()
