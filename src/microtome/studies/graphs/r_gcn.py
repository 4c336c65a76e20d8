"""Does an encoder of the neighbourhood improve a decoder of facts, once the decoder alone is trained well?"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from torch import nn
from torch_geometric.nn.kge import DistMult

from microtome.data import knowledge_graphs as kg
from microtome.figures import bars
from microtome.learn.graph_training import KeepBest
from microtome.learn.link_ranking import ranking
from microtome.learn.link_training import FactLoss, fit_facts, full_loss, sampled_loss
from microtome.nn.relational import RelationalAutoencoder
from microtome.statistics import student
from microtome.studies.graphs import _networks as n
from microtome.studies.graphs import _typed_entities as entities
from microtome.study import Measured, Study, rows_of

PAPER, LEFT, CLASSIFIES = 1.1, 1.1, 0.02
WIDTH, NOISE = 32, 0.05
Option = dict[str, Any]


def _decoder(graph: kg.KnowledgeGraph, _: Option) -> nn.Module:
    return DistMult(len(graph.entities), len(graph.relations), WIDTH)


def _encoder(graph: kg.KnowledgeGraph, option: Option) -> nn.Module:
    data = graph.data()
    return RelationalAutoencoder(
        len(graph.entities),
        len(graph.relations),
        WIDTH,
        data.edge_index,
        data.edge_type,
        layers=option.get("layers", 1),
        bases=option.get("bases", 4),
    )


def _loss(option: Option) -> FactLoss:
    """One corruption a fact, as in the paper, or the cross-entropy over all entities."""
    penalty = option.get("penalty", 0.0)
    return full_loss(penalty) if option.get("full") else sampled_loss(option.get("negatives", 1), penalty)


def _trained(
    make: Callable[[kg.KnowledgeGraph, Option], nn.Module],
    graph: kg.KnowledgeGraph,
    option: Option,
    seed: int,
    epochs: int,
) -> nn.Module:
    """A scorer of the epoch that ranks the validation facts best."""
    model = n.seeded(lambda: make(graph, option), seed)
    best = KeepBest(model, lambda: -ranking(model, graph.valid, graph.known).mrr, every=max(epochs // 10, 1))
    # The encoder works on the whole graph at every update, so updates are few and large, for both alike.
    fit_facts(
        model, graph.train, loss=_loss(option), epochs=epochs, rate=option["rate"], batch_size=1024,
        seed=seed, after_epoch=best,
    )  # fmt: skip
    return best.restore()


def _tuned(
    make: Callable[[kg.KnowledgeGraph, Option], nn.Module],
    graph: kg.KnowledgeGraph,
    options: list[Option],
    epochs: int,
) -> Option:
    """What ranks the validation facts of a graph of its own best."""
    return max(
        options,
        key=lambda option: ranking(_trained(make, graph, option, 1000, epochs), graph.valid, graph.known).mrr,
    )


def _options() -> list[Option]:
    """The same sweep for both: rates, and losses from one corruption a fact to all entities, penalised or not."""
    kinds: list[Option] = [
        {"negatives": 1},
        {"negatives": 10},
        {"full": True},
        {"full": True, "penalty": 1.0},
    ]
    return [kind | {"rate": rate} for kind in kinds for rate in (0.01, 0.03)]


def measure(smoke: bool, seed: int = 0) -> Measured:
    """Decoder with and without encoder: trained as in the paper, and after the same sweep for both; bases; layers."""
    people, seeds, epochs = (40, 2, 2) if smoke else (200, 5, 60)
    draft = kg.planted(people, noise=NOISE, seed=seed + 1000)
    plain: Option = {"rate": 0.01, "negatives": 1}
    sweep = [plain] if smoke else _options()
    makes = {"DistMult": _decoder, "R-GCN and DistMult": _encoder}
    tuned = {name: _tuned(make, draft, sweep, epochs // 2 or 1) for name, make in makes.items()}
    found: dict[str, list[float]] = {}
    for s in range(seed, seed + seeds):
        graph = kg.planted(people, noise=NOISE, seed=s)
        runs = {f"{name}, as in the paper": (make, plain) for name, make in makes.items()}
        runs |= {f"{name}, tuned": (make, tuned[name]) for name, make in makes.items()}
        for bases in (1, None):
            runs[f"R-GCN and DistMult, {bases or 'no'} bases"] = (_encoder, plain | {"bases": bases})
        runs["R-GCN and DistMult, 2 layers"] = (_encoder, plain | {"layers": 2})
        for name, (make, option) in runs.items():
            scored = ranking(_trained(make, graph, option, s, epochs), graph.test, graph.known)
            found.setdefault(f"mean reciprocal rank of {name}", []).append(scored.mrr)
            found.setdefault(f"hits at 10 of {name}", []).append(scored.hits[10])
        untrained = n.seeded(partial(_encoder, graph, plain), s).eval()
        found.setdefault("mean reciprocal rank of R-GCN and DistMult, untrained", []).append(
            ranking(untrained, graph.test, graph.known).mrr
        )
    numbers: dict[str, float] = {}
    for name, values in found.items():
        numbers |= n.summary(name, values)
    ratios = {}
    for how in ("as in the paper", "tuned"):
        logs = [
            np.log(a / b)
            for a, b in zip(
                found[f"mean reciprocal rank of R-GCN and DistMult, {how}"],
                found[f"mean reciprocal rank of DistMult, {how}"],
                strict=True,
            )
        ]
        ratios[how] = [float(np.exp(v)) for v in student(logs)]
        for end, value in zip(("", ", low", ", high"), ratios[how], strict=True):
            numbers[f"ratio of mean reciprocal ranks, {how}{end}"] = value
    best = [max(found[f"mean reciprocal rank of DistMult, {how}"][i] for how in ratios) for i in range(seeds)]
    fair = student(
        [
            np.log(a / b)
            for a, b in zip(
                found["mean reciprocal rank of R-GCN and DistMult, as in the paper"], best, strict=True
            )
        ]
    )
    numbers["ratio of the paper's encoder to the best decoder"] = float(np.exp(fair[0]))
    for name, option in tuned.items():
        numbers[f"{name}, chosen: all entities"] = float(bool(option.get("full")))
        numbers[f"{name}, chosen: rate"] = float(option["rate"])
        numbers[f"{name}, chosen: penalty"] = float(option.get("penalty", 0.0))
    first, second = ratios["as in the paper"], ratios["tuned"]
    start, some = 3000 + 100 * seed, 3 if smoke else 100
    for alike in entities.ALIKE:
        told = entities.classified(
            alike, 80 if smoke else 600, range(start, start + (2 if smoke else 8)), some
        )
        for name, values in told.items():
            numbers |= n.summary(f"accuracy, {name}, {alike:.0%} of relations alike", values)
        rivals = (max(pair) for pair in zip(told[entities.BLIND], told[entities.FEATURES], strict=True))
        ahead = [own - best for own, best in zip(told[entities.TYPED], rivals, strict=True)]
        numbers |= n.summary(f"R-GCN less the better rival, {alike:.0%} of relations alike", ahead)
    leads = [f"R-GCN less the better rival, {alike:.0%} of relations alike" for alike in entities.ALIKE]
    gains, keeps = first[1] > PAPER, second[1] > LEFT
    alone = numbers[f"{leads[1]}, low"] > CLASSIFIES
    parts = (gains, keeps, alone)
    verdict = "reproduced" if all(parts) else "partly" if gains or alone else "not reproduced"
    return Measured(
        numbers=numbers,
        verdict="inconclusive" if smoke else verdict,  # type: ignore[arg-type]
        decided_by=f"the encoder multiplies the mean reciprocal rank by {first[0]:.2f} [{first[1]:.2f}, "
        f"{first[2]:.2f}] "
        f"where both are trained with one corruption a fact (lower end above {PAPER}), by {second[0]:.2f} "
        f"[{second[1]:.2f}, {second[2]:.2f}] where both had the same sweep (above {LEFT}); beside the decoder's best "
        f"training the paper's encoder has "
        f"{numbers['ratio of the paper' + chr(39) + 's encoder to the best decoder']:.2f}; alone, where half of "
        f"the relations join like with like, it classifies {numbers[leads[1]]:+.3f} "
        f"[{numbers[f'{leads[1]}, low']:+.3f}, {numbers[f'{leads[1]}, high']:+.3f}] better than the better of a "
        f"relation-blind GCN of as many parameters and a perceptron (lower end above {CLASSIFIES}), "
        f"{numbers[leads[0]]:+.3f} where none do, {numbers[leads[2]]:+.3f} where all do",
        figure=bars(
            "How well held-out facts are ranked",
            rows_of(numbers, "mean reciprocal rank of {scorer}, {how}"),
            category="how", value="value", series="scorer", band=("low", "high"),
            value_title="filtered mean reciprocal rank",
        ),
        conditions=(
            f"Planted graphs of {people} people with {NOISE:.0%} false facts instead of FB15k-237, where the "
            f"paper reports a "
            f"gain of 29.8 %; width {WIDTH}, one layer, 4 bases, {epochs} epochs, the epoch that ranks "
            f"validation facts best.",
            f"The sweep of {len(sweep)} settings (rate, corruptions, all entities, penalty) is the same for "
            f"both and is judged "
            "on a graph of its own, for half the epochs.",
            "Entities are classified on planted graphs of 600 nodes and 6 relations, each of which leads from a class "
            "to another in its own way (purity 0.7), with 25 % of labels, 37 a class, as AIFB has; two layers, "
            f"width 16, 4 bases, {some} epochs, four settings of rate and dropout each, chosen on a graph that is not "
            "tested on. Where all relations are alike there is nothing to know of them.",
            "Labels (37 a class) and rates (0.03, 0.1) were chosen after a look at a graph of another seed, where with "
            "15 labels and a rate of 0.01 the relational network had not learned to its end.",
            "The ratios of ranks had been measured on these seeds before entities were classified.",
        ),
    )  # fmt: skip


STUDY = Study(
    paper="r-gcn",
    claim="An encoder that passes messages along typed facts ranks held-out facts better than the same decoder "
    "alone: its "
    "mean reciprocal rank is more than 1.1 times DistMult's, also when both are tuned alike. Alone it classifies "
    "entities better by 0.02 than a GCN of as many parameters that does not know the relations, and than a perceptron.",
    null="The ratio is 1, or the gain goes away when the decoder is trained as well as it can be; classes are told as "
    "well without relations.",
    control="Equal width, epochs and data; the same sweep of rates, losses and penalties for both; an untrained "
    "encoder; one "
    "basis, no bases, two layers. Of classes: types of edges shuffled; relations that are all alike, where knowing "
    "them must not help.",
    threshold=f"Lower end of the ratio over seeds above {PAPER} as the paper trains, and above {LEFT} after "
    f"tuning; of the lead in accuracy above {CLASSIFIES} where half of the relations are alike. All: reproduced; the "
    "first or the last: partly.",
    measure=measure,
    uses=(
        "microtome.nn.relational.RelationalAutoencoder",
        "microtome.learn.link_ranking.ranking",
        "microtome.learn.link_training.fit_facts",
        "microtome.data.knowledge_graphs.planted",
        "microtome.data.typed_relations.typed_relations",
    ),
    example="from microtome.data.knowledge_graphs import planted\nfrom microtome.learn.link_ranking import ranking\n"
    "from microtome.learn.link_training import fit_facts, full_loss\n"
    "from microtome.nn.relational import RelationalAutoencoder\ngraph = planted(100)\ndata = graph.data()\n"
    "model = RelationalAutoencoder(len(graph.entities), len(graph.relations), 32, data.edge_index, data.edge_type)\n"
    "fit_facts(model, graph.train, loss=full_loss(), epochs=20)\n"
    "print(ranking(model, graph.test, graph.known).mrr)",
    relates={"distmult": "the decoder alone; how it is trained decides how much the encoder adds"},
)
