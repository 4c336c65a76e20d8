"""The wiring of a captured program as a picture: boxes nested as modules are, every axis a wire.

Each operation is a box, each module a frame around its operations (or one box, below ``depth``), and a tensor
with k axes runs between them as k parallel wires, that of the batch dashed, with its shape beside it. Blocks that
repeat in a row are drawn once, with their number. After "Neural Circuit Diagrams" (Abbott 2024).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from microtome.drawing import drawing, svg
from microtome.finding import Figure
from microtome.interpret.cost import Cost, costs_of, operation_nodes, shapes_only
from microtome.interpret.graph import Graph, Node
from microtome.interpret.layout import Frame, Item, arrange
from microtome.interpret.operations import AVERAGES, SHAPE_ONLY, STRUCTURAL, aten, overloads
from microtome.interpret.shape import tensor_nodes

_JOINS = {"add": "+", "sub": "-", "mul": "×", "div": "/"}
_KINDS = {
    "linear": ("linear", "addmm", "mm"), "convolution": ("convolution",), "product": ("matmul", "bmm", "baddbmm"),
    "norm": ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"),
    "softmax": ("softmax", "log_softmax"), "embedding": ("embedding",),
    "pool": ("max_pool1d", "max_pool2d", "max_pool3d", "amax"),
    "curve": (
        "relu", "gelu", "silu", "tanh", "sigmoid", "elu", "leaky_relu", "hardswish", "mish", "softplus",
        "hardtanh", "relu6", "selu", "celu", "hardsigmoid", "prelu", "erf",
    ),
}  # fmt: skip
_KIND_OF = {name: kind for kind, names in _KINDS.items() for name in names}
_STRUCTURAL = frozenset(STRUCTURAL) - frozenset(overloads("cat", "stack", "embedding", "gather"))
_POOLING = frozenset(AVERAGES)
LEAST_REPEAT = 3
"""Operations a block must have for its repetitions to be drawn once."""


@dataclass(eq=False)
class _Sketch:
    """What is gathered on the way from nodes to boxes."""

    graph: Graph
    depth: int
    shown: list[Node]
    costs: dict[Node, Cost]
    symbols: dict[str, str]
    owner: dict[Node, Item] = field(default_factory=dict)
    alias: dict[Node, Node] = field(default_factory=dict)
    counted: set[str] = field(default_factory=set)

    def sources(self, node: Node) -> list[Node]:
        """The shown nodes it reads, results of several looked through."""
        found: list[Node] = []
        for operand in node.operands:
            if operand.kind == "operation" and operand not in self.costs and operand.target not in SHAPE_ONLY:
                found += self.sources(operand)  # one of several results
            elif operand.kind in ("input", "operation"):
                found.append(operand)
        return list(dict.fromkeys(found))

    def shape(self, node: Node) -> str:
        """As ``n x 64 x 8 x 8``."""
        return " × ".join(self.size(size) for size in node.shape or ())

    def size(self, size: int | str) -> str:
        """A number, or a letter for a size that may change."""
        if isinstance(size, int):
            return str(size)
        return re.sub(r"[a-z]+\d+", lambda m: self.symbols.setdefault(m[0], self._letter()), size)

    def _letter(self) -> str:
        used = set(self.symbols.values())
        return next((letter for letter in "tuvwabcdefgh" if letter not in used), "m")

    def weights(self, nodes: Sequence[Node]) -> int:
        """Parameters first read here."""
        total = 0
        for node in nodes:
            for operand in node.operands:
                if operand.kind == "parameter" and operand.target not in self.counted:
                    self.counted.add(operand.target)
                    total += self.graph.state[operand.target].numel()
        return total


def wiring(graph: Graph, depth: int | None = None, title: str = "Wiring") -> str:
    """The diagram as one self-contained SVG.

    Args:
        depth: how many levels of modules are opened; None for all.
    """
    return svg(wiring_figure(graph, depth, title))


def wiring_figure(graph: Graph, depth: int | None = None, title: str = "Wiring", caption: str = "") -> Figure:
    """The diagram as a figure of a finding, see :func:`wiring`."""
    root, wires, sketch = _draft(graph, 99 if depth is None else depth)
    arrange(root, wires, bare=True)
    count = len(sketch.shown)
    steps = "; ".join(
        f"{' '.join(item.lines)}{', ' + item.label if item.label else ''}" for item in root.items()
    )
    alternative = f"{count} operations from {', '.join(n.name for n in graph.inputs)} on, in order: {steps}"
    return figure_of(root, title, alternative, caption)


def wiring_levels(graph: Graph, most: int, title: str) -> dict[str, Figure]:
    """Diagrams from the outermost modules to every operation, at most so many.

    A level that shows fewer than five boxes, or nothing that the one before did not, is left out.
    """
    found: dict[str, Figure] = {}
    before = 4
    for depth in range(levels(graph)):
        said = (
            ("modules", "modules, one level opened")[depth]
            if depth < 2
            else f"modules, {depth} levels opened"
        )
        figure = wiring_figure(graph, depth, f"{title}: {said}")
        boxes = sum("box" in shape for shape in figure.spec["drawing"]["shapes"])
        if boxes > before and len(found) < most - 1:
            found[f"level {depth}"] = figure
            before = boxes
    whole = wiring_figure(graph, None, f"{title}: every operation")
    last = next(reversed(found), "")
    if last and found[last].spec == whole.spec:
        del found[last]
    return found | {"operations": whole}


def figure_of(root: Frame, title: str, alternative: str, caption: str = "") -> Figure:
    """A figure of boxes that :func:`microtome.interpret.layout.arrange` has placed."""
    shapes: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    words: list[dict[str, Any]] = []
    _paint(root, 10.0, 10.0, shapes, lines, words, bare=True)
    return drawing(
        title, alternative, (root.width + 20, root.height + 20), [*shapes, *lines, *words], caption
    )


def levels(graph: Graph) -> int:
    """Levels of modules there are to open."""
    return max((len(_parts(node)) for node in operation_nodes(graph)), default=0)


# --- from nodes to boxes -----------------------------------------------------------------------------


def _draft(graph: Graph, depth: int) -> tuple[Frame, list[tuple[Item, Item]], _Sketch]:
    shown = list(tensor_nodes(graph))
    try:
        found = {cost.node: cost for cost in costs_of(graph, shapes_only(graph))}
    except (NotImplementedError, RuntimeError, IndexError, ValueError):
        found = {}  # shapes that depend on numbers: the picture goes without its products
    symbols = {str(n.shape[0]): "n" for n in graph.inputs if n.shape and isinstance(n.shape[0], str)}
    sketch = _Sketch(graph, depth, shown, {n: found.get(n) for n in shown}, symbols)  # type: ignore[misc]
    root = Frame("", "")
    used = {source for node in shown for source in sketch.sources(node)}
    for node in graph.inputs:
        if node in used:
            sketch.owner[node] = _box("input", (node.name,), f"input {node.name}", node, sketch, True)
            root.parts.append(sketch.owner[node])
    root.parts += _build(shown, 0, sketch)
    wires: dict[tuple[Item, Item], None] = {}
    for node in shown:
        target = sketch.owner.get(node)
        for source in sketch.sources(node):
            start = sketch.owner.get(sketch.alias.get(source, source))
            if target is not None and start is not None and start is not target:
                wires[start, target] = None
    ends = [node for node in graph.outputs if isinstance(node, Node)]
    for node in ends:
        start = sketch.owner.get(sketch.alias.get(node, node))
        if start is not None:
            finish = Item("input", ("output",), f"output {sketch.shape(node)}", 64, 22)
            root.parts.append(finish)
            wires[start, finish] = None
    _thread(root, wires)
    return root, list(wires), sketch


def _build(nodes: Sequence[Node], level: int, sketch: _Sketch) -> list[Item | Frame]:
    """Boxes and frames of nodes that share their path up to ``level``."""
    parts: list[Item | Frame] = []
    runs = _runs(nodes, level)
    index = 0
    while index < len(runs):
        name, run = runs[index]
        times = 1
        sign = _signature(run, level, sketch) if name else ()
        while (
            name and len(run) >= LEAST_REPEAT and index + times < len(runs) and runs[index + times][0]
            and _signature(runs[index + times][1], level, sketch) == sign
        ):  # fmt: skip
            sketch.alias.update(zip(runs[index + times][1], run, strict=True))
            times += 1
        last = runs[index + times - 1][0]
        index += times
        label = name if times == 1 else f"{name} … {last}"
        if not name:
            parts += [_operation(node, "", sketch) for node in run]
        elif len(run) == 1 and len(_parts(run[0])) <= level + 1:
            parts.append(_operation(run[0], label, sketch))
        elif level >= sketch.depth:
            parts.append(_folded(run, label, level, times, sketch))
        else:
            inner = _build(run, level + 1, sketch)
            if len(inner) == 1 and isinstance(inner[0], Frame) and times == 1 and inner[0].times == 1:
                inner[0].title = f"{label}.{inner[0].title}"
                parts += inner
                continue
            kinds = [n.module.rsplit(".", 1)[-1] for n in run if len(_parts(n)) == level + 1]
            title = f"{label}  {kinds[0]}" if kinds else label
            own = [n for n in run if n in sketch.costs]
            parts.append(Frame(title, _tip(label, own, sketch, None), inner, times))
    return parts


def _parts(node: Node) -> tuple[str, ...]:
    return tuple(node.path.split(".")) if node.path else ()


def _runs(nodes: Sequence[Node], level: int) -> list[tuple[str, list[Node]]]:
    """Nodes in a row that belong to one call of one module of this level; "" for the parent's own."""
    runs: list[tuple[str, list[Node]]] = []
    calls: dict[str, int] = {}
    for node in nodes:
        parts = _parts(node)
        name = parts[level] if len(parts) > level else ""
        again = calls.get(node.path, node.call) != node.call
        if not runs or runs[-1][0] != name or (name and again):
            runs.append((name, []))
            calls = {}
        calls[node.path] = node.call
        runs[-1][1].append(node)
    return runs


