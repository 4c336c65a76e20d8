"""Do weights that evolve follow a changing graph better than states of nodes, the more so the more nodes change?"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GCNConv

from microtome.data.drifting_blocks import drifting_blocks
from microtome.figures import line
from microtome.learn.graph_training import fit_nodes, node_accuracy
from microtome.nn.evolvegcn import EvolveGCN
from microtome.studies.graphs import _networks as n
from microtome.study import Measured, Study

STALE, PERSONAL, WINDOW, NEAR, TURNED = 0.1, 0.02, 3, 0.1, 45.0
EVOLVING = ("EvolveGCN-O", "EvolveGCN-H")
STATIC, LAST, STATES, FRESH = "GCN", "GCN, last window", "GCN and states of nodes", "GCN, trained anew"


class _Evolving(nn.Module):
    """An EvolveGCN called as a network of one graph."""

    def __init__(self, batch: Tensor, **more: Any) -> None:
        super().__init__()
        self.network, self.batch = EvolveGCN(**more), batch

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.network(x, edge_index, self.batch)


class _States(nn.Module):
    """A GCN layer, a gated recurrent state for each node (0 for one that is new), a linear map."""

    def __init__(self, inputs: int, hidden: int, outputs: int, data: Any) -> None:
        super().__init__()
        self.conv, self.cell = GCNConv(inputs, hidden), nn.GRUCell(hidden, hidden)
        self.head, self.kept = nn.Linear(hidden, outputs), (~data.new).float()
        self.times = int(data.batch[-1]) + 1

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        rows = F.relu(self.conv(x, edge_index)).view(self.times, -1, self.cell.input_size)
        state, found = torch.zeros_like(rows[0]), []
        for row, kept in zip(rows, self.kept.view(self.times, -1, 1), strict=True):
            state = self.cell(row, state * kept)
            found.append(state)
        return self.head(torch.cat(found))


def _gcn(d: int, k: int) -> nn.Module:
    return n.NodeNetwork(GCNConv, [d, 16, k], dropout=0.0)


def _anew(data: Any, time: int, epochs: int, seed: int) -> float:
    """Accuracy at a time of a GCN trained on the labels of the last times before it."""
    part = data.clone()
    part.train_mask = (data.batch >= time - WINDOW) & (data.batch < time)
    part.val_mask, part.test_mask = data.batch == time - 1, data.batch == time
    part = part.subgraph((data.batch >= time - WINDOW) & (data.batch <= time))
    return fit_nodes(n.seeded(partial(_gcn, data.num_features, 4), seed), part, epochs=epochs)[0]


def _by_time(model: nn.Module, data: Any) -> list[float]:
    return [node_accuracy(model, data, data.batch == t) for t in data.batch[data.test_mask].unique().tolist()]


def _lag(jumped: list[float], smooth: list[float]) -> float:
    """Times from a jump until accuracy is within NEAR of what it is without one; the number of times if never."""
    near = [a > b - NEAR for a, b in zip(jumped, smooth, strict=True)]
    return float(near.index(True) if True in near else len(near))


def measure(smoke: bool, seed: int = 0) -> Measured:
    """Classes that turn by 15 degrees a step, three rates of churn, and a jump."""
    seeds, epochs, churns, nodes = (2, 4, (0.0, 1.0), 24) if smoke else (5, 120, (0.0, 0.5, 1.0), 150)
    found: dict[tuple[str, float], list[float]] = {}
    age: dict[tuple[str, int], list[float]] = {}
    lags: dict[str, list[float]] = {}
    for s in range(seed, seed + seeds):
        for churn in churns:
            data = drifting_blocks(nodes=nodes, churn=churn, seed=s)
            d, first = data.num_features, int(data.batch[data.test_mask][0])
            builds: dict[str, Callable[[], nn.Module]] = {
                STATIC: partial(_gcn, d, 4),
                LAST: partial(_gcn, d, 4),
                STATES: partial(_States, d, 16, 4, data),
            }
            for name in EVOLVING:
                builds[name] = partial(
                    _Evolving, data.batch, inputs=d, hidden=16, outputs=4, version=name[-1]
                )
            held: dict[str, float] = {}
            for name, build in builds.items():
                given = data.clone()
                if name == LAST:
                    given.train_mask = data.train_mask & (
                        data.batch >= int(data.batch[data.train_mask][-1]) + 1 - WINDOW
                    )
                model = n.seeded(build, s)
                accuracy, held[name] = fit_nodes(model, given, epochs=epochs)
                found.setdefault((name, churn), []).append(accuracy)
                if churn == churns[-1]:
                    smooth = _by_time(model, data)
                    for t, value in enumerate(smooth):
                        age.setdefault((name, t), []).append(value)
                    if name in EVOLVING:
                        jump = drifting_blocks(nodes=nodes, churn=churn, jump=(first, TURNED), seed=s)
                        lags.setdefault(name, []).append(_lag(_by_time(model, jump), smooth))
            chosen = max(EVOLVING, key=lambda name: held[name])
            found.setdefault(("EvolveGCN", churn), []).append(found[chosen, churn][-1])
            times = range(first, int(data.batch[-1]) + 1)
            anew = [_anew(data, t, epochs // 2, s) for t in times]
            found.setdefault((FRESH, churn), []).append(sum(anew) / len(anew))
            if churn == churns[-1]:
                for t, value in enumerate(anew):
                    age.setdefault((FRESH, t), []).append(value)
                jumped = [_anew(jump, t, epochs // 2, s) for t in times]
                lags.setdefault(FRESH, []).append(_lag(jumped, anew))
    numbers: dict[str, float] = {}
    for (name, churn), values in found.items():
        numbers |= n.summary(f"accuracy, {name}, churn {churn:g}", values)
    for name, values in lags.items():
        numbers |= n.summary(f"steps to recover from a jump, {name}", values)
    ahead = {
        (other, churn): [a - b for a, b in zip(found["EvolveGCN", churn], found[other, churn], strict=True)]
        for other in (STATIC, LAST, STATES, FRESH)
        for churn in churns
    }
    for (other, churn), values in ahead.items():
        numbers |= n.summary(f"EvolveGCN above {other}, churn {churn:g}", values)
    least, most = churns[0], churns[-1]
    grows = [a - b for a, b in zip(ahead[STATES, most], ahead[STATES, least], strict=True)]
    numbers |= n.summary("lead over states of nodes, full churn less none", grows)
    stale = min(numbers[f"EvolveGCN above {o}, churn {c:g}, low"] for o in (STATIC, LAST) for c in churns)
    personal = numbers[f"EvolveGCN above {STATES}, churn {most:g}, low"]
    rising = numbers["lead over states of nodes, full churn less none, low"]
    parts = (stale > STALE, personal > PERSONAL, rising > 0)
    verdict = "reproduced" if all(parts) else "partly" if any(parts) else "not reproduced"
    points = [
        {"step": t + 1, "network": name, "accuracy": sum(values) / len(values)}
        for (name, t), values in age.items()
    ]
    return Measured(
        numbers=numbers,
        verdict="inconclusive" if smoke else verdict,  # type: ignore[arg-type]
        decided_by=f"EvolveGCN leads a GCN that does not change, or saw the last window alone, by at least {stale:.3f} "
        f"(threshold {STALE}), states of nodes at full churn by at least {personal:.3f} (threshold {PERSONAL}); that "
        f"lead is larger than without churn by {numbers['lead over states of nodes, full churn less none']:.3f} (at "
        f"least {rising:.3f}, threshold 0). Training anew with the labels that have come leads EvolveGCN by "
        f"{-numbers[f'EvolveGCN above {FRESH}, churn {most:g}']:.3f} and recovers from a jump of {TURNED:g} degrees in "
        f"{numbers[f'steps to recover from a jump, {FRESH}']:.1f} steps, EvolveGCN-O in "
        f"{numbers[f'steps to recover from a jump, {EVOLVING[0]}']:.1f}, -H in "
        f"{numbers[f'steps to recover from a jump, {EVOLVING[1]}']:.1f} of 4",
        figure=line(
            "Accuracy by steps after the last labels, all nodes new at every step",
            points,
            x="step",
            y="accuracy",
            series="network",
        ),
        conditions=(
            f"Planted: {nodes} nodes in 4 equal classes (so accuracy stands for F1) at 16 times, what a class looks "
            f"like turns by 15 degrees a step; 10 times for training, 2 for validation, 4 for testing; no published "
            f"stream.",
            "Node classification alone; the better of -O and -H by validation counts.",
            f"'Trained anew' is given the labels of the {WINDOW} times before each test time, which no other network "
            f"has: a control, not a rival on equal terms.",
            f"A jump has been recovered from when accuracy is within {NEAR} of what it is at that time without one.",
        ),
    )


STUDY = Study(
    paper="evolvegcn",
    claim="On graphs whose classes change their look steadily, a GCN whose weights evolve is over 0.1 more accurate "
    "at later times than GCNs with fixed weights, and more accurate than recurrent states of nodes when no node stays; "
    "its lead over these grows with the share of nodes that change.",
    null="Fixed weights are as good, or the lead does not depend on churn.",
    control="A GCN on all times, one on the last window, recurrent states of nodes, and training anew with the newest "
    "labels; equal widths, epochs and data.",
    threshold="Lower ends over seeds: above 0.1 over fixed weights at every churn, above 0.02 over states of nodes at "
    "full churn, above 0 for the growth of that lead from no churn to full churn.",
    measure=measure,
    uses=("microtome.nn.evolvegcn.EvolveGCN", "microtome.data.drifting_blocks.drifting_blocks"),
    example="import torch\nfrom microtome.data.drifting_blocks import drifting_blocks\n"
    "from microtome.nn.evolvegcn import EvolveGCN\ndata = drifting_blocks(churn=1.0)\n"
    "print(EvolveGCN(8, 16, 4, version='H')(data.x, data.edge_index, data.batch).shape)",
    relates={
        "graphsage": "answers for nodes it never saw, by weights that stay; where what a class looks like turns, a GCN "
        "of fixed weights is 0.28 less accurate than one whose weights evolve",
        "long-short-term-heterogeneous-social": "says that machinery for changing graphs can be spared; here training "
        "anew is 0.24 more accurate than weights that evolve, but on labels of later times",
    },
)
