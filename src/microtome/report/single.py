"""Single examples: every array that has an entry for one, brought together by the example's id.

A finding speaks of examples where it has an array "rows" of ids. Arrays as long as "rows" have an entry for each:
numbers one can sort by, pictures ("thumbnails"), maps over the input ("maps"), neighbours. The finding that also has
"labels" and "answers" says how each was answered.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup

from microtome.figures import png, red_blue
from microtome.finding import Examination, Finding, format_number
from microtome.report import graph_drawing, marks

Arrays = Mapping[str, np.ndarray]
MOST_TOKENS = 400
MAPS = (("rows", "maps", ""), ("explained", "for the answer", "for the answer instead of the label"))
"""Arrays with ids and with a map for each, and what the maps are; a method's own maps need no title."""
RANKED = {
    # What comes first when one looks for trouble: large or small.
    "loss": True, "confidence": False, "margin": False, "foreign neighbours": True, "change that mends": False,
    "distance to otherwise": False, "breaking strength": False,
}  # fmt: skip


SAYS = {
    "confidence": "probability it gives its answer",
    "loss": "what training makes small; for classes, minus the logarithm of the label's probability (nat)",
    "margin": "score of the label less the largest other; below 0 it is answered wrongly",
    "foreign neighbours": "share of the examples nearest to it in the features that have another label",
    "distance to otherwise": "in the features, to the nearest example that is answered otherwise",
    "change that mends": "length of the shortest change of the input that would mend it, were the network linear",
}
"""What the numbers of single examples mean, in a line."""


@dataclass
class Records:
    """What is known of the examples of one examination."""

    rows: np.ndarray
    """[n] ids, ascending."""
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    """Of the finding that tells how each was answered, in the order of ``rows``."""
    sorts: dict[str, np.ndarray] = field(default_factory=dict)
    """Name -> [n] float64; NaN where an example was not measured."""
    source: str = ""
    words: dict[int, str] = field(default_factory=dict)
    """Token -> text, where that is known."""
    says: dict[str, str] = field(default_factory=dict)
    """Name of a number -> what it means, in a line."""
    own: list[str] = field(default_factory=list)
    """Names of the numbers that say how it was answered; the others are other instruments'."""
    down: dict[str, bool] = field(default_factory=lambda: dict(RANKED))
    """Name of a number -> whether large ones come first when one looks for trouble."""

    def place(self, row: int) -> int | None:
        """Where an example is, or None."""
        at = int(np.searchsorted(self.rows, row))
        return at if at < len(self.rows) and self.rows[at] == row else None

    @property
    def wrong(self) -> np.ndarray | None:
        """[n] whether the answer is not the label."""
        if "labels" not in self.arrays:
            return None
        wrong: np.ndarray = self.arrays["labels"] != self.arrays["answers"]
        return wrong


def records(exam: Examination, read: Mapping[str, Arrays]) -> Records:
    """Bring together what findings say of single examples.

    Args:
        read: finding -> its arrays with values; findings whose arrays are damaged are absent.
    """
    spoken = [(f, a) for f in exam if (a := read.get(f.instrument)) and _ids(a) is not None]
    told = [
        (f, a)
        for f, a in spoken
        if all(k in a and _each(a, k) and a[k].dtype.kind in "iub" for k in ("labels", "answers"))
    ]
    if told:
        f, a = told[0]
        ids, order = np.unique(a["rows"], return_index=True)
        kept = {k: v[order] for k, v in a.items() if v.ndim and len(v) == len(a["rows"])}
        found = Records(ids, kept, source=f.instrument)
        table = f.tables.get("vocabulary")
        if table is not None and table.columns == ("token", "text"):
            found.words = {row[0]: str(row[1]) for row in table.rows if isinstance(row[0], int)}
        top = kept.get("probabilities")
        if top is not None and top.ndim == 2 and top.shape[1]:
            first = top[:, 0].astype(np.float64)
            found.sorts["confidence"] = np.where(np.isfinite(first), first, np.nan)
            found.says["confidence"] = SAYS["confidence"]
            found.own.append("confidence")
    elif spoken:
        found = Records(np.unique(np.concatenate([a["rows"] for _, a in spoken])))
    else:
        return Records(np.zeros(0, np.int64))
    for f, a in spoken:
        for name, values in a.items():
            if name in ("rows", "labels", "answers") or not _each(a, name) or values.dtype.kind != "f":
                continue
            bare = (f.headline if name == "samples" else name).replace("_", " ")
            method = f.instrument.split("/")[-1].replace("_", " ")
            label = bare if f.instrument == found.source or bare == method else f"{method}: {bare}"
            column = np.full(len(found.rows), np.nan)
            places = np.searchsorted(found.rows, a["rows"]).clip(0, len(found.rows) - 1)
            there = found.rows[places] == a["rows"]
            known = _known(name, values).astype(np.float64)
            column[places[there]] = np.where(np.isfinite(known), known, np.nan)[there]
            found.sorts[label] = column
            found.own += [label] if f.instrument == found.source else []
            found.says[label] = SAYS.get(label, "") if f.instrument == found.source else f.question
            quantity = f.quantities.get(f.headline if name == "samples" else name)
            if bare in RANKED:
                found.down.setdefault(label, RANKED[bare])
            elif quantity and quantity.better:
                found.down.setdefault(label, quantity.better == "lower")
    _mends(found, told)
    return found


