"""How far a node's features reach: the Jacobian against hop distance and commute time."""

from __future__ import annotations

from dataclasses import dataclass

from microtome.errors import Refusal
from microtome.figures import line, scatter
from microtome.finding import Finding, Quantity, Table
from microtome.folds import Collect, Sample
from microtome.instrument import Asking, HasGraph, Instrument
from microtome.instruments.graphs import _reach
from microtome.signals import rows
from microtome.subject import Subject


@dataclass(frozen=True, kw_only=True)
class Oversquashing(Instrument):
    """How far do features reach, and what stops them: distance or bottlenecks?

    For ``examples`` nodes v (of a graph data set: one of each of so many graphs) the norm |d h_v / d x_u|_F of the last
    node layer by every node u's features, estimated by ``draws`` random projections. By hop distance: the mean squared
    norm, and the share of the whole sensitivity that comes from each distance. Over up to 4 sources at each of the
    first 12 distances: rank correlation of -log norm with the commute time 2 m R(u, v) (Di Giovanni et al. 2023; Black
    et al. 2023), and the same with distance taken out (partial rank correlation): above 0, bottlenecks squash beyond
    what distance does. Cost: a forward and ``draws`` backwards for each example, a sparse factorisation of the graph
    (up to 30,000 nodes). Misleads: what is never needed is not squashed; a short reach may be all the task asks for.
    """

    papers = ("over-squashing-width-depth-topology", "effective-resistance-and-gtr-rewiring")
    needs = HasGraph
    how_to_read = (
        "The norm kept a hop is how much of an effect is left per step: 0.5 halves it. A high partial correlation with "
        "the commute time says that bottlenecks, not distance alone, cut nodes off: rewiring may then help."
    )

    examples: int = 24
    draws: int = 2
    seed: int = 0

    def examine(self, subject: Subject) -> Asking:
        if not subject.node_layers:
            raise Refusal("no layer of the network has one row a node")
        layer = subject.node_layers[-1]
        reach = _reach.reach(layer, self.draws, self.seed)
        _, found = yield Collect(signals=(rows, reach), over=Sample(self.examples, self.seed))
        profile = _reach.by_distance(found)
        total = float(profile[:, 0].sum())
        if total <= 0:
            raise Refusal("no node's features reach the last node layer")
        mean = profile[:, 0] / profile[:, 1].clamp_min(1)
        share = profile[:, 0] / total
        seen = [r for r in range(_reach.HOPS + 1) if float(profile[r, 1]) > 0]
        table = tuple((r, int(profile[r, 1]), float(mean[r].sqrt()), float(share[r])) for r in seen)
        reached = [r for r in seen if float(mean[r]) > 0]
        steps = reached[-1] - reached[0]
        decay = float((mean[reached[-1]] / mean[reached[0]]) ** (0.5 / steps)) if steps else None
        quantities = {"share from beyond one hop": Quantity(value=float(share[2:].sum()))}
        quantities |= {} if decay is None else {"norm kept a hop": Quantity(value=decay)}
        quantities["farthest hop reached"] = Quantity(value=float(reached[-1]), unit="hops")
        caveats, figures = [], {}
        cloud = _reach.pairs(found)
        plain, partial = _reach.correlations(cloud)
        if plain is not None:
            quantities["correlation with commute time"] = Quantity(value=plain, unit="Spearman")
        if partial is not None:
            quantities["the same, distance taken out"] = Quantity(value=partial, unit="partial Spearman")
        if plain is None:
            caveats.append(
                "commute times do not vary among the pairs, or the graph is too large to solve for them"
            )
        figures["profile"] = line(
            "Sensitivity to features at a distance",
            [{"hops": r[0], "norm": r[2]} for r in table if r[2] > 0], x="hops", y="norm", log_y=True,
            y_title="root mean square Jacobian norm",
        )  # fmt: skip
        drawn = [
            {"commute time": float(c), "norm": float(10**s), "hops": str(int(d))}
            for s, d, c in cloud[:300]
            if c > 0
        ]
        if len(drawn) > 4:
            figures["commute"] = scatter(
                "Sensitivity against commute time", drawn, x="commute time", y="norm", series="hops", log_x=True,
                log_y=True,
            )  # fmt: skip
        words = f"The features of other nodes reach {reached[-1]} hops into {layer}"
        words += f"; the norm keeps {decay:.2f} of itself a hop" if decay is not None else ""
        words += f"; weakness and commute time correlate by {plain:.2f}" if plain is not None else ""
        words += f", by {partial:.2f} with distance taken out" if partial is not None else ""
        return Finding(
            headline="share from beyond one hop",
            summary=words + ".",
            quantities=quantities,
            tables={
                "by distance": Table(columns=("hops", "pairs", "norm", "share of squared norm"), rows=table)
            },
            figures=figures,
            caveats=tuple(caveats),
        )
