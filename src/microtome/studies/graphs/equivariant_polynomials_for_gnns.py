"""Are the polynomials of multigraphs a basis, and does their treewidth say which graphs a network can part?"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from microtome.data.graph_generators import SKIPS
from microtome.figures import line
from microtome.graphs.equivariant_polynomials import AddPolynomials
from microtome.graphs.multigraphs import connected_multigraphs, elimination
from microtome.studies.graphs import _networks as n
from microtome.studies.graphs import _polynomials as of
from microtome.studies.graphs import _regular_pairs as pairs_of
from microtome.studies.graphs._regular_pairs import regular_graphs, triangles_or_not
from microtome.study import Measured, Study

GAIN = 0.5
SETTINGS = {"graphs": (0, False), "graphs with loops": (0, True), "nodes": (1, False)}
"""What is counted: (marked nodes, whether the diagonal is not zero)."""


def _counts(numbers: dict[str, float], most: int, sizes: Sequence[int], seed: int) -> bool:
    holds = True
    for what, (roots, loops) in SETTINGS.items():
        for nodes in sizes:
            for degree in range(1, most + 1 - loops):
                named, counted, rank = of.rank(nodes, degree, roots, loops, seed)
                numbers[f"polynomials of {what}, {nodes} nodes, degree {degree}"] = float(counted)
                holds &= named == counted == rank
    return holds


def _separation(numbers: dict[str, float], most: int) -> bool:
    """Pairs parted by plain polynomials, by degree and treewidth; whether that is as the hierarchy says."""
    known = {
        "atlas": pairs_of.atlas_pairs(7),
        "skip links": pairs_of.skip_link_pairs(skips=SKIPS),
        "rook and Shrikhande": [pairs_of.rook_and_shrikhande()],
    }
    named = [p for some in connected_multigraphs(most, parallel=False)[1:] for p in some]
    width = torch.tensor([elimination(p)[0] for p in named])
    degree = torch.tensor([p.degree for p in named])
    for where, pairs in known.items():
        apart = of.parted(pairs, named)
        numbers[f"pairs, {where}"] = float(len(pairs))
        for w in (1, 2, 3):
            for d in range(1, most + 1):
                some = apart[:, (width <= w) & (degree <= d)]
                numbers[f"parted, {where}, treewidth {w}, degree {d}"] = float(some.any(1).sum())

    def parted(where: str, w: int) -> float:
        return numbers[f"parted, {where}, treewidth {w}, degree {most}"]

    blind = all(parted(where, 1) == 0 for where in known) and parted("rook and Shrikhande", 2) == 0
    seen = parted("atlas", 2) == numbers["pairs, atlas"] and parted("rook and Shrikhande", 3) == 1
    return blind and seen


def measure(smoke: bool, seed: int = 0) -> Measured:
    """Counts against ranks; pairs parted by degree and treewidth, exactly; regression on regular graphs."""
    seeds, degree, sizes, count, epochs, goal = (
        (1, 3, (3, 4), 16, 1, 4) if smoke else (5, 5, (4, 5, 6), 300, 40, 6)
    )
    numbers: dict[str, float] = {}
    counted = _counts(numbers, degree, sizes, seed)
    deep = 4 if smoke else 6
    parted = _separation(numbers, deep)
    rooted = [p for some in connected_multigraphs(4, roots=1, parallel=False)[1:] for p in some]
    polynomials = [p for p in rooted if elimination(p)[0] > 1]
    numbers["features of treewidth 2, degree 4"] = float(len(polynomials))
    found: dict[tuple[str, int], list[float]] = {}
    accuracy: dict[str, list[float]] = {}
    cubic = triangles_or_not(count, seed + 1)
    for s in range(seed, seed + seeds):
        plain = regular_graphs(count, 4, 12, s + 1)
        draw = torch.Generator().manual_seed(s)
        for name in ("GIN", "with polynomials", "with noise"):
            some, other = [g.clone() for g in plain], [g.clone() for g in cubic]
            if name == "with polynomials":
                some = list(map(AddPolynomials(polynomials).fit(plain), some))
                other = list(map(AddPolynomials(polynomials).fit(cubic), other))
            elif name == "with noise":
                for g in some + other:
                    noise = torch.randn(g.num_nodes, len(polynomials), generator=draw)
                    g.x = torch.cat([g.x, noise], 1)
            for d, target in of.targets(plain, goal, s).items():
                found.setdefault((name, d), []).append(of.explained(some, target, count // 2, epochs, s))
            accuracy.setdefault(name, []).append(of.triangle_accuracy(other, count // 2, epochs, s))
    for (name, d), values in found.items():
        numbers |= n.summary(f"R2 at degree {d}, {name}", values)
    for name, values in accuracy.items():
        numbers |= n.summary(f"accuracy on triangles, {name}", values)
    degrees = sorted({d for _, d in found})
    for d in degrees:
        pairs = zip(found["with polynomials", d], found["GIN", d], strict=True)
        numbers |= n.summary(f"R2 gained at degree {d}", [a - max(b, 0.0) for a, b in pairs])
    gain = min(numbers[f"R2 gained at degree {d}, low"] for d in degrees if d <= 4)
    holds = (counted, parted, gain > GAIN)
    verdict = "reproduced" if all(holds) else "partly" if any(holds) else "not reproduced"
    points = [
        {"degree": d, "network": name, "R2": max(numbers[f"R2 at degree {d}, {name}"], -0.2)}
        for name, d in found
    ]
    most = numbers["pairs, atlas"]
    return Measured(
        numbers=numbers,
        verdict="inconclusive" if smoke else verdict,  # type: ignore[arg-type]
        decided_by=f"named, counted and independent polynomials {'agree' if counted else 'do not agree'} for "
        f"every degree up to "
        f"{degree}; of {most:.0f} pairs that refinement joins, treewidth 1 parts "
        f"{numbers[f'parted, atlas, treewidth 1, degree {deep}']:.0f} and treewidth 2 "
        f"{numbers[f'parted, atlas, treewidth 2, degree {deep}']:.0f}, all at degree 3; rook and Shrikhande "
        f"need "
        f"treewidth 3 "
        f"({numbers[f'parted, rook and Shrikhande, treewidth 2, degree {deep}']:.0f} parted by 2, "
        f"{numbers[f'parted, rook and Shrikhande, treewidth 3, degree {deep}']:.0f} by 3, at degree {deep}); "
        f"on regular "
        f"graphs features of "
        f"degree up to 4 raise R2 by at least {gain:.2f} at degrees 3 and 4 (threshold {GAIN})",
        figure=line(
            "Answers of graph networks on regular graphs", points, x="degree", y="R2", series="network",
            y_title="R2 (at least -0.2)",
        ),
        conditions=(
            f"Independence is exact: integer matrices of {sizes[0]} to {sizes[-1]} nodes, rank modulo a "
            f"prime; pairs are parted by "
            "exact integers up to degree 6.",
            f"Regression on {count // 2} + {count // 2} 4-regular graphs of 12 nodes; the answer is a random "
            f"mixture of the polynomials "
            "of one degree and treewidth 2 or more; accuracy on cubic graphs with or without a triangle. Not "
            "the paper's molecules.",
        ),
    )  # fmt: skip


STUDY = Study(
    paper="equivariant-polynomials-for-gnns",
    claim="Multigraphs of each degree are exactly as many as there are independent invariant (and "
    "node-equivariant) polynomials "
    "on n nodes; those of treewidth 1 part no pair that 1-WL joins, of treewidth 2 all such pairs of up to 7 "
    "nodes but not rook "
    "and Shrikhande, of treewidth 3 these too; as features they let a GIN explain on regular graphs what it "
    "cannot without.",
    null="Ranks fall short of counts, treewidth does not order what is parted, or features explain nothing.",
    control="Burnside's count, which names no polynomial; GIN without features, and with as many columns of "
    "noise.",
    threshold="Counts and pairs exactly; lower end of the gain in R2 at degrees 3 and 4 above 0.5.",
    measure=measure,
    uses=(
        "microtome.graphs.multigraphs.connected_multigraphs",
        "microtome.graphs.multigraphs.count_basis",
        "microtome.graphs.equivariant_polynomials.evaluate",
        "microtome.graphs.equivariant_polynomials.AddPolynomials",
    ),
    example="from microtome.graphs.equivariant_polynomials import evaluate\n"
    "from microtome.graphs.multigraphs import connected_multigraphs, elimination\n"
    "import torch\nsix = connected_multigraphs(6, parallel=False)[6]\n"
    "print(len(six), max(elimination(p)[0] for p in six), evaluate(six[:3], torch.ones(1, 4, 4) - "
    "torch.eye(4)))",
    relates={
        "pathnn": "paths part rook and Shrikhande from length 4; polynomials need degree 6 and treewidth 3",
        "gin": "treewidth 1 is what its sums can count",
    },
)
