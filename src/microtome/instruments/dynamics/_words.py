"""What instruments of this room say in the same words."""

from __future__ import annotations

from microtome.subject import Subject


def loss_unit(subject: Subject) -> str:
    """Unit of one prediction's loss."""
    return "squared error" if subject.task.kind == "regression" else "nat"


def eval_mode(subject: Subject) -> tuple[str, ...]:
    """A caveat for networks that train with other normalisation than they are measured with."""
    if any("atch" in layer.operation and layer.kind == "normalisation" for layer in subject.layers):
        return ("batch-norm uses its running statistics (eval mode): training sees another loss",)
    return ()
