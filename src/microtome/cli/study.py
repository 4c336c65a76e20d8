"""``microtome study list|run|show``: experiments that test a paper's claim."""

from __future__ import annotations

import json as json_text
import os
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from microtome.cli.output import align, say, show, show_json
from microtome.cli.workers import apart
from microtome.errors import UsageError, nearest

study = App(name="study", help="Run experiments that test a paper's claim, and show their verdicts.")

Json = Annotated[bool, Parameter(help="Print JSON, alone on stdout.")]


@study.command(name="list")
def list_studies(
    *, room: Annotated[str | None, Parameter(help="Only of this room.")] = None, json: Json = False
) -> int:
    """Show every study and the verdict of its recorded run."""
    from microtome.study import records, study_names

    rooms = {
        slug: module.split(".")[2] if module.startswith("microtome.") else "plug-in"
        for slug, module in study_names().items()
    }
    if room is not None and room not in rooms.values():
        known = sorted(set(rooms.values()))
        raise UsageError(
            "MT115", f"no room with studies is called '{room}'", fix=nearest(room, known) or ", ".join(known)
        )
    kept = records()
    chosen = [slug for slug in sorted(rooms, key=lambda s: (rooms[s], s)) if room in (None, rooms[slug])]
    rows: list[dict[str, Any]] = [
        {
            "slug": slug,
            "room": rooms[slug],
            "verdict": kept[slug]["verdict"] if slug in kept else None,
            "seconds": kept[slug]["seconds"] if slug in kept else None,
            "decided by": kept[slug]["decided_by"] if slug in kept else None,
        }
        for slug in chosen
    ]
    if json:
        show_json(rows)
    else:
        lines = [
            (r["room"], r["slug"], r["verdict"] or "not run", _seconds(r["seconds"]), r["decided by"] or "")
            for r in rows
        ]
        show(
            align(
                [tuple(map(str, line)) for line in lines],
                header=("room", "study", "verdict", "time", "decided by"),
            )
        )
    counts = Counter(r["verdict"] or "not run" for r in rows)
    say(f"{len(rows)} studies: " + ", ".join(f"{n} {verdict}" for verdict, n in counts.most_common()))
    return 0


@study.command(name="show")
def show_study(
    slug: Annotated[str, Parameter(help="The paper's name, as `microtome study list` prints it.")],
    /,
    *,
    json: Json = False,
) -> int:
    """Show one study: hypothesis, control, threshold, and what its recorded run measured."""
    from microtome.study import records, study_names

    names = study_names()
    if slug not in names:
        raise UsageError(
            "MT420", f"no study is called '{slug}'", fix=nearest(slug, names) or "microtome study list"
        )
    kept = records().get(slug)
    if kept is None:
        from microtome.study import study as load

        declared = load(slug)
        kept = {key: getattr(declared, key) for key in ("paper", "claim", "null", "control", "threshold")}
    if json:
        show_json(kept)
        return 0
    lines = [
        f"{key:10} {kept[key]}" for key in ("paper", "claim", "null", "control", "threshold") if kept.get(key)
    ]
    if "verdict" in kept:
        lines += [f"{'verdict':10} {kept['verdict']}: {kept['decided_by']}"]
        lines += [f"{'condition':10} {each}" for each in kept.get("conditions", ())]
        for each in kept.get("repeats", ()):
            lines.append(f"{'repeated':10} seed {each['seed']}: {each['verdict']}: {each['decided_by']}")
        took = f"{_seconds(kept['seconds'])}, {kept['threads']} thread(s)"
        made = f"{kept['date']}, {took}, torch {kept['versions']['torch']}"
        lines += [f"{'run':10} {kept['command']} ({made})", ""]
        lines += [
            align(
                [(name, f"{value:.5g}") for name, value in kept["numbers"].items()], header=("measured", "")
            )
        ]
    else:
        lines.append(f"{'verdict':10} none: `microtome study run {slug} --scale full` measures it")
    show("\n".join(lines))
    return 0


