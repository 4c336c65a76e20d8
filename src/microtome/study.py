"""A study tests one paper's claim: a function that measures, at two scales, and a recorded verdict.

``python -m microtome.studies.<room>.<slug> --full`` measures and records; without ``--full`` it runs for seconds,
records nothing, and shows that the study works. Records lie in ``studies/records/<slug>.json``; the state of a paper
is read from them alone.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["reproduced", "partly", "not reproduced", "inconclusive"]
RECORDS = Path(__file__).parent / "studies" / "records"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a study found.

    Attributes:
        numbers: every figure that was measured, by name.
        verdict: what follows for the claim.
        decided_by: the sentence that says which number decided, against which threshold.
    """

    numbers: Mapping[str, float]
    verdict: Outcome
    decided_by: str


@dataclass(frozen=True, kw_only=True)
class Study:
    """One paper's claim and how it is tested.

    Attributes:
        paper: slug.
        claim: the claim in our words, as a hypothesis that can fail, with its threshold and its control.
        measure: smoke -> what was found; smoke runs take seconds and decide nothing.
    """

    paper: str
    claim: str
    measure: Callable[[bool], Measured]


def main(study: Study) -> None:
    """Run a study from the command line; record it when it is run in full."""
    import torch

    parser = argparse.ArgumentParser(description=study.claim)
    parser.add_argument("--full", action="store_true", help="the scale that decides; minutes")
    full = parser.parse_args().full
    began = time.perf_counter()
    measured = study.measure(not full)
    record: dict[str, Any] = {
        "paper": study.paper,
        "claim": study.claim,
        **asdict(measured),
        "command": f"python -m {_module(study)} --full",
        "seconds": round(time.perf_counter() - began, 1),
        "threads": torch.get_num_threads(),
        "date": datetime.date.today().isoformat(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    text = json.dumps(record, indent=1, sort_keys=False)
    if full:
        (RECORDS / f"{study.paper}.json").write_text(text + "\n")
    sys.stdout.write(text + "\n")


def _module(study: Study) -> str:
    where = study.measure.__module__
    if where != "__main__":
        return where
    return f"microtome.studies.{Path(sys.argv[0]).parent.name}.{Path(sys.argv[0]).stem}"


def recorded() -> dict[str, str]:
    """The verdict of every paper whose study was run in full, by slug."""
    found = (json.loads(path.read_text()) for path in sorted(RECORDS.glob("*.json")))
    return {record["paper"]: record["verdict"] for record in found}
