"""Networks that grow: T5s and decoders, operators of growth, checkpoints, text, a trainer, and runs of plans.

The names of ``__init__.pyi`` are imported when they are first used: ``fusion_core.errors`` loads no JAX.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