def _mends(found: Records, told: Sequence[tuple[Finding, Arrays]]) -> None:
    """Numbers of the explained few alone."""
    for _f, a in told[:1]:
        few, values = a.get("explained"), a.get("change that mends")
        if few is not None and values is not None and few.shape == values.shape:
            column = np.full(len(found.rows), np.nan)
            for row, value in zip(few.tolist(), values.tolist(), strict=True):
                at = found.place(row)
                if at is not None and np.isfinite(value):
                    column[at] = value
            found.sorts["change that mends"] = column
            found.says["change that mends"] = SAYS["change that mends"]
            found.own.append("change that mends")


def _known(name: str, values: np.ndarray) -> np.ndarray:
    """NaN where an array says by a negative number that there is none: a strength that broke nothing."""
    return np.where(values < 0, np.nan, values) if name == "breaking_strength" else values


def _text(value: float) -> str:
    return format_number(value) if np.isfinite(value) else "–"


def _ids(a: Arrays) -> np.ndarray | None:
    rows = a.get("rows")
    return rows if rows is not None and rows.ndim == 1 and rows.size and rows.dtype.kind in "iu" else None


def _each(a: Arrays, name: str) -> bool:
    return a[name].ndim == 1 and len(a[name]) == len(a["rows"])


def order(found: Records, sort: str, down: bool, label: str, answer: str, wrong: bool) -> np.ndarray:
    """Places of the examples that fit, in the order asked for; those without the number come last."""
    fits = np.ones(len(found.rows), bool)
    if found.wrong is not None:
        for text, name in ((label, "labels"), (answer, "answers")):
            if text.lstrip("-").isdigit() and len(text) < 12:
                fits &= found.arrays[name] == int(text)
        if wrong:
            fits &= found.wrong
    places = fits.nonzero()[0]
    column = found.sorts.get(sort)
    if column is None:
        return places
    values = column[places]
    keys = np.where(np.isnan(values), np.inf, -values if down else values)
    sorted_: np.ndarray = places[np.argsort(keys, kind="stable")]
    return sorted_


def cells(found: Records, places: Sequence[int], sort: str) -> list[dict[str, Any]]:
    """What a grid shows of these examples."""
    wrong, column = found.wrong, found.sorts.get(sort)
    made = []
    for at in places:
        cell: dict[str, Any] = {"id": int(found.rows[at])}
        if wrong is not None:
            label, answer = int(found.arrays["labels"][at]), int(found.arrays["answers"][at])
            cell |= {"label": label, "answer": answer, "wrong": bool(wrong[at])}
        if column is not None:
            cell["value"] = _text(float(column[at]))
        image = picture(found, at)
        if image:
            cell["image"] = image
        else:
            cell["text"] = prose(tokens(found, at))[:300]
        made.append(cell)
    return made


