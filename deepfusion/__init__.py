"""The ``deepfusion`` command: a thin shell over ``bea``, ``fusion_core`` and ``paper_figures``."""
