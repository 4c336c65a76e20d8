"""Is a learned binary operator over a tree as good an aggregator as a recurrent one, and how near is it to a monoid?"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Batch
from torch_geometric.nn.aggr import MaxAggregation, MeanAggregation, MultiAggregation, SumAggregation

from microtome.figures import line
from microtome.learn.graph_training import fit_graphs
from microtome.nn.lcm_aggregator import LearnedMonoid
from microtome.studies.graphs import _networks as n
from microtome.studies.graphs import _sets as s
from microtome.study import Measured, Study

LAWS, AS_GOOD, GAIN, FASTER = 0.3, 0.1, 0.1, 0.5
"""Weight of the laws; log10 error it may lose to the GRU, and must gain on sums; share of the GRU's time."""
BUILDS: dict[str, Callable[[], nn.Module]] = {
    "sum": SumAggregation,
    "mean": MeanAggregation,
    "max": MaxAggregation,
    "PNA": partial(MultiAggregation, ["mean", "max", "min", "std"]),
    "GRU": partial(s.Recurrent, s.WIDTH),
    "GRU, sorted": partial(s.Recurrent, s.WIDTH, ordered=True),
    "LCM": partial(LearnedMonoid, s.WIDTH, s.WIDTH),
    "LCM with laws": partial(LearnedMonoid, s.WIDTH, s.WIDTH),
    "one-sided with laws": partial(LearnedMonoid, s.WIDTH, s.WIDTH, symmetric=False),
}


def _loss(model: Any, batch: Any, *, laws: bool) -> Tensor:
    """Squared errors of the five answers, and how far the operator is from a monoid on elements and aggregates."""
    if not laws:
        return F.mse_loss(model(batch.x, batch.edge_index, batch.batch), batch.y)
    encoded = model.encode(batch.x)
    read = model.aggregate(encoded, batch.batch)
    values = torch.cat([model.aggregate.elements(encoded), read])
    broken = model.aggregate.laws(values[torch.randperm(len(values))[:256]])
    return F.mse_loss(model.decode(read), batch.y) + LAWS * (broken.commutativity + broken.associativity)


def _errors(model: nn.Module, batch: Any) -> Tensor:
    """[tasks] squared error over the variance of the answers."""
    with torch.no_grad():
        off = model(batch.x, batch.edge_index, batch.batch) - batch.y
    return off.square().mean(0) / batch.y.var(0)


def _order(model: nn.Module, batch: Any, copies: int = 8) -> float:
    """Standard deviation of answers over orders of the elements, as a share of that over sets; mean over tasks."""
    with torch.no_grad():
        out = torch.stack(
            [model(b.x, b.edge_index, b.batch) for b in (s.shuffled(batch, i) for i in range(copies))]
        ).double()
    return float((out.var(0).mean(0).sqrt() / out.mean(0).std(0).clamp_min(1e-9)).mean())


def _broken(model: Any, batch: Any) -> float:
    """How far the learned operator is from associative, on elements and aggregates."""
    with torch.no_grad():
        encoded = model.encode(batch.x)
        read = model.aggregate(encoded, batch.batch)
        values = torch.cat([model.aggregate.elements(encoded), read])
        return float(model.aggregate.laws(values, torch.Generator().manual_seed(0)).associativity)


def _seconds(aggregate: nn.Module, size: int, sets: int) -> float:
    """Least of five times of one forward pass over sets of one size."""
    x, index = torch.randn(sets * size, s.WIDTH), torch.arange(sets).repeat_interleave(size)
    found = []
    with torch.no_grad():
        for _ in range(5):
            began = time.perf_counter()
            aggregate(x, index)
            found.append(time.perf_counter() - began)
    return min(found)


