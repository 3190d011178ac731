"""Results that are computed once, in files named by hashes of everything that the numbers depend on."""

import hashlib
import importlib.util
import pathlib
from types import ModuleType

from paper_figures.experiments.record import path_of
from paper_figures.results import Results, ResultsError

EXPERIMENTS = "paper_figures.experiments"
COMPUTED = pathlib.Path(__file__).with_name("computed")


def source_hash(module: ModuleType, preset: str = "full") -> str:
    """Return the hash of all that the figure's numbers depend on.

    That is its own source and every source file of the packages in its ``DEPENDS``; of a figure with ``RECORDS``, at the
    preset "full", its own source, those of the experiments, and these records, for nothing is trained then.
    """
    records = getattr(module, "RECORDS", ()) if preset == "full" else ()
    packages = (EXPERIMENTS,) if records else module.DEPENDS
    files = [pathlib.Path(str(module.__file__)), *(f for name in packages for f in _sources(name))]
    files += [file for name in records if (file := path_of(name, "json")).exists()]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def cache_path(folder: pathlib.Path, name: str, module: ModuleType, preset: str) -> pathlib.Path:
    """Return the path of a figure's results; each source, preset and seed has its own."""
    return folder / f"{name}-{preset}-seed{module.SEED}-{source_hash(module, preset)[:16]}.json"


def committed_path(name: str) -> pathlib.Path:
    """Return the path of a figure's committed results at the preset "full"; most figures have none."""
    return COMPUTED / f"{name}.json"


def results_of(folder: pathlib.Path, name: str, module: ModuleType, preset: str, *, force: bool = False) -> Results:
    """Return the results of a figure: those of the folder, the committed ones, or computed and saved; with ``force`` the last.

    Committed results are of the code of their commit, which they name; the gallery says so.

    Raises:
      ResultsError: the cached file is damaged, or its figure, preset or seed is not that of its name.
    """
    path = cache_path(folder, name, module, preset)
    known = committed_path(name) if preset == "full" and not path.exists() else path
    if known.exists() and not force:
        results = Results.load(known)
        found, wanted = (results.figure, results.preset, results.seed), (name, preset, module.SEED)
        if found != wanted:
            raise ResultsError(f"{known} holds {found}, not {wanted}: delete it, or pass --force")
        return results
    results = module.compute(preset)
    results.save(path)
    return results


def _sources(package: str) -> list[pathlib.Path]:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"DEPENDS names {package!r}, which is not a package: name packages such as 'bea'")
    return sorted(f for folder in spec.submodule_search_locations for f in pathlib.Path(folder).rglob("*.py"))
