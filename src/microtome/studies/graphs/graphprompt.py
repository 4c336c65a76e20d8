"""Does one vector on top of a network trained ahead answer new tasks from a handful of examples?"""

from __future__ import annotations

import copy
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Batch
from torch_geometric.nn import GCNConv, global_add_pool

from microtome.data.graph_generators import stochastic_blocks, two_motifs
from microtome.figures import line
from microtome.learn.graphprompt import alike, neighbourhoods, pretrain, tune
from microtome.studies.graphs import _networks as n
from microtome.study import Measured, Study, rows_of

STEERS, BEATS = 0.01, 0.0
WIDTH, CLASSES = 32, 5


class _Encoder(nn.Module):
    def __init__(self, inputs: int, depth: int) -> None:
        super().__init__()
        self.net = n.NodeNetwork(GCNConv, [inputs, *[WIDTH] * depth], dropout=0.0)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.net(x, edge_index)


def _tasks(labels: Tensor, shots: int, tasks: int, seed: int) -> tuple[Tensor, Tensor]:
    """([tasks, classes x shots] examples to learn from, [tasks, n] the rest marked true)."""
    draw = torch.Generator().manual_seed(seed)
    chosen = []
    for _ in range(tasks):
        order = torch.randperm(len(labels), generator=draw)
        each = [order[labels[order] == c][:shots] for c in range(int(labels.max()) + 1)]
        chosen.append(torch.cat(each))
    support = torch.stack(chosen)
    return support, torch.ones(tasks, len(labels)).scatter(1, support, 0.0).bool()


def _right(scores: Tensor, labels: Tensor, rest: Tensor) -> Tensor:
    """[tasks] accuracy on the rest of [tasks, n, classes]."""
    return ((scores.argmax(-1) == labels) & rest).double().sum(1) / rest.double().sum(1)


def _fitted(make: Any, read: Any, labels: Tensor, support: Tensor, epochs: int) -> Tensor:
    """[n, classes] of a network and a linear map trained together on a few examples."""
    model, head = make(), nn.Linear(WIDTH, int(labels.max()) + 1)
    optimiser = torch.optim.Adam([*model.parameters(), *head.parameters()], 0.01)
    for _ in range(epochs):
        optimiser.zero_grad()
        F.cross_entropy(head(read(model))[support], labels[support]).backward()
        optimiser.step()
    with torch.no_grad():
        return head(read(model))


def _nodes(seed: int, count: int) -> tuple[Any, Any, Tensor]:
    graph = stochastic_blocks(count, CLASSES, degree=8, homophily=0.75, signal=1.2, features=16, seed=seed)
    return graph, lambda model: neighbourhoods(model(graph.x, graph.edge_index), graph.edge_index), graph.y


def _graphs(seed: int, count: int) -> tuple[Any, Any, Tensor]:
    made = two_motifs(count, 12, seed=seed)
    batch: Any = Batch.from_data_list(made)
    degree = torch.bincount(batch.edge_index[1], minlength=batch.num_nodes).clamp_max(7)
    batch.x = F.one_hot(degree, 8).float()  # all features of these graphs are 1: how many neighbours, instead
    return batch, lambda model: global_add_pool(model(batch.x, batch.edge_index), batch.batch), batch.y


