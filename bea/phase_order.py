"""The better order of two phases, for all pairs of phases at once."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bea.pytrees import Field, Loss, Number, Params, check_params, check_step_size, checked, inner


def order_scores(
    fields: Sequence[Field], loss: Loss, step_sizes: Sequence[Number], *, gradients: bool = False
) -> Callable[[Params], Float[Array, "fields fields"]]:
    r"""Return the effect of the order of each pair of phases on a loss, at leading order; if positive, run j before i.

    .. math:: S_{ij} = \tfrac12\, h_i h_j\, \langle \nabla L, [f_i, f_j] \rangle
              = \tfrac12\, h_i h_j \big( \langle w_j, f_i \rangle - \langle w_i, f_j \rangle \big), \qquad
              w_i = f_i'^{\,T} \nabla L

    Running i and then j ends with a loss that is ``2 S_ij`` above that of j and then i (to O(h³)), and ``S_ij`` above
    that of the flow of the sum. One product with each field's transposed Jacobian gives all pairs. For gradient fields
    ``f_i = −∇E_i`` it is the Hessian-vector product ``−H_i ∇L``, and ``S_ij = ½ h_i h_j ⟨∇L, H_j g_i − H_i g_j⟩``.

    Args:
      fields: f_0, f_1, … on the same space.
      loss: L, the target; ``params -> scalar``.
      step_sizes: h_i > 0, one for each field. For phases of n steps pass n × step size.
      gradients: whether every field is a gradient, so that its Jacobian is symmetric. Then the product is taken in
        forward mode, at about 2 gradients a field in place of about 3. For other fields the scores are then wrong.

    Returns:
      ``params -> S``, an antisymmetric matrix in units of the loss; it can be jitted. Memory is two trees for each field.

    Raises:
      ValueError: no field, another number of step sizes, or one that is not positive and finite; when evaluated, params
        has an entry that is not finite or a field returns another tree.
      TypeError: a leaf of params is not floating.

    Source: theory.md, (2.3) (the conflict term), read on a loss as in section 3.
    """
    fields, step_sizes = tuple(fields), tuple(step_sizes)
    if not fields or len(fields) != len(step_sizes):
        raise ValueError(
            f"there are {len(fields)} fields and {len(step_sizes)} step sizes: pass at least one field, and one step "
            "size for each"
        )
    for i, size in enumerate(step_sizes):
        check_step_size(size, f"step_sizes[{i}]")
    named = [checked(field, f"field {i}") for i, field in enumerate(fields)]

    def scores(params: Params) -> Float[Array, "fields fields"]:
        check_params(params)
        slope = jax.grad(loss)(params)
        velocities, products = [], []
        for field in named:
            if gradients:
                velocity, product = jax.jvp(field, (params,), (slope,))
            else:
                velocity, transposed = jax.vjp(field, params)
                (product,) = transposed(slope)
            velocities.append(velocity)
            products.append(product)
        # pairs[i, j] = ⟨w_j, f_i⟩
        pairs = jnp.stack([jnp.stack([inner(w, f) for w in products]) for f in velocities])
        sizes = jnp.stack([jnp.asarray(h, pairs.dtype) for h in step_sizes])
        return 0.5 * jnp.outer(sizes, sizes) * (pairs - pairs.T)

    return scores
