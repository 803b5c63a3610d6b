"""Whether the interpreter has a global lock, by which a few steps without a call in between are one step."""

import sys

GIL: bool = getattr(sys, "_is_gil_enabled", lambda: True)()
