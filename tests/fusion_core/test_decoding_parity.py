"""Against Hugging Face's ``generate``: ``pip install deepfusion[parity]``."""

import functools
import warnings

import numpy as np
import pytest

import fusion_core as fc
from fusion_core.models.t5.decoding import generate
from tests.strategies.decoding import LENGTH, ends, talkative
from tests.strategies.networks import STYLES

WHY = "the reference implementation is an extra: pip install 'deepfusion[parity]'"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what other packages do while they are imported is not ours
    torch = pytest.importorskip("torch", reason=WHY)
    pytest.importorskip("transformers", reason=WHY)
    from transformers import T5ForConditionalGeneration

CASES = [(3, 1.0, False), (4, 0.0, True), (2, 2.5, "never")]


pytestmark = pytest.mark.usefixtures("few_torch_threads")


@pytest.fixture(scope="module", params=sorted(STYLES))
def pair(request, tmp_path_factory):
    """(our ``generate`` of 24 sources, the reference's, the end token)."""
    params, config, ids = talkative(request.param)
    folder = tmp_path_factory.mktemp("parity") / "ours"
    fc.save_pretrained(folder, params, config)
    model = T5ForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()

    def theirs(**options):
        source = torch.tensor(ids).long()
        options = {"do_sample": False, "num_beams": 1, "max_length": LENGTH + 1} | options
        with torch.no_grad():
            out = model.generate(source, attention_mask=(source != 0).long(), **options).numpy()[:, 1:]
        out = np.pad(out, ((0, 0), (0, LENGTH - out.shape[1])))
        # its beam search fills up with the end token where the pad id is 0
        after = np.cumsum(out == config.eos_token_id, axis=1) - (out == config.eos_token_id) > 0
        return np.where(after, config.pad_token_id, out)

    return functools.partial(generate, params, config, ids, max_length=LENGTH), theirs, config.eos_token_id


def test_greedy_answers_equal_the_references(pair):
    ours, theirs, eos = pair
    expected = theirs()
    assert len(ends(expected, eos)) > 2
    np.testing.assert_array_equal(ours(), expected)


@pytest.mark.parametrize(("beams", "penalty", "early_stopping"), CASES)
def test_beam_search_equals_the_references(pair, beams, penalty, early_stopping):
    ours, theirs, eos = pair
    expected = theirs(num_beams=beams, length_penalty=penalty, early_stopping=early_stopping)
    found = ours(method="beam", beams=beams, length_penalty=penalty, early_stopping=early_stopping)
    np.testing.assert_array_equal(found, expected)
    assert len(ends(expected, eos)) > 1


def test_the_cases_tell_the_rules_apart(pair):
    _, theirs, _ = pair
    answers = [theirs(), *(theirs(num_beams=b, length_penalty=p, early_stopping=e) for b, p, e in CASES)]
    for i, one in enumerate(answers):
        assert all((one != other).any() for other in answers[:i]), i