@study.command(name="run")
def run_studies(
    *slugs: Annotated[str, Parameter(help="Papers' names; none with --all.")],
    everything: Annotated[bool, Parameter(name="--all", help="Run every study.")] = False,
    scale: Annotated[
        Literal["smoke", "full"],
        Parameter(help="smoke: seconds, decides nothing; full: minutes, gives the verdict."),
    ] = "smoke",
    jobs: Annotated[
        int | None,
        Parameter(
            help="Studies at a time, each in a process of its own. By default as many as there are cores at the small "
            "scale, one with all cores at the full."
        ),
    ] = None,
    seed: Annotated[int, Parameter(help="Shift every seed of studies that can be repeated with others.")] = 0,
    repeat: Annotated[
        int, Parameter(help="Runs with seeds SEED, SEED + 1, ...: is the verdict the same?")
    ] = 1,
    record: Annotated[
        bool, Parameter(help="Keep full runs where the atlas and `microtome papers` read them.")
    ] = False,
    json: Json = False,
) -> int:
    """Run studies. Exit status 4 if one failed to run; what it finds, also against the claim, is no failure."""
    from microtome.study import study_names

    names = study_names()
    for slug in slugs:
        if slug not in names:
            raise UsageError(
                "MT420", f"no study is called '{slug}'", fix=nearest(slug, names) or "microtome study list"
            )
    chosen = sorted(names) if everything else list(dict.fromkeys(slugs))
    if not chosen:
        raise UsageError(
            "MT423", "no study is named", fix="name some, or give --all; `microtome study list` shows them"
        )
    if (jobs is not None and jobs < 1) or repeat < 1:
        raise UsageError("MT423", "--jobs and --repeat are at least 1", fix="leave them out")
    if record and (scale != "full" or seed):
        raise UsageError(
            "MT423", "only full runs from seed 0 are recorded", fix="give --scale full, and no --seed"
        )
    if record:
        from microtome.study import record as keep
    found: dict[str, list[dict[str, Any]]] = {slug: [] for slug in chosen}
    failed: list[str] = []
    done = 0
    cores = os.cpu_count() or 1
    at_once = jobs or (cores if scale == "smoke" else 1)
    tasks = [_Task(slug, scale, seed + i) for slug in chosen for i in range(repeat)]
    for task, text, error in apart(_measured, tasks, jobs=at_once, threads=max(cores // at_once, 1)):
        done += 1
        count = f"[{done}/{len(chosen) * repeat}]"
        if error:
            failed.append(task.slug)
            say(f"{count} {task.slug}: failed: {error}")
            continue
        each = json_text.loads(text)
        found[task.slug].append(each)
        said = each["verdict"] if scale == "full" else "runs"
        shift = f" (seed {task.seed})" if task.seed else ""
        say(f"{count} {task.slug}{shift}: {said}, {_seconds(each['seconds'])}")
        if (
            record and len(found[task.slug]) == repeat
        ):  # at once: what was measured is not lost if a later one is
            keep(_with_repeats(found[task.slug]))
    results = [_with_repeats(runs) for runs in found.values() if runs]
    if json:
        show_json(results)
    else:
        show(
            align(
                [_row(each, scale) for each in results],
                header=("study", "verdict" if scale == "full" else "state", "time", "decided by"),
            )
        )
    say(
        f"{len(results)} of {len(chosen)} studies ran"
        + (f"; failed: {', '.join(sorted(set(failed)))}" if failed else "")
    )
    return 4 if failed else 0


@dataclass(frozen=True)
class _Task:
    slug: str
    scale: str
    seed: int


def _measured(task: _Task) -> str:
    """The record of one run, as JSON."""
    from microtome.study import as_json, run
    from microtome.study import study as load

    return as_json(run(load(task.slug), smoke=task.scale == "smoke", seed=task.seed))


def _with_repeats(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The first run, with what the others came to."""
    runs = sorted(runs, key=lambda each: each["seed"])
    others = [{key: each[key] for key in ("seed", "verdict", "decided_by", "seconds")} for each in runs[1:]]
    return {**runs[0], "repeats": others}


def _row(each: dict[str, Any], scale: str) -> tuple[str, ...]:
    verdicts = [each["verdict"], *(other["verdict"] for other in each["repeats"])]
    word = ", ".join(f"{n} x {v}" for v, n in Counter(verdicts).items()) if len(verdicts) > 1 else verdicts[0]
    return (
        each["paper"],
        word if scale == "full" else "runs",
        _seconds(each["seconds"]),
        each["decided_by"] if scale == "full" else "",
    )


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f} s" if value < 90 else f"{value / 60:.1f} min"
