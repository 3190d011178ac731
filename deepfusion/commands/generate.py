"""``deepfusion generate``: text out of a checkpoint."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Annotated

import typer

from deepfusion.options import Json, seed_option
from deepfusion.terminal import notes, working
from fusion_core.errors import InputError


def generate(
    checkpoint: Annotated[pathlib.Path, typer.Argument(help="Folder of a T5 with its tokenizer.")],
    texts: Annotated[list[str] | None, typer.Argument(help="What the network reads, each its own source.")] = None,
    file: Annotated[pathlib.Path | None, typer.Option(help="A file with one source a line, instead.")] = None,
    max_length: Annotated[int, typer.Option(help="Tokens of an answer at most.")] = 64,
    beams: Annotated[int | None, typer.Option(help="Search with this many beams.")] = None,
    length_penalty: Annotated[
        float | None, typer.Option(help="With --beams: above 0 for longer answers, below for shorter. Default: 1.")
    ] = None,
    sample: Annotated[bool, typer.Option("--sample", help="Draw tokens instead of taking the most probable.")] = False,
    temperature: Annotated[
        float | None, typer.Option(help="With --sample: below 1 for safer tokens, above for wilder ones.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="With --sample: draw from the k most probable tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="With --sample: draw from the fewest tokens with this probability together.")
    ] = None,
    seed: Annotated[int, seed_option("Seed of the samples.")] = 0,
    batch: Annotated[int, typer.Option(help="Sources at a time.")] = 32,
    source_length: Annotated[int, typer.Option(help="Tokens of a source at most; the rest is cut off, and said.")] = 512,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Generate text from a T5: one line for every source.

    \b
    deepfusion generate runs/sst2/checkpoint "sst2 sentence: a joy to watch"
    deepfusion generate small "Paris is the <extra_id_0> of France." --beams 4
    deepfusion generate small --file sources.txt --sample --top-p 0.9 --seed 1 --json
    """
    if bool(texts) == (file is not None):
        raise InputError("give either texts or --file, and not both")
    if beams is not None and sample:
        raise InputError("--beams searches and --sample draws; give one of them")
    drawn = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    if not sample and (alone := [name for name, value in drawn.items() if value is not None]):
        option = "--" + alone[0].replace("_", "-")
        raise InputError(f"{option} has a meaning with --sample only; add that, or leave it out")
    if length_penalty is not None and beams is None:
        raise InputError("--length-penalty has a meaning with --beams only; add that, or leave it out")
    if batch < 1 or seed < 0:
        raise InputError(f"--batch is {batch} and --seed {seed}; they must be at least 1 and 0")
    options = {**drawn, "beams": beams, "length_penalty": length_penalty}
    sources = _lines(file) if file is not None else texts or []
    with working("loading JAX and writing", quiet=as_json):
        from fusion_core.models.t5.beams import candidates
        from fusion_core.models.t5.decoding import Decoding
        from fusion_core.runs.answers import answer, open_network
        from fusion_core.text.examples import encode_texts
        from fusion_core.train.compiled import keep_compiled

        keep_compiled(notes)
        how = Decoding(
            max_length,
            "sample" if sample else "greedy" if beams is None else "beam",
            **{name: value for name, value in options.items() if value is not None},  # type: ignore[arg-type]
        )
        network = open_network(checkpoint)
        if candidates(network.config, how.beams) > network.config.vocab_size:
            raise InputError(
                f"--beams is {how.beams}; a vocabulary of {network.config.vocab_size} has no room for so many"
            )
        ids, cut = encode_texts(network.tokenizer, sources, source_length)
        answers = answer(network, ids, how, seed=seed, batch=batch)
    if cut:
        notes(f"{cut} of {len(ids)} sources had more than {source_length} tokens and were cut; see --source-length")
    if as_json:
        rows = [{"source": source, "answer": text} for source, text in zip(sources, answers, strict=True)]
        used = dataclasses.asdict(how) | {"seed": seed, "source_length": source_length}
        print(json.dumps({"checkpoint": str(checkpoint), "options": used, "cut": cut, "answers": rows}))
        return
    for text in answers:
        print(" ".join(text.split("\n")))  # one line a source


def _lines(file: pathlib.Path) -> list[str]:
    from fusion_core.text.encoding import read_text

    texts = [line for line in read_text(file).split("\n") if line.strip()]
    if not texts:
        raise InputError(f"{file} has no text; give a file with one source a line")
    return texts
