"""Does a comparison at one budget give a stable order, and what do positional encodings and their signs change?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import fmean

import torch

from microtome.data.block_tasks import cluster_graphs, pattern_graphs
from microtome.data.graph_generators import circular_skip_links
from microtome.data.travelling_salesman import tour_graphs
from microtome.figures import bars
from microtome.learn.gnn_benchmark import Result, compare, f1, kendall, rank_stability, split_task
from microtome.studies.graphs import _networks as n
from microtome.study import Measured, Study

NEAR, STABLE = 0.9, 0.5
"""Accuracy on skip links that counts as near 1; Kendall's tau that counts as one order."""
PASSING = ("GCN", "GatedGCN", "GIN")
ALL = ("MLP", "GCN", "SAGE", "GAT", "GatedGCN", "MoNet", "GIN", "PNA")


def _scores(results: Sequence[Result]) -> dict[str, list[float]]:
    """Test scores by network, in the order of seeds."""
    found: dict[str, list[float]] = {}
    for r in results:
        found.setdefault(r.network, []).append(r.test)
    return found


def _gains(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def measure(smoke: bool, seed: int = 0) -> Measured:
    """Skip links with and without encodings, PATTERN at two budgets, CLUSTER with and without encodings."""
    seeds = range(seed, seed + (2 if smoke else 4))
    copies, graphs, small, epochs = (5, 6, 4000, (1, 1)) if smoke else (15, 80, 4000, (40, 12))
    everyone = ALL[:3] if smoke else ALL
    numbers: dict[str, float] = {}

    skips = split_task("CSL", "graph", circular_skip_links(copies, seed=seed), seed=seed)
    encoded = skips.encoded(20, seed=seed)
    settings = {
        "no encoding": (skips, True, 3 if not smoke else 1),
        "encoding, signs drawn": (encoded, True, epochs[0]),
        "encoding, signs fixed": (encoded, False, epochs[0]),
    }
    csl: dict[str, dict[str, list[float]]] = {}
    for name, (task, flips, many) in settings.items():
        names = (*PASSING, "MLP") if name == "encoding, signs drawn" else PASSING
        csl[name] = _scores(compare(task, names, budget=10_000, seeds=seeds, epochs=many, flips=flips))
        for network, values in csl[name].items():
            numbers |= n.summary(f"CSL, {name}, {network}", values)

    pattern = split_task("PATTERN", "node", pattern_graphs(graphs, sizes=(5, 15), seed=seed), seed=seed)
    on_nodes = partial(compare, epochs=epochs[1], rate=0.005, batch_size=8)
    large = on_nodes(pattern, everyone, budget=10_000, seeds=seeds)
    less = on_nodes(pattern, everyone, budget=small, seeds=list(seeds)[:2])
    for budget, results in ((10_000, large), (small, less)):
        for network, values in _scores(results).items():
            numbers |= n.summary(f"PATTERN at {budget} parameters, {network}", values)
        numbers[f"tau between seeds at {budget} parameters"] = rank_stability(results)
    for r in large:
        numbers[f"parameters, {r.network}"] = r.parameters
        numbers[f"seconds on PATTERN, {r.network}"] = fmean(
            o.seconds for o in large if o.network == r.network
        )
    means = [[fmean(values) for values in _scores(results).values()] for results in (large, less)]
    numbers["tau between budgets"] = kendall(*means)

    tours = split_task("TSP", "edge", tour_graphs(10 if smoke else 300, cities=12, seed=seed), seed=seed)
    told = _scores(
        compare(tours, everyone, budget=10_000, seeds=seeds, epochs=epochs[1], rate=0.005, batch_size=8)
    )
    for network, values in told.items():
        numbers |= n.summary(f"TSP, F1, {network}", values)
    near, on_tour = (torch.cat([g[k] for g in tours.test]) for k in ("nearest", "y"))
    numbers["TSP, F1, either of the two nearest cities"] = f1(near, on_tour)
    numbers["TSP, share of the tour's edges that are in the graphs"] = 1 - fmean(
        g.missed / 12 for g in tours.test
    )
    numbers["tau between PATTERN and TSP"] = kendall(means[0], [fmean(v) for v in told.values()])

    made = cluster_graphs(graphs, sizes=(8, 16), inside=0.7, between=0.1, seed=50 + seed)
    twice = range(100 + seed, 100 + seed + 2 * len(seeds))
    cluster = split_task("CLUSTER", "node", made, seed=seed)
    blocks = {
        name: _scores(on_nodes(task, PASSING[:2], budget=10_000, seeds=twice))
        for name, task in (("no encoding", cluster), ("encoding", cluster.encoded(8, seed=seed)))
    }
    for name, scores in blocks.items():
        for network, values in scores.items():
            numbers |= n.summary(f"CLUSTER, {name}, {network}", values)
    for network in PASSING[:2]:
        gains = _gains(blocks["encoding"][network], blocks["no encoding"][network])
        numbers |= n.summary(f"CLUSTER gained by encodings, {network}", gains)
    drawn, fixed = (csl[f"encoding, signs {how}"] for how in ("drawn", "fixed"))
    of_signs = [fmean(g) for g in zip(*(_gains(drawn[k], fixed[k]) for k in PASSING), strict=True)]
    numbers |= n.summary("CSL gained by drawing signs", of_signs)
    first = max(told, key=lambda k: fmean(told[k]))
    blind = max(v for values in csl["no encoding"].values() for v in values)
    best = max(fmean(drawn[k]) for k in PASSING)
    own = fmean(drawn["MLP"])
    numbers |= {"CSL without encodings, most": blind, "CSL with encodings, best network": best}
    tau = min(numbers["tau between seeds at 10000 parameters"], numbers["tau between budgets"])
    gated = numbers["CLUSTER gained by encodings, GatedGCN, low"]
    seen = abs(blind - 0.1) < 1e-9 and best > NEAR and own < best
    holds = (seen, numbers["CSL gained by drawing signs, low"] > 0, tau > STABLE, gated > 0)
    verdict = "reproduced" if all(holds) else "partly" if seen and any(holds[1:]) else "not reproduced"
    rows = [
        {
            "network": k,
            "accuracy": numbers[f"CSL, {s}, {k}"],
            "low": numbers[f"CSL, {s}, {k}, low"],
            "high": numbers[f"CSL, {s}, {k}, high"],
            "setting": s,
        }
        for s in settings
        for k in csl[s]
    ]
    return Measured(
        numbers=numbers,
        verdict="inconclusive" if smoke else verdict,  # type: ignore[arg-type]
        decided_by=f"on skip links message passing is right on {blind:.2f} at most without encodings (chance "
        f"0.10) and the best "
        f"network on {best:.2f} with them (threshold {NEAR}; a perceptron on {own:.2f}); drawing their signs "
        f"gains "
        f"{numbers['CSL gained by drawing signs']:+.3f} (at least "
        f"{numbers['CSL gained by drawing signs, low']:+.3f}); on CLUSTER "
        f"they gain GatedGCN {numbers['CLUSTER gained by encodings, GatedGCN']:+.3f} (at least {gated:+.3f}) "
        f"and GCN "
        f"{numbers['CLUSTER gained by encodings, GCN']:+.3f}; the order of eight networks on PATTERN agrees "
        f"between seeds with tau "
        f"{numbers['tau between seeds at 10000 parameters']:.2f} and between budgets with "
        f"{numbers['tau between budgets']:.2f} "
        f"(threshold {STABLE}); of edges of shortest tours {first} has an F1 of {numbers[f'TSP, F1, {first}']:.2f}, "
        f"the two nearest cities {numbers['TSP, F1, either of the two nearest cities']:.2f}, and the order there "
        f"agrees with PATTERN's with tau {numbers['tau between PATTERN and TSP']:.2f}",
        figure=bars(
            "Accuracy on circular skip links", rows, category="network", value="accuracy", series="setting",
            band=("low", "high"), rules={"chance": 0.1},
        ),
        conditions=(
            "Budgets of 10,000 and 4,000 parameters instead of 100,000 and 500,000; four seeds (two at the "
            "smaller budget, eight on CLUSTER).",
            f"{graphs} graphs each of PATTERN (blocks of 5 to 15 nodes) and CLUSTER (8 to 16 nodes, 0.7 "
            f"inside and 0.1 between, as "
            f"smaller blocks need more contrast), {epochs[1]} epochs; CSL: 90 / 30 / 30 graphs, {epochs[0]} "
            f"epochs, 20 eigenvectors.",
            f"TSP: 300 instances of 12 cities, tours exact, 6 nearest cities, {epochs[1]} epochs, F1 of the tour's "
            "edges; the networks read places, not distances. Added after the first full run; it does not decide.",
            "In earlier runs the encodings' own signs were not of the seed; mended. With four seeds GatedGCN's gain on "
            "CLUSTER was between +0.06 and +0.18 from run to run, above 0 with its interval in one of five: it has "
            "eight now, on graphs of another seed, thresholds as they were.",
            "One split of each; images and molecules are not among the tasks here.",
        ),
    )  # fmt: skip


STUDY = Study(
    paper="benchmarking-gnns",
    claim="At one budget message passing is at chance on circular skip links and above 0.9 with Laplacian "
    "encodings, whose signs "
    "have to be drawn anew; encodings help GatedGCN on CLUSTER; and the order of networks on PATTERN is the "
    "same for other "
    "seeds and another budget.",
    null="Encodings or their signs change nothing, or the order of the networks changes with the seed.",
    control="The same networks without encodings, with signs fixed, a perceptron with encodings; equal "
    "parameters, splits, epochs.",
    threshold="0.1 exactly and above 0.9; lower ends of the gains by drawn signs and on CLUSTER above 0; "
    "Kendall's tau above 0.5 "
    "between seeds and between budgets.",
    measure=measure,
    uses=(
        "microtome.learn.gnn_benchmark.compare",
        "microtome.learn.gnn_benchmark.rank_stability",
        "microtome.data.block_tasks.pattern_graphs",
        "microtome.data.travelling_salesman.tour_graphs",
        "microtome.nn.benchmark_networks.build_network",
    ),
    example="from microtome.data.block_tasks import cluster_graphs\n"
    "from microtome.learn.gnn_benchmark import compare, split_task\n"
    "task = split_task('CLUSTER', 'node', cluster_graphs(20, sizes=(8, 16), inside=0.7, between=0.1))\n"
    "for result in compare(task, ['MLP', 'GatedGCN'], budget=5000, seeds=range(2), epochs=5):\n"
    "    print(result)",
    relates={
        "pna": "one of the networks compared",
        "equivariant-polynomials-for-gnns": "says which skip links need which degree",
    },
)
