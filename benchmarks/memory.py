"""Peak memory of an examination, against the number of examples: it must not grow with the data.

Each size runs in a fresh process, for a process never gives its peak back; the examples are generated batch by
batch, so the data itself takes nothing.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys

from benchmarks.models import FIRST


def peak(name: str, count: int, only: list[str]) -> float:
    """MiB an examination adds to the resident set at its peak, in this process."""
    import torch

    from benchmarks.models import build
    from microtome.examination import configure
    from microtome.passes import Run
    from microtome.subject import Subject

    torch.set_num_threads(2)
    model, data = build(name, count)
    with torch.no_grad():
        model(next(iter(data))[0][:1])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Run(Subject(model, data), configure(only), budget=2 << 30).execute()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    """Print peak memory at each size and the ratio of the last to the first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=["cnn", "resnet"])
    parser.add_argument("--rows", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--only", action="append", help="instruments; else the first set")
    parser.add_argument("--here", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    only = arguments.only or list(FIRST)
    if arguments.here:
        print(peak(arguments.networks[0], arguments.here, only))
        return
    for name in arguments.networks:
        peaks = []
        for count in arguments.rows:
            command = [sys.executable, "-m", "benchmarks.memory", name, "--here", str(count)]
            command += [word for pattern in only for word in ("--only", pattern)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks.append(float(done.stdout.split()[-1]))
        listed = ", ".join(f"N={n}: {p:.0f} MiB" for n, p in zip(arguments.rows, peaks, strict=True))
        print(f"{name}: peak over the bare process {listed}; last / first {peaks[-1] / peaks[0]:.2f}")


if __name__ == "__main__":
    main()