def _signature(run: Sequence[Node], level: int, sketch: _Sketch) -> tuple[Any, ...]:
    """Equal for runs that do the same with weights of the same shapes, whatever they are called."""
    place = {node: i for i, node in enumerate(run)}
    outside: dict[Node, str] = {}

    def reads(node: Node) -> tuple[Any, ...]:
        return tuple(
            place.get(source, outside.setdefault(source, f"outside {len(outside)}"))
            for source in sketch.sources(node)
        )

    return tuple(
        (
            node.operation, node.shape, _parts(node)[level + 1 :], node.module, reads(node),
            tuple(o.shape for o in node.operands if o.kind == "parameter"),
        )
        for node in run
    )  # fmt: skip


def _operation(node: Node, name: str, sketch: _Sketch) -> Item:
    short = node.operation.split(".")[1]
    kind = _KIND_OF.get(short, "pool" if node.target in _POOLING else "other")
    if not name and short in _JOINS and len(sketch.sources(node)) > 1:
        return _own(
            _box("join", (_JOINS[short],), _tip(short, [node], sketch, node), node, sketch), [node], sketch
        )
    if not name and node.target in _STRUCTURAL:
        kind = "structural"
    lines = [part for part in (name, _detail(node, short)) if part]
    tip = _tip(node.layer or short, [node], sketch, node)
    count = sketch.weights([node])
    if count:
        lines.append(f"{_short(count)} parameters")
    elif any(operand.kind == "parameter" for operand in node.operands):
        lines.append("parameters as above")
    return _own(_box(kind, tuple(lines), tip, node, sketch, bold=bool(name)), [node], sketch)


