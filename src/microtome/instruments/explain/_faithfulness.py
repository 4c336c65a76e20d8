"""How good is a map of relevance? Insertion and deletion, against a random order and an untrained network.

Every leaf of this room hands its map to :func:`explain` (``yield from``) and so shares rounds and worlds with
the others: the class in question, the answer to nothing, the random order.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from microtome.errors import Refusal
from microtome.figures import bars, image_grid, line
from microtome.finding import Figure, Finding, Quantity, Table, Threshold
from microtome.folds import Collect, Fold, Rows, Sample, Selection
from microtome.signals import (
    Constant,
    Signal,
    across,
    answer,
    answer_probabilities,
    class_probability,
    class_score,
    inputs,
    rows,
)
from microtome.signals.reinitialise import Reinitialised
from microtome.signals.variations import Blank, RankedMask, random_ranking
from microtome.statistics import student
from microtome.subject import Subject

COPIES = 30
"""Masked inputs a ranking: 15 shares of the parts inserted, and the same 15 deleted."""
SHOWN = 8
EVIDENCE = "better than an untrained network's map by"
SANITY = "Adebayo et al. 2018: a map must lose by randomising the weights; one-sided 5 % test, either way"

Extras = Callable[[Constant, Selection], Mapping[str, Fold]]


@dataclass(frozen=True)
class Explained:
    """What is known of a map: a finding to build on, the examples, and what else was asked for."""

    finding: Finding
    rows: Tensor
    extra: Mapping[str, Any]


NO_EFFECT = "the answer is no lower when all input is at the baseline: choose another baseline"


def parts_dimension(subject: Subject) -> int | None:
    """What a part spans: channels of a pixel (0), features of a token (-1), one number (None)."""
    dimensions = len(subject.input_shape or ())
    if subject.site_layer is not None:
        return -1 if dimensions > 1 else None  # a bag of tokens has one vector, and no parts but its numbers
    return 0 if dimensions == 3 else None


def over_parts(relevance: Tensor, parts: int | None) -> Tensor:
    """Sum of a relevance [n, ...] over what a part spans."""
    return relevance if parts is None else relevance.sum(parts + 1 if parts >= 0 else parts)


def chosen(examples: tuple[int, ...]) -> Selection:
    """The examples named, or a sample of 16."""
    return Rows(examples) if examples else Sample(16)


def explain(
    subject: Subject,
    examples: tuple[int, ...],
    relevance: Callable[[Signal], Signal],
    *,
    baseline: float = 0.0,
    signed: bool = True,
    extras: Extras | None = None,
) -> Generator[Any, Any, Explained]:
    """Ask for the map and judge it, in three rounds: the class, the map, the masked inputs.

    Args:
        subject: what is explained.
        examples: ids; empty for a sample.
        relevance: from the score of the class in question to the map [n, parts ...].
        baseline: value of what is removed.
        signed: whether negative relevance speaks against the class.
        extras: further folds for the second round, by name.
    """
    over, parts = chosen(examples), parts_dimension(subject)
    every = answer_probabilities()
    ids, classes, *ends = yield Collect(
        signals=(rows, answer(), every, every.under(Blank(baseline))), over=over
    )
    full, blank = (end.gather(1, classes[:, None])[:, 0] for end in ends)
    _demand_effect(subject, full, blank)  # before what may cost hundreds of forwards
    fixed = Constant(classes, ids)
    probability = class_probability(fixed)
    seen = relevance(class_score(fixed))
    try:
        asked = yield {
            "map": Collect(signals=(rows, seen), over=over),
            "untrained": Collect(signals=(rows, seen.at(Reinitialised(0))), over=over),
            "inputs": Collect(signals=(rows, inputs), over=over),
            "extra": dict(extras(fixed, over)) if extras is not None else {},
        }
    except RuntimeError as error:
        if "must match" in str(error):
            raise Refusal("the chosen examples differ in length: choose ones of equal length") from error
        raise
    maps = [asked[name][1].double() for name in ("map", "untrained")]
    if not all(bool(torch.isfinite(m).all()) for m in maps):
        raise Refusal("a map is not finite")
    if maps[0][0].numel() < 2:
        raise Refusal("an input of one part has nothing to rank")
    told = subject.task.categorical or subject.task.kind == "multilabel"
    settled = [_settled(asked[name][1]) for name in ("map", "untrained")]
    ranks = [_ranking(m if told else m.abs(), ids) for m in settled]
    orders: list[Constant | int] = [*(Constant(rank, ids) for rank in ranks), 0]
    masks = [RankedMask(order, COPIES, parts, baseline) for order in orders]
    masked = yield [Collect(signals=(rows, across(probability, mask)), over=over) for mask in masks]
    curves, effect = _curves(subject, torch.stack([m[1] for m in masked]), blank, full)
    finding = _judge(subject, ids, curves, effect, settled)
    figures = _pictures(subject, ids, classes, asked["inputs"][1], maps, signed)
    lines = tuple(
        (int(i), int(c), float(p), float(ins), float(de), float(gain))
        for i, c, p, ins, de, gain in zip(
            ids, classes, full, *curves[0].mean(-1).T, finding.arrays["samples"], strict=True
        )
    )  # fmt: skip
    answered = "probability" if told else "output"
    columns = ("example", "class", answered, "insertion", "deletion", "gain over random")
    words: tuple[str, ...] = ()
    if subject.task.categorical and not subject.task.one_answer_per_example:
        words += ("of several positions the last one is explained",)
    if not told:
        words += ("the first output is explained; curves are nearness to the full answer",)
    finding = Finding(
        headline=finding.headline,
        summary=finding.summary,
        quantities=finding.quantities,
        tables={"examples": Table(columns=columns, rows=lines)},
        figures={**figures, **finding.figures},
        arrays={
            "rows": ids.numpy(), "classes": classes.numpy(), "maps": maps[0].float().numpy(),
            "untrained_maps": maps[1].float().numpy(), **finding.arrays,
        },
        threshold=finding.threshold,
        caveats=words,
    )  # fmt: skip
    return Explained(finding, ids, asked["extra"])


def _demand_effect(subject: Subject, full: Tensor, blank: Tensor) -> None:
    """Refuse answers that are there without the input.

    Raises:
        Refusal: as :func:`_judge` would when all is measured.
    """
    ends = torch.stack([full, blank]).double()
    if not (subject.task.categorical or subject.task.kind == "multilabel"):
        ends = torch.stack([torch.zeros_like(full), -(blank - full).abs()]).double()
    if float((ends[0] - ends[1]).mean()) <= max(1e-3 * float(ends.abs().max()), 1e-15):
        raise Refusal(NO_EFFECT)


def _settled(relevance: Tensor) -> Tensor:
    """The map in float64, in steps of what its precision can tell: equal parts are ties, not ranked by rounding."""
    values = relevance.double()
    step = 256 * torch.finfo(relevance.dtype).eps * values.flatten(1).abs().amax(1).clamp_min(1e-300)
    step = step.reshape(-1, *(1 for _ in values.shape[1:]))
    return (values / step).round() * step


def _ranking(relevance: Tensor, ids: Tensor) -> Tensor:
    """[n, parts] int64, 0 for the most relevant part; ties in random order."""
    flat = relevance.flatten(1)
    first = random_ranking(ids, flat.shape[1], 1).argsort(dim=1)
    order = first.gather(1, flat.gather(1, first).argsort(dim=1, descending=True, stable=True))
    return order.argsort(dim=1)


def _curves(subject: Subject, masked: Tensor, blank: Tensor, full: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """([ranking, n, 2, points] answer as parts are inserted and deleted, [n] what all parts do together)."""
    values, blank, full = masked.double(), blank.double(), full.double()
    if not (subject.task.categorical or subject.task.kind == "multilabel"):
        # A real output has no better direction: what counts is how near it is to the full answer.
        values, blank, full = -(values - full[:, None]).abs(), -(blank - full).abs(), torch.zeros_like(full)
    half = values.shape[2] // 2
    ends = [e.expand(len(values), -1)[..., None] for e in (blank, full)]
    inserted = torch.cat([ends[0], values[..., :half], ends[1]], dim=2)
    deleted = torch.cat([ends[1], values[..., half:], ends[0]], dim=2)
    return torch.stack([inserted, deleted], dim=2).numpy(), (full - blank).numpy()


def _judge(
    subject: Subject, ids: Tensor, curves: np.ndarray, effect: np.ndarray, maps: list[Tensor]
) -> Finding:
    """Areas under the curves, compared with the random order and the untrained network's map."""
    scale = float(effect.mean())
    if scale <= 1e-3 * max(float(np.abs(curves).max()), 1e-12):
        raise Refusal(NO_EFFECT)
    areas = (curves[..., 1:] + curves[..., :-1]).mean(-1) / 2  # [ranking, n, 2]
    gaps = (areas[..., 0] - areas[..., 1]) / scale
    gain, untrained = gaps[0] - gaps[2], gaps[1] - gaps[2]
    alike = _rank_correlation(maps[0].flatten(1), maps[1].flatten(1)).numpy()
    unit = "1" if subject.task.kind != "regression" else "output"
    names = ("this map", "an untrained network's map", "random order")
    quantities = {
        "gain over random": mean_of(gain, better="higher"),
        "gain of an untrained network's map": mean_of(untrained),
        "likeness to an untrained network's map": mean_of(alike, better="lower"),
        "insertion": mean_of(areas[0, :, 0], unit, "higher"),
        "deletion": mean_of(areas[0, :, 1], unit, "lower"),
        "insertion, random order": mean_of(areas[2, :, 0], unit),
        "deletion, random order": mean_of(areas[2, :, 1], unit),
    }
    data = [
        {"share": float(j) / (curves.shape[-1] - 1), "answer": float(v), "curve": f"{what}, {name}"}
        for k, name in enumerate(names) for i, what in enumerate(("inserted", "deleted"))
        for j, v in enumerate(curves[k, :, i].mean(0))
    ]  # fmt: skip
    drawn = line(
        "Answer as the most relevant parts are inserted or deleted", data, x="share", y="answer",
        series="curve", x_title="share of the parts",
        y_title="probability of the class" if unit == "1" else "answer", points=False,
    )  # fmt: skip
    value = quantities["gain over random"].value
    spread = float((gain - untrained).std(ddof=1)) / len(gain) ** 0.5 if len(gain) > 1 else 0.0
    threshold = None
    if spread > 0:
        quantities[EVIDENCE] = Quantity(
            value=float((gain - untrained).mean()) / spread, unit="standard errors", better="higher"
        )
        threshold = Threshold(quantity=EVIDENCE, watch=1.645, alarm=-1.645, worse="below", source=SANITY)
    return Finding(
        headline="gain over random",
        summary=f"In the map's order the answer comes sooner than in random order by {value:.2f} of the "
        f"whole effect; in the order of an untrained network's map by {float(untrained.mean()):.2f}.",
        quantities=quantities,
        figures={"curves": drawn},
        threshold=threshold,
        arrays={"samples": gain, "curves": curves.astype(np.float32), "areas": areas},
    )


