"""Templates and files of the pages; all text is escaped by the templates."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import quote, urlencode

import jinja2
from markupsafe import Markup, escape

from microtome.drawing import STYLE
from microtome.report.html import environment, library, own

TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}


@cache
def statics() -> dict[str, tuple[bytes, str]]:
    """Every file that is served, by name: content and media type. There is no way from an address to a path."""
    texts = {
        "lab.css": own("report.css") + own("atlas.css") + STYLE + _static("lab.css"),
        "lab.js": _static("lab.js"),
        "examples.js": _static("examples.js"),
        "draw.js": own("draw.js"),
        "atlas.js": own("atlas.js"),
        "vega.js": library(),
        "icon.svg": _static("icon.svg"),
    }
    return {name: (text.encode(), TYPES[name.rsplit(".", 1)[-1]]) for name, text in texts.items()}


@cache
def version() -> str:
    """Changes with any served file, so that browsers may keep each for good."""
    found = hashlib.sha256()
    for content, _ in statics().values():
        found.update(content)
    return found.hexdigest()[:12]


@cache
def templates() -> jinja2.Environment:
    """The report's templates and ours."""
    made = environment(jinja2.FunctionLoader(_template))
    made.filters["part"] = lambda text: quote(str(text), safe="")
    made.filters["path"] = lambda text: quote(str(text), safe="/")
    made.filters["when"] = when
    made.filters["breaks"] = breaks
    made.filters["list_of"] = lambda record, keys: [record[key] for key in keys]
    made.globals["query"] = query
    made.globals["version"] = version
    return made


def page(name: str, context: dict[str, Any]) -> str:
    """Render one page, or only its own part when ``bare``."""
    return templates().get_template(name).render(context)


def query(current: dict[str, Any], **changes: Any) -> str:
    """A query string: the current one with changes; what is empty is left out."""
    chosen = {key: value for key, value in (current | changes).items() if value not in ("", None, 0, [])}
    return "?" + urlencode(chosen, doseq=True)


def breaks(name: str) -> Markup:
    """A long name that may go on in a new line after its dots and underscores."""
    return Markup(re.sub(r"(?<=[._])(?=\w)", "<wbr>", str(escape(name))))


def when(text: str) -> str:
    """A time of the store as people write it."""
    return str(text)[:16].replace("T", " ")


def _template(name: str) -> str | None:
    found = files("microtome.web").joinpath("templates", name)
    return found.read_text(encoding="utf-8") if found.is_file() else None


def _static(name: str) -> str:
    return files("microtome.web").joinpath("static", name).read_text(encoding="utf-8")
