"""A small store for the tests of the lab: findings of every kind that its pages read."""

from __future__ import annotations

from typing import Any

import numpy as np

from microtome import figures
from microtome.drawing import drawing
from microtome.finding import Coverage, Examination, Finding, Quantity, Table, Threshold

LAYERS = ("stem", "relu", "fc", "relu#2", "head")
COUNT = 300


def answered(seed: int, wrong_every: int = 10) -> dict[str, np.ndarray]:
    """Arrays of a finding that tells how each of 300 examples was answered."""
    rng = np.random.default_rng(seed)
    labels = np.arange(COUNT) % 3
    answers = np.where(np.arange(COUNT) % wrong_every == 7, (labels + 1) % 3, labels)
    shares = np.sort(rng.dirichlet(np.ones(3), COUNT), axis=1)[:, ::-1]
    explained = np.flatnonzero(labels != answers)[:5]
    return {
        "rows": np.arange(COUNT),
        "samples": rng.random(COUNT),
        "labels": labels,
        "answers": answers,
        "loss": rng.random(COUNT).astype(np.float32),
        "margin": rng.normal(size=COUNT).astype(np.float32),
        "classes": np.stack([answers, (answers + 1) % 3, (answers + 2) % 3], axis=1),
        "probabilities": shares.astype(np.float32),
        "neighbours": rng.integers(0, COUNT, (COUNT, 5)),
        "neighbour distances": rng.random((COUNT, 5)).astype(np.float32),
        "nearest otherwise": rng.integers(0, COUNT, COUNT),
        "distance to otherwise": rng.random(COUNT).astype(np.float32),
        "thumbnails": rng.integers(0, 255, (COUNT, 6, 6, 1)).astype(np.uint8),
        "explained": explained,
        "for the answer": rng.normal(size=(len(explained), 6, 6)).astype(np.float32),
        "change that mends": rng.random(len(explained)).astype(np.float32),
    }


def excited() -> dict[str, np.ndarray]:
    """Of 8 units the 4 examples that excite each most and least; unit 3 is silent, and example 9999 is not kept."""
    strength = np.arange(8)[:, None] * 10.0 + np.array([4.0, 3.0, 2.0, 1.0])
    strength[3] = 0.0
    most = np.arange(8)[:, None] * 10 + np.arange(4)
    most[7, 3] = 9999
    return {
        "most exciting/relu": most,
        "most excitement/relu": strength.astype(np.float32),
        "least exciting/relu": np.arange(32).reshape(8, 4) + 200,
        "least excitement/relu": np.zeros((8, 4), np.float32),
    }


