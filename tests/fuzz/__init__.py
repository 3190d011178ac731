"""A fuzzer of everything that is read: ``targets.py`` has the parsers, ``mutations.py`` makes their inputs.

Three drivers share them: hypothesis in the suite (``test_fuzz.py``), a long mode (``python -m tests.fuzz``), and in it a fuzzer
that follows coverage (``--guided``, with the package atheris).
"""
