"""Several processes as one run: joining them, and stopping the others when one of them has died.

Start-up on one machine, SLURM and TPU pods, and what was measured: docs/distributed.md.
"""

from __future__ import annotations

import atexit
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax

from fusion_core.errors import InputError

COORDINATOR, PROCESSES, PROCESS = "DEEPFUSION_COORDINATOR", "DEEPFUSION_PROCESSES", "DEEPFUSION_PROCESS"
START, LATER = (
    300.0,
    7 * 24 * 3600,
)  # seconds to wait for the others to start; and what JAX is told, whose end is an abort
EXIT_CODE = 75  # sysexits' EX_TEMPFAIL: another attempt, resuming the run, may succeed
# beats are this far apart (s), and a peer that has missed them for PATIENCE is taken for dead; JAX's own check, which
# ends the process without a word of ours, comes later
BEAT, PATIENCE, BACKSTOP = 2.0, 20.0, 50

_watchdog: Watchdog | None = None


def initialize_distributed(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    detect: bool = False,
    start_timeout: float = START,
    note: Callable[[str], None] = lambda line: None,
) -> bool:
    """Join the processes of a run, before anything else uses JAX. Afterwards a watchdog thread monitors the peers.

    If they do not find each other, this process can only report the error and end.

    Args:
      coordinator: ``host:port`` of process 0, the same for all; if None, the environment's ``DEEPFUSION_COORDINATOR``.
      processes: their number; if None, ``DEEPFUSION_PROCESSES``.
      process: number of this process, from 0; if None, ``DEEPFUSION_PROCESS``.
      detect: let JAX detect the three (SLURM, Open MPI, TPU pods, Kubernetes).
      start_timeout: seconds to wait for the others.
      note: called with a line before waiting.

    Returns:
      Whether there are several processes.

    Raises:
      InputError: the three are incomplete or contradict each other, or the others did not start in time.
    """
    coordinator = coordinator or os.environ.get(COORDINATOR)
    count = _number(processes, PROCESSES)
    index = _number(process, PROCESS)
    if coordinator is None and count is None and index is None and not detect:
        return False
    if not detect:
        given = {
            "a coordinator (host:port)": coordinator,
            "the number of processes": count,
            "this process's number": index,
        }
        missing = [name for name, value in given.items() if value is None]
        if missing:
            raise InputError(
                f"several processes need {', '.join(given)}; {' and '.join(missing)} is missing: give it, or set "
                f"{COORDINATOR}, {PROCESSES} and {PROCESS}"
            )
        assert coordinator is not None
        assert count is not None
        assert index is not None
        if count < 1 or not 0 <= index < count:
            raise InputError(f"process {index} of {count}: numbers go from 0 to the number of processes less one")
        port = coordinator.rpartition(":")[2]
        if ":" not in coordinator or not port.isdigit():
            raise InputError(f"the coordinator is {coordinator!r}; it must be host:port, such as node0:1234")
        if count == 1:
            return False
    # CPUs have no collectives of their own; other devices ignore this
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    who = "the processes of this run" if detect else f"process {index} of {count}, with the coordinator {coordinator},"
    note(f"{who}: waiting for the others, at most {start_timeout:g} s")
    _join(coordinator, count, index, start_timeout, who)
    if jax.process_count() > 1:
        global _watchdog
        _watchdog = Watchdog()
    return jax.process_count() > 1


def _join(coordinator: str | None, count: int | None, index: int | None, timeout: float, who: str) -> None:
    """Let JAX join the processes. Raises InputError if they have not found each other after ``timeout`` seconds.

    JAX would wait longer, and then abort this process with a stack trace; so it waits in a thread that is left behind.
    """
    failed: list[Exception] = []

    def initialize() -> None:
        try:
            jax.distributed.initialize(
                coordinator,
                count,
                index,
                initialization_timeout=LATER,
                heartbeat_timeout_seconds=BACKSTOP,
                # an error in one process must not wait for the others, which may wait for it
                shutdown_timeout_seconds=10,
            )
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=initialize, name="joining", daemon=True)
    thread.start()
    try:
        thread.join(timeout)
    except KeyboardInterrupt:
        atexit.register(_end_now, 130)
        raise
    if thread.is_alive():
        atexit.register(_end_now, 2)
        raise InputError(
            f"{who} has not found the others within {timeout:g} s; start all of them, each with its number and with a "
            "coordinator (process 0's host and a free port) that all can reach"
        )
    if failed:
        first = str(failed[0]).splitlines()[0]
        raise InputError(
            f"the processes of this run did not find each other ({first}); check coordinator and numbers"
        ) from None


