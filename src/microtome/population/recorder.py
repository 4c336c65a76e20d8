"""What training looked like at chosen steps: networks, outcomes of each example, measures, findings; on disk or not.

::

    recorder = Recorder("runs/digits", probes={"test": (x, y)})
    train(population, x, y, recipe, observers=[(recorder, geometric(2000, 30))])
    recorder.recording.correct("test")      # [t, N, n]
    recorder.recording.population(200)      # all members as they were after 200 updates

A recording on disk is read again by ``Recording.open(folder)``, and ``microtome examine MODEL --checkpoints FOLDER``
examines each of its networks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from microtome.errors import UsageError
from microtome.population.population import Population
from microtome.population.training import Moment

if TYPE_CHECKING:
    from microtome.finding import Finding
    from microtome.instrument import Instrument

Probe = tuple[Tensor, Tensor]
Measure = Callable[[Population], Tensor]
"""[N, ...] of the members as they are."""


class Recording:
    """What a :class:`Recorder` kept, by step. Without a folder everything is in memory, and no networks are kept."""

    def __init__(self, folder: Path | None, template: Population | None = None) -> None:
        self.folder, self.template = folder, template
        self.steps: list[int] = []
        self.values: dict[str, list[Tensor]] = {}
        self.findings: dict[str, list[tuple[int, int, Finding]]] = {}
        """instrument -> (step, member, finding)."""

    @classmethod
    def open(cls, folder: str | Path, template: Population | None = None) -> Recording:
        """Read a recording on disk; ``template`` is a population of the same architecture, to rebuild networks.

        Raises:
            UsageError: MT431 when the folder holds no recording.
        """
        where = Path(folder)
        index = where / "recording.json"
        if not index.is_file():
            raise UsageError(
                "MT431", "the folder holds no recording", where=str(where), fix="give Recorder a folder"
            )
        made = cls(where, template)
        made.steps = json.loads(index.read_text(encoding="utf-8"))["steps"]
        return made

    def value(self, name: str) -> Tensor:
        """[t, N, ...] of a measure, or of "<probe>/loss" or "<probe>/correct", over the recorded steps.

        Raises:
            UsageError: MT432 for what was not recorded.
        """
        if self.folder is None:
            if name not in self.values:
                raise _absent(name, self.values)
            return torch.stack(self.values[name])
        from safetensors import safe_open

        found = []
        for step in self.steps:
            with safe_open(str(_values(self.folder, step)), "pt") as file:
                if name not in file.keys():  # noqa: SIM118 - not a mapping
                    raise _absent(name, file.keys())
                found.append(file.get_tensor(name))
        return torch.stack(found)

    def correct(self, probe: str) -> Tensor:
        """[t, N, n] whether each example was answered correctly."""
        return self.value(f"{probe}/correct")

    def loss(self, probe: str) -> Tensor:
        """[t, N, n] loss of each example."""
        return self.value(f"{probe}/loss")

    def accuracy(self, probe: str) -> Tensor:
        """[t, N] share of correct answers."""
        return self.correct(probe).double().mean(-1)

    def population(self, step: int) -> Population:
        """All members as they were after ``step`` updates.

        Raises:
            UsageError: MT433 for a step that was not recorded, or a recording without networks.
        """
        if self.folder is None or self.template is None:
            raise UsageError("MT433", "this recording keeps no networks", fix="give the Recorder a folder")
        if step not in self.steps:
            raise UsageError("MT433", f"step {step} was not recorded", fix=f"one of {self.steps}")
        return self.template.copy().load(self.folder / f"step_{step:08d}.safetensors")

    def resume(self) -> tuple[Population, dict[str, Tensor], int]:
        """(population, optimiser state, step) to go on from: ``train(population, ..., state=state, start=step)``."""
        from safetensors.torch import load_file

        step = max(self.steps, default=0)
        population = self.population(step)
        return population, load_file(str(self.folder / "optimizer.safetensors")), step  # type: ignore[operator]


class Recorder:
    """An observer for :func:`microtome.population.train`.

    Memory: with a folder, one step's values; without, those of all recorded steps.

    Args:
        folder: where networks, values and the state to resume from go; None keeps values in memory alone.
        probes: name -> (inputs [n, ...], class numbers [n]); each example's loss and outcome is kept for all members.
        measures: name -> what to read off the population, [N, ...].
        instruments: run on ``data`` for each of ``members`` at every recorded step.
        members: whose findings are taken (None: all).
        classify: (outputs, targets) -> (loss [n], correct [n]) of one network; by default of a classifier.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        probes: Mapping[str, Probe] | None = None,
        measures: Mapping[str, Measure] | None = None,
        instruments: Sequence[Instrument] = (),
        data: Iterable[Any] | None = None,
        members: Sequence[int] | None = None,
        classify: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        if instruments and data is None:
            raise UsageError("MT434", "instruments need data to look at", fix="Recorder(..., data=loader)")
        self.recording = Recording(None if folder is None else Path(folder))
        self.probes, self.measures = dict(probes or {}), dict(measures or {})
        self.instruments, self.data, self.members = tuple(instruments), data, members
        self.classify = classify or _classified
        if folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)

    def __call__(self, moment: Moment) -> None:
        """Record the members as they are."""
        kept, population = self.recording, moment.population
        if moment.step in kept.steps:
            return
        values = {"train/loss": moment.loss.clone()}
        for name, (x, y) in self.probes.items():
            loss, correct = self.classify(population.predict(x), y)
            values |= {f"{name}/loss": loss.cpu(), f"{name}/correct": correct.cpu()}
        values |= {
            name: measure(population).detach().clone().cpu() for name, measure in self.measures.items()
        }
        if kept.folder is None:
            for name, value in values.items():
                kept.values.setdefault(name, []).append(value)
        else:
            self._write(kept.folder, moment, values)
        kept.template = kept.template or population.copy([0])
        kept.steps.append(moment.step)
        self._examine(moment)
        if kept.folder is not None:
            _replace(
                kept.folder / "recording.json", json.dumps({"steps": kept.steps, "members": len(population)})
            )

    def _write(self, folder: Path, moment: Moment, values: Mapping[str, Tensor]) -> None:
        from safetensors.torch import save_file

        save_file({k: v.contiguous() for k, v in values.items()}, str(_values(folder, moment.step)))
        moment.population.save(folder / f"step_{moment.step:08d}.safetensors")
        state = folder / "optimizer.partial"  # the old one stays whole until the new one is
        save_file({k: v.contiguous() for k, v in moment.state().items()}, str(state))
        state.replace(folder / "optimizer.safetensors")

    def _examine(self, moment: Moment) -> None:
        if not self.instruments or self.data is None:
            return
        from microtome.passes import run_instruments
        from microtome.subject import Subject

        named = {one.name(): one for one in self.instruments}
        for member in self.members if self.members is not None else range(len(moment.population)):
            network = moment.population.member(member).eval()
            for name, finding in run_instruments(Subject(network, self.data), named).items():
                self.recording.findings.setdefault(name, []).append((moment.step, member, finding))


def _classified(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """[N, n, k], [n] -> cross-entropy [N, n] and whether the largest output is the target [N, n]."""
    own = targets.expand(outputs.shape[:2]).unsqueeze(-1)
    loss = -outputs.log_softmax(-1).gather(-1, own).squeeze(-1)
    return loss, outputs.argmax(-1) == own.squeeze(-1)


def _values(folder: Path, step: int) -> Path:
    return folder / f"values_{step:08d}.safetensors"


def _replace(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _absent(name: str, known: Iterable[str]) -> UsageError:
    from microtome.errors import nearest

    known = sorted(known)
    return UsageError(
        "MT432", f"'{name}' was not recorded", fix=nearest(name, known) or f"one of {', '.join(known)}"
    )


__all__ = ["Measure", "Probe", "Recorder", "Recording"]
