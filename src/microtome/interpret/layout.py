"""Places for nested boxes in layers, and ways for the wires between them; no drawing library.

Every frame is laid out by itself, from the innermost out: parts get ranks along the longest path, a wire that
skips ranks gets a lane through each, ranks are ordered by the centres of their neighbours, and places along a
rank are the least-squares ones that keep the order and a distance. A frame's wires enter and leave at ports.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

ACROSS, DOWN, HEADER, EDGE, LANE = 16.0, 38.0, 26.0, 14.0, 16.0


@dataclass(eq=False)
class Item:
    """A box without parts."""

    kind: str
    lines: tuple[str, ...]
    tip: str
    width: float
    height: float
    label: str = ""
    axes: tuple[bool, ...] = ()
    """Of its result: for each axis whether it is the batch's."""
    room: float = 0.0
    """Width its wire's label needs to the right of the middle."""
    named: bool = False
    """Whether its first line is a module's name."""
    x: float = 0.0
    y: float = 0.0

    @property
    def space(self) -> float:
        """Width it takes with its label."""
        return max(self.width, 2 * self.room)


@dataclass(eq=False)
class Frame:
    """A box around parts."""

    title: str
    tip: str
    parts: list[Item | Frame] = field(default_factory=list)
    times: int = 1
    x: float = 0.0
    y: float = 0.0
    width: float = 0.0
    height: float = 0.0
    entries: dict[Item, float] = field(default_factory=dict)
    exits: dict[Item, float] = field(default_factory=dict)
    ways: list[tuple[Item, list[tuple[float, float]]]] = field(default_factory=list)
    """Pieces of wires inside it, relative to its corner: the value and points to pass."""

    def items(self) -> Iterable[Item]:
        """All boxes without parts, in order."""
        for part in self.parts:
            if isinstance(part, Frame):
                yield from part.items()
            else:
                yield part


Wires = Sequence[tuple[Item, Item]]


@dataclass(eq=False)
class _Cell:
    width: float
    height: float
    part: Item | Frame | None = None
    centre: float = 0.0
    top: float = 0.0
    floor: float = 0.0
    """Lower end of its rank."""

    def enters(self, value: Item) -> float:
        """Where the wire of a value goes in."""
        if isinstance(self.part, Frame):
            return self.centre - self.width / 2 + self.part.entries[value]
        return self.centre

    def leaves(self, value: Item) -> float:
        """Where it goes out."""
        if isinstance(self.part, Frame):
            return self.centre - self.width / 2 + self.part.exits[value]
        return self.centre


def arrange(frame: Frame, wires: Wires, bare: bool = False) -> None:
    """Place everything inside a frame, relative to its corner; ``bare`` has no border and no title."""
    owner: dict[Item, Item | Frame] = {}
    for part in frame.parts:
        if isinstance(part, Frame):
            arrange(part, wires)
            owner.update(dict.fromkeys(part.items(), part))
        else:
            owner[part] = part
    cells: dict[Item | Frame, _Cell] = {
        part: _Cell(part.width if isinstance(part, Frame) else part.space, part.height, part)
        for part in frame.parts
    }
    entries: dict[Item, _Cell] = {}
    exits: dict[Item, _Cell] = {}
    links: dict[tuple[_Cell, Item, _Cell], None] = {}
    for source, target in wires:
        inside = source in owner, target in owner
        if not any(inside) or (all(inside) and owner[source] is owner[target]):
            continue
        start = cells[owner[source]] if inside[0] else entries.setdefault(source, _Cell(LANE, 0))
        end = cells[owner[target]] if inside[1] else exits.setdefault(source, _Cell(LANE, 0))
        links[start, source, end] = None
    ranks, segments = _ranks(cells.values(), entries.values(), exits.values(), list(links))
    _order(ranks, segments)
    _place(ranks, segments)
    left = min((c.centre - c.width / 2 for rank in ranks for c in rank), default=0.0)
    title = 6.6 * len(frame.title) + 40
    inner = max((c.centre + c.width / 2 for rank in ranks for c in rank), default=0.0) - left
    spare = 0.0 if bare else max(0.0, (title - inner - 2 * EDGE) / 2)
    y = 0.0 if bare or entries else HEADER
    for index, rank in enumerate(ranks):
        tall = max((c.height for c in rank), default=0.0)
        for cell in rank:
            cell.centre += EDGE + spare - left
            cell.top, cell.floor = y, y + tall
            if cell.part is None:
                cell.height = tall
            elif isinstance(cell.part, Item):
                cell.part.x, cell.part.y = cell.centre - cell.part.width / 2, y
            else:
                cell.part.x, cell.part.y = cell.centre - cell.width / 2, y
        y += tall + (DOWN if index < len(ranks) - 1 else 0.0)
    frame.width, frame.height = inner + 2 * (EDGE + spare), y + (0 if bare else 4)
    for ports in (entries.values(), exits.values()):
        for cell in ports:
            cell.top = 0.0 if cell in entries.values() else frame.height
            cell.height, cell.floor = 0.0, cell.top
    frame.entries = {value: cell.centre for value, cell in entries.items()}
    frame.exits = {value: cell.centre for value, cell in exits.items()}
    for start, value, end in segments:
        x = start.leaves(value)
        points = [(x, start.top + start.height), (end.enters(value), end.top)]
        if start.floor > points[0][1]:  # past its taller neighbours
            points.insert(1, (x, start.floor))
        if end.part is None and end.height:
            points.append((end.centre, end.top + end.height))
        frame.ways.append((value, points))


