"""The nearest input that is answered otherwise, by optimisation."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from microtome.signals import _last_answer, class_score, derive, gradient, outputs, rows, task
from microtome.signals.expression import Constant, Signal, Site, Transform
from microtome.signals.noise import wide
from microtome.task import Task

DOUBLINGS, HALVINGS = 24, 40


@dataclass(frozen=True)
class NearestOtherwise(Transform):
    """The input moved to the nearest point (Euclidean) that is found to be answered by another class.

    For each of the ``rivals`` likeliest other classes, with f the lead of its class over that one, and z the point so
    far: while its class is answered the next point is the nearest to z of the plane f(z) + grad f(z) (u - z) = 0 within
    the bounds (DeepFool, Moosavi-Dezfooli et al. 2016); beyond the boundary the nearest of that plane to the start x,
    so that the end is where x - z and the gradient are parallel, as at the nearest point they must be. Each goes
    ``beyond`` a little further. The nearest point met is kept, and drawn back to the boundary by halving its way. What
    is found is an upper bound of the distance: a nearer point may lie elsewhere. Where none is found the input stays
    as it is.

    Args:
        own: [n] the class of each example, with its ids.
        rivals: other classes that are tried.
        steps: gradients for each.
        halvings: forwards that draw the point back.
        beyond: share of a step by which it goes too far.
    """

    own: Constant
    rivals: int = 3
    steps: int = 16
    halvings: int = 12
    beyond: float = 0.02
    cost: float = field(default=0.0, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cost", 2.0 * self.steps * self.rivals + self.halvings)

    def apply(self, x: Tensor, site: Site) -> Tensor:
        """[n, ...] -> the same shape, inside the bounds."""
        if len(x) == 0:
            return x
        start = wide(x).flatten(1)
        low, high = _box(start, site)
        best = start.clone()
        reach = torch.full_like(start[:, 0], torch.inf)
        stands, by_id = lead(self.own), site.rows.argsort()
        for rival in site.ask(_rivals(self.own, self.rivals), x).unbind(1):
            look = _slope_and_leads(self.own, Constant(rival.to(by_id.device)[by_id], site.rows[by_id]))
            here = start
            for _ in range(self.steps):
                seen = wide(site.ask(look, here.to(x.dtype).reshape(x.shape))).to(start.device)
                slope, ahead, crossed = seen[:, :-2], seen[:, -2], seen[:, -1] < 0
                far = (here - start).norm(dim=1)
                better = crossed & (far < reach)
                best[better], reach[better] = here[better], far[better]
                base = torch.where(crossed[:, None], start, here)
                aim = _nearest_of_plane(base, here, slope, ahead, low, high)
                here = torch.minimum(torch.maximum(aim + self.beyond * (aim - base), low), high)
        near, far_ = torch.zeros_like(reach), torch.ones_like(reach)
        for _ in range(self.halvings):
            middle = (near + far_) / 2
            point = start + middle[:, None] * (best - start)
            crossed = site.ask(stands, point.to(x.dtype).reshape(x.shape)).to(start.device) < 0
            near, far_ = torch.where(crossed, near, middle), torch.where(crossed, middle, far_)
        found = (start + far_[:, None] * (best - start)).to(x.dtype).reshape(x.shape)
        return torch.where(reach.isfinite().reshape(-1, *[1] * (x.dim() - 1)), found, x)


def lead(own: Constant) -> Signal:
    """[n] float64: the score of a class fixed beforehand, less the largest other; below 0 another class is answered."""
    return derive(_lead, outputs, rows, task, own, name="lead_of_own")


def _lead(outputs: Tensor, rows: Tensor, task: Task, own: Constant) -> Tensor:
    scores = wide(_last_answer(outputs, task))
    mine = own.for_rows(rows).to(scores.device)[:, None]
    return scores.gather(1, mine)[:, 0] - scores.scatter(1, mine, -torch.inf).amax(1)


def _rivals(own: Constant, count: int) -> Signal:
    """[n, r] int64 the likeliest other classes, the likeliest first."""
    return derive(_likeliest, outputs, rows, task, own, count=count, name="rivals")


def _likeliest(outputs: Tensor, rows: Tensor, task: Task, own: Constant, *, count: int) -> Tensor:
    scores = wide(_last_answer(outputs, task))
    mine = own.for_rows(rows).to(scores.device)[:, None]
    scores = scores.scatter(1, mine, -torch.inf)
    return scores.topk(min(count, scores.shape[1] - 1), dim=1).indices


def _slope_and_leads(own: Constant, rival: Constant) -> Signal:
    """[n, d + 2]: what a step needs of the model, from one forward: the lead over the rival and its slope; any lead."""
    pair = derive(_apart, class_score(own), class_score(rival), name="lead_of_own_over_rival")
    return derive(_beside, gradient(pair), pair, lead(own), name="slope_and_leads")


def _apart(own: Tensor, rival: Tensor) -> Tensor:
    return wide(own) - wide(rival)


def _beside(slope: Tensor, pair: Tensor, lead: Tensor) -> Tensor:
    return torch.cat([wide(slope).flatten(1), pair[:, None], lead[:, None]], dim=1)


def _box(start: Tensor, site: Site) -> tuple[Tensor, Tensor]:
    """The bounds, widened where an input lies outside of them already."""
    low, high = site.bounds if site.bounds is not None else (-torch.inf, torch.inf)
    return start.clamp_max(low), start.clamp_min(high)


def _nearest_of_plane(
    base: Tensor, at: Tensor, slope: Tensor, ahead: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """[n, d] the nearest to ``base`` of the points u in the box with ahead + slope (u - at) = 0.

    That is base - t slope, cut to the box, for the one t at which the equation holds; its left side falls with t.
    """

    def point(t: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(base - t[:, None] * slope, low), high)

    def left(t: Tensor) -> Tensor:
        return ahead + (slope * (point(t) - at)).sum(1)

    size = slope.square().sum(1)
    t = torch.where(size > 0, (ahead + (slope * (base - at)).sum(1)) / size.clamp_min(1e-300), 0.0)
    if bool((low > -torch.inf).any() | (high < torch.inf).any()):
        # The box holds some coordinates back, so that the others must go further.
        upper = t.abs().clamp_min(1e-30)
        for _ in range(DOUBLINGS):
            upper = torch.where(left(upper) > 0, 2 * upper, upper)
        lower = torch.minimum(t, torch.zeros_like(t))
        for _ in range(HALVINGS):
            middle = (lower + upper) / 2
            over = left(middle) > 0
            lower, upper = torch.where(over, middle, lower), torch.where(over, upper, middle)
        t = torch.where(size > 0, upper, 0.0)
    return point(t)
