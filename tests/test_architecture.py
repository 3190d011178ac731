"""Imports between the packages point downward only (docs/architecture.md)."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent

# package -> the packages of ours that it may import
MAY_IMPORT = {
    "bea": set(),
    "fusion_core": {"bea"},
    "toy_models": {"bea", "fusion_core.growth", "fusion_core.models"},
    "paper_figures": {"bea", "fusion_core", "toy_models"},
    "deepfusion": {"bea", "fusion_core", "toy_models", "paper_figures"},
}
# fusion_core may use bea only in the code that decides when to grow.
MAY_USE_BEA = "fusion_core/schedule/"


def imported_modules(source: str, package: str) -> set[str]:
    """Absolute names of all modules that ``source``, a file of ``package``, imports (also inside functions)."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            prefix = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (prefix, node.module or "") if part)
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def violations(package: str, path: str, source: str) -> list[str]:
    found = []
    parent = ".".join(pathlib.PurePosixPath(path).parent.parts)
    for name in sorted(imported_modules(source, parent)):
        top = name.split(".")[0]
        if top not in MAY_IMPORT or top == package:
            continue
        allowed = any(name == a or name.startswith(a + ".") for a in MAY_IMPORT[package])
        if package == "fusion_core" and top == "bea":
            allowed = path.startswith(MAY_USE_BEA)
        if not allowed:
            found.append(f"{path} imports {name}")
    return found


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_imports_point_downward_only(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"no sources found for {package}"
    found = []
    for file in files:
        found += violations(package, file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8"))
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("bea/flow.py", "import fusion_core"),
        ("bea/flow.py", "def f():\n    from toy_models import mlp"),
        ("fusion_core/models/t5/model.py", "from bea import flow"),
        ("toy_models/mlp.py", "from fusion_core.train import loop"),
        ("paper_figures/a.py", "from deepfusion import demo"),
    ],
)
def test_an_upward_import_is_found(path, source):
    assert violations(path.split("/")[0], path, source)


def test_a_downward_import_is_allowed():
    assert not violations(
        "toy_models", "toy_models/mlp.py", "from fusion_core.growth import dense\nfrom bea import flow"
    )
    assert not violations("fusion_core", "fusion_core/schedule/trials.py", "import bea")
