"""Against Hugging Face's ``generate``: ``pip install deepfusion[parity]``."""

import functools
import warnings

import numpy as np
import pytest

import fusion_core as fc
from fusion_core.t5.decoding import generate
from tests.strategies.networks import STYLES, batch_of, random_t5, tiny

WHY = "the reference implementation is an extra: pip install 'deepfusion[parity]'"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what other packages do while they are imported is not ours
    torch = pytest.importorskip("torch", reason=WHY)
    pytest.importorskip("transformers", reason=WHY)
    from transformers import T5ForConditionalGeneration

LENGTH = 9


@pytest.fixture(scope="module", autouse=True)
def few_threads():
    """The sizes are tiny: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=sorted(STYLES))
def pair(request, tmp_path_factory):
    """(our ``generate`` of 24 sources, the reference's).

    The end token is one that the network likes, so that answers end early, late and not at all.
    """
    config = tiny(request.param, num_layers=1, num_decoder_layers=1)
    params, ids = random_t5(config, 4), batch_of(config, 0, batch=24)["encoder_ids"]
    free = generate(params, config, ids, max_length=LENGTH)
    config = tiny(request.param, num_layers=1, num_decoder_layers=1, eos_token_id=int(np.bincount(free[:, 4]).argmax()))
    folder = tmp_path_factory.mktemp("parity") / "ours"
    fc.save_pretrained(folder, params, config)
    model = T5ForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()

    def theirs(**options):
        source = torch.tensor(ids).long()
        options = {"do_sample": False, "num_beams": 1, "max_length": LENGTH + 1} | options
        with torch.no_grad():
            out = model.generate(source, attention_mask=(source != 0).long(), **options).numpy()[:, 1:]
        return np.pad(out, ((0, 0), (0, LENGTH - out.shape[1])))

    return functools.partial(generate, params, config, ids, max_length=LENGTH), theirs, config.eos_token_id


def ends(answers, eos):
    return {int(np.argmax(row == eos)) if (row == eos).any() else None for row in answers}


def test_greedy_answers_equal_the_references(pair):
    ours, theirs, eos = pair
    expected = theirs()
    assert len(ends(expected, eos)) > 2
    np.testing.assert_array_equal(ours(), expected)


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize(("beams", "penalty"), [(3, 1.0), (4, 0.0), (2, 2.5), (3, -1.0)])
def test_beam_search_equals_the_references(pair, beams, penalty, early_stopping):
    ours, theirs, eos = pair
    expected = theirs(num_beams=beams, length_penalty=penalty, early_stopping=early_stopping)
    found = ours(method="beam", beams=beams, length_penalty=penalty, early_stopping=early_stopping)
    np.testing.assert_array_equal(found, expected)
    assert len(ends(expected, eos)) > 1


def test_beams_penalty_and_stopping_matter_here(pair):
    """The cases above tell the rules apart."""
    ours, *_ = pair
    beam = functools.partial(ours, method="beam")
    answers = [ours(), *(beam(beams=3, length_penalty=p) for p in (0.0, 1.0, 2.5))]
    answers.append(beam(beams=3, early_stopping=True))
    for i, one in enumerate(answers):
        assert all((one != other).any() for other in answers[:i])
