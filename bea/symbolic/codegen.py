r"""JAX functions from sympy expressions, evaluated by walking the expression, so that no text is ever executed.

``jax_function`` walks the expressions once per trace, common subexpressions once, with a fixed table from sympy's node
types to ``jax.numpy``; the result can be jitted and differentiated. ``jax_source`` prints the same program as Python
for reading or pasting.
"""

from __future__ import annotations

import keyword
from collections.abc import Callable, Sequence
from typing import Any

import sympy as sp

from bea.symbolic.fields import check_expression

OPERATIONS: dict[type, str] = {
    sp.exp: "exp", sp.log: "log", sp.sin: "sin", sp.cos: "cos", sp.tan: "tan", sp.sinh: "sinh", sp.cosh: "cosh",
    sp.tanh: "tanh", sp.asin: "arcsin", sp.acos: "arccos", sp.atan: "arctan", sp.asinh: "arcsinh",
}  # fmt: skip
"""Functions that are translated, by sympy's type, to the name in ``jax.numpy``."""


def jax_function(
    expressions: Any, symbols: Sequence[sp.Symbol], constants: Sequence[sp.Symbol] = ()
) -> Callable[..., Any]:
    r"""Return a JAX function of the vector of ``symbols``, and of the values of ``constants`` after it.

    Args:
      expressions: one expression (the function returns a scalar), or a column or sequence of them (a vector).
      symbols: the parameters, in the order of the entries of the first argument.
      constants: further symbols (the step size), one positional argument each.

    Returns:
      ``(params, *constants) -> Array`` in the dtype of params, for params of shape ``[len(symbols)]``. No Hessian is
      formed; the cost is the number of operations after common subexpressions are shared.

    Raises:
      ValueError: an expression has other symbols, or a function without a translation; or, when called, params has another
        shape or constants are missing.
    """
    scalar = isinstance(expressions, sp.Expr)
    outputs = [check_expression(e, "the expression") for e in ([expressions] if scalar else list(expressions))]
    arguments = [*symbols, *constants]
    _check_translatable(outputs, arguments)
    shared, results = sp.cse(outputs)

    def function(params: Any, *values: Any) -> Any:
        import jax.numpy as jnp

        params = jnp.asarray(params)
        if params.shape != (len(symbols),) or len(values) != len(constants):
            raise ValueError(
                f"the function takes an array of shape ({len(symbols)},) for {list(map(str, symbols))} and "
                f"{len(constants)} constants {list(map(str, constants))}, not shape {params.shape} and "
                f"{len(values)} values"
            )
        known: dict[sp.Basic, Any] = {x: params[i] for i, x in enumerate(symbols)}
        known.update(zip(constants, values, strict=True))
        for name, part in shared:
            known[name] = _evaluate(part, known)
        found = [jnp.asarray(_evaluate(e, known), params.dtype) for e in results]
        return found[0] if scalar else jnp.stack(found)

    return function


def _evaluate(expr: sp.Basic, known: dict[sp.Basic, Any]) -> Any:
    import jax.numpy as jnp

    if expr in known:
        return known[expr]
    if isinstance(expr, sp.Integer):
        return float(expr)
    if (expr.is_number and not expr.args) or isinstance(expr, sp.Rational):
        return float(expr)
    values = [_evaluate(part, known) for part in expr.args] if not isinstance(expr, sp.Pow) else []
    if isinstance(expr, sp.Add):
        return sum(values[1:], start=values[0])
    if isinstance(expr, sp.Mul):
        product = values[0]
        for value in values[1:]:
            product = product * value
        return product
    if isinstance(expr, sp.Pow):
        base = _evaluate(expr.args[0], known)
        exponent = expr.args[1]
        if isinstance(exponent, sp.Integer) and abs(int(exponent)) < 2**31:
            return base ** int(exponent)  # an int keeps negative bases and their derivatives exact
        if exponent == sp.Rational(1, 2):
            return jnp.sqrt(base)
        return jnp.power(base, _evaluate(exponent, known))
    return getattr(jnp, OPERATIONS[type(expr)])(values[0])


def _check_translatable(outputs: Sequence[sp.Expr], arguments: Sequence[sp.Symbol]) -> None:
    for expr in outputs:
        if unknown := sorted(map(str, expr.free_symbols - set(arguments))):
            raise ValueError(
                f"{', '.join(unknown)} in {expr} is neither a parameter nor a constant: the function takes "
                f"{', '.join(map(str, arguments))}"
            )
        for part in sp.preorder_traversal(expr):
            if not (
                isinstance(part, (sp.Add, sp.Mul, sp.Pow, sp.Symbol))
                or (part.is_number and not part.args)
                or type(part) in OPERATIONS
            ):
                raise ValueError(
                    f"{part} ({type(part).__name__}) has no translation to JAX: use "
                    f"{', '.join(sorted(kind.__name__ for kind in OPERATIONS))}, + - * / and powers"
                )


class _Printer(sp.printing.numpy.JaxPrinter):
    """sympy's printer for JAX, with the usual import name ``jnp``."""

    _module = "jnp"


def jax_source(
    expressions: Any, symbols: Sequence[sp.Symbol], constants: Sequence[sp.Symbol] = (), name: str = "field"
) -> str:
    """Return the function of :func:`jax_function` as Python source that needs only ``import jax.numpy as jnp``.

    Raises:
      ValueError: as :func:`jax_function`, or a symbol's name or ``name`` is no plain Python identifier.
    """
    scalar = isinstance(expressions, sp.Expr)
    outputs = [check_expression(e, "the expression") for e in ([expressions] if scalar else list(expressions))]
    arguments = [*symbols, *constants]
    _check_translatable(outputs, arguments)
    for identifier in (name, *map(str, arguments)):
        if not identifier.isidentifier() or keyword.iskeyword(identifier) or identifier in ("jnp", "params"):
            raise ValueError(f"{identifier!r} cannot be a Python variable here: rename the symbol")
    taken = set(map(str, arguments)) | {"jnp", "params", name}
    fresh = (sp.Symbol(f"s{i}") for i in range(10**6) if f"s{i}" not in taken)
    shared, results = sp.cse(outputs, symbols=fresh)
    printer = _Printer({"fully_qualified_modules": True})
    lines = [f"def {name}({', '.join(['params', *map(str, constants)])}):"]
    lines.append(f"    {', '.join(map(str, symbols))}{',' if len(symbols) == 1 else ''} = params")
    lines += [f"    {variable} = {printer.doprint(part)}" for variable, part in shared]
    shown = [printer.doprint(e) for e in results]
    lines.append(
        f"    return {shown[0]}"
        if scalar
        else f"    return jnp.stack([jnp.asarray(value) for value in [{', '.join(shown)}]])"
    )
    return "\n".join(lines).replace("jax.numpy.", "jnp.") + "\n"