def mean_of(values: np.ndarray, unit: str = "1", better: Literal["lower", "higher", ""] = "") -> Quantity:
    """Mean over examples with Student's interval, where there are several."""
    mean, low, high = student(values)
    if len(values) < 2:
        return Quantity(value=mean, unit=unit, better=better)
    return Quantity(value=mean, unit=unit, low=low, high=high, how="t over examples", better=better)


def _rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """[n] Spearman's correlation of rows, ties sharing their rank; 0 where a row is constant."""
    ranked = []
    for values in (a.contiguous(), b.contiguous()):
        ordered = values.sort(1).values
        rank = torch.searchsorted(ordered, values) + torch.searchsorted(ordered, values, right=True)
        ranked.append(rank.double() - rank.double().mean(1, keepdim=True))
    lengths = ranked[0].norm(dim=1) * ranked[1].norm(dim=1)
    return torch.where(lengths > 0, (ranked[0] * ranked[1]).sum(1) / lengths.clamp_min(1e-300), 0.0)


def _pictures(
    subject: Subject, ids: Tensor, classes: Tensor, sites: Tensor, maps: list[Tensor], signed: bool
) -> dict[str, Figure]:
    """Maps beside their inputs for images, bars of the largest parts otherwise."""
    shown = range(min(len(ids), SHOWN))
    if parts_dimension(subject) == 0:
        names = [f"{int(ids[i])} as {int(classes[i])}" for i in shown]
        grid = [[_picture(sites[i]), maps[0][i].numpy(), maps[1][i].numpy()] for i in shown]
        columns = ("input", "map", "untrained")
        return {
            "maps": image_grid(
                "What the answer rests on", grid, row_names=names, column_names=columns, diverging=signed,
                row_title="example and class",
                caption="The last column is the same map on an untrained network.",
            )
        }  # fmt: skip
    figures = {}
    for i in list(shown)[:4]:
        flat = maps[0][i].flatten()
        top = flat.abs().topk(min(len(flat), 30)).indices.sort().values.tolist()
        data = [{"part": str(j), "relevance": float(flat[j])} for j in top]
        figures[f"example {int(ids[i])}"] = bars(
            f"Relevance for class {int(classes[i])}, example {int(ids[i])}", data,
            category="part", value="relevance",
            category_title="position" if subject.site_layer is not None else "input",
        )  # fmt: skip
    return figures


def _picture(image: Tensor) -> np.ndarray:
    """Grey or colour within -1 and 1, so that it keeps its own colours beside maps that diverge from zero."""
    value = image.double()
    value = value if len(value) == 3 else value.mean(0, keepdim=True).expand(3, -1, -1)
    low, high = float(value.min()), float(value.max())
    return ((2 * (value - low) / (high - low) - 1) if high > low else torch.zeros_like(value)).numpy()
