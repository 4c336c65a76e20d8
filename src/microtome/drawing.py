"""Drawings as plain data: boxes, lines and words, from which an SVG is written.

A figure that is no chart (the wiring of a network) carries ``{"drawing": {...}}`` as its specification. It holds
shapes only, never markup, so that a stored finding can be shown without trusting it: words are escaped, numbers
and class names are checked, and nothing else gets into the SVG.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from microtome.finding import Figure

_CLASS = re.compile(r"[a-z][a-z0-9 -]{0,60}")
_PATH = re.compile(r"[MCLHV0-9 .,-]*")

STYLE = """
.wiring { --wi: #1d2126; --ws: #5a626c; --wp: #fcfbf8; --wf: #f1efe8; --wl: #c9c4b6; --wb: #b9770e; }
.wiring { font: 11px system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; max-width: 100%; height: auto; }
.wiring rect { fill: var(--wp); stroke: var(--wl); }
.wiring text { fill: var(--wi); }
.wiring .name { font-weight: 650; }
.wiring .soft, .wiring .shape { fill: var(--ws); font-size: 10px; }
.wiring .shape, .wiring .title { paint-order: stroke; stroke: var(--wp); stroke-width: 4px; stroke-linejoin: round; }
.wiring .title { font-weight: 650; }
.wiring .mid { text-anchor: middle; }
.wiring .times { font-weight: 700; fill: var(--wb); }
.wiring path { fill: none; stroke: var(--ws); stroke-width: 1.1; }
.wiring path.batch { stroke: var(--wb); stroke-dasharray: 3 2; }
.wiring .frame { fill: var(--wf); fill-opacity: 0.45; }
.wiring .again { stroke-dasharray: 5 3; stroke: var(--wb); stroke-width: 1.5; }
.wiring .linear, .wiring .convolution { fill: #dbe9f9; stroke: #3b7dd8; }
.wiring .norm { fill: #e4efe6; stroke: #4d8a5d; }
.wiring .curve { fill: #fbe7d3; stroke: #d9730d; }
.wiring .product, .wiring .softmax { fill: #ebe4fa; stroke: #7b61c9; }
.wiring .pool { fill: #d9f1ec; stroke: #2a9d8f; }
.wiring .embedding { fill: #f9e1ee; stroke: #c24a8d; }
.wiring .input { fill: var(--wi); stroke: var(--wi); }
.wiring .onink { fill: var(--wp); font-weight: 650; }
.wiring .module { fill: var(--wf); stroke: var(--wi); }
.wiring .structural { fill: var(--wp); stroke-dasharray: 2 2; stroke: var(--ws); }
@media (prefers-color-scheme: dark) {
  .wiring { --wi: #e6e4df; --ws: #a3a9b1; --wp: #15181c; --wf: #242a31; --wl: #464d57; --wb: #f0c465; }
  .wiring .linear, .wiring .convolution { fill: #1c3553; }
  .wiring .norm { fill: #1d3726; }
  .wiring .curve { fill: #4a2d10; }
  .wiring .product, .wiring .softmax { fill: #342a57; }
  .wiring .pool { fill: #123d38; }
  .wiring .embedding { fill: #47203a; }
}
@media print {
  .wiring { --wi: #000; --ws: #444; --wp: #fff; --wf: #f3f3f3; --wl: #bbb; --wb: #7a4f00; }
}
"""


def drawing(
    title: str,
    alternative: str,
    size: tuple[float, float],
    shapes: Sequence[Mapping[str, Any]],
    caption: str = "",
) -> Figure:
    """Make a figure of shapes.

    Args:
        alternative: what it shows, in words, for those who do not see it.
        size: width and height.
        shapes: ``{"box": [x, y, width, height, corner], "is": class, "tip": words}``, ``{"line": path, "is":
            class}``, ``{"words": text, "at": [x, y], "is": class}``, drawn in this order.
    """
    rounded = [_rounded(shape) for shape in shapes]
    plain = {"size": [round(side, 1) for side in size], "alternative": alternative, "shapes": rounded}
    return Figure(title=title, spec={"drawing": plain}, caption=caption)


def _rounded(shape: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: [round(x, 1) for x in value] if isinstance(value, list) else value
        for key, value in shape.items()
    }


def is_drawing(figure: Figure) -> bool:
    """Whether a figure is made of shapes instead of a chart."""
    return isinstance(figure.spec.get("drawing"), Mapping)


def svg(figure: Figure, *, style: bool = True) -> str:
    """Write a drawing as one SVG element, light and dark; self-contained unless the page has :data:`STYLE`.

    A box with ``"of": name`` carries the name as ``data-layer`` and can be reached by keyboard.

    Raises:
        ValueError: when it holds anything but numbers, words, class names and paths.
    """
    found = figure.spec["drawing"]
    width, height = (_number(side) for side in found["size"])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="wiring" role="img" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}"><title>{escape(figure.title)}</title>'
        f"<desc>{escape(str(found['alternative']))}</desc>" + (f"<style>{STYLE}</style>" if style else "")
    ]
    parts += [_element(shape) for shape in found["shapes"]]
    return "".join(parts) + "</svg>"


def _element(shape: Mapping[str, Any]) -> str:
    kind = str(shape.get("is", ""))
    if not _CLASS.fullmatch(kind):
        raise ValueError(f"a drawing has no class {kind!r}")
    if "box" in shape:
        x, y, width, height, corner = (_number(value) for value in shape["box"])
        tip = f"<title>{escape(str(shape['tip']))}</title>" if shape.get("tip") else ""
        name = escape(str(shape.get("of", "")))
        picks = f' data-layer="{name}" tabindex="0" role="button" aria-label="{name}"' if name else ""
        place = f'x="{x}" y="{y}" width="{width}" height="{height}" rx="{corner}"'
        return f'<rect {place} class="{kind}"{picks}>{tip}</rect>'
    if "line" in shape:
        path = str(shape["line"])
        if not _PATH.fullmatch(path):
            raise ValueError("a drawing's line is made of M, L, C, H, V and numbers")
        return f'<path d="{path}" class="{kind}"/>'
    x, y = (_number(value) for value in shape["at"])
    return f'<text x="{x}" y="{y}" class="{kind}">{escape(str(shape["words"]))}</text>'


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"a drawing is made of finite numbers, not {value!r}")
    return round(value, 1)