def findings(seed: int = 0, accuracy: float = 0.9) -> dict[str, Finding]:
    """By name."""
    rng = np.random.default_rng(seed)
    right = (rng.random(COUNT) < accuracy).astype(np.float64)
    share = float(right.mean())
    arrays = answered(seed)
    made = [
        Finding(
            instrument="reliability/accuracy",
            headline="accuracy",
            question="How often is it right?",
            summary="It is right often.",
            quantities={"accuracy": Quantity(value=share, low=share - 0.03, high=share + 0.03, better="higher")},
            tables={"mistakes": Table(columns=("true", "predicted", "count"), rows=((2, 1, 9), (0, 1, 4)))},
            figures={"confusion": figures.heatmap("Confusion", np.eye(3), caption="Rows are the truth.")},
            arrays={"rows": np.arange(COUNT), "samples": right},
            grade="good",
        ),
        Finding(
            instrument="reliability/calibration",
            headline="ECE",
            question="Can it be believed?",
            summary="Confidences are off by 0.31.",
            how_to_read="0 is perfect.",
            quantities={"ECE": Quantity(value=0.31, low=0.29, high=0.33, better="lower")},
            threshold=Threshold(quantity="ECE", watch=0.05, alarm=0.15, source="a stated source"),
            grade="alarm",
            figures={
                "diagram": figures.line("Reliability", figures.rows(c=[0.1, 0.9], a=[0.2, 0.6]), x="c", y="a")
            },
            papers=("deep-grokking",),
            coverage=Coverage(rows=COUNT, rows_total=COUNT),
            caveats=("15 bins.",),
        ),
        Finding(
            instrument="reliability/examples",
            headline="foreign neighbours",
            question="Which does it get wrong?",
            quantities={"foreign neighbours": Quantity(value=float(arrays["samples"].mean()))},
            tables={
                "worst": Table(
                    columns=("example", "label", "answer"), rows=((7, 1, 2), (17, 2, 0), (3, 0, 0)), caption="Worst"
                )
            },
            arrays=arrays,
        ),
        Finding(
            instrument="represent/feature_rank",
            headline="rank",
            quantities={"rank": Quantity(value=3.0 + accuracy)},
            tables={
                "layers": Table(
                    columns=("layer", "units", "effective"), rows=(("relu", 8, 6.0), ("relu#2", 64, 4.0))
                )
            },
            arrays={"spectrum/relu#2": np.linspace(1, 0, 64)},
        ),
        Finding(
            instrument="represent/activation_statistics",
            headline="dead units",
            quantities={"dead units": Quantity(value=0.125)},
            arrays=excited(),
        ),
        Finding(
            instrument="represent/linear_cka",
            headline="neighbours",
            quantities={"neighbours": Quantity(value=0.9)},
            tables={"pairs": Table(columns=("CKA", "layer", "with"), rows=((0.99, "relu", "relu#2"),))},
            figures={
                "cka": figures.heatmap(
                    "CKA", np.array([[1, 0.99], [0.99, 1]]), row_names=["relu", "relu#2"],
                    column_names=["relu", "relu#2"],
                )
            },
        ),
        Finding(
            instrument="compress/cost",
            headline="operations",
            quantities={"operations": Quantity(value=1000, how="exact")},
            tables={
                "layers": Table(
                    columns=("layer", "kind", "parameters", "operations"),
                    rows=(
                        ("stem", "convolution", 100, 600),
                        ("relu", "activation", 0, 0),
                        ("fc", "linear", 800, 300),
                        ("relu#2", "activation", 0, 0),
                        ("head", "linear", 100, 100),
                        ("elsewhere", "", 0, 0),
                    ),
                )
            },
        ),
        Finding(
            instrument="compress/magnitude_pruning",
            headline="prunable together",
            quantities={"prunable together": Quantity(value=0.3)},
            tables={
                "tensors": Table(
                    columns=("weights", "count", "prunable"),
                    rows=(
                        ("stem.weight", 100, 0.3), ("fc.weight", 800, 0.9), ("head.weight", 100, 0.7),
                        ("all together", 1000, 0.3),
                    ),
                )
            },
        ),
        Finding(
            instrument="explain/gradient",
            headline="gain",
            quantities={"gain": Quantity(value=0.4, low=0.2, high=0.6)},
            tables={
                "examples": Table(
                    columns=("example", "class", "gain over random"), rows=((17, 2, 0.73), (40, 1, 0.1))
                )
            },
            arrays={
                "rows": np.array([17, 40]),
                "samples": np.array([0.73, 0.1]),
                "maps": rng.normal(size=(2, 6, 6)).astype(np.float32),
            },
            grade="watch",
        ),
        Finding(
            instrument="explain/nearest_counterfactual",
            headline="nearest change",
            quantities={"nearest change": Quantity(value=0.5)},
            arrays={
                "rows": np.array([7, 17]),
                "samples": np.array([0.5, 0.25]),
                "answers then": np.array([1, 2]),
                "nearest real": np.array([-1, 20]),
                "distance to a real one": np.array([-1.0, 5.0]),
                "changed": np.clip(arrays["thumbnails"][[7, 17]] + 40.0, 0, 255).astype(np.float32),
            },
        ),
        Finding(
            instrument="architect/wiring",
            headline="operations",
            quantities={"operations": Quantity(value=2)},
            figures={
                "wiring": drawing(
                    "Wiring",
                    "stem, relu",
                    (100, 120),
                    [
                        {"box": [10, 10, 40, 20, 4], "is": "convolution", "tip": "stem; 1 to 8"},
                        {"box": [10, 40, 40, 20, 4], "is": "curve", "tip": "relu; 8 to 8"},
                        {"box": [10, 70, 40, 20, 4], "is": "curve", "tip": "relu; 8 to 8"},
                        {"line": "M30.0 30.0L30.0 40.0", "is": "axis"},
                    ],
                )
            },
        ),
        Finding(instrument="graphs/smooth", status="refused", reason="there is no graph"),
        Finding(instrument="dynamics/noise", status="failed", reason="ValueError: boom"),
    ]  # fmt: skip
    return {f.instrument: f for f in made}


def examination(exam_id: str = "e1", created: str = "2026-11-21T10:00:00Z", **changes: Any) -> Examination:
    """One of a network called "a network"."""
    made: dict[str, Any] = {
        "id": exam_id,
        "created": created,
        "subject": {"name": "a network", "task": "classification", "examples": COUNT, "parameters": 1000},
        "findings": findings(),
        "seed": 7,
        "seconds": 2.5,
        "command": "microtome examine nets:build",
        "versions": {"microtome": "0.1.0"},
        "calibration": {"reliability/calibration": [{"specimen": "planted", "error": 0.0, "passed": True}]},
    }
    return Examination(**(made | changes))


def trained(exam_id: str = "t1") -> Examination:
    """One along four checkpoints."""
    rows = tuple((step, 0.1 + step / 1000, "good") for step in (0, 100, 200, 800))
    course = Finding(
        instrument="reliability/accuracy",
        headline="accuracy",
        quantities={"accuracy": Quantity(value=0.9)},
        tables={"trajectory": Table(columns=("step", "accuracy", "grade"), rows=rows)},
    )
    return examination(exam_id, findings={course.instrument: course})
