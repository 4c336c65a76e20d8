"""Which instruments, with which options and means: read and checked before torch is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any

from cyclopts import Parameter

from microtome.cli.conditions import full_name
from microtome.cli.output import split_list
from microtome.errors import UsageError


@Parameter(name="*")
@dataclass(frozen=True)
class Choice:
    """Which instruments, with which options and means."""

    only: Annotated[
        list[str] | None,
        Parameter(help="Instruments, rooms or patterns such as 'reliability/*'; repeat or use commas."),
    ] = None
    skip: Annotated[
        list[str] | None, Parameter(help="Instruments to leave out, written in the same way.")
    ] = None
    option: Annotated[
        list[str] | None, Parameter(help="An instrument's option: 'reliability/calibration.bins=20'; repeat.")
    ] = None
    memory: Annotated[str, Parameter(env_var="MICROTOME_MEMORY", help="Memory the run may use.")] = "2GiB"
    seed: Annotated[int, Parameter(help="Of every random choice.")] = 0


DEFAULT_CHOICE = Choice()


@dataclass(frozen=True)
class Request:
    """Instruments and means, read and checked before torch is imported."""

    names: tuple[str, ...]
    only: tuple[str, ...]
    skip: tuple[str, ...]
    options: Mapping[str, Mapping[str, Any]]
    memory: str
    seed: int

    @classmethod
    def read(cls, choice: Choice) -> Request:
        """Check names and options.

        Raises:
            UsageError: MT113 to MT115, MT126.
        """
        from microtome.registry import select

        only, skip = split_list(choice.only), split_list(choice.skip)
        names = select(only, skip)
        if not names:
            raise UsageError("MT113", "no instrument is left", where="--only and --skip", fix="skip fewer")
        return cls(names, only, skip, read_options(choice.option or (), names), choice.memory, choice.seed)

    def keywords(self) -> dict[str, Any]:
        """What examine() and plan() take."""
        return {
            "only": self.only,
            "skip": self.skip,
            "options": self.options,
            "memory": self.memory,
        }


def read_options(written: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Read ``room/method.key=value`` into a table.

    Raises:
        UsageError: MT115 for what cannot be read, MT113 for an unknown instrument.
    """
    options: dict[str, dict[str, Any]] = {}
    for text in written:
        left, equals, value = text.partition("=")
        name, dot, key = left.strip().rpartition(".")
        if not equals or not dot or not key:
            raise UsageError(
                "MT115",
                f"the option '{text}' cannot be read",
                where="--option",
                fix="write INSTRUMENT.NAME=VALUE, for example reliability/calibration.bins=20",
            )
        options.setdefault(full_name(name, names), {})[key.strip().replace("-", "_")] = read_value(
            value.strip()
        )
    return options


def read_value(text: str) -> Any:
    """A number, a fraction such as 8/255, a list, true or false; anything else is a word."""
    import json

    if text in ("True", "False", "None"):
        return {"True": True, "False": False, "None": None}[text]
    try:
        return json.loads(text, parse_constant=str)  # NaN is a word
    except ValueError:
        pass
    parts = text.split(",")
    if len(parts) > 1:
        return [read_value(part.strip()) for part in parts if part.strip()]
    numerator, slash, denominator = text.partition("/")
    if slash and numerator.strip().isdigit() and denominator.strip().isdigit() and int(denominator):
        return float(Fraction(int(numerator), int(denominator)))
    return text
