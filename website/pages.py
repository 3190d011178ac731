"""Pages that are made of other files: the start page, the changes, the API, notebooks, and sources that pages link to."""

import ast
import functools
import json
import pathlib
import posixpath
import re

ROOT = pathlib.Path(__file__).parent.parent
# the repository's own pages -> their place in the site
OF_ROOT = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
}
# package -> its page, and the file with its public names (if None, the functions and classes of its modules)
API = {
    "bea": ("api/bea.md", "bea/__init__.pyi"),
    "bea.symbolic": ("api/symbolic.md", "bea/symbolic/__init__.pyi"),
    "fusion_core": ("api/fusion_core.md", "fusion_core/__init__.pyi"),
    "toy_models": ("api/toy_models.md", None),
}
_LINK = re.compile(r"(?<!!)(\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^()\s]+)\)|(!\[[^\]]*\])\(([^()\s]+)\)")
_HIDDEN = "---\nsearch:\n  exclude: true\n---\n"


@functools.cache
def public_names(package: str) -> dict[str, str]:
    """Return public name -> the name of the thing itself, both dotted, without importing anything."""
    stub = API[package][1]
    if stub is None:
        found = {}
        for file in sorted((ROOT / package).glob("[a-z]*.py")):
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                    name = f"{package}.{file.stem}.{node.name}"
                    found[name] = name
        return found
    names = {}
    for node in ast.parse((ROOT / stub).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            module = f"{package}.{node.module}" if node.module else package
            names |= {f"{package}.{alias.asname or alias.name}": f"{module}.{alias.name}" for alias in node.names}
    return names


def is_module(name: str, thing: str) -> bool:
    """Return whether a public name is that of a module (``bea.trees``), not of something in one of the same name."""
    path = ROOT / thing.replace(".", "/")
    return name == thing and (path.is_dir() or path.with_suffix(".py").exists())


def module_names(module: str) -> list[str]:
    """Return the public functions and classes that a module defines, without importing it."""
    file = ROOT / (module.replace(".", "/") + ".py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name[0] != "_"]


def example_pages() -> dict[str, str]:
    """Return place -> text of the pages whose blocks run."""
    folder = ROOT / "docs"
    return {
        file.relative_to(folder).as_posix(): file.read_text(encoding="utf-8") for file in sorted(folder.rglob("*.md"))
    }


@functools.cache
def shown_in() -> dict[str, tuple[str, str]]:
    """Return public name -> the page and the anchor of the first section of docs/examples with a block that uses it."""
    from website.examples import sections

    return sections()


def api_page(package: str) -> str:
    """Return a page with all public names of a package, each with its docstring and where an example of it runs.

    It begins with a list of the names. What is public in the package comes before its public modules.
    """
    lines = [f"# `{package}`\n", _doc(package), "", *_contents(package), ""]
    group = ""
    for name, thing in _named(package).items():
        module = thing.rsplit(".", 1)[0]
        if module != group:
            group = module
            lines += [f"## {module} {{#module-{module}}}", "", _doc(module).split("\n\n")[0], ""]
        # a function in a module of its name is hidden by it: its own name is written, and the public one an anchor
        hidden = is_module(thing, thing)
        lines += [f'<a id="{name}"></a>', "", f"::: {thing}.{thing.rsplit('.', 1)[1]}"] if hidden else [f"::: {name}"]
        lines += [""]
        if name in shown_in():
            page, anchor = shown_in()[name]
            lines += [f"[Example](../{page}#{anchor}).", ""]
    for name in _modules(package):
        lines += [f"## `{name}` {{#{name}}}", "", _doc(name), ""]
        if name == "bea.symbolic":
            lines += ["It has [a page of its own](symbolic.md).", ""]
        else:
            lines += [f"::: {name}.{inner}\n" for inner in module_names(name)]
    return "\n".join(lines)


def _named(package: str) -> dict[str, str]:
    """Return public name -> the thing's own name, without modules."""
    return {name: thing for name, thing in public_names(package).items() if not is_module(name, thing)}


def _modules(package: str) -> list[str]:
    """Return the public modules of a package."""
    return [name for name, thing in public_names(package).items() if is_module(name, thing)]


def _contents(package: str) -> list[str]:
    """Return a table of the public names, a row a module that defines some."""
    rows: dict[str, list[str]] = {}
    for name, thing in _named(package).items():
        rows.setdefault(thing.rsplit(".", 1)[0], []).append(f"[`{name.rsplit('.', 1)[1]}`](#{name})")
    modules = _modules(package)
    for name in modules:
        if name == "bea.symbolic":
            rows[name] = ["[a page of its own](symbolic.md)"]
        else:
            rows.setdefault(name, []).extend(f"[`{inner}`](#{name}.{inner})" for inner in module_names(name))
    row = lambda module: f"[{module}](#{'' if module in modules else 'module-'}{module})"
    lines = [f"| {row(module)} | {', '.join(names)} |" for module, names in rows.items()]
    return ["| defined in | public names |", "|---|---|", *lines]


def _doc(module: str) -> str:
    path = ROOT / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""


def api_index() -> str:
    """Return the page that leads to the others of the API."""
    rows = [
        f"| [`{package}`]({posixpath.basename(page)}) | {_doc(package).split(chr(10))[0]} |"
        for package, (page, _) in API.items()
    ]
    return "\n".join(
        [
            "# API",
            "",
            "What the packages say of themselves, from their docstrings, without importing them. Every block of the pages of",
            "examples runs in the tests.",
            "",
            "| package | what it is |",
            "|---|---|",
            *rows,
            "",
        ]
    )


def notebooks() -> list[tuple[str, str]]:
    """Return (place, title) of the notebooks."""
    found = []
    for file in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        first = next(("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"), file.stem)
        found.append((f"notebooks/{file.stem}.md", first.split("\n")[0].lstrip("# ").strip()))
    return found


def notebook_page(file: pathlib.Path) -> str:
    """Return a notebook as a page, with what its cells printed when it was committed."""
    parts = [f"*A notebook, with what its cells gave when it was committed: [{file.name}]({file.name}).*\n"]
    for i, cell in enumerate(json.loads(file.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            # the page has one title; the note goes below it
            parts = [source, *parts] if i == 0 else [*parts, source]
            continue
        parts.append(f"```python\n{source}\n```\n")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(f'<img alt="figure" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">\n')
            elif "text/latex" in data:
                latex = "".join(data["text/latex"]).strip().strip("$").removeprefix("\\displaystyle")
                parts.append(f"$${latex.strip()}$$\n")
            else:
                text = "".join(output.get("text", data.get("text/plain", [])))
                parts.append(f"```text\n{text.rstrip()}\n```\n" if text.strip() else "")
    return "\n\n".join(parts)


def source_page(path: str) -> str:
    """Return a file of the repository as a page, with an anchor at each function and class of the top level."""
    text = (ROOT / path).read_text(encoding="utf-8")
    kind = {".py": "python", ".toml": "toml", ".json": "json", ".pyi": "python"}.get(pathlib.Path(path).suffix, "text")
    starts = [(1, "")]
    if kind == "python":
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                starts.append((first, node.name))
    lines = text.splitlines()
    ends = [start - 1 for start, _ in starts[1:]] + [len(lines)]
    parts = [f"{_HIDDEN}# {path}\n"]
    for (start, name), end in zip(starts, ends, strict=True):
        code = "\n".join(lines[start - 1 : end]).strip("\n")
        anchor = f'<a id="{name}"></a>\n\n' if name else ""
        parts.append(f"{anchor}````{kind}\n{code}\n````\n" if code else anchor)
    return "\n".join(parts)


def place_of(path: str) -> str | None:
    """Return the page of the site that shows a file of the repository; None for a picture or a notebook's file in docs/."""
    if path in OF_ROOT:
        return OF_ROOT[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.endswith(".ipynb"):
        return f"{path.removesuffix('.ipynb')}.md"
    return f"source/{path}.md" if (ROOT / path).is_file() else None


def with_links(markdown: str, path: str, place: str) -> str:
    """Return the text of the repository's file ``path`` for the page ``place``: its links lead to pages of the site.

    A link to ``x.py#name`` leads to the API where ``x.name`` is public, else to the source.
    """
    here, folder = posixpath.dirname(place), posixpath.dirname(path)

    def led(target: str) -> str:
        if re.match(r"[a-z]+:|#|$", target):
            return target
        file, _, anchor = target.partition("#")
        file = posixpath.normpath(posixpath.join(folder, file))
        name = f"{file.removesuffix('.py').replace('/', '.')}.{anchor}"
        for package, (page, _) in sorted(API.items(), key=lambda item: -len(item[0])):
            for public, thing in public_names(package).items() if anchor else ():
                if name == thing or name.startswith(f"{thing}."):
                    return f"{posixpath.relpath(page, here or '.')}#{public}{name.removeprefix(thing)}"
        to = place_of(file)
        if to is None:
            return target
        return posixpath.relpath(to, here or ".") + (f"#{anchor}" if anchor else "")

    def replaced(found: re.Match[str]) -> str:
        text, target = (found[1], found[2]) if found[1] else (found[3], found[4])
        return f"{text}({led(target)})"

    parts = re.split(r"(^```.*?^```)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if i % 2 else _LINK.sub(replaced, part) for i, part in enumerate(parts))


def linked_files() -> set[str]:
    """Return the files outside docs/ that pages link to, so that the site shows them."""
    found = set()
    for path in [*OF_ROOT, *(f"docs/{place}" for place in example_pages())]:
        text = (ROOT / path).read_text(encoding="utf-8")
        for match in _LINK.finditer(text):
            target = (match[2] or match[4]).partition("#")[0]
            if target and not re.match(r"[a-z]+:", target):
                file = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
                if not file.startswith("docs/") and file not in OF_ROOT and (ROOT / file).is_file():
                    found.add(file)
    return found


def made() -> dict[str, str]:
    """Return place -> text of all pages that are not files of docs/."""
    text = lambda path: (ROOT / path).read_text(encoding="utf-8")
    found = {place: with_links(text(path), path, place) for path, place in OF_ROOT.items()}
    found |= {page: api_page(package) for package, (page, _) in API.items()}
    found["api/index.md"] = api_index()
    for file in sorted((ROOT / "notebooks").glob("*.ipynb")):
        place = f"notebooks/{file.stem}.md"
        found[place] = with_links(notebook_page(file), f"notebooks/{file.name}.md", place)
        found[f"notebooks/{file.name}"] = text(f"notebooks/{file.name}")
    for path in linked_files():
        if not path.endswith(".ipynb"):
            found[f"source/{path}.md"] = source_page(path)
    return found
