"""The examples of two pages, block by block: transformers writes, deepfusion fuses, transformers and PyTorch go on."""

import contextlib
import io
import pathlib
import re
import shlex
import sys
import warnings

import numpy as np
import pytest

import fusion_core as fc
from deepfusion import cli
from tests.strategies.networks import logits

WHY = "the example's checkpoints are written by transformers: pip install 'deepfusion[parity]'"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what other packages do while they are imported is not ours
    torch = pytest.importorskip("torch", reason=WHY)
    transformers = pytest.importorskip("transformers", reason=WHY)

DOCS = pathlib.Path(__file__).parent.parent.parent / "docs"
PAGES = {
    "fuse_checkpoints.md": (["python", "sh", "sh", "python"], ["medium", "small-a", "small-b"]),
    "pytorch.md": (["python", "sh", "python"], ["grown", "small"]),
}


def blocks(page):
    """The code of a page: (kind, code, what it prints)."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"```(python|sh)\n(.*?)```(?:\nprints\n```\n(.*?)```)?", text, flags=re.DOTALL)


def command(line):
    """Run one line of a shell block, and return its exit code."""
    words = shlex.split(line)
    assert words[0] == "deepfusion"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as left:
            cli.main()
    return left.value.code or 0


@pytest.mark.parametrize("page", PAGES)
def test_the_documented_example_does_what_it_says(tmp_path, monkeypatch, page):
    monkeypatch.chdir(tmp_path)
    kinds, folders = PAGES[page]
    assert [kind for kind, _, _ in blocks(page)] == kinds
    assert blocks(page)[-1][2]
    session = {}
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for kind, code, printed in blocks(page):
            if kind == "sh":
                assert [command(line) for line in code.splitlines()] == [0] * len(code.splitlines())
                continue
            out = io.StringIO()
            with contextlib.redirect_stdout(out), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # transformers' own
                exec(compile(code, f"docs/{page}", "exec"), session)
            if printed:
                assert out.getvalue() == printed
    finally:
        torch.set_num_threads(before)
    assert sorted(path.name for path in tmp_path.iterdir()) == folders


def test_the_fused_checkpoint_computes_in_transformers_what_fuse_computes_in_memory(tmp_path, monkeypatch):
    """Written by transformers in shards, fused from files, read by transformers."""
    folders = []
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        shape = {"vocab_size": 50, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 2}
        config = transformers.T5Config(
            **shape, feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0
        )
        model = transformers.T5ForConditionalGeneration(config)
        folders.append(tmp_path / name)
        model.save_pretrained(folders[-1], max_shard_size="5KB")
        assert len(list(folders[-1].glob("*.safetensors"))) > 1
    words = ["fuse", *map(str, folders), "--max-shard", "9KB", "--no-probe", "--out", str(tmp_path / "c")]
    assert command(shlex.join(["deepfusion", *words])) == 0
    params, config = fc.fuse([fc.load_pretrained(folder) for folder in folders])
    ids, targets = np.array([[3, 7, 11, 4]], np.int32), np.array([[0, 9, 8]], np.int32)
    model = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "c").eval()
    with torch.no_grad():
        theirs = model(
            input_ids=torch.tensor(ids).long(), decoder_input_ids=torch.tensor(targets).long()
        ).logits.numpy()
    assert np.abs(theirs).mean() > 0.01
    np.testing.assert_allclose(logits(params, config, ids, targets), theirs, rtol=0, atol=2e-5)
