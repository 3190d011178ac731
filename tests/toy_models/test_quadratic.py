import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.strategies.problems import quadratic as quadratic_problem
from toy_models import quadratic

pytestmark = pytest.mark.usefixtures("x64")


def test_gradient_flow_with_the_modified_hessian_is_the_step():
    H, theta = quadratic_problem(4)
    step = jax.scipy.linalg.expm(-0.3 * quadratic.modified_hessian(H, 0.3)) @ theta
    np.testing.assert_allclose(step, theta - 0.3 * jax.grad(quadratic.loss(H))(theta), rtol=1e-12)


def test_modified_hessian_starts_as_its_series():
    H, _ = quadratic_problem(4)
    h = 1e-3
    np.testing.assert_allclose(quadratic.modified_hessian(H, h), H + h / 2 * H @ H, atol=2 * h**2 * 8 / 3)


def test_a_step_over_the_minimum_has_no_real_modified_hessian_and_says_which_has():
    with pytest.raises(ValueError, match=r"step_size 0.6 times the largest curvature 2 is 1.2.*below 0.5"):
        quadratic.modified_hessian(2 * jnp.eye(2), 0.6)


def test_a_step_size_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match=r"step_size is 0.0"):
        quadratic.modified_hessian(jnp.eye(2), 0.0)


def test_a_hessian_that_is_not_symmetric_is_refused():
    with pytest.raises(ValueError, match=r"differs from its transpose by 1.*pass \(A \+ A.T\) / 2"):
        quadratic.loss(jnp.asarray([[1.0, 1.0], [0.0, 1.0]]))
