"""Where events go: one module a destination, each behind its own extra.

`load` finds a listener by the name under which it is published in the entry-point group ``fluxgate.listeners``,
Fluxgate's own and those of others alike.
"""

from fluxgate._plugins import load

__all__ = ["load"]
