"""One graph, many meanings: the symbolic engine.

A model is captured once and then read in several ways. The pieces, from the bottom up:

- ``capture`` traces a model with ``torch.export`` into a ``Graph``: plain ``Node`` values in order of
  execution, each with its operation, shape, the module call its reader knows ("block1.relu#2") and the line
  of code it comes from. Operations are core ATen ones, except that linear maps, normalisations,
  activations, pools and softmax stay whole (``operations.KEPT``), for a domain can say more about them than
  about their pieces.
- A ``Domain`` gives operations a meaning: a table filled by ``@rule(Domain, torch.ops.aten.relu.default)``
  in one file. Subclasses inherit rules and may replace a few.
- ``forward`` walks the graph with values: numbers where nothing is abstract (position ids, masks, shapes
  need no rules), abstract values elsewhere. ``replace`` puts an abstract value anywhere, such as at an
  embedding.
- ``backward`` walks from outputs to inputs through a run of ``forward``: ``requirements`` says beforehand
  which values its rules will read, everything else is dropped after its last use.
- ``coverage`` says before anything runs which operations lack a rule; a missing one is the error MT310,
  which names operation, module, line and domain. Nothing falls back in silence.

Domains here: ``interval`` (ranges; rules also in ``interval_norms``), ``linear_bounds`` (linear functions
below and above; rules in ``linear_rules`` and ``linear_norms``), ``cost`` (operations, bytes, receptive
fields), ``relevance`` (LRP; rules in ``relevance_operations``), ``gates`` and ``bias_gradients`` (gradients
through changed ReLUs, FullGrad), ``isolation`` (which examples of a batch meet; rules in ``isolation_rules``),
``lipschitz`` (how fast outputs can move; rules in ``lipschitz_rules``) and ``kernel_domain`` (NNGP and NTK of
infinite width; rules in ``kernel_rules``, the function in ``kernels``; ``mean_field``, ``finite_width`` and
``gaussian`` are its theory in plain functions, ``propagation`` holds a network against it). ``patterns`` knows
the linear regions of piecewise-linear programs, ``crossings`` where lines and curves pass from one to the next,
``planes`` their polygons, ``decision_tree`` the tree they make. ``wiring`` draws a program, ``regenerate``
makes it a module again, ``latency`` times its operations, ``terms`` is a small language of circuits,
``convolution_arithmetic`` the sizes and matrices of windows. ``curves`` knows what bounds need of functions of
one number. ``docs/add-a-domain.md`` shows how to add one.
"""

from microtome.interpret.capture import capture
from microtome.interpret.graph import Graph, Node
from microtome.interpret.interpreter import (
    At,
    Coverage,
    Domain,
    Run,
    backward,
    concrete,
    coverage,
    forward,
    requirements,
    rule,
    sources,
)

__all__ = [
    "At",
    "Coverage",
    "Domain",
    "Graph",
    "Node",
    "Run",
    "backward",
    "capture",
    "concrete",
    "coverage",
    "forward",
    "requirements",
    "rule",
    "sources",
]
