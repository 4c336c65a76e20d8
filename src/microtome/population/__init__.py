"""Populations: many networks trained at once as one batched program, recorded, and compared as a sample."""

from microtome.population.optimizers import ELEMENTWISE
from microtome.population.population import Population
from microtome.population.program import Loss, Program, SequentialWarning, cross_entropy
from microtome.population.recorder import Recorder, Recording
from microtome.population.training import Moment, Recipe, Trained, every, geometric, orders, train

__all__ = [
    "ELEMENTWISE",
    "Loss",
    "Moment",
    "Population",
    "Program",
    "Recipe",
    "Recorder",
    "Recording",
    "SequentialWarning",
    "Trained",
    "cross_entropy",
    "every",
    "geometric",
    "orders",
    "train",
]
