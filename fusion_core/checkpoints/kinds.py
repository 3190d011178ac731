"""Checkpoints that hold no whole network, named for what they are: quantised, headless, encoders, classifiers, wrapped."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Collection, Mapping
from typing import Any

from fusion_core.errors import InputError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# other formats, by suffix, and who writes them
FOREIGN = {".h5": "TensorFlow", ".msgpack": "Flax", ".gguf": "llama.cpp", ".onnx": "ONNX"}
# classes of networks that end otherwise than in logits of the next token, by the end of their names
_OTHER_ENDS = {
    r"EncoderModel": "an encoder without a decoder",
    r"For(Sequence|Token)Classification": "a classifier",
    r"ForQuestionAnswering": "a network that marks answers",
    r"DoubleHeadsModel": "a network with two heads",
    r"For(Masked|Pre).*": "a network that fills gaps",
}
# what wrappers put in front of all names, and what unwraps a module
_WRAPPERS = {
    "_orig_mod.": "torch.compile; save model._orig_mod",
    "module.": "DataParallel, DistributedDataParallel or DeepSpeed; save model.module",
    "_fsdp_wrapped_module.": "FSDP; save its full state_dict",
    "_forward_module.": "Lightning; save its model",
    "base_model.model.": "PEFT; save model.merge_and_unload()",
}
# dtypes of quantised weights, by the beginning of their names
_DTYPES = {
    "F8_E8M0": "an 8-bit scale of quantised blocks",
    "F8": "an 8-bit float, which has a scale beside it",
    "F6": "a packed 6-bit float, which has a scale beside it",
    "F4": "a packed 4-bit float, which has a scale beside it",
    "I": "an integer, as quantised or packed weights are",
    "U": "an integer, as quantised or packed weights are",
}


def saver(values: Mapping[str, Any]) -> str:
    """Return the class of transformers that loads a whole network of this ``config.json``, its head included."""
    return "AutoModelForSeq2SeqLM" if values.get("is_encoder_decoder") or "t5" in str(values.get("model_type")) else (
        "AutoModelForCausalLM"
    )  # fmt: skip


def convert(values: Mapping[str, Any]) -> str:
    """Return what to do about a pickle."""
    return (
        "is a pickle, which is never loaded: save it again as safetensors, with transformers by "
        f"{saver(values)}.from_pretrained(OLD).save_pretrained(NEW) where you trust its source"
    )


def no_weights(folder: pathlib.Path, values: Mapping[str, Any], wanted: str) -> InputError:
    """Return the error for a folder without the files of weights that are ``wanted``, which says what is there instead."""
    files = sorted(path.name for path in folder.iterdir() if path.is_file())
    for name in files:
        if name.endswith(PICKLES):
            return InputError(f"{folder} has no {wanted}; {name} {convert(values)}")
        if (suffix := pathlib.PurePath(name).suffix) in FOREIGN:
            return InputError(
                f"{folder} has no {wanted}; {name} is of {FOREIGN[suffix]}: take the same network as PyTorch's safetensors"
            )
        if name.startswith("adapter_model"):
            return InputError(
                f"{folder} is an adapter of PEFT, not a network: load the two, and save model.merge_and_unload()"
            )
    others = [name for name in files if name.endswith(".safetensors")]
    return InputError(f"{folder} has no {wanted}{f', only {others[0]}' if others else ''}; copy the whole checkpoint")


def classes(values: Mapping[str, Any]) -> list[str]:
    """Return the names of the classes that saved a checkpoint, as its ``config.json`` has them."""
    named = values.get("architectures")
    return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []


def check_kind(values: Mapping[str, Any], origin: str) -> None:
    """Raise InputError if ``config.json`` says that the weights are quantised, or of a network without logits of tokens."""
    quantised = values.get("quantization_config")
    if isinstance(quantised, dict):
        how = quantised.get("quant_method", "by an unnamed method")
        bits = f", {quantised['bits']} bits" if "bits" in quantised else ""
        raise InputError(
            f"{origin}: the weights are quantised ({how}{bits}), and cannot be fused or grown; take the checkpoint that "
            "they were made from"
        )
    for name in classes(values):
        for ending, what in _OTHER_ENDS.items():
            if re.search(f"{ending}$", name):
                raise InputError(
                    f"{origin}: {name} is {what}; what is read here gives logits of tokens: take the language model that it "
                    f"was made from, one that {saver(values)} loads whole"
                )


def headless(values: Mapping[str, Any]) -> bool:
    """Return whether the classes that saved a checkpoint have no head, such as T5Model and LlamaModel."""
    return any(re.fullmatch(r"\w+Model", name) and "LMHead" not in name for name in classes(values))


def no_head(folder: pathlib.Path, values: Mapping[str, Any], head: str) -> InputError:
    """Return the error for a network whose own head was not saved."""
    by = f" by {classes(values)[0]}" if headless(values) else ""
    return InputError(
        f"{folder}: {head} is missing, and config.json says that the head is not the embedding: it was saved{by} without its "
        f"head; save it again from the whole network, with transformers by {saver(values)}"
    )


def other_dtype(folder: pathlib.Path, name: str, dtype: str, known: Collection[str]) -> InputError:
    """Return the error for a tensor of another dtype than those that are read."""
    what = next((what for start, what in _DTYPES.items() if dtype.startswith(start)), "no float")
    return InputError(
        f"{folder}: {name} has dtype {dtype}; weights of {', '.join(known)} can be read, and this is {what}: take the "
        "checkpoint before it was quantised, or write it in one of these"
    )


def missing_tensor(
    folder: pathlib.Path, name: str, values: Mapping[str, Any], found: Collection[str], head: str
) -> InputError:
    """Return the error for a tensor that is missing, with its cause if the other names show it."""
    for prefix, what in _WRAPPERS.items():
        if any(other.startswith(prefix) or f".{prefix}" in other for other in found):
            return InputError(
                f"{folder}: the names of its tensors have {prefix} in them, of a module wrapped by {what}"
            )
    if name == head:
        return no_head(folder, values, head)
    if name.startswith("decoder.") and not any(other.startswith("decoder.") for other in found):
        return InputError(
            f"{folder}: it has no decoder, only an encoder; take the whole network, one that {saver(values)} loads"
        )
    packed = [
        other for other in found if re.search(r"\.(qweight|qzeros|weight_packed|weight_scale|absmax|SCB)$", other)
    ]
    if packed:
        return InputError(
            f"{folder}: {packed[0]} is of quantised weights, which cannot be fused or grown; take the checkpoint that it was "
            "made from"
        )
    return InputError(f"{folder}: the tensor {name} is missing; config.json and the weights do not belong together")
