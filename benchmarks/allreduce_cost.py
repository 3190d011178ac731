r"""Predicted cost of adding gradients over 8 to 1,024 devices; no device is needed.

A ring over N devices sends each gradient byte ``2 (N − 1) / N`` times and takes 2 (N − 1) hops one after the other:

.. math:: t_{ring}(b, N) = 2\,\frac{N-1}{N}\,\frac{b}{B} + 2\,(N-1)\,\ell

with b bytes, bandwidth B of a device in one direction and latency ℓ of a hop. On machines of G devices with a fast link inside
and a slow one between, a hierarchical all-reduce first scatters inside (each device keeps b/G), then reduces over the
N/G machines, then gathers inside:

.. math:: t(b, N) = t_{ring}(b, G; B_{in}, \ell_{in}) + t_{ring}(b / G, N / G; B_{out}, \ell_{out})

If a share h of it overlaps the backward pass, a step of s seconds runs at ``s / (s + (1 − h) t)`` of perfect scaling.
``python -m benchmarks.allreduce_cost`` prints it for a given network, step time and links.
"""

from __future__ import annotations

import argparse
import math
import sys
from typing import Any

import jax

from benchmarks.output import hand_over
from fusion_core.models.t5 import T5Config, parameter_shapes
from fusion_core.provenance import provenance

DEVICES = (8, 16, 32, 64, 128, 256, 512, 1024)
PER_MACHINE = 8


def ring_seconds(payload: float, devices: int, bandwidth: float, latency: float) -> float:
    """Return the seconds of a ring all-reduce of ``payload`` bytes; bandwidth in bytes/s of a device and direction."""
    return 2 * (devices - 1) / devices * payload / bandwidth + 2 * (devices - 1) * latency


def gradient_bytes(config: T5Config, width: int = 4) -> int:
    """Return the bytes of all gradients, with ``width`` bytes for each entry."""
    return width * sum(math.prod(struct.shape) for struct in jax.tree.leaves(parameter_shapes(config)))


def compute(
    payload: float, step: float, inside: tuple[float, float], between: tuple[float, float], hidden: float
) -> list[dict[str, Any]]:
    """Return the predicted seconds and scaling, one row for each number of devices.

    Args:
      payload: bytes of the gradients.
      step: seconds of a step of one device, without communication.
      inside, between: bandwidth (bytes/s) and latency (s) within a machine and between machines, of one device.
      hidden: share of the time that overlaps the backward pass.
    """
    rows = []
    for n in DEVICES:
        seconds = ring_seconds(payload, min(n, PER_MACHINE), *inside)
        if n > PER_MACHINE:
            seconds += ring_seconds(payload / PER_MACHINE, n // PER_MACHINE, *between)
        flat = ring_seconds(payload, n, *(inside if n <= PER_MACHINE else between))
        rows.append(
            {"devices": n, "seconds": seconds, "flat": flat, "efficiency": step / (step + (1 - hidden) * seconds)}
        )
    return rows


def main(argv: list[str] | None = None) -> int:
    """Print Markdown, write JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.allreduce_cost", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--network", default="t5-v1_1-base", help="name for T5Config.named (default t5-v1_1-base)")
    parser.add_argument("--step", type=float, default=0.2, help="seconds of a step without communication (default 0.2)")
    parser.add_argument("--bytes", type=int, default=4, help="bytes of a gradient's entry (default 4, float32)")
    parser.add_argument(
        "--inside", type=float, default=450, help="GB/s of a device within a machine (default 450, NVLink 4)"
    )
    parser.add_argument(
        "--between", type=float, default=50, help="GB/s of a device between machines (default 50, 400 Gbit/s)"
    )
    parser.add_argument(
        "--latency", type=float, nargs=2, default=(3.0, 10.0), help="µs of a hop inside and between (3 10)"
    )
    parser.add_argument("--hidden", type=float, default=0.0, help="share that overlaps the backward pass (default 0)")
    parser.add_argument("--json", metavar="FILE", help="write the numbers as JSON, - for the terminal")
    arguments = parser.parse_args(argv)
    for name in ("step", "inside", "between", "bytes"):
        if not getattr(arguments, name) > 0:
            parser.error(f"--{name} is {getattr(arguments, name)}; it must be positive")
    if not 0 <= arguments.hidden <= 1:
        parser.error(f"--hidden is {arguments.hidden}; it is a share, from 0 to 1")
    payload = gradient_bytes(T5Config.named(arguments.network), arguments.bytes)
    inside, between = (
        (1e9 * b, 1e-6 * l) for b, l in zip((arguments.inside, arguments.between), arguments.latency, strict=True)
    )
    rows = compute(payload, arguments.step, inside, between, arguments.hidden)
    lines = [
        f"{arguments.network}: {payload / 1e9:.2f} GB of gradients, a step of {arguments.step} s, machines of {PER_MACHINE}",
        "",
        "| devices | all-reduce, ms | one flat ring, ms | share of perfect scaling |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {r['devices']} | {1e3 * r['seconds']:.2f} | {1e3 * r['flat']:.2f} | {r['efficiency']:.1%} |" for r in rows
    ]
    result = {"payload": payload, "arguments": vars(arguments), "rows": rows, "provenance": provenance()}
    hand_over(result, "\n".join(lines), arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
