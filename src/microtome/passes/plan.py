"""The static plan: what would run, printed as a database prints EXPLAIN. Nothing is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.utils import _pytree as pytree

from microtome.errors import Refusal
from microtome.folds.base import Fold
from microtome.instrument import Instrument
from microtome.passes.groups import Group, make_groups, selection_key
from microtome.passes.memory import row_bytes
from microtome.signals.expression import SLICE_SOURCES, Signal, World
from microtome.subject import Subject


@dataclass(frozen=True)
class WorldLine:
    """One world of one group: what is computed there and who asked."""

    where: str
    signals: tuple[str, ...]
    askers: tuple[str, ...]
    forwards: float
    """Cost in forwards of a slice, by floating-point operations."""


@dataclass(frozen=True)
class GroupPlan:
    """One group of rows in the first round."""

    rows: str
    slices: int
    slice_rows: int
    memory: int
    worlds: tuple[WorldLine, ...]

    def forwards(self) -> float:
        """Forwards of a slice in all worlds."""
        return sum(w.forwards for w in self.worlds)


@dataclass(frozen=True)
class Plan:
    """What the first round computes, who asks again in later rounds, and who refuses."""

    subject: Mapping[str, Any]
    groups: tuple[GroupPlan, ...]
    later: Mapping[str, int]
    """Instrument -> rounds it expects after the first."""
    refusals: Mapping[str, str]
    instruments: tuple[str, ...]
    seconds: float
    """Estimate for the first round, from the probe's forward."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "subject": dict(self.subject),
            "instruments": list(self.instruments),
            "refusals": dict(self.refusals),
            "later_rounds": dict(self.later),
            "seconds_first_round": self.seconds,
            "groups": [
                {
                    "rows": g.rows,
                    "slices": g.slices,
                    "slice_rows": g.slice_rows,
                    "memory_bytes": g.memory,
                    "worlds": [
                        {
                            "where": w.where,
                            "signals": list(w.signals),
                            "asked_by": list(w.askers),
                            "forwards_per_slice": w.forwards,
                        }
                        for w in g.worlds
                    ],
                }
                for g in self.groups
            ],
        }

    def text(self, width: int = 100) -> str:
        """For reading."""
        worlds = sum(len(g.worlds) for g in self.groups)
        lines = [
            f"{self.subject['name']}: {self.subject['task']}, {self.subject['parameters']} parameters, "
            f"{self.subject['examples']} examples",
            *(f"  {sentence}" for sentence in self.subject["inferred"]),
            f"{len(self.instruments)} instruments, {worlds} worlds in round 1, about {self.seconds:.1f} s; "
            f"{len(self.refusals)} refuse",
        ]
        for group in self.groups:
            lines.append(
                f"round 1  {group.rows}  {group.slices} slices of {group.slice_rows} rows  "
                f"~{group.memory / 2**20:.0f} MiB  {group.forwards():.0f} forwards a slice"
            )
            for run in _alike(group.worlds):
                lines.append(_world_line(run, width))
        for name, rounds in self.later.items():
            lines.append(f"rounds 2 to {rounds + 1}  {name}")
        lines += [f"refuses  {name}: {reason}" for name, reason in self.refusals.items()]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text()


def _alike(worlds: tuple[WorldLine, ...]) -> list[list[WorldLine]]:
    """Neighbouring worlds that differ only in where they are (the points of a surface, the strengths of noise)."""
    runs: list[list[WorldLine]] = []
    for world in worlds:
        last = runs[-1][-1] if runs else None
        kind = world.where.split("(", 2)[:2]
        if (
            last
            and (last.signals, last.askers) == (world.signals, world.askers)
            and last.where.split("(", 2)[:2] == kind
        ):
            runs[-1].append(world)
        else:
            runs.append([world])
    return runs


def _world_line(run: list[WorldLine], width: int) -> str:
    first = run[0]
    signals = ", ".join(first.signals[:4]) + (
        f" and {len(first.signals) - 4} more" if len(first.signals) > 4 else ""
    )
    where = first.where or "as it is"
    if len(run) > 1:
        where = f"{len(run)} worlds from {first.where} to {run[-1].where}"
    body = f"  {sum(w.forwards for w in run):6.1f}  {where}: {signals}"
    body = body if len(body) <= width else body[: width - 3] + "..."
    return f"{body}  <- {', '.join(a.split('/')[-1] for a in first.askers)}"


def folds_of(asked: Any) -> list[Fold]:
    """The folds in what an instrument yielded.

    Raises:
        TypeError: when it yielded something else.
    """
    leaves = pytree.tree_leaves(asked)
    for leaf in leaves:
        if not isinstance(leaf, Fold):
            raise TypeError(f"an instrument yields folds, got a {type(leaf).__name__}")
    return leaves


def make_plan(subject: Subject, instruments: Mapping[str, Instrument], budget: int) -> Plan:
    """Ask every instrument for its first folds and lay out the round; the model is not run."""
    refusals: dict[str, str] = {}
    asked: dict[str, list[Fold]] = {}
    later: dict[str, int] = {}
    for name, instrument in instruments.items():
        lacking = instrument.needs.lacks(subject)
        if lacking:
            refusals[name] = lacking
            continue
        generator = instrument.examine(subject)
        try:
            folds = folds_of(next(generator))
            for fold in folds:
                selection_key(subject, fold)
            asked[name] = folds
            rounds = instrument.rounds(subject)
            if rounds > 1:
                later[name] = rounds - 1
        except Refusal as refusal:
            refusals[name] = str(refusal)
        except StopIteration:
            asked[name] = []
        finally:
            generator.close()
    groups = make_groups(subject, (f for folds in asked.values() for f in folds), budget)
    seconds = sum(g.program.cost() * g.count for g in groups) * subject.seconds_per_row
    return Plan(
        subject=subject.describe(),
        groups=tuple(describe_group(subject, g, asked) for g in groups),
        later=later,
        refusals=refusals,
        instruments=tuple(asked),
        seconds=seconds,
    )


def forwards_of(group: Group) -> dict[World, float]:
    """Forwards a slice takes in each world."""
    return {
        world: plan.cost() + sum(float(getattr(t, "cost", 0.0)) for t in world.inputs)
        for world, plan in group.program.worlds.items()
    }


def describe_group(subject: Subject, group: Group, asked: Mapping[str, list[Fold]]) -> GroupPlan:
    """Lay one group out world by world."""
    names: dict[Fold, list[str]] = {}
    for name, folds in asked.items():
        for fold in folds:
            names.setdefault(fold, []).append(name)
    sources: dict[World, tuple[dict[Signal, None], dict[str, None]]] = {}
    for fold in group.folds:
        for signal in fold.signals:
            for found in signal.walk():
                if found.kind not in ("derived", *SLICE_SOURCES):
                    there, who = sources.setdefault(found.world, ({}, {}))
                    who.update(dict.fromkeys(names.get(fold, ())))
                    if found.kind not in ("task", "feature_dimension"):
                        there[found] = None
    lines = []
    for world, cost in forwards_of(group).items():
        there, askers = sources.get(world, ({}, {}))
        signals = dict.fromkeys(s.text().replace(world.text(), "") for s in there)
        if signals or cost:
            lines.append(WorldLine(world.text(), tuple(signals), tuple(askers), cost))
    size = min(group.size, group.count)
    return GroupPlan(
        rows=group.label(subject.examples),
        slices=-(-group.count // max(group.size, 1)),
        slice_rows=size,
        memory=int(size * row_bytes(subject, group.program)),
        worlds=tuple(lines),
    )