def _folded(run: Sequence[Node], name: str, level: int, times: int, sketch: _Sketch) -> Item:
    inside = {node for node in run}
    last = next((n for n in reversed(run) if _leaves_run(n, inside, sketch)), run[-1])
    classes = [n.module.rsplit(".", 1)[-1] for n in run if len(_parts(n)) == level + 1]
    tip = _tip(name, run, sketch, last)
    lines = [name, *(classes[:1])]
    count = sketch.weights(run)
    lines.append(f"{len(run)} operations" + (f", {_short(count)} parameters" if count else ""))
    if times > 1:
        lines.append(f"× {times}")
    kind = "module again" if times > 1 else "module"
    return _own(_box(kind, tuple(lines), tip, last, sketch, bold=True), run, sketch)


def _leaves_run(node: Node, inside: set[Node], sketch: _Sketch) -> bool:
    outside = any(node in sketch.sources(other) for other in sketch.shown if other not in inside)
    return outside or node in sketch.graph.outputs


def _own(item: Item, nodes: Sequence[Node], sketch: _Sketch) -> Item:
    sketch.owner.update(dict.fromkeys(nodes, item))
    return item


def _box(
    kind: str, lines: tuple[str, ...], tip: str, node: Node, sketch: _Sketch, bold: bool = False
) -> Item:
    lines = tuple(line if len(line) <= 38 else f"{line[:22]}…{line[-14:]}" for line in lines)
    wide = max((6.9 if bold and i == 0 else 5.9) * len(line) for i, line in enumerate(lines)) + 18
    tall = 14.0 * len(lines) + 8
    if kind == "join":
        wide = tall = 22.0
    label = sketch.shape(node)
    batch = tuple(isinstance(size, str) for size in node.shape or ())
    return Item(kind, lines, tip, max(wide, 22.0), tall, label, batch, 5.4 * len(label) + 14, bold)


