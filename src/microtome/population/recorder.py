"""What training looked like at chosen steps: networks, outcomes of each example, measures, findings; on disk or not.

::

    recorder = Recorder("runs/digits", probes={"test": (x, y)})
    train(population, x, y, recipe, observers=[(recorder, geometric(2000, 30))])
    recorder.recording.correct("test")      # [t, N, n]
    recorder.recording.population(200)      # all members as they were after 200 updates

Signals, folds and instruments are read off each member as if it were alone::

    recorder = Recorder(
        "runs/digits",
        signals={"margin": confidence, "spread": Covariance(signals=(features("1"),))},
        instruments=[instrument("reliability/calibration")()],
        data=loader,
    )
    recorder.recording.value("margin")                          # [t, N, n]
    recorder.recording.value("spread/covariance")               # [t, N, d, d]
    recorder.recording.quantity("reliability/calibration")      # [t, N]

A recording on disk is read again by ``Recording.open(folder)``, and ``microtome examine MODEL --checkpoints FOLDER``
examines each of its networks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    from microtome.population.readings import Asked, Reading

Probe = tuple[Tensor, Tensor]
Measure = Callable[[Population], Tensor]
"""[N, ...] of the members as they are."""


class Recording:
    """What a :class:`Recorder` kept, by step. Without a folder everything is in memory, and no networks are kept."""

    def __init__(self, folder: Path | None, template: Population | None = None) -> None:
        self.folder, self.template = folder, template
        self.steps: list[int] = []
        self.values: dict[str, list[Tensor]] = {}
        self.examined: tuple[int, ...] = ()
        """Members whose signals and findings were kept."""
        self._readings: dict[tuple[int, int], Reading] = {}

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
        written = json.loads(index.read_text(encoding="utf-8"))
        made.steps, made.examined = written["steps"], tuple(written.get("examined", ()))
        return made

    def value(self, name: str) -> Tensor:
        """[t, N, ...] of a measure, or of "<probe>/loss" or "<probe>/correct", over the recorded steps.

        Of a signal or a fold, N are the members examined.

        Raises:
            UsageError: MT432 for what was not recorded.
        """
        signals, _ = self._read_off()
        if name in signals:
            each = [self._reading(t, i, name).values[name] for t in self.steps for i in self.examined]
            return torch.stack(each).unflatten(0, (len(self.steps), len(self.examined)))
        if self.folder is None:
            if name not in self.values:
                raise _absent(name, [*self.values, *signals])
            return torch.stack(self.values[name])
        from safetensors import safe_open

        found = []
        for step in self.steps:
            with safe_open(str(_values(self.folder, step)), "pt") as file:
                if name not in file.keys():  # noqa: SIM118 - not a mapping
                    raise _absent(name, [*file.keys(), *signals])
                found.append(file.get_tensor(name))
        return torch.stack(found)

    def _reading(self, step: int, member: int, only: str | None = None) -> Reading:
        from microtome.population.readings import Reading

        if self.folder is None:
            return self._readings[step, member]
        return Reading.read(_seen(self.folder, step, member), only)

    def _read_off(self) -> tuple[list[str], list[str]]:
        """Names of what was read off each member: values of signals and folds, and findings."""
        from microtome.population.readings import names

        if not self.steps or not self.examined:
            return [], []
        first = self.steps[0], self.examined[0]
        if self.folder is not None:
            return names(_seen(self.folder, *first))
        return list(self._readings[first].values), list(self._readings[first].findings)

    def found(self, instrument: str) -> Iterator[tuple[int, int, Finding]]:
        """(step, member, finding) of an instrument, one at a time.

        Raises:
            UsageError: MT432 for an instrument that was not run.
        """
        known = self._read_off()[1]
        if instrument not in known:
            raise _absent(instrument, known)
        for step in self.steps:
            for member in self.examined:
                yield step, member, self._reading(step, member).findings[instrument]

    @property
    def findings(self) -> dict[str, list[tuple[int, int, Finding]]]:
        """Instrument -> (step, member, finding): all of them, read at once."""
        return {name: list(self.found(name)) for name in self._read_off()[1]}

    def quantity(self, instrument: str, name: str | None = None) -> Tensor:
        """[t, N] a number of an instrument's findings, by default the deciding one, for the members examined.

        Raises:
            UsageError: MT432 for what was not recorded; MT518 where it was not measured, with the reason.
        """
        course = []
        for step, member, finding in self.found(instrument):
            if finding.status != "measured":
                raise UsageError(
                    "MT518",
                    f"{instrument} measured nothing at step {step}: {finding.status}, {finding.reason}",
                    where=f"member {member}",
                    fix=f"read recording.found('{instrument}')",
                )
            wanted = finding.headline if name is None else name
            if wanted not in finding.quantities:
                raise _absent(wanted, finding.quantities)
            course.append(finding.quantities[wanted].value)
        return torch.tensor(course, dtype=torch.float64).view(len(self.steps), len(self.examined))

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

    Memory: with a folder, one step's probes and measures, and what was read off one member; without, those of all
    recorded steps.

    Args:
        folder: where networks, values and the state to resume from go; None keeps values in memory alone.
        probes: name -> (inputs [n, ...], class numbers [n]); each example's loss and outcome is kept for all members.
        measures: name -> what to read off the population, [N, ...].
        signals: name -> a signal, whose value for each example is kept (its sum, where it has none for an example: the
            gradient in the parameters), or a fold, of which what it comes to is kept: bounded however long the data.
        instruments: whose findings are kept. As signals, they are taken on ``data`` of each member alone, in eval
            mode, at every recorded step; all share their passes.
        data: batches that can be gone through again.
        members: whose signals and findings are taken (None: all).
        classify: (outputs, targets) -> (loss [n], correct [n]) of one network; by default of a classifier.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        probes: Mapping[str, Probe] | None = None,
        measures: Mapping[str, Measure] | None = None,
        signals: Asked | None = None,
        instruments: Sequence[Instrument] = (),
        data: Iterable[Any] | None = None,
        members: Sequence[int] | None = None,
        classify: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        if (instruments or signals) and data is None:
            what = "instruments" if instruments else "signals"
            raise UsageError("MT434", f"{what} need data to look at", fix="Recorder(..., data=loader)")
        twice = {*(signals or ())} & {*(measures or ())}
        if twice:
            raise UsageError(
                "MT518", f"a signal and a measure are both called '{min(twice)}'", fix="rename one"
            )
        self.recording = Recording(None if folder is None else Path(folder))
        self.probes, self.measures = dict(probes or {}), dict(measures or {})
        self.signals, self.instruments = dict(signals or {}), tuple(instruments)
        self.data, self.members = data, members
        self.classify = classify or _classified
        if folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)

    def __call__(self, moment: Moment) -> None:
        """Record the members as they are."""
        if moment.step and not self.recording.steps:
            self._go_on(moment)
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
        self._examine(moment)
        kept.steps.append(moment.step)
        if kept.folder is not None:
            index = {"steps": kept.steps, "members": len(population), "examined": kept.examined}
            _replace(kept.folder / "recording.json", json.dumps(index))

    def _go_on(self, moment: Moment) -> None:
        """Training begins later than at step 0: what the folder holds of the steps before belongs to it.

        Raises:
            UsageError: MT518 for the recording of another number of members, or with others examined.
        """
        folder = self.recording.folder
        if folder is None or not (folder / "recording.json").is_file():
            return
        written = json.loads((folder / "recording.json").read_text(encoding="utf-8"))
        before = Recording.open(folder, moment.population.copy([0]))
        if (written["members"], before.examined) != (len(moment.population), self._chosen(moment)):
            raise UsageError(
                "MT518",
                "the folder holds the recording of other members, which this training does not go on from",
                where=str(folder),
                fix="give the Recorder another folder",
            )
        before.steps = [step for step in before.steps if step <= moment.step]
        self.recording = before

    def _chosen(self, moment: Moment) -> tuple[int, ...]:
        """Members whose signals and findings are taken."""
        count = len(moment.population)
        if not (self.instruments or self.signals):
            return ()
        chosen = tuple(self.members if self.members is not None else range(count))
        absent = [member for member in chosen if not 0 <= member < count]
        if absent:
            raise UsageError("MT518", f"there is no member {absent[0]} to examine", fix=f"0 to {count - 1}")
        return chosen

    def _write(self, folder: Path, moment: Moment, values: Mapping[str, Tensor]) -> None:
        from safetensors.torch import save_file

        save_file({k: v.contiguous() for k, v in values.items()}, str(_values(folder, moment.step)))
        moment.population.save(folder / f"step_{moment.step:08d}.safetensors")
        state = folder / "optimizer.partial"  # the old one stays whole until the new one is
        save_file({k: v.contiguous() for k, v in moment.state().items()}, str(state))
        state.replace(folder / "optimizer.safetensors")

    def _examine(self, moment: Moment) -> None:
        if self.data is None or not (self.instruments or self.signals):
            return
        from microtome.population.readings import look

        kept, named = self.recording, {one.name(): one for one in self.instruments}
        kept.examined = self._chosen(moment)
        for member in kept.examined:
            seen = look(moment.population.member(member).eval(), self.data, self.signals, named)
            if kept.folder is None:
                kept._readings[moment.step, member] = seen
            else:
                seen.write(_seen(kept.folder, moment.step, member))


def _classified(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """[N, n, k], [n] -> cross-entropy [N, n] and whether the largest output is the target [N, n]."""
    own = targets.expand(outputs.shape[:2]).unsqueeze(-1)
    loss = -outputs.log_softmax(-1).gather(-1, own).squeeze(-1)
    return loss, outputs.argmax(-1) == own.squeeze(-1)


def _values(folder: Path, step: int) -> Path:
    return folder / f"values_{step:08d}.safetensors"


def _seen(folder: Path, step: int, member: int) -> Path:
    return folder / f"seen_{step:08d}_{member:04d}.safetensors"


def _replace(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _absent(name: str, known: Iterable[str]) -> UsageError:
    from microtome.errors import nearest

    known = sorted(known)
    fix = nearest(name, known) or (f"one of {', '.join(known)}" if known else "give it to the Recorder")
    return UsageError("MT432", f"'{name}' was not recorded", fix=fix)


__all__ = ["Measure", "Probe", "Recorder", "Recording"]
