"""The default subject: a small CNN trained here, in seconds, on the embedded digits."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from microtome.data.digits import digits
from microtome.nn.digits_cnn import DigitsCNN

EPOCHS = 12
BATCH = 64
PEAK_RATE = 5e-3

SOURCES = ("reference.py", "nn/digits_cnn.py", "data/digits.py", "data/digits.npz")
"""What the trained weights depend on, beside torch and the seed."""


def reference_subject(seed: int = 0) -> tuple[DigitsCNN, Iterable[Any]]:
    """Give the trained network in eval mode and its test data.

    The weights are kept in the cache folder under a name made of all they depend on, so a second call reads
    them; if that folder cannot be written the network is trained again. The global random state is left as
    found.
    """
    model = _untrained(seed)
    file = cache_folder() / f"digits-cnn-{_fingerprint(seed)}.safetensors"
    try:
        model.load_state_dict(load_file(str(file)))
    except (OSError, SafetensorError, RuntimeError):
        model = _untrained(seed)  # a damaged file may have been read in part
        train(model, seed)
        with contextlib.suppress(OSError, SafetensorError):  # a cache that cannot be written only costs time
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(f".{file.name}.{os.getpid()}")
            save_file(model.state_dict(), str(partial))
            os.replace(partial, file)
    return model.eval(), digits("test")


def train(model: DigitsCNN, seed: int = 0) -> None:
    """Adam with a one-cycle rate on the training digits, shifted by up to a pixel; the same bits every time.

    Weight averaging, schedules and search are left out: the subject should be ordinary.
    """
    generator = torch.Generator().manual_seed(seed)
    data = digits("train")
    x, y = data.x, data.y
    assert y is not None
    steps = EPOCHS * -(-len(x) // BATCH)
    optimizer = torch.optim.Adam(model.parameters(), lr=PEAK_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps)
    model.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x), generator=generator).split(BATCH):
            down, right = torch.randint(-1, 2, (2,), generator=generator).tolist()
            padded = F.pad(x[rows], (1, 1, 1, 1))
            shifted = padded[:, :, 1 - down : 9 - down, 1 - right : 9 - right]
            optimizer.zero_grad()
            F.cross_entropy(model(shifted), y[rows]).backward()
            optimizer.step()
            schedule.step()
    model.eval()


def _untrained(seed: int) -> DigitsCNN:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DigitsCNN()


def _fingerprint(seed: int) -> str:
    digest = hashlib.blake2b(f"{seed} {torch.__version__}".encode(), digest_size=8)
    for name in SOURCES:
        digest.update(files("microtome").joinpath(name).read_bytes())
    return digest.hexdigest()


def cache_folder() -> Path:
    """Where files that can be made again are kept: ``MICROTOME_CACHE``, else the user's cache folder."""
    named = os.environ.get("MICROTOME_CACHE")
    if named:
        return Path(named).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "microtome"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "microtome" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "microtome"
