"""Ask a subject for folds without an instrument of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from microtome.finding import Finding, Quantity
from microtome.instrument import Asking, Instrument
from microtome.passes import Run
from microtome.subject import Subject


@dataclass(frozen=True, kw_only=True)
class Ask(Instrument):
    """What comes back when this is asked for?

    ``asked`` is a list of rounds; the results go into ``answers``.
    """

    asked: Any = ()
    answers: Any = None

    def examine(self, subject: Subject) -> Asking:
        for one in self.asked:
            self.answers.append((yield one))
        return Finding(headline="rounds", quantities={"rounds": Quantity(value=len(self.asked))})


class Failed(Exception):
    """The finding was not measured; its text is ``status: reason``."""


def read(subject: Subject, *asked: Any, size: int | None = None, **options: Any) -> Any:
    """The results of these folds, one round an argument (the only one when there is one).

    Args:
        size: rows in a slice.
    """
    return read_many(subject, {"ask": asked}, size=size, **options)["ask"]


def read_many(
    subject: Subject, rounds: dict[str, Any], size: int | None = None, **options: Any
) -> dict[str, Any]:
    """Several askers in one run."""
    askers = {name: Ask(asked=asked, answers=[]) for name, asked in rounds.items()}
    options.setdefault("budget", 1 << 30)
    run = Run(subject, askers, **options)
    if size is not None:
        run._limit = size
    findings = run.execute()
    for finding in findings.values():
        if finding.status != "measured":
            raise Failed(f"{finding.status}: {finding.reason}")
    answers = {name: asker.answers for name, asker in askers.items()}
    return {name: a[0] if len(a) == 1 else a for name, a in answers.items()}
