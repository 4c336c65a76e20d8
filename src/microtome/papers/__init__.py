"""The bibliography: 559 papers, and what runs here of each. Imports no torch."""

from microtome.papers.bibliography import (
    ROOMS,
    Kind,
    Paper,
    Room,
    Standing,
    State,
    paper,
    papers,
    states,
)

__all__ = ["ROOMS", "Kind", "Paper", "Room", "Standing", "State", "paper", "papers", "states"]
