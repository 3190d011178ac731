"""Growth events: a linear map between parameter spaces, and the small phase as a field on the grown one."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.sparse.linalg import cg

from bea.fields import gradient_field, lie_bracket
from bea.integrability import IntegrabilityDefect, integrability_defect
from bea.pytrees import Field, Loss, Number, Params, axpy, check_floating, check_step_size, inner, norm, subtract


@runtime_checkable
class LinearMap(Protocol):
    """A map J with its transpose and its pseudo-inverse, such as ``fusion_core.GrowthMap``."""

    def embed(self, small: Any, /) -> Any:
        """Return Jθ."""

    def transpose(self, grown: Any, /) -> Any:
        """Return JᵀΘ."""

    def pinv(self, grown: Any, /) -> Any:
        """Return J⁺Θ."""


@dataclasses.dataclass(frozen=True)
class GrowthEvent:
    """Growing as the linear map ``Θ = J θ`` from the small parameter space to the grown one.

    When several networks are fused, θ is the tree of all of them, such as the tuple ``(θ_A, θ_B)``.

    Attributes:
      embed: J; ``small params -> grown params``, linear.
      transpose: Jᵀ; ``grown -> small`` with ``⟨Jθ, Θ⟩ = ⟨θ, JᵀΘ⟩``.
      pinv: J⁺; ``grown -> small``, the pseudo-inverse (of least norm if J has a kernel, as for averaged biases).

    ``GrowthEvent.of(mapping)`` takes all three from a map; ``GrowthEvent.from_linear(embed, example_small)`` derives the
    last two from the first.

    Source: theory.md, (3.1).
    """

    embed: Callable[[Params], Params]
    transpose: Callable[[Params], Params]
    pinv: Callable[[Params], Params]

    @classmethod
    def of(cls, mapping: LinearMap) -> "GrowthEvent":
        """Return the event of a map that has its transpose and its pseudo-inverse."""
        return cls(mapping.embed, mapping.transpose, mapping.pinv)

    @classmethod
    def from_linear(
        cls,
        embed: Callable[[Params], Params],
        example_small: Params,
        *,
        pinv: Callable[[Params], Params] | None = None,
    ) -> "GrowthEvent":
        """Return the event of a linear ``embed``, whose transpose and pseudo-inverse are derived from it.

        The pseudo-inverse solves ``JᵀJ θ = JᵀΘ`` by conjugate gradients from zero, which takes as many steps as J has
        different singular values: two or three for a fusion rule. That start gives the solution of least norm.

        Args:
          embed: J; ``small params -> grown params``.
          example_small: small params, of which only the tree, shapes and dtypes matter.
          pinv: J⁺, if it is known in closed form; if None, it is computed by conjugate gradients.

        Raises:
          ValueError: embed is not linear (probed at two random points and at zero), with the size of the misfit.
          TypeError: a leaf of example_small is not floating.
        """
        check_floating(example_small, "example_small")
        _check_linear(embed, example_small)
        try:
            transposed = jax.linear_transpose(embed, example_small)
            jax.eval_shape(transposed, jax.eval_shape(embed, example_small))
        except NotImplementedError as error:
            raise ValueError(
                f"embed is not linear in a way that JAX can transpose ({error}): write it with linear operations "
                "(concatenate, pad, scale, add)"
            ) from None
        transpose = lambda grown: transposed(grown)[0]
        return cls(embed, transpose, pinv or _least_norm_inverse(embed, transpose))

    def push(self, field: Field) -> Field:
        """Return the small phase as a field on the grown space: ``Θ ↦ J f_s(J⁺Θ)``.

        On the image of J this is THE velocity of the small phase. Off the image it is one of many continuations
        (constant along the normals to the image), and the bracket with a field that points off the image depends on the
        choice; the composite of the phases, which starts on the image, does not.
        """
        return lambda grown: self.embed(field(self.pinv(grown)))

    def metric(self, vector: Params) -> Params:
        """Return ``P v = J Jᵀ v``, the metric under which the small phase descends the grown landscape."""
        return self.embed(self.transpose(vector))

    def preserved_field(self, loss: Loss) -> Field:
        """Return ``−P ∇L``: the small phase of gradient descent, when growth preserves the function (``L∘J = L_s``).

        It agrees with ``push(gradient_field(L_s))`` on the image of J and continues it off the image, as gradient
        descent on L under the metric P. Its bracket with ``−∇L`` is the commutator ``(H P − P H) ∇L``, which leaves L
        unchanged at that order.

        Source: theory.md, (3.2).
        """
        descent = gradient_field(loss)
        return lambda grown: self.metric(descent(grown))

    def conflict(self, small_field: Field, grown_field: Field) -> Field:
        """Return the bracket ``[f_1, f_2]`` of the pushed small phase and the grown phase, a field on the grown space.

        Args:
          small_field: f_s on the small space (``gradient_field`` of the small loss, or of the sum of the sources').
          grown_field: f_2 on the grown space.
        """
        return lie_bracket(self.push(small_field), grown_field)

    def loss_conflict(
        self, small_field: Field, grown_field: Field, loss: Loss, h1: Number, h2: Number, params: Params
    ) -> Array:
        r"""Return the change of the grown loss by the conflict of the two phases, at leading order.

        .. math:: \tfrac12\, h_1 h_2\, \langle \nabla L, [f_1, f_2] \rangle, \qquad f_1 = J f_s J^+

        With gradient fields this is ``½ h_1 h_2 ⟨g_2, H_2 g_1 − H_1 g_2⟩``. For phases of n steps pass ``h_i = n_i ×
        step size``.

        Args:
          small_field: f_s on the small space.
          grown_field: f_2 on the grown space.
          loss: L on the grown space.
          h1, h2: step sizes of the small and of the grown phase, both positive.
          params: Θ in the grown space, usually on the image of J: the params just after the event.

        Raises:
          ValueError: a step size is not positive and finite.

        Source: theory.md, (3.3).
        """
        check_step_size(h1, "h1")
        check_step_size(h2, "h2")
        bracket = self.conflict(small_field, grown_field)(params)
        effect = inner(jax.grad(loss)(params), bracket)
        return jnp.asarray(0.5 * h1 * h2, effect.dtype) * effect

    def integrability_defect(
        self, small_field: Field, grown_field: Field, params: Params, *, probes: int, key: Array
    ) -> IntegrabilityDefect:
        """Return ``bea.integrability_defect`` of the conflict of the two phases: how far it is from a gradient.

        Args:
          small_field, grown_field: as for ``conflict``.
          params: Θ in the grown space.
          probes, key: number of random vectors, at least 2, and their random key.
        """
        return integrability_defect(self.conflict(small_field, grown_field), params, probes=probes, key=key)


def _least_norm_inverse(
    embed: Callable[[Params], Params], transpose: Callable[[Params], Params]
) -> Callable[[Params], Params]:
    def pinv(grown: Params) -> Params:
        right = transpose(grown)
        eps = float(jnp.finfo(jnp.result_type(*jax.tree.leaves(right))).eps)
        return cg(lambda small: transpose(embed(small)), right, tol=10 * eps, maxiter=100)[0]

    return pinv


def _check_linear(embed: Callable[[Params], Params], example: Params) -> None:
    def probe(seed: int) -> Params:
        leaves, tree = jax.tree.flatten(example)
        keys = jax.random.split(jax.random.key(seed), len(leaves))
        draw: Callable[[Any, Any], Any] = lambda key, leaf: jax.random.normal(
            key, jnp.shape(leaf), jnp.result_type(leaf)
        )
        return jax.tree.unflatten(tree, [draw(key, leaf) for key, leaf in zip(keys, leaves, strict=True)])

    @jax.jit
    def relative_misfit() -> Array:
        x, y = probe(0), probe(1)
        parts = axpy(2.0, embed(x), embed(y))
        return norm(subtract(embed(axpy(2.0, x, y)), parts)) / (norm(parts) + 1e-30)

    misfit = float(relative_misfit())
    eps = float(jnp.finfo(jnp.result_type(*jax.tree.leaves(example))).eps)
    if not misfit <= 100 * eps:
        raise ValueError(
            f"embed is not linear: embed(2x + y) differs from 2 embed(x) + embed(y) by {misfit:.1e} of its size at "
            "random x, y; a growth event is a linear map of the parameters: put constants and noise in a step after it"
        )
