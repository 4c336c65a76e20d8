"""``--fail-if``: conditions on findings, in a language of their own. Nothing is ever evaluated as code.

    condition := clause {"or" clause}
    clause    := term {"and" term}
    term      := "(" condition ")" | NAME[.QUANTITY] OP NUMBER
    OP        := > >= < <= == !=

NAME is ``room/method``, or the method alone where that is unambiguous; without a quantity the headline
number is meant. A quantity whose name holds other characters is quoted: ``accuracy."top 5" < 0.9``.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from microtome.errors import UsageError, nearest

if TYPE_CHECKING:
    from microtome.finding import Examination

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w/]))
      | (?P<compare>>=|<=|==|!=|>|<)
      | (?P<bracket>[()])
      | (?P<name>[A-Za-z_][\w/-]*)(?:\.(?:"(?P<quoted>[^"]*)"|(?P<quantity>\w[\w/@%-]*)))?
    )""",
    re.VERBOSE,
)

COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}


@dataclass(frozen=True)
class Term:
    """One comparison."""

    name: str
    quantity: str
    compare: str
    number: float

    def text(self) -> str:
        """As it was written."""
        return f"{self.name}{'.' + self.quantity if self.quantity else ''} {self.compare} {self.number:g}"


@dataclass(frozen=True)
class All:
    """``a and b``."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Any:
    """``a or b``."""

    parts: tuple[Node, ...]


Node = Term | All | Any


@dataclass(frozen=True)
class Verdict:
    """Whether the condition for failing is met, and why."""

    failed: bool
    reasons: tuple[str, ...]


def parse(text: str) -> Node:
    """Read a condition.

    Raises:
        UsageError: MT112, saying what was expected where.
    """
    parser = _Parser(text)
    node = parser.condition()
    parser.end()
    return node


def terms(node: Node) -> Iterator[Term]:
    """Every comparison in a condition."""
    if isinstance(node, Term):
        yield node
    else:
        for part in node.parts:
            yield from terms(part)


def full_name(name: str, known: Iterable[str]) -> str:
    """Complete an instrument's name.

    Raises:
        UsageError: MT113 for an unknown or ambiguous name, with the nearest ones.
    """
    names = list(known)
    if name in names:
        return name
    matches = [candidate for candidate in names if candidate.rsplit("/", 1)[-1] == name]
    if len(matches) == 1:
        return matches[0]
    problem = "several instruments are" if matches else "no instrument of this run is"
    fix = f"write one of {', '.join(matches)}" if matches else nearest(name, names)
    raise UsageError("MT113", f"{problem} called '{name}'", fix=fix or "`microtome plan` lists them")


def check(node: Node, exam: Examination) -> Verdict:
    """Judge an examination.

    A term whose instrument has measured nothing (refused, failed, missing) fails the whole condition: a check
    that was asked for and could not be made must not pass.

    Raises:
        UsageError: MT113 or MT114 for an unknown instrument or quantity.
    """
    unreadable: list[str] = []
    met: list[str] = []

    def holds(part: Node) -> bool:
        if isinstance(part, All):
            return all([holds(p) for p in part.parts])  # a list: every term is looked at
        if isinstance(part, Any):
            return any([holds(p) for p in part.parts])
        finding = exam.findings[full_name(part.name, exam.findings)]
        if finding.status != "measured":
            unreadable.append(f"{part.text()}: not measured, {finding.status} ({finding.reason})")
            return True
        key = part.quantity or finding.headline
        if key not in finding.quantities:
            raise UsageError(
                "MT114",
                f"{part.name} has no quantity '{key}'",
                fix=nearest(key, finding.quantities) or f"it has {', '.join(finding.quantities)}",
            )
        quantity = finding.quantities[key]
        result = COMPARE[part.compare](quantity.value, part.number)
        if result:
            met.append(f"{part.text()}: {key} is {quantity.text()}")
        return result

    failed = holds(node)
    if unreadable:
        return Verdict(True, tuple(unreadable + (met if failed else [])))
    return Verdict(failed, tuple(met) if failed else ())


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    def condition(self) -> Node:
        parts = [self.clause()]
        while self.word("or"):
            parts.append(self.clause())
        return parts[0] if len(parts) == 1 else Any(tuple(parts))

    def clause(self) -> Node:
        parts = [self.term()]
        while self.word("and"):
            parts.append(self.term())
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def term(self) -> Node:
        found = self.next("an instrument")
        if found["bracket"] == "(":
            inner = self.condition()
            if self.next("')'")["bracket"] != ")":
                raise self.problem("')'")
            return inner
        if not found["name"] or found["name"] in ("and", "or"):
            raise self.problem("an instrument")
        compare = self.next("one of > >= < <= == !=")["compare"]
        if not compare:
            raise self.problem("one of > >= < <= == !=")
        number = self.next("a number")["number"]
        if number is None:
            raise self.problem("a number")
        quantity = found["quantity"] if found["quoted"] is None else found["quoted"]
        return Term(found["name"], quantity or "", compare, float(number))

    def word(self, word: str) -> bool:
        match = _TOKEN.match(self.text, self.position)
        if match is None or match["name"] != word or match["quantity"] is not None:
            return False
        self.position = match.end()
        return True

    def next(self, expected: str) -> re.Match[str]:
        match = _TOKEN.match(self.text, self.position)
        if match is None:
            raise self.problem(expected, at=self.position)
        self.start, self.position = self.position, match.end()
        return match

    def end(self) -> None:
        if self.text[self.position :].strip():
            raise self.problem("'and', 'or' or the end", at=self.position)

    def problem(self, expected: str, at: int | None = None) -> UsageError:
        rest = self.text[self.start if at is None else at :].strip()
        return UsageError(
            "MT112",
            f"the condition '{self.text}' cannot be read: expected {expected} at '{rest or 'its end'}'",
            where="--fail-if",
            fix="write for example 'reliability/calibration > 0.05 or accuracy < 0.9'",
        )

    start = 0
