"""Backward error analysis in symbols: exact coefficients, fields and losses from formulas, LaTeX and JAX code out."""

import lazy_loader

# Public names are listed in __init__.pyi, and imported when they are first used: the names of methods need no sympy.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
