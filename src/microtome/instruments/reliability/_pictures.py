"""Inputs small enough to keep: thumbnails of images, the words of texts, short vectors; and who is near whom."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from microtome.finding import Table
from microtome.signals import Signal, derive, inputs, tokens
from microtome.signals.graph_pictures import graph_picture
from microtome.subject import Subject

SIDE = 32
"""Longest side of a thumbnail in pixels."""
WIDEST_VECTOR = 64
LONGEST_TEXT = 128
MOST_WORDS = 5000
CHUNK = 1 << 22
"""Distances that are looked at together."""


def picture(subject: Subject) -> tuple[str, Signal] | None:
    """The array and the signal that keep an input; None where it is too large or of another kind.

    "thumbnails" [n, h, w, 1 or 3] uint8 of images, "tokens" [n, 128] int64 of texts (-1 after their end), "inputs"
    [n, d] of short vectors, "graphs" [n, w] int32 of graphs and of nodes with their surroundings.
    """
    if subject.has_structure:
        return "graphs", graph_picture(subject)
    shape = subject.input_shape
    if subject.site_layer is not None:
        return "tokens", derive(_beginning, tokens, name="beginning")
    if shape is None:
        return None
    if len(shape) == 3:
        low, high = subject.bounds if subject.bounds is not None else (None, None)
        return "thumbnails", derive(_thumbnail, inputs, low=low, high=high, name="thumbnail")
    if len(shape) == 1 and shape[0] <= WIDEST_VECTOR:
        return "inputs", derive(_finite, inputs, name="finite_inputs")
    return None


def vocabulary(subject: Subject, ids: Tensor | None) -> dict[str, Table]:
    """The words of the tokens [n, l] that occur, where the subject knows them."""
    if ids is None or subject.words is None:
        return {}
    used = [int(t) for t in ids.unique().tolist() if t >= 0][:MOST_WORDS]
    rows = tuple(zip(used, subject.words(used), strict=True))
    return {
        "vocabulary": Table(columns=("token", "text"), rows=rows, caption="Words that occur in what is kept")
    }


def _beginning(tokens: Tensor) -> Tensor:
    ids = tokens[:, :LONGEST_TEXT].long()
    return torch.nn.functional.pad(ids, (0, LONGEST_TEXT - ids.shape[1]), value=-1)


def _finite(inputs: Tensor) -> Tensor:
    return inputs.float().nan_to_num(0.0, 1e30, -1e30)


def _thumbnail(inputs: Tensor, *, low: float | None, high: float | None) -> Tensor:
    """[n, c, h, w] -> [n, h', w', 1 or 3] uint8, averaged down to 32 pixels; over its own range without bounds."""
    height, width = inputs.shape[-2:]
    longest = max(height, width, SIDE)
    size = max(1, height * SIDE // longest), max(1, width * SIDE // longest)
    small = inputs.double().nan_to_num(0.0, 0.0, 0.0)
    small = small if inputs.shape[1] in (1, 3) else small.mean(1, keepdim=True)
    small = adaptive_avg_pool2d(small, size) if size != (height, width) else small
    if low is None or high is None:
        bottom, top = small.amin((1, 2, 3), keepdim=True), small.amax((1, 2, 3), keepdim=True)
    else:
        bottom, top = torch.full_like(small[:, :1, :1, :1], low), torch.full_like(small[:, :1, :1, :1], high)
    share = ((small - bottom) / (top - bottom).clamp_min(1e-12)).clamp(0, 1)
    return (255 * share).round().to(torch.uint8).permute(0, 2, 3, 1)


def nearest(points: Tensor, group: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Nearest other points by Euclidean distance.

    Args:
        points: [n, d].
        group: [n] int64; members of a point's own group are left out. -1: only the point itself is.
        count: how many, at most n - 1.

    Returns:
        Indices [n, k] and distances [n, k] float32, nearest first, ties to the smaller index; where fewer are left
        than ``count``, index -1.
    """
    n = points.shape[0]
    k = max(min(count, n - 1), 0)
    # Centred and in double precision: far from the origin |a - b| would drown in the products' rounding.
    points = points.double() - points.double().mean(0)
    # Rounded to a part in a million of the spread, so that equal distances are ties whatever the last bits say.
    unit = 1e-6 * float(points.square().sum(1).mean().sqrt().clamp_min(1e-30))
    at = torch.arange(n)
    found, far = [], []
    for part in at.split(max(CHUNK // max(n, 1), 1)):
        distance = (torch.cdist(points[part], points) / unit).round()
        same = (group[part, None] == group[None]) & (group[part, None] >= 0) | (at[None] == part[:, None])
        distance[same] = torch.inf
        # A stable order of a few more than are wanted, so that ties go to the smaller index.
        near = distance.topk(min(k + 8, n), dim=1, largest=False)
        by_index = near.indices.argsort(1)
        indices, values = near.indices.gather(1, by_index), near.values.gather(1, by_index)
        order = values.argsort(dim=1, stable=True)[:, :k]
        values = values.gather(1, order)
        found.append(torch.where(values.isinf(), -1, indices.gather(1, order)))
        far.append(torch.where(values.isinf(), 0.0, values * unit).float())
    return torch.cat(found), torch.cat(far)