def _detail(node: Node, short: str) -> str:
    if node.target == aten.convolution.default:
        weight = node.operands[1].shape or ()
        stride, _, dilation, transposed = node.args[3:7]
        words = [f"{'transposed conv' if transposed else 'conv'} {'×'.join(str(k) for k in weight[2:])}"]
        words += [f"stride {stride[0]}"] if max(stride) > 1 else []
        words += [f"dilation {dilation[0]}"] if max(dilation) > 1 else []
        words += [f"{node.args[8]} groups"] if node.args[8] > 1 else []
        return ", ".join(words)
    return {"convolution": "conv", "native_dropout": "dropout", "_to_copy": "cast"}.get(short, short)


def _tip(name: str, nodes: Sequence[Node], sketch: _Sketch, last: Node | None) -> str:
    parts = [name]
    if last is not None:
        reads = [sketch.shape(source) for source in sketch.sources(nodes[0])]
        parts.append(f"{', '.join(reads) or 'nothing'} to {sketch.shape(last)}")
    found = [cost for node in nodes if (cost := sketch.costs.get(node)) is not None]
    batch = 2  # of ``shapes_only``
    products = sum(cost.flops for cost in found) // 2 // batch
    if products:
        parts.append(f"{products:,} multiply-adds an example")
    weights = sum(cost.parameters for cost in found)
    if weights:
        parts.append(f"{weights:,} parameters")
    if len(nodes) == 1 and nodes[0].where:
        parts.append(nodes[0].where)
    return "; ".join(parts)


def _short(count: int) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return str(count)