Segment = tuple[_Cell, Item, _Cell]


def _ranks(
    cells: Iterable[_Cell], entries: Iterable[_Cell], exits: Iterable[_Cell], links: Sequence[Segment]
) -> tuple[list[list[_Cell]], list[Segment]]:
    """Cells by rank, with lanes for what skips ranks; and the links cut at them."""
    inner, first, last = list(cells), list(entries), list(exits)
    rank: dict[_Cell, int] = dict.fromkeys(first, 0)
    for cell in inner:  # they are in order of execution
        rank[cell] = max(
            (rank[start] + 1 for start, _, end in links if end is cell), default=int(bool(first))
        )
    for cell in reversed(inner):
        after = [rank[end] for start, _, end in links if start is cell and end in rank]
        if after and not any(end is cell for _, _, end in links):
            rank[cell] = max(rank[cell], min(after) - 1)  # a source stands before what first needs it
    bottom = max(rank.values(), default=0) + 1
    rank.update(dict.fromkeys(last, bottom))
    rows: list[list[_Cell]] = [[] for _ in range(max(rank.values(), default=0) + 1)]
    for cell, level in rank.items():
        rows[level].append(cell)
    lanes: dict[tuple[_Cell, Item, int], _Cell] = {}
    segments: dict[Segment, None] = {}
    for start, value, end in links:
        before = start
        for level in range(rank[start] + 1, rank[end]):
            key = (start, value, level)
            if key not in lanes:
                lanes[key] = _Cell(LANE, 0)
                rows[level].append(lanes[key])
            segments[before, value, lanes[key]] = None
            before = lanes[key]
        segments[before, value, end] = None
    return rows, list(segments)


def _order(ranks: list[list[_Cell]], segments: Sequence[Segment]) -> None:
    """Sort each rank by the mean place of its neighbours, down and up a few times."""
    above: dict[_Cell, list[tuple[_Cell, float]]] = {}
    below: dict[_Cell, list[tuple[_Cell, float]]] = {}
    for start, value, end in segments:  # ports of a frame count by where they are along it
        above.setdefault(end, []).append((start, (start.leaves(value) - start.centre) / (start.width + 1)))
        below.setdefault(start, []).append((end, (end.enters(value) - end.centre) / (end.width + 1)))
    place = {cell: float(i) for rank in ranks for i, cell in enumerate(rank)}
    for turn in range(6):
        near = above if turn % 2 == 0 else below
        for rank in ranks if turn % 2 == 0 else reversed(ranks):
            means = {
                c: sum(place[n] + part for n, part in near[c]) / len(near[c]) if near.get(c) else place[c]
                for c in rank
            }
            rank.sort(key=lambda cell: (means[cell], cell.part is None))
            for i, cell in enumerate(rank):
                place[cell] = float(i)


def _place(ranks: list[list[_Cell]], segments: Sequence[Segment]) -> None:
    """Centres along each rank: as near to the neighbours' as order and distances allow."""
    for rank in ranks:
        x = 0.0
        for cell in rank:
            cell.centre = x + cell.width / 2
            x += cell.width + ACROSS
    above: dict[_Cell, list[Segment]] = {}
    below: dict[_Cell, list[Segment]] = {}
    for segment in segments:
        above.setdefault(segment[2], []).append(segment)
        below.setdefault(segment[0], []).append(segment)
    for turn in range(60):
        down, both = turn % 2 == 0, turn >= 20
        for rank in ranks if down else reversed(ranks):
            wanted, weights = [], []
            for cell in rank:
                links = above.get(cell, []) if down or both else []
                shifts = [(a.leaves(v) - b.enters(v), _stiff(a, b)) for a, v, b in links]
                links = below.get(cell, []) if both or not down else []
                shifts += [(b.enters(v) - a.leaves(v), _stiff(a, b)) for a, v, b in links]
                mass = sum(weight for _, weight in shifts)
                wanted.append(cell.centre + (sum(s * w for s, w in shifts) / mass if mass else 0.0))
                weights.append(6.0 if cell.part is None else 1.0)
            for cell, centre in zip(rank, _spread(rank, wanted, weights), strict=True):
                cell.centre = centre


def _stiff(start: _Cell, end: _Cell) -> float:
    """A wire that skips ranks is to run straight."""
    return 8.0 if start.part is None and end.part is None else 1.0


def _spread(rank: Sequence[_Cell], wanted: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Least squares under the least distances of neighbours: pooling of adjacent violators."""
    offsets, total = [], 0.0
    for i, cell in enumerate(rank):
        if i:
            total += (rank[i - 1].width + cell.width) / 2 + ACROSS
        offsets.append(total)
    blocks: list[tuple[float, float, int]] = []
    for want, offset, weight in zip(wanted, offsets, weights, strict=True):
        mean, mass, count = want - offset, weight, 1
        while blocks and blocks[-1][0] > mean:
            other, heavy, many = blocks.pop()
            mean = (mean * mass + other * heavy) / (mass + heavy)
            mass, count = mass + heavy, count + many
        blocks.append((mean, mass, count))
    starts = [mean for mean, _, count in blocks for _ in range(count)]
    return [start + offset for start, offset in zip(starts, offsets, strict=True)]
