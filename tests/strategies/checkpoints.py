"""Checkpoint folders for the tests, and ways to damage them."""

import json
import pathlib

import jax
import numpy as np
import safetensors.numpy

import fusion_core as fc
from fusion_core import checkpoints
from fusion_core.models.units import by_name
from tests.strategies.decoders import random_params, small
from tests.strategies.networks import random_t5, tiny

ONE_LAYER = {"vocab_size": 20, "num_layers": 1, "num_decoder_layers": 1}


def saved_t5(folder, style="v1.0", seed=0, dtype=None, **changes) -> pathlib.Path:
    """A random T5 of one layer in ``folder``."""
    config = tiny(style, **{**ONE_LAYER, **changes})
    params = random_t5(config, seed)
    if dtype is not None:
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    fc.save_pretrained(folder, params, config)
    return pathlib.Path(folder)


def saved_decoder(folder, kind, i=0, seed=0, **changes) -> pathlib.Path:
    """A random Llama or GPT-2 of one layer in ``folder``."""
    config = small(kind, i, **changes)
    fc.save_pretrained(folder, random_params(config, seed), config)
    return pathlib.Path(folder)


def tensors_of(folder):
    """All tensors of a folder, read by the safetensors library."""
    found = {}
    for file in sorted(pathlib.Path(folder).glob("*.safetensors")):
        found |= safetensors.numpy.load_file(file)
    return found


def replace_tensors(folder, tensors):
    safetensors.numpy.save_file(tensors, pathlib.Path(folder) / "model.safetensors", metadata={"format": "pt"})


def in_shards(folder, number=3):
    """The same checkpoint in several files with an index."""
    folder = pathlib.Path(folder)
    tensors = tensors_of(folder)
    names = sorted(tensors)
    weight_map = {}
    for i in range(number):
        file = f"model-{i + 1:05}-of-{number:05}.safetensors"
        safetensors.numpy.save_file({name: tensors[name] for name in names[i::number]}, folder / file)
        weight_map |= dict.fromkeys(names[i::number], file)
    write_index(folder, weight_map)
    (folder / "model.safetensors").unlink()
    return folder


def write_index(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def raw_file(path, header, data=b"", length=None):
    """A safetensors file with any header: JSON of a dict, or bytes, of a length that may lie."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


# a T5 unlike the other sources in every width
NARROW = {"d_model": 12, "num_heads": 3, "d_ff": 10}


def fused(folders, out, **options):
    """Fuse without a probe, and return the tensors that the safetensors library reads."""
    checkpoints.write_recipe(checkpoints.fusion_recipe(folders, **options), out, probe=False)
    return tensors_of(out)


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def in_memory(folders, weights=None, **options):
    """Return the tensors and the configuration of the fusion in memory."""
    params, config = fc.fuse([fc.load_pretrained(folder) for folder in folders], weights, **options)
    return {name: np.asarray(leaf) for name, leaf in by_name(params).items()}, config
