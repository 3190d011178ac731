r"""LaTeX and plain text for modified equations: elementary differentials or drawn trees, brackets, sympy expressions.

Fields are written :math:`f' f,\; f''(f, f)`, losses (:math:`f = -\nabla E`) :math:`\nabla^2 E\,\nabla E,\; \nabla^3
E[\nabla E, \nabla E]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import sympy as sp

from bea.symbolic.equation import with_symmetry
from bea.trees import Tree
from bea.words import bracketing, evaluate_bracket

Kind = Literal["field", "loss"]
FILLS = ("black", "white", "black!40", "red!70", "blue!70", "green!60!black", "orange")
"""Node colours of drawn trees, by the number of the field."""
LONGEST_LINE = 300
"""Length in characters above which ``align`` breaks the terms of one order into several lines."""


def latex(
    thing: Any,
    *,
    names: Sequence[str] | None = None,
    steps: Sequence[Any] | None = None,
    kind: Kind = "field",
    trees: bool = False,
    left: str | None = None,
    align: bool = False,
) -> str:
    r"""Return LaTeX for coefficients of a modified equation, a tree, a Lie element, or a sympy object.

    Args:
      thing: ``{Tree: coefficient}`` WITHOUT the symmetry factor, as returned by ``modified_equation`` (it is divided out
        in print: :math:`\frac{1}{12} f''(f, f)`); a Tree (drawn with TikZ); ``{Lyndon word: coefficient}``; or a sympy
        object.
      names: names of the fields or losses, by colour (or letters of a Lie element); if None, f, or f1, f2, … (E, E1, …).
      steps: step sizes by colour, names or sympy expressions; if None, h, or h1, h2, ….
      kind: "field" prints f' f; "loss" takes f as −∇E and prints Hessians and gradients, signs included.
      trees: whether to draw the trees in place of their elementary differentials (needs ``\usepackage{tikz}``).
      left: the left-hand side; if None, ``h \tilde f =`` or nothing.
      align: whether to print one line for each order, in an ``aligned`` environment.

    Raises:
      TypeError: ``thing`` is none of these.
    """
    if isinstance(thing, Tree):
        return draw(thing)
    if isinstance(thing, Mapping) and thing:
        first = next(iter(thing))
        if isinstance(first, Tree):
            colours = 1 + max(max(tree.colours) for tree in thing)
            series = scaled(with_symmetry(thing), steps or _numbered("h", colours))
            names = names or _numbered("E" if kind == "loss" else "f", colours)
            if left is None:
                left = r"h \tilde f" if colours == 1 and not steps else "F"
            return expression(series, names, kind=kind, as_latex=True, trees=trees, left=left, align=align)
        if isinstance(first, tuple):
            return _lie_latex(thing, names or [chr(ord("X") + i) for i in range(3)])
    if isinstance(thing, (sp.Basic, sp.MatrixBase)):
        return (f"{left} = " if left else "") + sp.latex(thing)
    raise TypeError(f"latex prints coefficients by tree or Lyndon word, trees, and sympy expressions, not {thing!r}")


def text(
    coefficients: Mapping[Tree, Any],
    *,
    names: Sequence[str] | None = None,
    steps: Sequence[Any] | None = None,
    kind: Kind = "field",
) -> str:
    """Return coefficients in plain text, one line an order: ``h f``, ``- h**2/2 f' f``, …; arguments as in :func:`latex`."""
    colours = 1 + max(max(tree.colours) for tree in coefficients)
    series = scaled(with_symmetry(coefficients), steps or _numbered("h", colours))
    names = names or _numbered("E" if kind == "loss" else "f", colours)
    return expression(series, names, kind=kind, as_latex=False)


def scaled(series: Mapping[Tree, Any], steps: Sequence[Any]) -> dict[Tree, sp.Expr]:
    """Return the coefficients times one step size for every node of its colour."""
    sizes = [sp.Symbol(s) if isinstance(s, str) else sp.sympify(s) for s in steps]
    return {tree: sp.sympify(c) * sp.prod([sizes[i] for i in tree.colours]) for tree, c in series.items()}


