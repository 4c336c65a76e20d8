"""What is written down while a run is at work, so that killing it loses at most a few seconds.

A generator cannot be pickled. Instead the fold states of every finished round are kept; a resumed run
replays each instrument with them and goes on with the interrupted round. Nothing is ever unpickled: tensors
are safetensors, the rest is JSON.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from microtome.errors import Refusal, StoreError
from microtome.folds.base import Fold, State


@dataclass
class SavedRound:
    """State of one round."""

    complete: bool
    states: dict[Fold, State | None]
    failures: dict[Fold, BaseException]
    groups: dict[str, tuple[int, int]]
    """Group key -> (rows done, rows a slice)."""
    marks: list[float] = field(default_factory=list)
    omitted: list[Fold] = field(default_factory=list)
    """Folds of a finished round whose states were too large to keep; a resumed run computes them again."""


LARGE_STATE = 16 << 20
"""Bytes beyond which a finished fold's state is recomputed after a crash rather than kept on disk."""


class _Header(msgspec.Struct):
    complete: bool
    folds: int
    failures: dict[str, tuple[str, str]]
    groups: dict[str, tuple[int, int]]
    marks: list[float]
    file: str
    omitted: list[int] = []


class StateFolder:
    """Round states in a folder; every write is atomic."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._turn = 0
        self.unread = ""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError("MT130", f"cannot write to the store: {error}", where=str(folder)) from error

    def save(self, index: int, order: list[Fold], saved: SavedRound) -> None:
        """Write a round down. The header names the tensor file: a crash between them leaves the old pair."""
        tensors: dict[str, torch.Tensor] = {}
        omitted: list[int] = []
        for i, fold in enumerate(order):
            state = saved.states.get(fold) or {}
            if saved.complete and sum(v.numel() * v.element_size() for v in state.values()) > LARGE_STATE:
                omitted.append(i)
                continue
            for key, value in state.items():
                tensors[f"{i}/{key}"] = value.detach().cpu().contiguous().clone()
        self._turn += 1
        name = f"round{index:04d}.{os.getpid()}.{self._turn}.safetensors"
        header = self.folder / f"round{index:04d}.json"
        previous = self._header(header)
        position = {fold: str(i) for i, fold in enumerate(order)}
        failures = {position[f]: (type(e).__name__, str(e)) for f, e in saved.failures.items()}
        content = _Header(saved.complete, len(order), failures, saved.groups, saved.marks, name, omitted)
        try:
            save_file(tensors, self.folder / name)
            temporary = header.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_bytes(msgspec.json.encode(content))
            temporary.replace(header)
        except (OSError, SafetensorError) as error:
            raise StoreError(
                "MT130", f"cannot save the running state: {error}", where=str(self.folder)
            ) from error
        if previous is not None and previous.file != name:
            (self.folder / previous.file).unlink(missing_ok=True)

    def load(self, index: int, order: list[Fold]) -> SavedRound | None:
        """Read a round back, or None when there is none that fits; ``unread`` then says why, if one was there."""
        self.unread = ""
        path = self.folder / f"round{index:04d}.json"
        header = self._header(path)
        if header is None or header.folds != len(order):
            if path.exists():
                held = "is no header" if header is None else f"is of {header.folds} folds, not {len(order)}"
                self.unread = f"{path.name} {held}"
            return None
        try:
            tensors = load_file(self.folder / header.file)
        except (OSError, SafetensorError) as error:
            self.unread = f"{header.file}: {error}"
            return None
        states: dict[Fold, State | None] = {}
        for name, value in tensors.items():
            number, key = name.split("/", 1)
            state = states.setdefault(order[int(number)], {})
            assert state is not None
            state[key] = value
        failures: dict[Fold, BaseException] = {
            order[int(i)]: Refusal(text) if kind == "Refusal" else RuntimeError(f"{kind}: {text}")
            for i, (kind, text) in header.failures.items()
        }
        omitted = [order[i] for i in header.omitted]
        return SavedRound(header.complete, states, failures, header.groups, header.marks, omitted)

    def _header(self, path: Path) -> _Header | None:
        try:
            return msgspec.json.decode(path.read_bytes(), type=_Header)
        except (OSError, msgspec.DecodeError):
            return None

    def remove(self) -> None:
        """Forget everything: the run is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)