def measure(smoke: bool, seed: int = 0) -> Measured:
    """Nodes of block models and graphs with one of two motifs; one, three and five examples a class."""
    encoders, tasks, epochs, few, sizes, shots = (
        (1, 4, 4, 2, (80, 30), (1, 3)) if smoke else (5, 10, 50, 40, (500, 200), (1, 3, 5))
    )
    found: dict[str, list[float]] = {}
    losses: dict[str, float] = {}

    def note(name: str, values: Tensor) -> None:
        found.setdefault(name, []).extend(values.tolist())

    for s in range(1000 + 100 * seed, 1000 + 100 * seed + encoders):
        for what, made, depth in (("nodes", _nodes(s, sizes[0]), 2), ("graphs", _graphs(s, sizes[1]), 3)):
            data, read, labels = made
            classes = int(labels.max()) + 1
            fresh = partial(n.seeded, partial(_Encoder, data.x.shape[1], depth), s)
            ahead, bare = pretrain(fresh(), data, epochs=epochs, seed=s), fresh().eval()
            with torch.no_grad():
                readouts = {"trained ahead": read(ahead), "untrained": read(bare)}
            losses[f"{what}: numbers a task learns, prompt"] = float(WIDTH)
            losses[f"{what}: numbers a task learns, fine-tuning"] = float(
                sum(p.numel() for p in ahead.parameters()) + WIDTH * classes + classes
            )
            for k in shots:
                support, rest = _tasks(labels, k, tasks, 77 * s + k)
                own = labels[support]
                for name, every in readouts.items():
                    prompt = tune(every[support], own, classes, epochs=5 if smoke else 100)
                    for way, p in (("prototypes", None), ("prompt", prompt)):
                        scores = alike(every.expand(tasks, -1, -1), every[support], own, classes, p)
                        note(f"{what}, {k} shots, {way} ({name})", _right(scores, labels, rest))
                for way, make in (("fine-tuned", partial(copy.deepcopy, ahead)), ("from scratch", fresh)):
                    scores = torch.stack([_fitted(make, read, labels, some, few) for some in support])
                    note(f"{what}, {k} shots, {way}", _right(scores, labels, rest))
    numbers: dict[str, float] = dict(losses)
    for name, values in found.items():
        numbers |= n.summary(name, values)
    steers: list[tuple[float, float]] = []
    beats: list[tuple[float, float]] = []
    points: list[dict[str, Any]] = []
    for what in ("nodes", "graphs"):
        for k in shots:
            at = SimpleNamespace(
                **{
                    w: found[f"{what}, {k} shots, {w.replace('_', ' ')} (trained ahead)"]
                    for w in ("prompt", "prototypes")
                }
            )
            scratch = found[f"{what}, {k} shots, from scratch"]
            for title, other, store in (
                ("prototypes alone", at.prototypes, steers),
                ("training from scratch", scratch, beats),
            ):
                name = f"prompt less {title}, {what} with {k} shots"
                numbers |= n.summary(name, [a - b for a, b in zip(at.prompt, other, strict=True)])
                store.append((numbers[name], numbers[f"{name}, low"]))
    for row in rows_of(numbers, "{task}, {shots} shots, {way}"):
        if "low" in row:
            points.append(row | {"way": f"{row['task']}: {row['way']}"})
    steered = sum(mean >= STEERS and low > 0 for mean, low in steers)
    beaten = sum(low > BEATS for _, low in beats)
    holds = (steered == len(steers), beaten == len(beats))
    verdict = (
        "reproduced"
        if all(holds)
        else "partly"
        if steered * 2 > len(steers) or holds[1]
        else "not reproduced"
    )
    return Measured(
        numbers=numbers,
        verdict="inconclusive" if smoke else verdict,  # type: ignore[arg-type]
        decided_by=f"the prompt gains over prototypes alone {', '.join(f'{m:+.3f}' for m, _ in steers)} (nodes, "
        f"then graphs, by "
        f"number of examples; at least {STEERS} with its interval above 0 in {steered} of {len(steers)}), over "
        f"training from "
        f"scratch {', '.join(f'{m:+.3f}' for m, _ in beats)} (interval above 0 in {beaten} of {len(beats)})",
        figure=line(
            "Accuracy by number of examples a class", points, x="shots", y="value", series="way", y_title="accuracy",
            band=("low", "high"),
        ),
        conditions=(
            f"{tasks} tasks on each of {encoders} block models of {sizes[0]} nodes and on each of {encoders} sets of "
            f"{sizes[1]} graphs with one of two motifs, whose features are numbers of neighbours, with a "
            f"network trained "
            "ahead for each; the paper uses five published sets.",
            f"Intervals are over all tasks; fine-tuning and training from scratch take {few} steps.",
            "A first run trained ahead at a temperature of 0.2, which left nodes of a block less alike than an "
            "untrained "
            "network does; 1 was chosen by prototypes alone on graphs of other seeds. Seeds are new, thresholds "
            "as they "
            "were.",
        ),
    )  # fmt: skip


STUDY = Study(
    paper="graphprompt",
    claim="A network trained ahead on links, kept as it is, answers tasks on nodes and on graphs from one to "
    "five examples "
    "a class by similarity to class means; a learnt vector that weighs the readout adds to that, and beats "
    "training from "
    "scratch.",
    null="The vector adds nothing to class means of the frozen network, or training from scratch does as well.",
    control="Class means without the vector; the same on an untrained network; fine-tuning; training from scratch.",
    threshold=f"The vector adds at least {STEERS} with an interval over tasks above 0, and its lead over training from "
    "scratch has an interval above 0, in every setting: reproduced; the first in most or the second in all: partly.",
    measure=measure,
    uses=(
        "microtome.learn.graphprompt.pretrain",
        "microtome.learn.graphprompt.tune",
        "microtome.learn.graphprompt.alike",
    ),
    example="from torch_geometric.nn import GCNConv\nfrom microtome.data.graph_generators import stochastic_blocks\n"
    "from microtome.learn.graphprompt import neighbourhoods, pretrain\ngraph = stochastic_blocks(300, 3)\n"
    "model = pretrain(GCNConv(16, 16), graph)\n"
    "print(neighbourhoods(model(graph.x, graph.edge_index), graph.edge_index).shape)",
)