def _neighbours(name: str, count: int, epochs: int, seed: int) -> float:
    """log10 error of a convolution by this aggregation on the second least of the neighbours."""
    graphs = s.second_least_of_neighbours(count + count // 2, seed)
    model = n.seeded(partial(s.NeighbourNetwork, BUILDS[name]), seed)
    fit_graphs(
        model, graphs[:count], epochs=epochs, batch_size=16, seed=seed,
        loss=lambda net, b: F.mse_loss(net(b.x, b.edge_index, b.batch), b.y),
    )  # fmt: skip
    test = Batch.from_data_list(graphs[count:])
    with torch.no_grad():
        off = (model(test.x, test.edge_index, test.batch) - test.y).square().mean()
    return float((off / test.y.var()).log10())


def measure(smoke: bool, seed: int = 0) -> Measured:
    """Five answers of sets by nine aggregations; sets sixteen times as large, orders, time; one task on graphs."""
    seeds, count, epochs, graphs = (1, 64, 1, 8) if smoke else (5, 1024, 30, 128)
    sizes = {"as large": (2, 16), "64": (64, 64), "256": (256, 256)}
    test = {k: Batch.from_data_list(s.drawn_sets(min(count, 256), v, 900 + seed)) for k, v in sizes.items()}
    numbers: dict[str, float] = {}
    errors: dict[tuple[str, str], list[Tensor]] = {}
    order: dict[str, list[float]] = {}
    broken: dict[str, list[float]] = {}
    for name, build in BUILDS.items():
        for drawn in range(10 + seed, 10 + seed + seeds):
            train = s.drawn_sets(count, sizes["as large"], 100 + drawn)
            model = n.seeded(partial(s.SetNetwork, build, 4 if name == "PNA" else 1), drawn)
            loss = partial(_loss, laws="with laws" in name)
            fit_graphs(model, train, epochs=epochs, rate=0.003, batch_size=64, seed=drawn, loss=loss)
            for where, batch in test.items():
                errors.setdefault((name, where), []).append(_errors(model, batch).log10())
            order.setdefault(name, []).append(_order(model, test["as large"]))
            if isinstance(model.aggregate, LearnedMonoid):
                broken.setdefault(name, []).append(_broken(model, test["as large"]))
        numbers |= n.summary(f"spread over orders, {name}", order[name])
        if name in broken:
            numbers |= n.summary(f"associativity broken, {name}", broken[name])
        for where in sizes:
            numbers |= n.summary(
                f"log10 error, {name}, {where}", [float(e.mean()) for e in errors[name, where]]
            )
        for where in ("as large", "256"):
            for task, value in zip(s.TASKS, torch.stack(errors[name, where]).mean(0).tolist(), strict=True):
                numbers[f"log10 error of {task}, {name}, {where}"] = value
    for sets, size in itertools.product((1, 16), (16, 64, 256, 1024)):
        for name in ("GRU", "LCM"):
            label = f"{sets} set{'s' * (sets > 1)} of {size}"
            numbers[f"seconds for {label}, {name}"] = _seconds(BUILDS[name](), size, sets)
    for name in ("sum", "max", "GRU", "LCM"):
        values = [_neighbours(name, graphs, epochs, d) for d in range(10 + seed, 10 + seed + seeds)]
        numbers |= n.summary(f"log10 error on neighbours, {name}", values)
    second = {k: [float(e[2]) for e in errors[k, "as large"]] for k in BUILDS}
    best = [min(rest) for rest in zip(*(second[k] for k in ("sum", "mean", "max")), strict=True)]
    gain = [a - b for a, b in zip(best, second["LCM with laws"], strict=True)]
    behind = [
        float(a.mean() - b.mean())
        for a, b in zip(errors["LCM with laws", "as large"], errors["GRU", "as large"], strict=True)
    ]
    numbers |= n.summary("gain on the second least over the best of sum, mean and max", gain)
    numbers |= n.summary("log10 error above that of the GRU", behind)
    share = numbers["seconds for 1 set of 256, LCM"] / numbers["seconds for 1 set of 256, GRU"]
    numbers["time of LCM over that of GRU, one set of 256"] = share
    numbers |= {
        "steps that wait for one another, GRU, 256": 256.0,
        "steps that wait for one another, LCM, 256": 8.0,
    }
    holds = (
        numbers["gain on the second least over the best of sum, mean and max, low"] > GAIN,
        numbers["log10 error above that of the GRU, high"] < AS_GOOD,
        share < FASTER,
    )
    verdict = "reproduced" if all(holds) else "partly" if sum(holds) == 2 else "not reproduced"
    points = [
        {"size": size, "aggregation": name, "log10 error": numbers[f"log10 error, {name}, {where}"]}
        for name in BUILDS
        for size, where in ((16, "as large"), (64, "64"), (256, "256"))
    ]
    spread = {k: numbers[f"spread over orders, {k}"] for k in BUILDS}
    return Measured(
        numbers=numbers,
        verdict="inconclusive" if smoke else verdict,  # type: ignore[arg-type]
        decided_by=f"on the second least the learned monoid is below the best of sum, mean and max by "
        f"{numbers['gain on the second least over the best of sum, mean and max']:.2f} of log10 error (at "
        f"least "
        f"{numbers['gain on the second least over the best of sum, mean and max, low']:.2f}, threshold "
        f"{GAIN}); over five answers "
        f"it is {numbers['log10 error above that of the GRU']:+.2f} from the GRU (at most "
        f"{numbers['log10 error above that of the GRU, high']:+.2f}, threshold {AS_GOOD}); on one set of 256 "
        f"it "
        f"takes "
        f"{share:.2f} of its time (threshold {FASTER}); answers move with the order of the elements by "
        f"{spread['LCM']:.3f} of "
        f"their spread, {spread['LCM with laws']:.3f} with laws, {spread['GRU']:.3f} for the GRU and "
        f"{spread['sum']:.1g} for sums",
        figure=line(
            "Error by size of the set", points, x="size", y="log10 error", series="aggregation", log_x=True,
            rules={"constant": 0.0},
        ),
        conditions=(
            f"{count} sets of 2 to 16 numbers, each with its own offset and spread, five answers at once, "
            f"{epochs} epochs; sets of "
            "64 and 256 are out of range. Errors are shares of the answers' variance at that size.",
            "In a first run the laws were divided by a variance held fixed, which rewards shrinking: some "
            "networks "
            "collapsed, of the one-sided ones all. Mended, with new seeds.",
            f"The laws (weight {LAWS}) are asked of 256 elements and aggregates of each batch. Padding is an "
            f"exact identity "
            f"for the learned "
            "monoid and is not read by the GRU.",
            "Time is that of one thread, forward, for one set, where the depth of 8 against 256 shows; the "
            "tree does twice as many "
            "operations, so with 16 sets at once, on one thread, there is little between them (also among "
            "the numbers). One set was settled on after a small run had shown that, before any full run.",
        ),
    )  # fmt: skip


STUDY = Study(
    paper="lcm-aggregator",
    claim="A learned commutative operator over a tree finds the second least of a set better than sum, mean "
    "and max by 0.1 of "
    "log10 error, is within 0.1 of a GRU over five exact answers, and takes less than half its time on sets "
    "of 256.",
    null="It is no better than the fixed aggregators, or falls behind the GRU, or takes as long.",
    control="Fixed aggregators and PNA's four, GRU over unsorted and sorted elements, the operator without "
    "laws and without "
    "symmetry; orders of the elements, which must not matter; equal widths, data and epochs.",
    threshold="Lower end of the gain above 0.1, upper end of the distance to the GRU below 0.1, time below "
    "0.5.",
    measure=measure,
    uses=("microtome.nn.lcm_aggregator.LearnedMonoid",),
    example="import torch\nfrom microtome.nn.lcm_aggregator import LearnedMonoid\naggregate = "
    "LearnedMonoid(8, 8)\n"
    "x, index = torch.randn(7, 8), torch.tensor([0, 0, 0, 1, 1, 1, 1])\n"
    "print(aggregate(x, index).shape, aggregate.laws(aggregate.elements(x)))",
    relates={
        "pna": "PNA's four fixed aggregators are behind the learned operator in range, ahead of it on sets sixteen "
        "times as large, and exactly blind to order"
    },
)