def _thread(root: Frame, wires: dict[tuple[Item, Item], None]) -> None:
    """Join structural operations that follow one another into one box."""
    readers: dict[Item, list[Item]] = {}
    origins: dict[Item, list[Item]] = {}
    for start, end in wires:
        readers.setdefault(start, []).append(end)
        origins.setdefault(end, []).append(start)
    gone: dict[Item, Item] = {}

    def join(frame: Frame) -> None:
        kept: list[Item | Frame] = []
        for part in frame.parts:
            before = kept[-1] if kept else None
            if isinstance(part, Frame):
                join(part)
            elif (
                isinstance(before, Item) and before.kind == part.kind == "structural"
                and origins.get(part, []) in ([before], [x for x, y in gone.items() if y is before][-1:])
                and len(readers.get(([x for x, y in gone.items() if y is before] or [before])[-1], [])) == 1
                and len(before.lines[0]) + len(part.lines[0]) < 40
            ):  # fmt: skip
                gone[part] = before
                before.lines = (f"{before.lines[0]}, {part.lines[0]}",)
                before.width = 5.9 * len(before.lines[0]) + 18
                before.tip, before.label, before.axes = f"{before.tip}\n{part.tip}", part.label, part.axes
                before.room = part.room
                continue
            kept.append(part)
        frame.parts = kept

    join(root)
    for start, end in list(wires):
        again = gone.get(start, start), gone.get(end, end)
        if again != (start, end):
            del wires[start, end]
            if again[0] is not again[1]:
                wires[again] = None


# --- from boxes to shapes ----------------------------------------------------------------------------


def _paint(
    frame: Frame, x: float, y: float, shapes: list[dict[str, Any]], lines: list[dict[str, Any]],
    words: list[dict[str, Any]], bare: bool = False,
) -> None:  # fmt: skip
    if not bare:
        kind = "frame again" if frame.times > 1 else "frame"
        shapes.append({"box": [x, y, frame.width, frame.height, 7], "is": kind, "tip": frame.tip})
        words.append({"words": frame.title, "at": [x + 8, y + 15], "is": "title"})
        if frame.times > 1:
            words.append({"words": f"× {frame.times}", "at": [x + frame.width - 30, y + 15], "is": "times"})
    for value, points in frame.ways:
        lines += _bundle([(a + x, b + y) for a, b in points], value.axes)
    for part in frame.parts:
        if isinstance(part, Frame):
            _paint(part, x + part.x, y + part.y, shapes, lines, words)
            continue
        left, top = x + part.x, y + part.y
        middle = left + part.width / 2
        corner = 11 if part.kind in ("join", "structural", "input") else 4
        shapes.append({"box": [left, top, part.width, part.height, corner], "is": part.kind, "tip": part.tip})
        for i, line in enumerate(part.lines):
            weight = (
                "onink"
                if part.kind == "input"
                else "name"
                if i == 0 and part.named
                else "soft"
                if i
                else "plain"
            )
            words.append({"words": line, "at": [middle, top + 16 + 14 * i], "is": f"mid {weight}"})
        if part.label and part.kind != "structural":
            at = [middle + 3 + 1.5 * len(part.axes), top + part.height + 13]
            words.append({"words": part.label, "at": at, "is": "shape"})


def _bundle(points: Sequence[tuple[float, float]], axes: Sequence[bool]) -> list[dict[str, Any]]:
    """Parallel wires, one an axis; a scalar has one as well."""
    found = []
    wires = list(axes) or [False]
    for i, batch in enumerate(wires):
        shift = 3 * (i - (len(wires) - 1) / 2)
        (x, y), *rest = points
        path = [f"M{x + shift:.1f} {y:.1f}"]
        for a, b in rest:
            if abs(a - x) < 0.5:
                path.append(f"L{a + shift:.1f} {b:.1f}")
            else:  # straight down past the shape's words, then over
                y = min(y + 15, b - 18) if b - y > 30 else y
                half = (y + b) / 2
                path.append(f"L{x + shift:.1f} {y:.1f}")
                path.append(f"C{x + shift:.1f} {half:.1f} {a + shift:.1f} {half:.1f} {a + shift:.1f} {b:.1f}")
            x, y = a, b
        found.append({"line": "".join(path), "is": "batch" if batch else "axis"})
    return found


__all__ = ["figure_of", "levels", "wiring", "wiring_figure", "wiring_levels"]