def differential(tree: Tree, names: Sequence[str], *, kind: Kind = "field", as_latex: bool = True) -> str:
    """Return F(t) as text or LaTeX; for losses without its sign (−1)^|t|."""
    name = sp.latex(sp.Symbol(names[tree.colour])) if as_latex else names[tree.colour]
    inner = [differential(child, names, kind=kind, as_latex=as_latex) for child in tree.children]
    k = len(inner)
    if kind == "loss":
        return _derivative(name, k + 1, as_latex) + (
            "" if not k else _join(inner, as_latex) if k == 1 else f"[{', '.join(inner)}]"
        )
    primes = "'" * k if k <= 3 else f"^{{({k})}}" if as_latex else f"^({k})"
    head = name + primes
    return head if not k else f"{head} {inner[0]}" if k == 1 else f"{head}({', '.join(inner)})"


def _derivative(name: str, times: int, as_latex: bool) -> str:
    if as_latex:
        return (r"\nabla " if times == 1 else rf"\nabla^{{{times}}} ") + name
    return "∇" + ("" if times == 1 else str(times).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))) + name


def _join(inner: list[str], as_latex: bool) -> str:
    return (r"\, " if as_latex else " ") + inner[0]


def contraction(tree: Tree, names: Sequence[str], *, as_latex: bool = True) -> str:
    r"""Return the scalar of a tree without a root: ∇E_a · ∇E_b, ∇²E[∇E, ∇E], …"""
    name = sp.latex(sp.Symbol(names[tree.colour])) if as_latex else names[tree.colour]
    inner = [differential(child, names, kind="loss", as_latex=as_latex) for child in tree.children]
    if not inner:
        return name
    own = _derivative(name, len(inner), as_latex)
    if len(inner) == 1:
        if own == inner[0]:
            return rf"\|{own}\|^{{2}}" if as_latex else f"|{own}|²"
        return rf"\langle {own}, {inner[0]} \rangle" if as_latex else f"⟨{own}, {inner[0]}⟩"
    return f"{own}[{', '.join(inner)}]"


def expression(
    series: Mapping[Tree, Any],
    names: Sequence[str],
    *,
    kind: Kind = "field",
    as_latex: bool = True,
    trees: bool = False,
    left: str | None = None,
    align: bool = False,
    scalar: bool = False,
) -> str:
    """Return Σ c(t) F(t), with symmetry and step sizes in the coefficients; if ``scalar``, of contractions without a root."""
    orders: dict[int, dict[sp.Expr, list[tuple[sp.Expr, str]]]] = {}
    for tree, value in series.items():
        if (value := sp.sympify(value)) != 0:
            number, rest = value.as_coeff_Mul()
            if kind == "loss" and not scalar:
                number *= (-1) ** tree.order
            if scalar:
                body = contraction(tree, names, as_latex=as_latex)
            else:
                body = r"\," + draw(tree) if trees else differential(tree, names, kind=kind, as_latex=as_latex)
            orders.setdefault(tree.order, {}).setdefault(rest, []).append((number, body))
    lines = [[_group(rest, terms, as_latex) for rest, terms in groups.items()] for _, groups in sorted(orders.items())]
    if lines:
        lines[0][0] = _leading(lines[0][0])
    whole = ["".join(line).strip() for line in lines] or ["0"]
    if not as_latex:
        return "\n".join(whole)
    if align:  # an order is a line, a long order a line for each power of the step sizes
        rows = [
            row
            for line, joined in zip(lines or [["0"]], whole, strict=True)
            for row in ([joined] if len(joined) <= LONGEST_LINE or trees else [part.strip() for part in line])
        ]
        head = f"{left} = {{}}&" if left else "&"
        return "\n".join([r"\begin{aligned}", head + " \\\\\n&".join(rows), r"\end{aligned}"])
    return (f"{left} = " if left else "") + " ".join(whole)


