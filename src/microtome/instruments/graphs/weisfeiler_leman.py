"""What colour refinement can tell apart, and what the network does."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from microtome.finding import Finding, Quantity, Table
from microtome.folds import Collect, Fold
from microtome.graphs.refinement import feature_colours, graph_colours, partition, refine
from microtome.instrument import Asking, HasGraph, Instrument
from microtome.signals import correct, derive, labels, outputs, rows
from microtome.signals.graphs import structure
from microtome.structure import Structure
from microtome.subject import Subject


@dataclass(frozen=True, kw_only=True)
class WeisfeilerLeman(Instrument):
    """What can message passing tell apart on this data, and does this network?

    Colour refinement (1-WL) for as many rounds as the network has convolutions, from the nodes' features and from
    nothing but edges: its classes are all that message passing can tell apart (Xu et al. 2019; Morris et al. 2019).
    Reported: classes, examples alone in theirs, the ceiling (accuracy of the commonest label of each class: nothing
    bound by 1-WL does better on this data) and the headroom above the network's accuracy; how many groups the network's
    outputs form (equal to within ``tolerance`` of the largest output), WL classes that share a group (told apart by
    the test, not by the network), and WL classes that fall into several (beyond 1-WL: not message passing alone, or
    rounding). Exact but for hashes of 64 bits. One forward. The ceiling is of the data at hand: with unique features it
    is 1 and says nothing of new data.
    """

    papers = ("gin", "1-wl-is-all-you-need")
    needs = HasGraph
    how_to_read = (
        "A ceiling near 1 with much headroom says that expressiveness is not what limits the network. Groups fewer "
        "than WL classes say it tells less apart than message passing could; WL classes split should be 0 for it."
    )

    rounds_of_refinement: int = 0
    tolerance: float = 1e-5

    def examine(self, subject: Subject) -> Asking:
        depth = self.rounds_of_refinement or _convolutions(subject)
        both = derive(_colours, structure, name="colours", rounds=depth)
        folds: list[Fold] = [Collect(signals=(rows, both, outputs))]
        labelled = subject.has_targets and subject.task.categorical and subject.task.one_answer_per_example
        if labelled:
            folds.append(Collect(signals=(rows, labels, correct)))
        got = yield folds
        _, colours, answers = got[0]
        answers = answers.reshape(len(answers), -1)
        n = len(colours)
        _, group, count = torch.unique(colours[:, 0], return_inverse=True, return_counts=True)
        shape = torch.unique(colours[:, 1], return_inverse=True)[1]
        classes, alone = len(count), int((count[group] == 1).sum())
        outs = partition(answers, self.tolerance)
        groups = int(outs.max()) + 1
        meets = torch.unique(torch.stack([group, outs]), dim=1)
        split = int((torch.bincount(meets[0], minlength=classes) > 1).sum())
        merged = int((torch.bincount(meets[1], minlength=groups)[meets[1]] > 1).double().sum())
        examples = "graphs" if subject.layout.per_graph else "nodes"
        quantities = {
            "WL classes": Quantity(value=classes, unit="classes"),
            "WL classes, edges alone": Quantity(value=int(shape.max()) + 1, unit="classes"),
            "alone in their class": Quantity(value=alone / n, unit=f"share of {examples}"),
            "groups of outputs": Quantity(value=groups, unit="groups"),
            "WL classes that share a group": Quantity(value=merged, unit="classes"),
            "WL classes split": Quantity(value=split, unit="classes"),
        }
        words = f"{depth} rounds of colour refinement tell {classes} classes of {n} {examples} apart, "
        words += f"the network {groups}"
        if labelled:
            _, truth, right = got[1]
            ceilings = [_ceiling(g, truth) for g in (group, shape)]
            accuracy = float(right.mean())
            quantities["ceiling"] = Quantity(value=ceilings[0], unit="accuracy")
            quantities["ceiling, edges alone"] = Quantity(value=ceilings[1], unit="accuracy")
            quantities["headroom"] = Quantity(value=ceilings[0] - accuracy, unit="accuracy")
            words += f"; no 1-WL network exceeds an accuracy of {ceilings[0]:.3f} here, this one has {accuracy:.3f}"
        sizes, many = count.unique(return_counts=True)
        return Finding(
            headline="WL classes",
            summary=words + ".",
            quantities=quantities,
            tables={
                "class sizes": Table(
                    columns=("examples in the class", "classes"),
                    rows=tuple(zip(sizes.tolist()[:30], many.tolist()[:30], strict=True)),
                )
            },
            caveats=_caveats(subject, split),
        )


def _convolutions(subject: Subject) -> int:
    found = sum(callable(getattr(m, "propagate", None)) for m in subject.model.modules())
    return max(found, 1)


def _caveats(subject: Subject, split: int) -> tuple[str, ...]:
    found = []
    if any("edge_attr" in key or "edge_weight" in key for key in subject.layout.input_keys):
        found.append("the network reads edge attributes, which colour refinement here does not")
    if split:
        found.append(
            "examples that 1-WL cannot tell apart get different outputs: positions, edge attributes or rounding"
        )
    return tuple(found)


def _colours(structure: Structure, rounds: int) -> Tensor:
    """[n, 2] int64: the colour of each example from features and edges, and from edges alone."""
    found = []
    for x in (structure.x, None):
        colours = feature_colours(x, structure.nodes)
        for _ in range(rounds):
            colours = refine(colours, structure.edge_index)
        if structure.per_graph:
            colours = graph_colours(colours, structure.graph, structure.graphs)
        found.append(colours[structure.examples])
    return torch.stack(found, 1)


def _ceiling(group: Tensor, truth: Tensor) -> float:
    """Share of examples whose label is the commonest of their class."""
    table = torch.zeros(int(group.max()) + 1, int(truth.max()) + 1)
    table.index_put_((group, truth), torch.ones(len(group)), accumulate=True)
    return float(table.amax(1).sum() / len(group))
