"""Run every benchmark and write what they print to ``benchmarks/RESULTS.md``."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from pathlib import Path

PARTS: dict[str, tuple[str, list[str]]] = {
    "Engine overhead": ("benchmarks.overhead", []),
    "The same questions asked of peers": ("benchmarks.peers", []),
    "Bounds against auto_LiRPA": ("benchmarks.bounds", []),
    "Relevance against zennit and captum": ("benchmarks.relevance", []),
    "Many networks at once, one thread": ("benchmarks.population", ["--threads", "1"]),
    "Many networks at once, two threads": ("benchmarks.population", ["--threads", "2"]),
    "The lab with a large store, in the browser": ("benchmarks.web", []),
    "Explanations of nodes": ("benchmarks.graphs", []),
    "Peak memory against the number of examples": ("benchmarks.memory", []),
}
RESULTS = Path(__file__).with_name("RESULTS.md")


def machine() -> str:
    """What the figures were measured on."""
    import torch

    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return f"{os.cpu_count()} cores ({model}), Python {platform.python_version()}, torch {torch.__version__}"


def main() -> None:
    """Run the parts one after another, each in its own process."""
    sections = []
    for title, (module, arguments) in PARTS.items():
        command = [sys.executable, "-m", module, *arguments]
        print(f"== {title}", flush=True)
        done = subprocess.run(command, capture_output=True, text=True)
        output = done.stdout.strip() if done.returncode == 0 else f"failed:\n{done.stderr.strip()[-2000:]}"
        print(output, flush=True)
        sections.append(
            f"## {title}\n\n`python -m {' '.join([module, *arguments])}`\n\n```text\n{output}\n```\n"
        )
    today = datetime.date.today().isoformat()
    head = (
        f"# Benchmark results\n\nWritten by `make bench` on {today}: {machine()}. "
        "Trust ratios within one run, not seconds; `benchmarks/*.py` say how each is measured.\n\n"
    )
    RESULTS.write_text(head + "\n".join(sections))


if __name__ == "__main__":
    main()
