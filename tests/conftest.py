"""One thread a process: networks here are tiny, and two pools of threads on two cores slow each other tenfold."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
