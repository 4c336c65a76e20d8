"""The lab in the browser: what is in a store, served from this machine alone.

Pages are rendered here with the report's own parts; a little JavaScript of our own opens, filters and draws. Nothing
comes from the network, and nothing but tags is ever written. The pages read findings by what they hold (a table with
a column "layer", arrays "rows" and "samples") and know no instrument by name.
"""

from __future__ import annotations

from microtome.web.application import application
from microtome.web.serve import address, listen, serve

__all__ = ["address", "application", "listen", "serve"]
