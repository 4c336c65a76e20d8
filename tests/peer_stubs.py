"""Peers that import torchvision for its model zoo alone, which is not installed here: empty stand-ins."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager


class _Anything(types.ModuleType):
    """A module in which every name is an empty class, and every attribute a module too."""

    __path__: list[str] = []  # noqa: RUF012 - what makes it a package

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@contextmanager
def without_torchvision() -> Iterator[None]:
    """Stand-ins while a peer is imported; taken away afterwards, so that nobody else mistakes them."""
    if "torchvision" in sys.modules:
        yield
        return
    names = [
        "torchvision", "torchvision.models", "torchvision.models.resnet", "torchvision.models.vgg",
        "torchvision.transforms", "torchvision.transforms.functional", "torchvision.ops",
    ]  # fmt: skip
    sys.modules.update({name: _Anything(name) for name in names})
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)
