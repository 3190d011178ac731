"""The walls of the house (docs/architecture.md): imports point downward, and some things are in one place only."""

import ast
import pathlib
import re

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
# part of fusion_core -> its layer; a part may import itself and lower layers
LAYERS = {
    "errors": 0, "atomic": 0.25, "provenance": 0, "memory": 0, "timings": 0.25,
    "text": 1, "models": 1, "lock": 1, "seeds": 0.5, "checked": 0.5, "sealed": 1.5, "tensor_file": 0.5,
    "growth": 2,
    "checkpoints": 3, "train": 3,
    "schedule": 4,
    "runs": 5, "testing": 5,
}  # fmt: skip
# fusion_core uses bea only in the code that decides when to grow, and that measures theory's terms
MAY_USE_BEA = ("fusion_core/schedule/", "fusion_core/runs/measure.py")
PROCESSES = {"fusion_core/train/devices.py", "fusion_core/train/distributed.py"}
LONGEST_FILE, LONGEST_FUNCTION = 400, 80  # lines; a function's without its docstring


def sources(*folders: str) -> dict[str, str]:
    """Return path -> text of all Python files in the folders."""
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    assert files
    return {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in files}


def imported_modules(source: str, package: str) -> set[str]:
    """Return the absolute names of all modules that ``source``, a file of ``package``, imports, also in functions."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            prefix = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (prefix, node.module or "") if part)
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def upward_imports(path: str, source: str) -> list[str]:
    """Return the imports of a file that point to another package, or to a part of ``fusion_core``, above its own."""
    package, part = path.split("/")[0], path.split("/")[1].removesuffix(".py")
    found = []
    for name in sorted(imported_modules(source, ".".join(pathlib.PurePosixPath(path).parent.parts))):
        top, _, rest = name.partition(".")
        if top == package == "fusion_core":
            other = rest.split(".")[0]
            if other in LAYERS and part != other and LAYERS[other] >= LAYERS.get(part, 9):
                found.append(f"{path} imports {name}")
        if top not in MAY_IMPORT or top == package:
            continue
        allowed = any(name == a or name.startswith(a + ".") for a in MAY_IMPORT[package])
        if package == "fusion_core" and top == "bea":
            allowed = path.startswith(MAY_USE_BEA)
        if not allowed:
            found.append(f"{path} imports {name}")
    return found


def attributes(source: str) -> set[str]:
    """Return all dotted names that a file uses or imports."""
    tree = ast.parse(source)
    return {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute | ast.Name)} | (
        imported_modules(source, "")
    )


def asks_for_processes(source: str) -> bool:
    """Return whether a file looks at JAX's processes itself."""
    return any(name.startswith("jax.process_") or "multihost_utils" in name for name in attributes(source))


def flags(source: str) -> list[str]:
    """Return the texts of a file that name a command-line flag."""
    texts = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    return [text for text in texts if isinstance(text, str) and re.search(r"\s--[a-z]", text)]


def long_functions(source: str) -> list[str]:
    """Return the functions of a file that have more than ``LONGEST_FUNCTION`` lines without their docstrings."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef):
            continue
        lines = node.end_lineno - node.lineno + 1
        if ast.get_docstring(node) is not None:
            lines -= node.body[0].end_lineno - node.body[0].lineno + 1
        if lines > LONGEST_FUNCTION:
            found.append(node.name)
    return found


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_imports_point_downward_only(package):
    found = [line for path, source in sources(package).items() for line in upward_imports(path, source)]
    assert not found, "\n".join(found)


def test_every_part_of_the_core_has_a_layer():
    parts = {path.split("/")[1].removesuffix(".py") for path in sources("fusion_core")}
    assert parts - {"__init__", "torch"} == set(LAYERS)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("bea/fields.py", "import fusion_core"),
        ("bea/fields.py", "def f():\n    from toy_models import mlp"),
        ("fusion_core/models/t5/model.py", "from bea import fields"),
        ("fusion_core/models/t5/model.py", "from fusion_core.growth import fuse"),
        ("fusion_core/models/t5/model.py", "from ...growth import fuse"),
        ("fusion_core/text/tasks.py", "import fusion_core.models.t5"),
        ("fusion_core/errors.py", "from fusion_core import atomic"),
        ("toy_models/mlp.py", "from fusion_core.train import loop"),
        ("paper_figures/a.py", "from deepfusion import demo"),
    ],
)
def test_an_upward_import_is_found(path, source):
    assert upward_imports(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("toy_models/mlp.py", "from fusion_core.growth import dense\nfrom bea import fields"),
        ("fusion_core/schedule/trials.py", "import bea"),
        ("fusion_core/runs/run.py", "from fusion_core.train import loop\nfrom fusion_core.errors import InputError"),
    ],
)
def test_a_downward_import_is_allowed(path, source):
    assert not upward_imports(path, source)


def test_the_core_has_no_terminal_code():
    for path, source in sources("fusion_core", "bea").items():
        assert not {name for name in imported_modules(source, "") if name.split(".")[0] in ("rich", "typer")}, path


def test_messages_of_the_core_name_no_flags():
    found = {path: texts for path, source in sources("fusion_core", "bea").items() if (texts := flags(source))}
    assert not found
    assert flags('f"{x}: take a larger --vocab"')
    assert not flags('["git", "--version"]')


def test_devices_and_processes_are_in_one_place():
    everything = sources(*MAY_IMPORT)
    asking = {path for path, source in everything.items() if asks_for_processes(source)}
    assert asking == PROCESSES
    mapping = {path for path, source in everything.items() if "jax.pmap" in attributes(source)}
    assert mapping == {"fusion_core/train/devices.py"}


def test_files_and_functions_are_short():
    everything = sources(*MAY_IMPORT, "benchmarks")
    long = {path for path, text in {**everything, **sources("tests")}.items() if text.count("\n") > LONGEST_FILE}
    assert not long
    functions = {f"{path}:{name}" for path, source in everything.items() for name in long_functions(source)}
    assert not functions
