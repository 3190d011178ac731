"""The networks of a run fine-tuned on GLUE's tasks, each with the same settings, and what they score."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fusion_core.checked import checked
from fusion_core.errors import InputError
from fusion_core.runs.compare import arms_of
from fusion_core.runs.finetune import SCORES, Finetuning, load_settings, settings_from
from fusion_core.runs.results import of_seeds, read_results
from fusion_core.runs.run import RESULTS
from fusion_core.text.json_files import read_json
from fusion_core.text.tasks import named_task
from paper_figures.experiments.record import rounded

FOLDERS = {"sst2": "SST-2", "rte": "RTE"}  # task -> folder of GLUE's files
SETTINGS: dict[str, Any] = {
    "steps": 3000,
    "batch": 32,
    "learning_rate": 0.001,
    "source_length": 128,
    "target_length": 8,
}
STEPS_OF = {"rte": 1000}  # tasks with few examples
INVERSE_PENALTIES = (0.1, 1.0, 10.0)


def finetune_arms(
    run: pathlib.Path,
    glue: pathlib.Path,
    out: pathlib.Path,
    *,
    arms: Sequence[str] = (),
    tasks: Sequence[str] = tuple(FOLDERS),
    settings: Mapping[str, Any] | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> None:
    """Fine-tune the arms of a finished run on tasks; what is in ``out`` already is not run again.

    Args:
      run: folder of the run, with its nodes' networks.
      glue: folder of GLUE's folders ``SST-2`` and ``RTE``, with ``train.tsv`` and ``dev.tsv``.
      out: gets ``seed-N/ARM/TASK/``, each a folder as ``deepfusion finetune`` writes.
      arms: to be fine-tuned; if empty, all of the run.
      tasks: of ``FOLDERS``.
      settings: instead of ``SETTINGS``, for every task.
      note: called with a line before each.

    Raises:
      InputError: the run is not finished, or a file is missing.
    """
    try:
        results = read_results(run / RESULTS, "run its plan again")
    except FileNotFoundError:
        raise InputError(f"{run} is no finished run: it has no {RESULTS}; run its plan first") from None
    for seed, nodes in of_seeds(results, 0).items():
        place = run / f"seed-{seed}" if results.get("seeds") else run
        for arm, node in arms_of(nodes).items():
            for task in tasks if not arms or arm in arms else ():
                folder = out / f"seed-{seed}" / arm / task
                if (folder / SCORES).exists():
                    continue
                note(f"seed {seed}, {arm}: {task}")
                files = {"train": glue / FOLDERS[task] / "train.tsv", "validation": glue / FOLDERS[task] / "dev.tsv"}
                steps = {"steps": STEPS_OF[task]} if task in STEPS_OF and settings is None else {}
                values = {**(SETTINGS if settings is None else settings), **steps, "task": task, "seed": int(seed)}
                paths = {**files, "checkpoint": place / "nodes" / node / "model"}
                values |= {key: str(path.resolve()) for key, path in paths.items()}
                Finetuning(settings_from(values), folder).run(note=note)


def scores_in(out: pathlib.Path, *, bag_of_words: bool = True) -> dict[str, Any]:
    """Return what is scored in the folders ``seed-N/ARM/TASK`` of ``out``.

    Returns:
      task -> ``metric`` (the task's first), ``rows``, ``majority`` (the largest class's share of the validation rows),
      ``bag_of_words`` (None without scikit-learn), ``settings``, and ``arms``: arm -> seed -> value.

    Raises:
      InputError: there are none.
    """
    found: dict[str, Any] = {}
    for file in sorted(out.glob(f"seed-*/*/*/{SCORES}")):
        seed, arm, name = file.parts[-4].removeprefix("seed-"), file.parts[-3], file.parts[-2]
        metric, remedy = named_task(name).metrics[0], "remove it, and score the network again"
        values = read_json(file, remedy)
        try:
            rows = checked(int, values["examples"]["validation"])
            score = checked(float, values["scores"][metric])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{file} holds no scores ({error!r}); {remedy}") from None
        if name not in found:
            settings = load_settings(file.parent)
            kept = {key: getattr(settings, key) for key in ("steps", "batch", "learning_rate", "source_length")}
            found[name] = {
                "metric": metric,
                "rows": rows,
                "settings": kept,
                **baselines(name, pathlib.Path(settings.train), pathlib.Path(settings.validation), bag_of_words),
                "arms": {},
            }
        found[name]["arms"].setdefault(arm, {})[seed] = score
    if not found:
        raise InputError(f"{out} has no seed-N/ARM/TASK/{SCORES}; give the folder of the fine-tuned networks")
    return rounded(found)


def baselines(name: str, train: pathlib.Path, validation: pathlib.Path, bag_of_words: bool = True) -> dict[str, Any]:
    """Return the validation accuracies of the largest class, and of a logistic regression on counts of words.

    The regression's penalty is chosen by three-fold cross-validation. None stands for what cannot be had: the files are
    elsewhere, or scikit-learn is not installed.
    """
    if not (train.exists() and validation.exists()):
        return {"majority": None, "bag_of_words": None}
    task = named_task(name)
    rows = [task.examples(path) for path in (train, validation)]
    texts, labels = ([[getattr(e, key) for e in part] for part in rows] for key in ("source", "target"))
    largest = max(labels[1].count(label) for label in set(labels[1])) / len(labels[1])
    try:
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV
        from sklearn.pipeline import make_pipeline
    except ImportError:
        bag_of_words = False
    if not bag_of_words:
        return {"majority": largest, "bag_of_words": None}
    model = make_pipeline(CountVectorizer(token_pattern=r"\S+"), LogisticRegression(max_iter=1000))
    search = GridSearchCV(model, {"logisticregression__C": list(INVERSE_PENALTIES)}, cv=3)
    search.fit(texts[0], labels[0])
    return {"majority": largest, "bag_of_words": float(search.score(texts[1], labels[1]))}
