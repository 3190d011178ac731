"""Backward error analysis: the modified fields and losses that discrete training follows."""

import lazy_loader

# Public names are listed in __init__.pyi, and imported when they are first used: bea.symbolic does not need jax.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
