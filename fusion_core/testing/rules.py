r"""What a rule that fuses networks must do, for rules of one's own.

.. math:: f(\Theta; x) = \sum_i w_i f_i(\theta_i; x), \qquad \Theta = J(\theta_1, \dots, \theta_k)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fusion_core.models.units import Config, Params
from fusion_core.testing.maps import assert_close
from fusion_core.testing.strategies import EXAMPLES, Sources, Strategy, tried

Rule = Callable[[Sequence[tuple[Params, Config]], Sequence[float]], tuple[Params, Config]]
TOLERANCE = 1e-9
_DIFFER = 1e-6  # of the sources' outputs: less would be no test of a mean


def check_rule(
    rule: Rule,
    strategy: Strategy,
    outputs: Callable[[Params, Config], Array],
    *,
    examples: int = EXAMPLES,
    tolerance: float = TOLERANCE,
) -> None:
    """Raise AssertionError, with the property and the sources, unless the rule fuses; in float64.

    The properties: the fused outputs are the weighted mean of the sources'; equal sources keep their outputs; the fused
    parameters are linear in the sources'; the order of the sources does not matter for the outputs; nor whether three are
    fused at once or one after the other.

    Args:
      rule: ``(networks, weights) -> (params, config)``, as ``fusion_core.fuse``.
      strategy: sources, such as ``sources(configs)`` or ``mlp_sources()``.
      outputs: ``(params, config) -> array``, of one shape for all networks.
      examples: number of examples that are drawn.
      tolerance: largest difference, as a share of the largest output.
    """
    seen = []
    of = lambda network: np.asarray(outputs(*network))

    def body(drawn: Sources) -> None:
        with jax.enable_x64(True):
            networks, weights = drawn.networks, list(drawn.weights)
            fused = rule(networks, weights)
            own = [of(network) for network in networks]
            mean = sum(w * out for w, out in zip(weights, own, strict=True))
            close = lambda a, b, what: assert_close(a, b, f"{what}, for {drawn}", tolerance)
            close(of(fused), mean, "the fused outputs are not the weighted mean of the sources'")
            seen.append(float(np.abs(own[0] - own[-1]).max() / np.abs(mean).max()))
            equal = rule([networks[0]] * len(networks), weights)
            close(of(equal), own[0], "equal sources do not keep their outputs")
            _check_linear(rule, networks, weights, close)
            close(of(rule(networks[::-1], weights[::-1])), mean, "the order of the sources changes the outputs")
            inner = sum(weights[1:])
            last = rule(networks[1:], [w / inner for w in weights[1:]]) if len(networks) > 2 else networks[1]
            close(
                of(rule([networks[0], last], [weights[0], inner])),
                mean,
                "fused one after the other, the outputs differ",
            )

    tried(strategy, body, examples)
    if not max(seen) > _DIFFER:
        raise AssertionError(
            "the outputs of all sources agree, so that their mean is no test; draw networks that differ"
        )


def _check_linear(rule: Rule, networks: Sequence[tuple[Params, Config]], weights: Sequence[float], close: Any) -> None:
    """Raise AssertionError unless the fused parameters are linear in the sources'."""
    others = [(jax.tree.map(lambda x: jnp.cos(3 * x), p), c) for p, c in networks]
    combine = lambda x, y: jax.tree.map(lambda a, b: 2 * a - 3 * b, x, y)
    both = [(combine(p, q), c) for (p, c), (q, _) in zip(networks, others, strict=True)]
    at = lambda given: rule(given, weights)[0]
    close(at(both), combine(at(networks), at(others)), "the fused parameters are not linear in the sources'")
