"""Checkpoint folders in Hugging Face's layout, opened without reading a tensor."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fusion_core.checkpoints.kinds import (
    PICKLES,
    check_kind,
    convert,
    headless,
    missing_tensor,
    no_head,
    no_weights,
    other_dtype,
)
from fusion_core.checkpoints.ranges import FLOATS, INDEX, WEIGHTS, Entry, Reader, read_header
from fusion_core.errors import InputError
from fusion_core.models.fields import check_values
from fusion_core.models.registry import HEAD, Architecture, architecture, check_depth, config_from_json, layouts
from fusion_core.text.json_files import LARGE, read_json, short

LONGEST_NAME = 255  # bytes of a file's name


def read_entries(folder: pathlib.Path) -> dict[str, Entry]:
    """Return all tensors of a folder, in one file or in shards with an index, from the headers alone.

    One file counts before an index, which may be left from an earlier save, as in transformers.

    Raises:
      InputError: a file is missing or damaged, the index names a tensor that its file lacks, or there are only pickles.
    """
    if not folder.is_dir():
        what = convert({}) if folder.suffix in PICKLES else "is no folder; give the folder that save_pretrained wrote"
        raise InputError(f"{folder} {what}" if folder.exists() else f"there is no folder {folder}; check the path")
    if (folder / WEIGHTS).is_file():
        return read_header(folder / WEIGHTS)
    if (folder / INDEX).exists():
        index = folder / INDEX
        weight_map = read_json(index, longest=LARGE).get("weight_map")
        if (
            not isinstance(weight_map, dict)
            or not weight_map
            or not all(isinstance(name, str) for name in weight_map.values())
        ):
            raise InputError(f"{index} has no weight_map of file names; it is damaged, copy it again")
        headers: dict[str, dict[str, Entry]] = {}
        for file in sorted(set(weight_map.values())):
            if pathlib.PurePath(file).name != file or "\0" in file or len(file.encode()) > LONGEST_NAME:
                raise InputError(f"{index} names {short(file)}, which is not a file in its folder; mend the index")
            if file.endswith(PICKLES):
                raise InputError(f"{folder / file} {convert(_values(folder))}")
            if not (folder / file).is_file():
                raise InputError(f"{index} names {file}, which is missing; copy the checkpoint again")
            headers[file] = read_header(folder / file)
        for name, file in weight_map.items():
            if name not in headers[file]:
                raise InputError(f"{index} says that {name} is in {file}, but it is not; copy the checkpoint again")
        return {name: headers[file][name] for name, file in weight_map.items()}
    raise no_weights(folder, _values(folder), f"{WEIGHTS} or {INDEX}")


def _values(folder: pathlib.Path) -> dict[str, Any]:
    """Return the values of ``config.json``, if there is one, for a better message."""
    return read_json(folder / "config.json") if (folder / "config.json").is_file() else {}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose names, shapes and dtypes are those of its configuration; no tensor is in memory.

    Attributes:
      folder: its path.
      architecture: its record in the registry.
      config: the network's configuration.
      tensors: the network's tensors by their names in the table of rules, in its order.
      extra: names in the files that the network does not use: copies of the embedding, buffers.
    """

    folder: pathlib.Path
    architecture: Architecture
    config: Any
    tensors: Mapping[str, Entry]
    extra: tuple[str, ...]

    @property
    def parameters(self) -> int:
        """Number of entries of all the network's tensors."""
        return sum(entry.size for entry in self.tensors.values())


def read_config(folder: pathlib.Path) -> dict[str, Any]:
    """Return the values of ``config.json``.

    Raises:
      InputError: the folder is no checkpoint, or the file is none of an architecture.
    """
    if not (folder / "config.json").exists():
        hint = "give the folder that save_pretrained wrote"
        if folder.suffix in PICKLES and folder.is_file():
            raise InputError(f"{folder} {convert({})}")
        if (folder / "adapter_config.json").exists():
            raise no_weights(folder, {}, "config.json")
        why = "it has no config.json" if folder.exists() else "there is no such folder"
        raise InputError(f"{folder} is no checkpoint: {why}; {hint}")
    values = read_json(folder / "config.json")
    check_values({"model_type": values.get("model_type")}, str(folder / "config.json"))
    return values


