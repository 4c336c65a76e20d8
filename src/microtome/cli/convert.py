"""``microtome convert``: a pickle you trust, once."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from cyclopts import Parameter

from microtome.cli.output import show, show_json


def convert(
    src: Annotated[str, Parameter(help="Checkpoint: .pt, .pth, .ckpt, .bin.")],
    dst: Annotated[str, Parameter(help="File to write, ending in .safetensors.")],
    /,
    *,
    trust_pickle: Annotated[bool, Parameter(help="Run the pickle whatever it calls: you made it.")] = False,
    overwrite: Annotated[bool, Parameter(help="Replace the file if it exists.")] = False,
    path: Annotated[str | None, Parameter(help="Folder with the classes the pickle names.")] = None,
    json: Annotated[bool, Parameter(help="Print JSON.")] = False,
) -> int:
    """Write the weights of a checkpoint as safetensors, which holds tensors and can run nothing."""
    import os
    import sys

    from microtome.checkpoints import convert as write

    if trust_pickle:
        # Its classes are imported by name, as when it was written.
        sys.path.insert(0, os.path.abspath(path or os.curdir))
    done = write(src, dst, trust=trust_pickle, overwrite=overwrite)
    if json:
        show_json(dataclasses.asdict(done))
    else:
        show(done.text())
    return 0
