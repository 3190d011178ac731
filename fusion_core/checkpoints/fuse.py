"""Fusing and growing checkpoint folders: one pass over the tensors, and a folder that appears whole or not at all."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

from fusion_core import atomic
from fusion_core.checkpoints.card import model_card
from fusion_core.checkpoints.checkpoint import open_checkpoint
from fusion_core.checkpoints.comparison import Deviation, deviation_from_mean
from fusion_core.checkpoints.growth_file import growth_record, write_growth
from fusion_core.checkpoints.ranges import Reader
from fusion_core.checkpoints.recipe import Recipe
from fusion_core.checkpoints.tokenizers import copy_tokenizer
from fusion_core.checkpoints.write import write_shards
from fusion_core.errors import InputError
from fusion_core.models.registry import architecture

TORCH_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


def check_recipe(recipe: Recipe, out: pathlib.Path) -> dict[str, Any]:
    """Check all that can be known before a tensor is read, and return the values of the new ``config.json``.

    Raises:
      InputError: ``out`` is in a source, the configuration has no form in Hugging Face's files, or there is no room, or no
        right, to write.
      FileExistsError: ``out`` exists and is not an empty folder.
    """
    atomic.check_new(out)
    atomic.check_apart(out, [source.folder for source in recipe.sources])
    files = architecture(recipe.config).files
    assert files is not None
    values = files.write_config(recipe.config) | {"dtype": TORCH_NAMES[next(iter(recipe.dtypes))]}
    parent = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    if not os.access(parent, os.W_OK):
        raise InputError(f"{out} could not be written: {parent} is not yours to write; choose another place")
    free = shutil.disk_usage(parent).free
    if free < recipe.nbytes:
        raise InputError(
            f"{out} needs {recipe.nbytes:,} bytes, but the disk has {free:,} free; make room or choose another"
        )
    return values


def rehearse(
    recipe: Recipe, out: str | pathlib.Path, report: Callable[[str, int], None] = lambda name, count: None
) -> None:
    """Do all that ``write_recipe`` does but the writing: every tensor is read and computed, in the same small memory.

    Args:
      recipe, out, report: as for ``write_recipe``.

    Raises:
      InputError, FileExistsError: as ``write_recipe`` would.
    """
    check_recipe(recipe, pathlib.Path(out))
    with Reader() as reader:
        for tensor in recipe.tensors:
            for part in tensor.rows(reader):
                report(tensor.name, part.nbytes)


def write_recipe(
    recipe: Recipe,
    out: str | pathlib.Path,
    *,
    probe: bool = True,
    report: Callable[[str, int], None] = lambda name, count: None,
) -> Deviation | None:
    """Write the checkpoint of a recipe: weights, configuration, ``growth.json``, tokenizer and model card.

    The folder appears whole or not at all.

    Memory: a few rows of one tensor at a time; a tensor with draws in it whole, and with ``probe`` one tensor as float32.

    Args:
      recipe: recipe from ``fusion_recipe`` or ``growth_recipe``.
      out: folder to write; absent or empty.
      probe: whether to measure, for the model card, the deviation from the mean of the sources, or from the source of a
        growth that keeps the function, on a few random tokens.
      report: function that is called with the present action in words and the bytes of weights just written.

    Returns:
      The measured deviation; None without ``probe``, or if there is nothing to measure (``recipe.unmeasured``).

    Raises:
      InputError: a source has entries that are not finite or cannot be read, or the disk is full.
      FileExistsError: ``out`` exists and is not an empty folder.
    """
    out = pathlib.Path(out)
    atomic.sweep_beside(out)  # before the free space is looked at
    values = check_recipe(recipe, out)
    try:
        with atomic.new_folder(out) as folder, Reader() as reader:
            write_shards(folder, recipe.shards, reader, report)
            (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
            copied = copy_tokenizer([source.folder for source in recipe.sources], folder)
            report("writing growth.json", 0)
            scales = {tensor.name: tensor.rule.scales for tensor in recipe.tensors}
            write_growth(folder, growth_record(recipe.agreeing, recipe.event, scales))
            measured = None
            if probe and not recipe.unmeasured:
                report("measuring the deviation", 0)
                measured = deviation_from_mean(recipe.sources, recipe.weights, open_checkpoint(folder))
            (folder / "README.md").write_text(model_card(recipe, measured, copied), encoding="utf-8")
            return measured
    except OSError as error:
        # a full disk, a quota, a limit on the size of files, no permission
        where = error.filename or out
        raise InputError(
            f"{out} could not be written ({error.strerror}: {where}); it takes {recipe.nbytes:,} bytes of weights. Nothing was "
            "left behind; make room or choose another place"
        ) from None
