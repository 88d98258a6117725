"""Named runs, as functions: `demo`."""

from weft_clt.recipes.demo import demo

__all__ = ["demo"]
