"""Small graphs as node-link drawings: the rows that a finding keeps, a layout, and SVG made of numbers alone.

A row is [total, centred, N, N kinds, ends ...] (see :mod:`microtome.signals.graph_pictures`): of a node the kind -1 is
unknown and -2 no node; edges end with -1. The layout is the same each time: nodes on a circle, moved until their
distances in the drawing are as near as may be to those in the graph (stress majorisation, Gansner, Koren & North 2004).
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from markupsafe import Markup

COLOURS = (
    "#0072b2",
    "#e69f00",
    "#cc79a7",
    "#00785a",
    "#56b4e9",
    "#c04a00",
    "#f0e442",
    "#4b2e83",
    "#b6d7a8",
    "#7a1f3d",
)
"""Of classes 0 to 9, after Okabe and Ito: told apart without red, green or blue cones. Further ones begin again, and
are told apart by their number."""
GREY = "#7b818a"
RIM = "#8a9099"
HEAD = 3
MOST_NODES, MOST_EDGES = 64, 128
ROUNDS = 40


@dataclass(frozen=True)
class Drawn:
    """One small graph."""

    total: int
    """Nodes there are; those drawn may be fewer."""
    centred: bool
    """Whether the first node is the example, among its neighbours."""
    kinds: tuple[int, ...]
    """Of each drawn node; -1 where it is unknown."""
    edges: tuple[tuple[int, int], ...]

    @property
    def word(self) -> str:
        """What a node's number is."""
        return "class" if self.centred else "kind"

    def said(self) -> str:
        """The drawing in words."""
        counts = {k: self.kinds.count(k) for k in sorted(set(self.kinds)) if k >= 0}
        kinds = ", ".join(f"{n} of {self.word} {k}" for k, n in list(counts.items())[:12])
        left = f", of {self.total} there are" if self.total > len(self.kinds) else ""
        if self.centred and len(self.kinds) == 1:
            return f"a node without neighbours{kinds and ': '}{kinds}"
        what = "node with its neighbours up to two steps away" if self.centred else "graph"
        nodes, edges = _count(len(self.kinds), "node"), _count(len(self.edges), "edge")
        return f"a {what}: {nodes}{left}, {edges}{kinds and ': '}{kinds}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def read(row: np.ndarray) -> Drawn | None:
    """A row as it is kept; None where it is none."""
    if row.ndim != 1 or row.dtype.kind not in "iu" or row.size <= HEAD:
        return None
    values = row.astype(np.int64)
    total, centred, places = values[:HEAD].tolist()
    if not 0 < places <= min(MOST_NODES, row.size - HEAD) or (row.size - HEAD - places) % 2:
        return None
    kinds = tuple(int(k) for k in values[HEAD : HEAD + places].clip(-2, 10**6) if k > -2)
    ends = values[HEAD + places :].reshape(-1, 2)[:MOST_EDGES]
    fits = ((ends >= 0) & (ends < len(kinds))).all(1) & (ends[:, 0] != ends[:, 1])
    edges = tuple((int(a), int(b)) for a, b in ends[fits])
    return Drawn(total, centred == 1, kinds, edges) if kinds else None


@lru_cache(maxsize=2048)
def layout(nodes: int, edges: tuple[tuple[int, int], ...], pinned: bool) -> np.ndarray:
    """[nodes, 2] places within the unit circle; the first node is in the middle when ``pinned``."""
    apart = np.full((nodes, nodes), np.inf)
    np.fill_diagonal(apart, 0.0)
    for a, b in edges:
        apart[a, b] = apart[b, a] = 1.0
    for k in range(nodes):
        np.minimum(apart, apart[:, k, None] + apart[None, k], out=apart)
    finite = apart[np.isfinite(apart)]
    apart[~np.isfinite(apart)] = finite.max(initial=1.0) + 1.0  # parts that do not hang together
    angle = 2 * np.pi * np.arange(nodes) / max(nodes, 1)
    places = np.stack([np.cos(angle), np.sin(angle)], 1) * max(float(apart.mean()), 0.5)
    if pinned:
        places[0] = 0.0
    weights = np.where(apart > 0, 1.0 / np.maximum(apart, 1.0) ** 2, 0.0)
    total = np.maximum(weights.sum(1), 1e-9)[:, None]
    pull = weights * apart
    for _ in range(ROUNDS if nodes > 1 else 0):
        squares = (places**2).sum(1)
        length = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * places @ places.T, 1e-12))
        # Each goes to the mean of where the others wish it: x_j + apart (x_i - x_j) / length.
        push = pull / length
        places = (weights @ places + push.sum(1)[:, None] * places - push @ places) / total
    places = places - (places[0] if pinned else (places.max(0) + places.min(0)) / 2)
    return np.asarray(places / max(float(np.sqrt((places**2).sum(1)).max()), 1e-9))