def _end_now(code: int) -> None:
    """End this process before JAX's own shutdown, which would wait for the others, or abort."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _number(given: int | None, variable: str) -> int | None:
    text = os.environ.get(variable)
    if given is not None or text is None:
        return given
    if not text.isdigit():
        raise InputError(f"{variable} is {text!r}; it must be a number, 0 or more")
    return int(text)


def leave(reason: str, code: int) -> None:
    """Exit with ``code`` after telling the other processes why; they stop within seconds. Return if there are none.

    The process ends here, since JAX's own shutdown would wait for the peers, which are stopping, and abort.
    """
    if _watchdog is not None:
        _watchdog.leave(reason)
        print(f"Error: {reason}", file=sys.stderr, flush=True)
        os._exit(code)


@contextmanager
def collectives() -> Iterator[None]:
    """Wait for the watchdog's word, and end with it, where a collective within fails because a peer is gone.

    Other errors, and all of a single process, are raised as they are.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if _watchdog is not None and re.search("gloo|nccl", str(error), re.IGNORECASE):
            time.sleep(PATIENCE + 5 * BEAT)  # the watchdog ends this process meanwhile
        raise


def finish() -> None:
    """Wait for all processes and end the watchdog. Return at once if there is only this one."""
    global _watchdog
    if _watchdog is not None:
        _watchdog.finish()
        _watchdog = None
        jax.distributed.shutdown()


class Watchdog:
    """A thread that counts up in the coordinator's key-value store, and ends this process if a peer stops counting.

    A collective in which a peer is missing waits forever and cannot be interrupted, so the process is ended from here.
    """

    def __init__(self) -> None:
        from jax._src import distributed  # the store has no public name

        client: Any = distributed.global_state.client
        self._client = client
        self._rank, self._count = jax.process_index(), jax.process_count()
        self._done = threading.Event()
        self._beat(0)
        self._client.wait_at_barrier("deepfusion/begun", 60_000)
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
        self._thread.start()

    def _beat(self, n: int) -> None:
        self._client.key_value_set(f"deepfusion/beat/{self._rank}", str(n), allow_overwrite=True)

    def _watch(self) -> None:
        seen = {rank: ("", time.monotonic()) for rank in range(self._count) if rank != self._rank}
        n = 0
        while not self._done.wait(BEAT):
            n += 1
            try:
                self._beat(n)
                beats = dict(self._client.key_value_dir_get("deepfusion/beat/"))
                left = dict(self._client.key_value_dir_get("deepfusion/left/"))
            except Exception as error:
                if self._done.is_set():
                    return
                self._end(f"process 0, which coordinates the run, does not answer ({str(error).splitlines()[0]})")
            now = time.monotonic()
            for rank, (last, when) in seen.items():
                reason = left.get(f"deepfusion/left/{rank}")
                beat = beats.get(f"deepfusion/beat/{rank}", "")
                if reason is not None:
                    self._end(f"process {rank} has stopped: {reason}")
                if beat != last:
                    seen[rank] = (beat, now)
                elif now - when > PATIENCE:
                    self._end(
                        f"process {rank} has not answered for {now - when:.0f} s: it has died, or the network is down"
                    )

    def _end(self, why: str) -> None:
        print(
            f"Error: {why}; this process ({self._rank} of {self._count}) stops too. Start all processes again, to resume "
            "the run.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_CODE)

    def leave(self, reason: str) -> None:
        """Write the reason to the store, and wait until it can be read if the store ends with this process."""
        self._done.set()
        try:
            self._client.key_value_set(f"deepfusion/left/{self._rank}", reason, allow_overwrite=True)
        except Exception:
            return  # the coordinator is gone
        if self._rank == 0:
            time.sleep(2 * BEAT)

    def finish(self) -> None:
        """Wait for all processes."""
        self._client.wait_at_barrier("deepfusion/finished", 600_000)
        self._done.set()
        self._thread.join()