def picture(found: Records, at: int) -> str:
    """The thumbnail or the drawing of a graph as a data URL, or nothing."""
    graphs = found.arrays.get("graphs")
    if graphs is not None and graphs.ndim == 2:
        return graph_drawing.thumbnail(graphs[at], answered(found, at))
    images = found.arrays.get("thumbnails")
    if (
        images is None
        or images.dtype != np.uint8
        or images.ndim != 4
        or images.shape[3] not in (1, 3)
        or not images.size
    ):
        return ""
    image = images[at]
    return _url(image[:, :, 0] if image.shape[2] == 1 else image)


def answered(found: Records, at: int) -> int | None:
    """The class it was given, where that is known."""
    return int(found.arrays["answers"][at]) if "answers" in found.arrays else None


def graph(found: Records, at: int) -> tuple[Markup, str]:
    """The example as a graph, and that in words; both empty where it is none."""
    graphs = found.arrays.get("graphs")
    if graphs is None or graphs.ndim != 2:
        return Markup(""), ""
    return graph_drawing.portrait(graphs[at], answered(found, at))


def tokens(found: Records, at: int) -> list[str]:
    """The words of a text example, or the numbers of a short vector, or nothing."""
    ids = found.arrays.get("tokens")
    if ids is not None and ids.ndim == 2:
        return [found.words.get(t, str(t)) for t in ids[at].tolist() if t >= 0][:MOST_TOKENS]
    values = found.arrays.get("inputs")
    return [_text(float(v)) for v in values[at][:64]] if values is not None and values.ndim == 2 else []


def padding(words: Sequence[str]) -> int:
    """How many equal words stand at the end, where there are at least three: what fills a text up to its length."""
    count = next((i for i, word in enumerate(reversed(words)) if word != words[-1]), len(words))
    return count if count >= 3 else 0


def prose(words: Sequence[str]) -> str:
    """Words as a text; what fills it up is said once."""
    filled = padding(words)
    told = [*words[: len(words) - filled], *([f"{words[-1]} ×{filled}"] if filled else [])]
    return " ".join(told)


