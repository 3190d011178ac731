"""Commands under faults: killed, without a disk, with damaged files; and what is checked after each.

``python -m tests.faults.harness --faults 300`` (``--help`` has the rest). A fault costs a second or two: the program imports
everything once and forks for each command, before JAX has begun; commands that nothing ends run in one process that keeps
what it has compiled. Faults of disk and clock come from ``shim.c``, a library that stands between a process and libc.
"""