def svg(drawn: Drawn, size: int, answer: int | None = None, described: bool = False) -> str:
    """The drawing.

    Args:
        size: of a side, in pixels; class numbers are written into nodes from 200 on.
        answer: the class the example was given: a ring around the centre in that class's colour.
        described: with its sentence as the drawing's name, for those who do not see it.
    """
    places = layout(len(drawn.kinds), drawn.edges, drawn.centred)
    large = size >= 200
    radius = size * (0.035 if large else 0.045)
    reach = size / 2 - 2.2 * radius
    at = [(size / 2 + reach * x, size / 2 + reach * y) for x, y in places.tolist()]
    parts = [
        f'<line x1="{at[a][0]:.1f}" y1="{at[a][1]:.1f}" x2="{at[b][0]:.1f}" y2="{at[b][1]:.1f}"/>'
        for a, b in drawn.edges
    ]
    dots, words = [], []
    for i, ((x, y), kind) in reversed(list(enumerate(zip(at, drawn.kinds, strict=True)))):
        mine = drawn.centred and i == 0
        wide = radius * (1.5 if mine else 1.0)
        if mine and answer is not None:
            ring = f'cx="{x:.1f}" cy="{y:.1f}" r="{1.6 * wide:.1f}"'
            dots.append(
                f'<circle {ring} fill="none" stroke="{colour(answer)}" stroke-width="{0.5 * wide:.1f}"/>'
            )
        tip = (
            f"<title>{'the example, ' if mine else ''}{drawn.word} {kind if kind >= 0 else 'unknown'}</title>"
        )
        # The rim keeps a light colour visible on white, and a dark one on black.
        rim = f'stroke="{RIM}" stroke-width="{0.12 * radius:.2f}"'
        dots.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{wide:.1f}" fill="{colour(kind)}" {rim}>{tip}</circle>'
        )
        if large and kind >= 0:
            at_ = f'x="{x:.1f}" y="{y + 0.42 * wide:.1f}" font-size="{1.15 * wide:.1f}"'
            words.append(f'<text {at_} fill="{ink(colour(kind))}">{kind}</text>')
    name = f' role="img" aria-label="{drawn.said()}"' if described else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="graph" viewBox="0 0 {size} {size}" width="{size}" '
        f'height="{size}"{name}><g stroke="{RIM}" stroke-width="{0.22 * radius:.2f}">{"".join(parts)}</g>'
        f'{"".join(dots)}<g font-family="sans-serif" text-anchor="middle">{"".join(words)}</g></svg>'
    )  # fmt: skip


def colour(kind: int) -> str:
    """Of a class."""
    return COLOURS[kind % len(COLOURS)] if kind >= 0 else GREY


def ink(ground: str) -> str:
    """Black or white, whichever is easier to read on a colour."""
    return "#000" if luminance(ground) > 0.18 else "#fff"


def luminance(shade: str) -> float:
    """Relative luminance of a colour written as ``#rrggbb``: 0 black, 1 white."""
    parts = [int(shade[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def thumbnail(row: np.ndarray, answer: int | None) -> str:
    """As an address for a picture, where scripts cannot run; nothing where the row is none."""
    drawn = read(row)
    if drawn is None:
        return ""
    text = svg(drawn, 120, answer)
    return "data:image/svg+xml;base64," + base64.b64encode(text.encode("ascii")).decode("ascii")


def portrait(row: np.ndarray, answer: int | None) -> tuple[Markup, str]:
    """For the page of one example, and its sentence: made of numbers alone, so it may stand in the page as it is."""
    drawn = read(row)
    if drawn is None:
        return Markup(""), ""
    said = drawn.said().capitalize() + "."
    if max(drawn.kinds) >= 0:
        said += f" A node's colour and number are its {drawn.word}"
        said += ", the one feature it has." if not drawn.centred else "."
    if drawn.centred:
        ring = f"; the ring around it has the colour of its answer, {answer}" if answer is not None else ""
        said += f" The example is in the middle{ring}."
    return Markup(svg(drawn, 420, answer, described=True)), said