def open_checkpoint(path: str | pathlib.Path) -> Checkpoint:
    """Return a checkpoint folder's configuration and headers, checked to fit.

    Raises:
      InputError: the folder, a file or a tensor is missing, damaged, of a wrong shape, or of a dtype that is no float
        of 16 bits or more.
    """
    folder = pathlib.Path(path)
    values, origin = read_config(folder), str(folder / "config.json")
    check_kind(values, origin)
    config = config_from_json(values, origin)
    record = architecture(config)
    assert record.files is not None
    found, copies = read_entries(folder), record.files.copies(config)
    check_depth(config, len(found), origin)
    used = dict(found)
    head = next((name for name, layout in layouts(config).items() if layout.is_head), HEAD)
    if head in layouts(config) and not {head, HEAD} & found.keys() and headless(values):
        raise no_head(folder, values, head)
    for name, others in record.files.aliases(config).items():
        present = [other for other in others if other in found]
        if name not in used and present:
            used[name] = found[present[0]]
    for name in layouts(config):
        if name in used and used[name].dtype not in FLOATS:
            raise other_dtype(folder, name, used[name].dtype, FLOATS)
    tensors = {}
    for name, layout in layouts(config).items():
        shape = layout.shape
        entry = used.get(name)
        if entry is None:
            raise missing_tensor(folder, name, values, found, head)
        if entry.shape != shape:
            raise InputError(f"{folder}: {name} has shape {entry.shape}, but config.json says {shape}")
        tensors[name] = entry
    extra = tuple(sorted(found.keys() - {entry.name for entry in tensors.values()}))
    unknown = [name for name in extra if name not in copies and not record.files.ignored(config, name)]
    if unknown:
        raise InputError(
            f"{folder}: unknown tensors {unknown[:3]}; this is not the {record.files.model_type} network that config.json "
            "describes"
        )
    with Reader() as reader:
        for copy, original in copies.items():
            if copy in extra and not same_values(reader, found[copy], tensors[original], rounded=True):
                raise InputError(
                    f"{folder}: {copy} should be a copy of {original}, but differs from it; remove the one that is wrong"
                )
    return Checkpoint(folder, record, config, tensors, extra)


def same_values(reader: Reader, a: Entry, b: Entry, chunk: int = 1 << 20, *, rounded: bool = False) -> bool:
    """Return whether two tensors have equal shape, dtype and bits; they are read in pieces of ``chunk`` entries.

    With ``rounded`` their dtypes may differ, if one rounded to the dtype of the other is the other.
    """
    if a.shape != b.shape or (a.dtype != b.dtype and not (rounded and {a.dtype, b.dtype} <= FLOATS.keys())):
        return False
    if (a.path, a.start) == (b.path, b.start):
        return True
    for first in range(0, a.size, chunk):
        left, right = (np.empty(min(chunk, a.size - first), FLOATS[entry.dtype]) for entry in (a, b))
        reader.into(a, first, left)
        reader.into(b, first, right)
        if a.dtype != b.dtype:
            narrow = min(left.dtype, right.dtype, key=lambda dtype: dtype.itemsize)
            left, right = left.astype(narrow), right.astype(narrow)
        if left.tobytes() != right.tobytes():
            return False
    return True


def same_network(reader: Reader, a: Checkpoint, b: Checkpoint) -> bool:
    """Return whether two checkpoints are one network: equal configuration, names and bits."""
    if a.folder.resolve() == b.folder.resolve():
        return True
    if a.config != b.config or a.tensors.keys() != b.tensors.keys():
        return False
    return all(same_values(reader, a.tensors[name], b.tensors[name]) for name in a.tensors)


def _float32(reader: Reader, entry: Entry, chunk: int = 1 << 20) -> Any:
    """Return the tensor as a float32 array, in no more memory than that."""
    room = np.empty(entry.size + 16, np.float32)
    skip = -room.ctypes.data % 64 // 4  # JAX uses aligned memory without a copy
    values = room[skip : skip + entry.size]
    for first in range(0, entry.size, chunk):
        block = np.empty(min(chunk, entry.size - first), FLOATS[entry.dtype])
        reader.into(entry, first, block)
        values[first : first + block.size] = block
    return jax.device_put(values.reshape(entry.shape), may_alias=True)


class LazyParams(dict[str, Any]):
    """A network's nested parameters whose arrays are read, as float32, at every access.

    So a function of params that is called outside jit has one tensor at a time in memory. A node's ``"path"`` is its keys,
    as ``fusion_core.growth.norms`` marks norms.
    """

    def __init__(self, reader: Reader, tensors: Mapping[str, Entry], prefix: str = "") -> None:
        super().__init__()
        self._reader, self._tensors, self._prefix = reader, tensors, prefix

    def __contains__(self, key: object) -> bool:
        name = f"{self._prefix}{key}"
        return name in self._tensors or any(other.startswith(f"{name}.") for other in self._tensors)

    def __missing__(self, key: str) -> Any:
        if key == "path":
            return tuple(self._prefix.split(".")[:-1])
        name = f"{self._prefix}{key}"
        entry = self._tensors.get(name)
        if entry is not None:
            return _float32(self._reader, entry)
        if key not in self:
            raise KeyError(name)
        return LazyParams(self._reader, self._tensors, f"{name}.")