def _leading(term: str) -> str:
    """Return the first term of a sum without its plus, or with its minus and no space after it."""
    return "-" + term.removeprefix(" - ") if term.startswith(" - ") else term.removeprefix(" + ")


def _group(rest: sp.Expr, terms: list[tuple[sp.Expr, str]], as_latex: bool) -> str:
    show = sp.latex if as_latex else str
    if len(terms) == 1:
        number, body = terms[0]
        return _signed(number, rest, body, show)
    common = sp.Integer(1) if any(n > 0 for n, _ in terms) else sp.Integer(-1)
    inner = "".join(_signed(number * common, sp.Integer(1), body, show) for number, body in terms)
    inner = _leading(inner)
    opening, closing = (r"\left(", r"\right)") if as_latex else ("(", ")")
    return f"{' + ' if common == 1 else ' - '}{show(rest)} {opening}{inner}{closing}" if rest != 1 else f" + {inner}"


def _signed(number: sp.Expr, rest: sp.Expr, body: str, show: Any) -> str:
    factor = abs(number) * rest
    sign = " - " if number < 0 else " + "
    if factor == 1:
        return sign + body
    shown = show(factor)
    if isinstance(factor, sp.Add) or (
        show is str and isinstance(factor, sp.Mul) and any(isinstance(a, sp.Add) for a in factor.args)
    ):
        shown = rf"\left({shown}\right)" if show is not str else f"({shown})"
    return f"{sign}{shown} {body}"


def draw(tree: Tree) -> str:
    r"""Return the tree as inline TikZ, root at the bottom, the field's number as the fill of its nodes (:data:`FILLS`)."""
    nodes: list[str] = []
    edges: list[str] = []

    def place(part: Tree, left: float, height: int) -> tuple[float, float]:
        """Return the position of the root and the right end of the tree."""
        at, centres = left, []
        for child in part.children:
            centre, at = place(child, at, height + 1)
            centres.append(centre)
        x = (centres[0] + centres[-1]) / 2 if centres else left
        edges.extend(rf"\draw ({x:g},{height}) -- ({centre:g},{height + 1});" for centre in centres)
        nodes.append(rf"\filldraw[fill={FILLS[part.colour % len(FILLS)]}] ({x:g},{height}) circle (1.5pt);")
        return x, max(at, left + 1)

    place(tree, 0.0, 0)
    return rf"\tikz[baseline=-0.5ex,x=1.4ex,y=1.8ex]{{{' '.join(edges + nodes)}}}"


def latex_table(coefficients: Mapping[Tree, Any]) -> str:
    r"""Return a table as in textbooks: tree, F(t), σ(t), ω(t), one row for each tree; needs ``\usepackage{tikz}``."""
    colours = 1 + max(max(tree.colours) for tree in coefficients)
    names = _numbered("f", colours)
    rows = [
        rf"{tree.order} & {draw(tree)} & ${differential(tree, names)}$ & {tree.symmetry} & "
        rf"${sp.latex(sp.sympify(value))}$ \\"
        for tree, value in coefficients.items()
    ]
    head = r"$|t|$ & $t$ & $F(t)$ & $\sigma(t)$ & $\omega(t)$ \\ \hline"
    return "\n".join([r"\begin{tabular}{ccccc}", head, *rows, r"\end{tabular}"])


def _lie_latex(element: Mapping[tuple[int, ...], Any], names: Sequence[str]) -> str:
    letters = [sp.latex(sp.Symbol(name)) for name in names]
    terms = ""
    for word, value in sorted(element.items(), key=lambda item: (len(item[0]), item[0])):
        if value:
            body = evaluate_bracket(bracketing(word), lambda i: letters[i], lambda a, b: f"[{a}, {b}]")
            terms += _signed(sp.sympify(value), sp.Integer(1), body, sp.latex)
    return _leading(terms)


def _numbered(letter: str, count: int) -> list[str]:
    return [letter] if count == 1 else [f"{letter}{i}" for i in range(1, count + 1)]