def _url(pixels: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(png(np.ascontiguousarray(pixels), level=1)).decode(
        "ascii"
    )


def heat(values: np.ndarray) -> tuple[str, float]:
    """A map [h, w] as a picture, blue below 0 to red above, and the magnitude of its strongest colour."""
    finite = np.nan_to_num(np.asarray(values, np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    top = float(np.abs(finite).max(initial=0.0))
    share = 0.5 + 0.5 * finite / top if top else np.full(finite.shape, 0.5)
    return _url((255 * red_blue(share)).round().astype(np.uint8)), top


def parts(values: np.ndarray, words: Sequence[str], said: str) -> Any:
    """A map over single parts: words in the colour of their relevance, or bars."""
    flat = np.nan_to_num(np.asarray(values, np.float64).reshape(-1))
    if not words:
        return marks.bars(flat, said)
    filled = padding(words)
    if filled and flat.size >= len(words):
        # What fills the text up counts as one; a map may go on where no text is.
        flat = flat[: len(words)]
        words = [*words[:-filled], f"{words[-1]} ×{filled}"]
        flat = np.append(flat[:-filled], flat[-filled:].sum())
    top = float(np.abs(flat).max(initial=0.0)) or 1.0
    shown = list(zip(flat.tolist(), words, strict=False))
    spans = [
        # The number is there for those who see no colours, and is read out.
        Markup('<span class="w{}" title="{}">{}<span class="hidden"> ({})</span></span>').format(
            round(5 * v / top) + 5, said_ := f"{v / top:+.2f}", w, said_
        )
        for v, w in shown
    ]
    ranked = sorted(enumerate(shown), key=lambda each: -abs(each[1][0]))
    told = [
        f"{sign}: {', '.join(f'{w} ({v / top:+.2f})' for _, (v, w) in chosen[:5])}"
        for sign, chosen in (
            ("most for", [each for each in ranked if each[1][0] > 0]),
            ("most against", [each for each in ranked if each[1][0] < 0]),
        )
        if chosen
    ]
    text = Markup('<p class="words" role="group" aria-label="{}">{}</p>').format(
        said, Markup(" ").join(spans)
    )
    return text + Markup('<p class="quiet">{}.</p>').format("; ".join(told) or "Nothing speaks either way")


def maps(
    exam: Examination, read: Mapping[str, Arrays], row: int, words: Sequence[str]
) -> list[dict[str, Any]]:
    """Every map over this example's input, with what judged it."""
    made = []
    for f in exam:
        a = read.get(f.instrument, {})
        for ids, values, title in MAPS:
            if ids not in a or values not in a or a[ids].ndim != 1 or len(a[values]) != len(a[ids]):
                continue
            places = (a[ids] == row).nonzero()[0]
            if not places.size:
                continue
            value = a[values][places[0]]
            shown: dict[str, Any] = {"finding": f.instrument, "title": title, "question": f.question}
            if value.ndim == 2 and min(value.shape) > 1:
                shown["image"], top = heat(value)
                shown["top"] = format_number(top)
            elif value.ndim >= 1:
                shown["parts"] = parts(value, words, f"{f.instrument}: relevance of each part")
            shown["judges"] = _judges(f, row) if ids == "rows" else []
            shown["grade"] = f.grade
            made.append(shown)
    return made


def _judges(f: Finding, row: int) -> list[tuple[str, Any]]:
    """Entries of tables whose row is about this example."""
    found: dict[str, Any] = {}
    for table in f.tables.values():
        if "example" in table.columns:
            at = table.columns.index("example")
            for line in table.rows:
                if line[at] == row:
                    found |= {
                        c: v
                        for c, v in zip(table.columns, line, strict=True)
                        if c not in ("example", "class")
                    }
    return list(found.items())


def numbers(exam: Examination, read: Mapping[str, Arrays], row: int, source: str) -> Iterator[dict[str, Any]]:
    """Single numbers other findings have for this example, and changed inputs they found."""
    for f in exam:
        a = read.get(f.instrument, {})
        ids = _ids(a)
        if ids is None or f.instrument == source or "answers then" in a:
            continue
        places = (ids == row).nonzero()[0]
        if not places.size:
            continue
        at = int(places[0])
        told = [
            (f.headline if name == "samples" else name.replace("_", " "), format_number(float(a[name][at])))
            for name in a
            if name != "rows" and _each(a, name) and a[name].dtype.kind == "f"
            if np.isfinite(_known(name, a[name])[at])
        ]
        witness = a.get("witness")
        image = ""
        if (
            witness is not None
            and witness.ndim == 4
            and len(witness) == len(ids)
            and witness.shape[1] in (1, 3)
        ):
            pixels = np.nan_to_num(witness[at].astype(np.float64))
            span = float(np.ptp(pixels))
            if span:
                scaled = (255 * (pixels - pixels.min()) / span).round().astype(np.uint8).transpose(1, 2, 0)
                image = _url(scaled[:, :, 0] if scaled.shape[2] == 1 else scaled)
        judged = [] if "maps" in a else _judges(f, row)
        yield {
            "finding": f.instrument,
            "question": f.question,
            "told": told,
            "image": image,
            "judges": judged,
        }


def reasons(found: Records, at: int, exam: Examination) -> list[str]:
    """Sentences about why an example was answered as it was: what it resembles, how often that happens, how near."""
    a = found.arrays
    if found.wrong is None:
        return []
    label, answer = int(a["labels"][at]), int(a["answers"][at])
    said = []
    near = neighbours(found, at)
    if near:
        votes = Counter(each["label"] for each in near)
        counts = ", ".join(f"{n} of label {c}" for c, n in votes.most_common())
        said.append(f"Its {len(near)} nearest examples in the features the classifier reads: {counts}.")
        if label != answer:
            mine, theirs = votes.get(label, 0), votes.get(answer, 0)
            if theirs > mine:
                said.append(
                    f"It lies among examples of {answer}: to the network it looks like one, "
                    f"or its label {label} is doubtful."
                )
            elif mine > theirs:
                said.append(
                    f"It lies among examples of its own label {label}: the features are those of a {label}, "
                    "and the last step decides otherwise."
                )
            else:
                said.append("It lies between both classes.")
    if label != answer:
        same = int(((a["labels"] == label) & (a["answers"] == answer)).sum())
        of = int((a["labels"] == label).sum())
        said.append(
            f"Of the {of} examples labelled {label} that are kept here, "
            f"{same} {'is' if same == 1 else 'are'} answered {answer}."
        )
    if "probabilities" in a and a["probabilities"].ndim == 2:
        sure = float(a["probabilities"][at, 0])
        surer = float((a["probabilities"][:, 0] > sure).mean())
        told = f"{surer:.0%} of all answers are surer" if surer >= 0.005 else "hardly any answer is surer"
        said.append(f"It is {sure:.1%} sure of {answer}; {told}.")
    column = found.sorts.get("change that mends")
    if column is not None and not np.isnan(column[at]):
        length = format_number(float(column[at]))
        said.append(
            f"If the network were linear here, a change of length {length} of the input would mend it."
        )
    return said


def neighbours(found: Records, at: int) -> list[dict[str, Any]]:
    """The nearest examples in feature space, nearest first."""
    near, far = found.arrays.get("neighbours"), found.arrays.get("neighbour distances")
    if near is None or near.ndim != 2:
        return []
    distances = far[at].tolist() if far is not None and far.shape == near.shape else [None] * near.shape[1]
    return [
        cell for row, d in zip(near[at].tolist(), distances, strict=True) if (cell := _near(found, row, d))
    ]


def otherwise(found: Records, at: int) -> dict[str, Any] | None:
    """The nearest example that is answered otherwise: what would have had to be different."""
    near, far = found.arrays.get("nearest otherwise"), found.arrays.get("distance to otherwise")
    if near is None or near.ndim != 1:
        return None
    return _near(found, int(near[at]), float(far[at]) if far is not None else None)


def counterfactual(
    found: Records, exam: Examination, read: Mapping[str, Arrays], row: int
) -> dict[str, Any] | None:
    """The smallest change of this example that was found to change its answer: arrays "samples" and "answers then"."""
    for f in exam:
        a = read.get(f.instrument, {})
        ids = _ids(a)
        if ids is None or not all(k in a and _each(a, k) for k in ("samples", "answers then")):
            continue
        places = (ids == row).nonzero()[0]
        if not places.size or a["answers then"].dtype.kind not in "iu":
            continue
        at = int(places[0])
        length = float(a["samples"][at])
        made: dict[str, Any] = {
            "finding": f.instrument, "answer": int(a["answers then"][at]), "distance": _text(length),
            "real": None, "image": "", "heat": "", "numbers": [],
        }  # fmt: skip
        real, ids_real = a.get("distance to a real one"), a.get("nearest real")
        if (
            real is not None
            and ids_real is not None
            and len(real) == len(ids_real) == len(ids)
            and ids_real[at] >= 0
        ):
            far = float(real[at])
            made["real"] = {"id": int(ids_real[at]), "distance": _text(far)}
            made["real"]["share"] = f"{length / far:.0%}" if far > 0 else ""
        return made | _changed(found, row, a.get("changed"), at)
    return None


def _changed(found: Records, row: int, changed: np.ndarray | None, at: int) -> dict[str, Any]:
    """The changed input and what changed, where both are kept: pictures, or the numbers that change most."""
    place = found.place(row)
    if changed is None or place is None or at >= len(changed):
        return {}
    before = found.arrays.get("thumbnails" if changed.ndim == 4 else "inputs")
    if before is None or before.ndim != changed.ndim or before.shape[1:] != changed.shape[1:]:
        return {}
    new, old = np.nan_to_num(changed[at].astype(np.float64)), before[place].astype(np.float64)
    if new.ndim == 1:
        order = np.argsort(-np.abs(new - old), kind="stable")[:8]
        return {
            "numbers": [
                (int(i), _text(float(old[i])), _text(float(new[i]))) for i in order if new[i] != old[i]
            ]
        }
    if new.ndim != 3 or new.shape[2] not in (1, 3):
        return {}
    pixels = new.clip(0, 255).round().astype(np.uint8)
    shown, top = heat((new - old).mean(2))
    return {
        "image": _url(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels),
        "heat": shown,
        "top": f"{top / 255:.0%}",
    }


def _near(found: Records, row: int, distance: float | None) -> dict[str, Any] | None:
    at = found.place(row)
    if row < 0 or at is None:
        return None
    return cells(found, [at], "")[0] | {"distance": "" if distance is None else _text(distance)}
