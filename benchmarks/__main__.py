"""Run benchmarks and write what they print to ``benchmarks/RESULTS.md``: all of them, or the parts that are named.

``python -m benchmarks [PART ...]``; a part that is not run keeps the section it has.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.models import FIRST


@dataclass(frozen=True)
class Part:
    """A section of the results: what is run, and what is aimed at."""

    title: str
    module: str
    arguments: tuple[str, ...]
    aim: str


HOURS = {
    "compress/magnitude_pruning",
    "dynamics/hessian_spectrum",
    "dynamics/loss_landscape",
    "explain/integrated_gradients",
    "explain/smoothgrad",
    "reliability/rics_one_pixel_translation",
    "security/adversarial_accuracy",
}
LESS = tuple(word for name in FIRST if name not in HOURS for word in ("--only", name))

PARTS = {
    "overhead": Part(
        "Engine overhead",
        "benchmarks.overhead",
        ("--threads", "1"),
        "An examination takes at most 1.3 times the signals it uses, each computed once. The ratio of wall time is to "
        "bare calls of the network alone; the ratio with arithmetic counts what signals compute beside them.",
    ),
    "peers": Part(
        "The same questions asked of peers",
        "benchmarks.peers",
        ("--threads", "1", "--repeats", "3"),
        "Peers one after another take at least 3 times as long, and the hungriest at least as much memory.",
    ),
    "memory": Part(
        "Peak memory against the number of examples",
        "benchmarks.memory",
        ("cnn",),
        "The peak at 8192 examples is within 10 % of that at 512.",
    ),
    "memory-resnet": Part(
        "Peak memory against the number of examples, ResNet",
        "benchmarks.memory",
        ("resnet", "--rows", "512", "8192", *LESS),
        "The peak at 8192 examples is within 10 % of that at 512; without the seven instruments that would take hours: "
        "pruning, curvature, landscape, path integrals, smoothed gradients, translations, attacks.",
    ),
    "population": Part(
        "Many networks at once, one thread",
        "benchmarks.population",
        ("--threads", "1"),
        "64 perceptrons at least 20 times faster than a loop over them.",
    ),
    "population-2": Part(
        "Many networks at once, two threads",
        "benchmarks.population",
        ("--threads", "2"),
        "64 perceptrons at least 20 times faster than a loop over them.",
    ),
    "bounds": Part(
        "Bounds against auto_LiRPA",
        "benchmarks.bounds",
        ("--without-families",),
        "Not slower than auto_LiRPA, and as tight.",
    ),
    "relevance": Part(
        "Relevance against zennit and captum",
        "benchmarks.relevance",
        (),
        "Not slower than the peers; relevances add up to the logit.",
    ),
    "epochs": Part(
        "Sparse features of graphs",
        "benchmarks.graphs",
        ("epochs",),
        "Training and inference at most 1.0 of the time of PyTorch Geometric's layers, within noise; "
        "a GCN's epoch half, where features are sparse.",
    ),
    "explain": Part(
        "Explanations of nodes",
        "benchmarks.graphs",
        ("explain",),
        "At least 20 times faster a node than PyTorch Geometric's GNNExplainer, with the same masks.",
    ),
    "web": Part(
        "The lab with a large store, in the browser",
        "benchmarks.web",
        (),
        "First paint within 1000 ms, an interaction within 100 ms.",
    ),
}
RESULTS = Path(__file__).with_name("RESULTS.md")


def machine() -> str:
    """What the figures are measured on."""
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = (line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    model = next(models, platform.processor())
    return f"{os.cpu_count()} cores ({model}), Python {platform.python_version()}, torch {torch.__version__}"


def sections() -> dict[str, str]:
    """What the results have already, by title."""
    if not RESULTS.exists():
        return {}
    parts = RESULTS.read_text().split("\n## ")[1:]
    return {part.split("\n", 1)[0]: "## " + part.strip() + "\n" for part in parts}


def measure(part: Part) -> str:
    """A section, from a run in a process of its own."""
    load = os.getloadavg()[0]  # of the minute before: what else the machine was doing
    began = time.time()
    done = subprocess.run(
        [sys.executable, "-m", part.module, *part.arguments], capture_output=True, text=True
    )
    output = done.stdout.strip() if done.returncode == 0 else f"failed:\n{done.stderr.strip()[-2000:]}"
    today = datetime.date.today().isoformat()
    command = " ".join(["python -m", part.module, *part.arguments])
    return (
        f"## {part.title}\n\n{part.aim}\n\n`{command}`, {today}, load before it {load:.1f}, "
        f"took {(time.time() - began) / 60:.1f} min\n\n```text\n{output}\n```\n"
    )


def main() -> None:
    """Run the parts one after another and keep each as soon as it is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; none: all")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    head = (
        f"# Benchmark results\n\nWritten by `make bench`: {machine()}. Trust ratios within one run, not seconds; "
        "`benchmarks/*.py` say how each is measured, `HISTORY.md` has earlier runs.\n"
    )
    found = sections()
    for name in arguments.parts or PARTS:
        part = PARTS[name]
        print(f"== {part.title}", flush=True)
        found[part.title] = measure(part)
        print(found[part.title], flush=True)
        titles = [p.title for p in PARTS.values()]
        ordered = sorted(found, key=lambda t: titles.index(t) if t in titles else len(titles))
        RESULTS.write_text("\n".join([head, *(found[t] for t in ordered)]))


if __name__ == "__main__":
    main()
