"""The network as the decision tree it is equivalent to."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from microtome.errors import Refusal, SubjectError
from microtome.finding import Finding, Quantity, Table
from microtome.folds import Collect, Sample
from microtome.instrument import Asking, HasSite, Independent, Instrument
from microtome.interpret.cost import costs_of, shapes_only
from microtome.interpret.decision_tree import grown
from microtome.signals import inputs, rows
from microtome.signals.regions import as_tree, matrices_fit, piecewise_program
from microtome.subject import Subject


@dataclass(frozen=True, kw_only=True)
class DecisionTrees(Instrument):
    """Which decision tree is this network, and is it smaller than the network?

    Every unit of a ReLU, clamp or maximum asks one question w x + b > 0 of the input x [d]; w and b follow from the
    answers before it, for those fix the layers in between (Aytekin 2022). Leaves are affine maps A x + c, one for each
    linear region. The tree is built where ``examples`` inputs reach it, and gives what the network gives up to rounding
    (largest difference, in float64). Multiply-adds of a decision, once the tree is there: d for each question, k d for
    the leaf; of the network: its products. For inputs of at most ``most_inputs`` numbers and ``most_units`` units
    the whole tree within the range of the data is grown, without answers that no input can give (linear programs),
    and neighbouring leaves that answer one class are joined.
    Cost: d + 1 forwards for each branch that is reached; a linear program for each answer of each branch when grown.
    Misleads: equivalence is exact and says nothing about size. As soon as every example has a leaf of its own the tree
    is a list of the examples, and explains no more than the network.
    """

    papers = ("neural-networks-are-decision-trees",)
    needs = HasSite & Independent
    how_to_read = (
        "The difference is rounding: the tree and the network are one function. Read the leaves beside the number of "
        "examples: with a leaf for each example the tree has no rules that hold for several. Work below 1 is cheaper "
        "than the network only for inputs whose branches were made before, each of which holds a matrix of its own."
    )

    examples: int = 12
    most_inputs: int = 3
    most_units: int = 40
    most_leaves: int = 500
    seed: int = 0

    def rounds(self, subject: Subject) -> int:
        return 2

    def examine(self, subject: Subject) -> Asking:
        yield ()  # planning captures nothing
        graph = piecewise_program(subject)
        size = math.prod(subject.input_shape or ())
        if not matrices_fit(graph):
            raise Refusal(
                f"every question weighs {size} numbers of the input: the tree is too large to write down"
            )
        ids, given, error, codes, work = yield Collect(
            signals=(rows, inputs, as_tree("error"), as_tree("code"), as_tree("work")),
            over=Sample(self.examples, self.seed),
        )
        n, questions = codes.shape
        leaves = len(codes.unique(dim=0))
        open_ = int((codes != codes[:1]).any(0).sum())
        shapes = shapes_only(graph)
        products = sum(cost.flops for cost in costs_of(graph, shapes)) / 2 / shapes[graph.inputs[0]].shape[0]
        quantities = {
            "difference": Quantity(value=float(error.max()), unit="output unit", better="lower"),
            "leaves reached": Quantity(value=leaves, unit="leaves"),
            "examples a leaf": Quantity(value=n / leaves),
            "questions": Quantity(value=questions, unit="questions"),
            "questions that tell examples apart": Quantity(value=open_, unit="questions"),
            "multiply-adds of a decision": Quantity(value=float(work.mean()), unit="multiply-adds"),
        }
        if products:
            quantities["work, of the network's"] = Quantity(
                value=float(work.mean()) / products, better="lower"
            )
        words, tables, caveats = "", {}, []
        if size <= self.most_inputs and questions <= self.most_units:
            try:
                whole = grown(graph, float(given.min()), float(given.max()), most=self.most_leaves)
            except SubjectError as refused:
                caveats.append(f"the whole tree is not grown: {refused}")
            else:
                splits = torch.tensor([r.splits for r in whole.regions], dtype=torch.float64)
                quantities |= {
                    "feasible leaves": Quantity(value=len(whole.regions), unit="leaves"),
                    "leaves when joined": Quantity(value=whole.joined, unit="leaves"),
                    "open questions on a path": Quantity(value=float(splits.mean()), unit="questions"),
                }
                words = f"; within the range of the data it has {len(whole.regions)} leaves in all"
                shown = sorted(whole.regions, key=lambda region: region.splits)[:20]
                tables["leaves"] = Table(
                    columns=("answer", "open questions", "whole region answers so", "an input of it"),
                    rows=tuple(
                        (r.answer, r.splits, r.certain, ", ".join(f"{v:.3g}" for v in r.point)) for r in shown
                    ),
                    caption="The leaves on the shortest paths",
                )
        return Finding(
            headline="difference",
            summary=f"{n} examples reach {leaves} leaves of a tree of {questions} questions, which differs from the "
            f"network by {float(error.max()):.1e} at most{words}.",
            quantities=quantities,
            tables=tables,
            arrays={"rows": ids.numpy(), "samples": error.numpy(), "multiply_adds": work.numpy()},
            caveats=tuple(caveats),
        )
