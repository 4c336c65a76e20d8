"""What signals, folds and instruments read off one network, and a file that keeps it; for the :class:`Recorder`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from microtome.errors import UsageError
from microtome.finding import Finding, decode_finding, encode_json
from microtome.folds import Collect, Fold, Sum
from microtome.instrument import Asking, Instrument
from microtome.passes import run_instruments
from microtome.signals import Signal, prediction_ids, rows
from microtome.subject import Subject

Asked = Mapping[str, Signal | Fold]
"""What is to be read: a signal for each example (or as a sum, where it has none), or what a fold comes to."""


@dataclass
class Reading:
    """What was read off one network: values by name, findings by instrument."""

    values: dict[str, Tensor] = field(default_factory=dict)
    findings: dict[str, Finding] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Keep it in one safetensors file."""
        from safetensors.torch import save_file

        arrays = {
            f"findings/{name}/{key}": torch.from_numpy(np.ascontiguousarray(array))
            for name, finding in self.findings.items()
            for key, array in finding.arrays.items()
        }
        held = {f"values/{name}": value.contiguous() for name, value in self.values.items()}
        text = {name: encode_json(finding).decode() for name, finding in self.findings.items()}
        save_file(held | arrays, str(path), metadata={"findings": json.dumps(text)})

    @classmethod
    def read(cls, path: Path, only: str | None = None) -> Reading:
        """What :meth:`write` kept; ``only`` one value, when the others would be read in vain."""
        from safetensors import safe_open

        made = cls()
        with safe_open(str(path), "pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                kind, _, name = key.partition("/")
                if kind == "values" and only in (None, name):
                    made.values[name] = file.get_tensor(key)
            if only is not None:
                return made
            for name, text in json.loads(file.metadata()["findings"]).items():
                finding = decode_finding(text.encode())
                arrays = {k: file.get_tensor(f"findings/{name}/{k}").numpy() for k in finding.arrays}
                made.findings[name] = msgspec.structs.replace(finding, arrays=arrays)
        return made


def names(path: Path) -> tuple[list[str], list[str]]:
    """(values, instruments) that a file of :meth:`Reading.write` holds, without reading them."""
    from safetensors import safe_open

    with safe_open(str(path), "pt") as file:
        values = [name for kind, _, name in (key.partition("/") for key in file.keys()) if kind == "values"]  # noqa: SIM118
        return values, list(json.loads(file.metadata()["findings"]))


class _Taken(Instrument):
    """What do these signals come to?"""

    def __init__(self, asked: Mapping[str, Fold], into: dict[str, Any]) -> None:
        self.asked, self.into = asked, into

    def examine(self, subject: Subject) -> Asking:
        """Read all in one pass."""
        self.into |= yield dict(self.asked)
        return Finding()


_TAKEN = "signals"


def look(
    network: nn.Module, data: Iterable[Any], asked: Asked, instruments: Mapping[str, Instrument]
) -> Reading:
    """Read signals and instruments off one network, in the passes that all of them share.

    Raises:
        UsageError: MT518 for a signal that this network and this data do not have, with the reason.
    """
    into: dict[str, Any] = {}
    taken = {_TAKEN: _Taken({name: _fold(each) for name, each in asked.items()}, into)} if asked else {}
    found = run_instruments(Subject(network, data), {**instruments, **taken})
    answer = found.pop(_TAKEN, None)
    if answer is not None and answer.status != "measured":
        raise UsageError(
            "MT518",
            f"the signals cannot be taken: {answer.reason}",
            where=", ".join(asked),
            fix="leave out the one it speaks of",
        )
    made = Reading(findings=found)
    for name, value in into.items():
        plain = isinstance(asked[name], Signal) and isinstance(value, tuple)
        made.values |= dict(_flat(name, value[1] if plain else value))  # beside the ids that put it in order
    return made


def _fold(asked: Signal | Fold) -> Fold:
    if isinstance(asked, Fold):
        return asked
    if asked.kind == "hvp" or (asked.kind == "gradient" and asked.arguments[1] == "parameters"):
        return Sum(signals=(asked,))
    return Collect(signals=(prediction_ids if _each_prediction(asked) else rows, asked))


def _each_prediction(signal: Signal) -> bool:
    """Whether it has a value a prediction, of which an example may have several or none, not one an example."""
    if signal.kind != "derived":
        return False
    return signal.name in ("logits", "labels", "prediction_ids") or any(map(_each_prediction, signal.parents))


def _flat(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors a fold comes to, by "name" or "name/part"."""
    if isinstance(value, Tensor):
        yield name, value.detach().cpu()
    elif isinstance(value, bool | int | float):
        yield name, torch.tensor(value)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _flat(f"{name}/{key}", part)
    elif isinstance(value, tuple):
        for key, part in zip(getattr(value, "_fields", range(len(value))), value, strict=True):
            yield from _flat(f"{name}/{key}", part)
    else:
        raise UsageError(
            "MT518",
            f"the fold comes to a {type(value).__name__}, not to numbers",
            where=name,
            fix="use another",
        )


__all__ = ["Asked", "Reading", "look", "names"]
