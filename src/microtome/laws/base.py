"""What a law is, and how one's own leaf is held to all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from microtome.instrument import Instrument


class Broken(AssertionError):
    """A leaf breaks a law; the text says how."""


@dataclass(frozen=True)
class Law:
    """A property every leaf of a contract has. Called with the leaf, it raises :class:`Broken`."""

    name: str
    check: Callable[[Any], None]

    def __call__(self, leaf: Any) -> None:
        """Hold a leaf to it."""
        self.check(leaf)

    @property
    def text(self) -> str:
        """What it demands."""
        return (self.check.__doc__ or self.name).strip().splitlines()[0]


def require(holds: bool, text: str) -> None:
    """Raise :class:`Broken` unless it holds."""
    if not holds:
        raise Broken(text)


def check_instrument(
    instrument: type[Instrument] | Instrument, *, expected_failures: Mapping[str, str] | None = None
) -> None:
    """Hold an instrument to all laws.

    Args:
        instrument: a class (its defaults must do), or an instance with options fit for tiny subjects.
        expected_failures: law -> reason, for laws known to be broken; one that is obeyed is a failure, too.

    Raises:
        Broken: naming every law that is broken, and how.
    """
    from microtome.laws.instruments import INSTRUMENT_LAWS

    made = instrument() if isinstance(instrument, type) else instrument
    expected = dict(expected_failures or {})
    broken = []
    for law in INSTRUMENT_LAWS:
        reason = expected.pop(law.name, None)
        try:
            law(made)
        except Broken as error:
            if reason is None:
                broken.append(f"{law.name}: {error}")
        else:
            if reason is not None:
                broken.append(f"{law.name}: obeyed, though it was expected to be broken ({reason})")
    broken += [f"{name}: there is no such law" for name in expected]
    if broken:
        raise Broken(f"{made.name()} breaks {len(broken)} laws\n" + "\n".join(f"  {b}" for b in broken))


def parametrize_laws(*instruments: type[Instrument] | Instrument) -> Any:
    """Mark a test to run once a law and instrument: ``def test(instrument, law): law(instrument)``."""
    import pytest

    from microtome.laws.instruments import INSTRUMENT_LAWS

    made = [i() if isinstance(i, type) else i for i in instruments]
    cases = [pytest.param(i, law, id=f"{law.name}-{i.name()}") for i in made for law in INSTRUMENT_LAWS]
    return pytest.mark.parametrize(("instrument", "law"), cases)
