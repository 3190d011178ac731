"""The noise between the copies of a checkpoint, chosen on text by the command line."""

import json

import numpy as np
import pytest

import fusion_core as fc
from fusion_core.schedule.noise import NOISES
from fusion_core.text import train_tokenizer
from tests.strategies.checkpoints import saved_decoder, saved_t5, tensors_of
from tests.strategies.texts import sentences


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_the_noise_of_a_self_fusion_is_chosen_on_text_and_said(run, kind, tmp_path):
    text = " ".join(sentences(0, 60))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    tokenizer, folder = train_tokenizer([text], 300), tmp_path / "a"
    sizes = {"vocab_size": tokenizer.vocab_size}
    small = saved_t5(folder, **sizes) if kind == "t5" else saved_decoder(folder, kind, 0, 0, **sizes)
    tokenizer.save(small)
    code, out, err = run("fuse", small, small, "--noise-text", tmp_path / "text.txt", "--out", tmp_path / "c", "--json")
    assert code == 0, err
    assert "rounding alone parts" not in err
    (said,) = [line for line in err.splitlines() if line.startswith("Noise ")]
    noise = float(said.split()[1].rstrip(","))
    assert noise in NOISES
    pairs = [fc.load_pretrained(small)] * 2
    _, config = fc.fuse(pairs)
    fc.save_pretrained(tmp_path / "again", fc.fuse(pairs, off_diagonal="antisymmetric", noise=noise)[0], config)
    assert json.loads(out)["exact"]
    written = tensors_of(tmp_path / "c")
    for name, array in tensors_of(tmp_path / "again").items():
        np.testing.assert_allclose(written[name], array, rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("options", [["--noise", "0.1"], []])
def test_a_noise_that_cannot_be_chosen_is_refused(refused, options, tmp_path):
    small = saved_t5(tmp_path / "a")
    other = small if options else saved_t5(tmp_path / "b", seed=1)
    command = ["fuse", small, other, "--noise-text", tmp_path / "text.txt", "--out", tmp_path / "c", *options]
    refused("--noise-text chooses the noise between copies of one network", *command)
