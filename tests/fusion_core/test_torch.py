"""Training on in PyTorch: the logits' velocity across a growth, optimizers carried, models and folders that do not fit.

The velocity is the derivative of the logits along the optimizer's next displacement, over its rate, in float64: no step
size enters.
"""

import copy
import sys
import warnings

import numpy as np
import pytest

import fusion_core as fc
from fusion_core import checkpoints
from fusion_core.torch import OPTIMIZERS, grow_optimizer, param_groups
from tests.strategies.checkpoints import saved_decoder, saved_t5
from tests.strategies.decoders import KINDS

WHY = "training on in PyTorch is an extra: pip install 'deepfusion[parity]'"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what other packages do while they are imported is not ours
    torch = pytest.importorskip("torch", reason=WHY)
    transformers = pytest.importorskip("transformers", reason=WHY)

pytestmark = [pytest.mark.usefixtures("few_torch_threads"), pytest.mark.filterwarnings("ignore")]

RATE, DECAY = 0.01, 0.1
# below every gradient, so that nothing depends on epsilon
TINY = 1e-30
MAKE = {
    "sgd": lambda p: torch.optim.SGD(p, RATE, momentum=0.9, weight_decay=DECAY),
    "adamw": lambda p: torch.optim.AdamW(p, RATE, eps=TINY, amsgrad=True, weight_decay=DECAY),
    "adam": lambda p: torch.optim.Adam(p, RATE, eps=TINY, weight_decay=DECAY),
    "adafactor": lambda p: torch.optim.Adafactor(p, RATE, eps=(TINY, 1e-3), weight_decay=DECAY),
    "transformers": lambda p: transformers.Adafactor(
        p, RATE, relative_step=False, eps=(TINY**2, 1e-3), weight_decay=DECAY, beta1=0.9
    ),
}
T5 = {"vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 1, "num_heads": 2}
LLAMA = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.3}


def network(kind, seed=0):
    torch.manual_seed(seed)
    if kind == "t5":
        config = transformers.T5Config(**T5, decoder_start_token_id=0, dropout_rate=0.0)
        model = transformers.T5ForConditionalGeneration(config)
    else:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, **HEADS))
    for parameter in model.parameters():
        if parameter.ndim == 1:  # scales away from one
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.set_attn_implementation("eager")
    return model.double().eval()


def loaded(folder):
    kind = transformers.AutoModelForCausalLM
    if "t5" in (folder / "config.json").read_text():
        kind = transformers.T5ForConditionalGeneration
    return kind.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()


def batch(seed):
    ids = torch.from_numpy(np.random.default_rng(seed).integers(2, 20, (3, 6)))
    return {"input_ids": ids, "labels": ids.flip(1)}


def train(model, optimizer, steps, first=0):
    for step in range(first, first + steps):
        optimizer.zero_grad()
        model(**batch(step)).loss.backward()
        optimizer.step()


def velocities(model, optimizer, shares=False):
    """The logits' velocity under the optimizer's next step, and every parameter's share of it; nothing is changed."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    state = copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, 1, first=100)
    moved = {name: (p.detach() - before[name]) / RATE for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.data.copy_(before[name])
    optimizer.load_state_dict(state)
    function = lambda p: torch.func.functional_call(model, p, (), batch(100)).logits
    zeros = {name: torch.zeros_like(value) for name, value in moved.items()}
    along = lambda direction: torch.func.jvp(function, (before,), (direction,))[1].numpy()
    return along(moved), {name: along(zeros | {name: value}) for name, value in moved.items() if shares}


def off(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def grown_folder(folder, operator, source):
    if operator == "fuse":
        recipe = checkpoints.fusion_recipe([source, source])
    else:
        recipe = checkpoints.growth_recipe(source, operator, factor=2)
    checkpoints.write_recipe(recipe, folder, probe=False)
    return folder


def across(tmp_path, kind, operator, make, steps=3):
    """(the small network, its optimizer, the grown network, its folder) after some steps of training."""
    small = network(kind)
    optimizer = make(small.parameters())
    train(small, optimizer, steps)
    small.save_pretrained(tmp_path / "small")
    folder = grown_folder(tmp_path / "grown", operator, tmp_path / "small")
    return small, optimizer, loaded(folder), folder


EVENTS = [("t5", "fuse", name) for name in MAKE if name != "adam"] + [
    ("llama", "fuse", "adafactor"),
    ("llama", "hypercloning", "adamw"),
    ("llama", "hypercloning", "adam"),  # its decay is coupled, and goes on where copies are equal
]


@pytest.mark.parametrize(("kind", "operator", "name"), EVENTS)
def test_the_velocity_is_continuous_with_factors_and_moments_and_jumps_by_the_factors_without(
    tmp_path, kind, operator, name
):
    small, optimizer, grown, folder = across(tmp_path, kind, operator, MAKE[name])
    carried = grow_optimizer(optimizer, small, grown, folder)
    plain = grow_optimizer(optimizer, small, grown, folder, factors=False)
    before, _ = velocities(small, optimizer)
    assert off(velocities(grown, carried)[0], before) < 1e-6

    # the decay of an entry needs no factor
    for group in optimizer.param_groups + plain.param_groups:
        assert group["weight_decay"] == DECAY
        group["weight_decay"] = 0.0
    before, shares = velocities(small, optimizer, shares=True)
    after, _ = velocities(grown, plain)
    assert off(after, before) > 0.02
    if name != "transformers":  # whose average of updates has their rates
        factors = checkpoints.read_growth(folder).factors(OPTIMIZERS[name])
        assert off(after, sum(share / factors[key] for key, share in shares.items())) < 1e-6


@pytest.fixture(scope="module")
def doubled(tmp_path_factory):
    """A small Llama, the same fused with itself, and the latter's folder."""
    path = tmp_path_factory.mktemp("doubled")
    small = network("llama")
    small.save_pretrained(path / "small")
    folder = grown_folder(path / "grown", "fuse", path / "small")
    return small, loaded(folder), folder


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_new_optimizer_on_the_groups_moves_the_logits_as_one_on_the_small_network(doubled, name):
    small, grown, folder = doubled
    kinds = {kind.lower(): getattr(torch.optim, kind) for kind in dir(torch.optim)}
    options = {} if name == "sgd" else {"eps": (TINY, 1e-3) if name == "adafactor" else TINY}
    decay = DECAY if name in ("sgd", "adamw", "adafactor") else 0.0
    make = lambda groups: kinds[name](groups, lr=RATE, weight_decay=decay, **options)
    before, _ = velocities(small, make(small.parameters()))
    assert off(velocities(grown, make(param_groups(grown, folder, RATE, name, weight_decay=decay)))[0], before) < 1e-6
    assert off(velocities(grown, make(grown.parameters()))[0], before) > 0.02


@pytest.mark.parametrize("kind", ["v1.0", "v1.1", *KINDS])
def test_the_file_has_the_parameters_of_every_architecture_by_their_names_in_pytorch(tmp_path, kind):
    saved = saved_t5(tmp_path / "a", kind) if kind.startswith("v1") else saved_decoder(tmp_path / "a", kind)
    grown = loaded(grown_folder(tmp_path / "b", "fuse", saved))
    groups = param_groups(grown, tmp_path / "b", 1.0, "sgd")
    of = {id(p): group["lr"] for group in groups for p in group["params"]}
    factors = checkpoints.read_growth(tmp_path / "b").factors("sgd")
    assert {name: of[id(p)] for name, p in grown.named_parameters()} == factors
    assert len({group["lr"] for group in groups}) == len(groups) > 1


def test_different_sources_keep_their_moments_and_the_blocks_between_them_get_an_estimate(tmp_path):
    models, optimizers = [], []
    for i, name in enumerate("ab"):
        models.append(network("llama", i))
        optimizers.append(torch.optim.Adam(models[-1].parameters(), RATE))
        train(models[-1], optimizers[-1], 2 + i)
        models[-1].save_pretrained(tmp_path / name)
    checkpoints.write_recipe(checkpoints.fusion_recipe([tmp_path / "a", tmp_path / "b"]), tmp_path / "c", probe=False)
    fused = loaded(tmp_path / "c")
    grown = grow_optimizer(optimizers, models, fused, tmp_path / "c")
    name = "model.layers.0.mlp.up_proj.weight"
    state = grown.state[fused.get_parameter(name)]
    assert state["step"] == 2
    for i, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
        own = optimizer.state[model.get_parameter(name)]
        block = np.s_[12 * i : 12 * i + 12, 8 * i : 8 * i + 8]
        np.testing.assert_allclose(state["exp_avg"][block], own["exp_avg"] / 2, rtol=1e-12)
        np.testing.assert_allclose(state["exp_avg_sq"][block], own["exp_avg_sq"] / 4, rtol=1e-12)
    assert not state["exp_avg"][:12, 8:].any()
    assert state["exp_avg_sq"].min() > 0
    losses = []
    for _ in range(3):
        losses.append(float(fused(**batch(0)).loss.detach()))
        train(fused, grown, 1)
    assert losses[2] < losses[1] < losses[0]
    with pytest.raises(fc.InputError, match="optimizer has 1 entries, but 2 networks were fused"):
        grow_optimizer(optimizers[0], models, fused, tmp_path / "c")


def test_groups_options_schedulers_frozen_parameters_and_wrappers_are_kept(doubled):
    small, grown, folder = copy.deepcopy(doubled[0]), copy.deepcopy(doubled[1]), doubled[2]
    norms = [p for p in small.parameters() if p.ndim == 1]
    matrices = [p for name, p in small.named_parameters() if p.ndim > 1 and "embed" not in name]
    groups = [{"params": norms, "weight_decay": 0.0}, {"params": matrices, "betas": (0.5, 0.9)}]
    optimizer = torch.optim.AdamW(groups, RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    train(small, optimizer, 1)
    schedule.step()
    wrapped = torch.nn.ModuleDict({"module": grown})
    carried = grow_optimizer(optimizer, small, wrapped, folder)
    factors = checkpoints.read_growth(folder).factors("adam")
    of = {id(p): group for group in carried.param_groups for p in group["params"]}
    for name, parameter in grown.named_parameters():
        if "embed" in name:  # which the small optimizer did not train
            assert id(parameter) not in of
            continue
        group = of[id(parameter)]
        assert group["lr"] == pytest.approx(RATE / 2 * factors[name])
        assert group["initial_lr"] == pytest.approx(RATE * factors[name])
        decay = 0.0 if parameter.ndim == 1 else DECAY / factors[name]
        assert (group["weight_decay"], group["betas"]) == (decay, (0.9, 0.999) if parameter.ndim == 1 else (0.5, 0.9))
    grown.model.requires_grad_(False)
    (group,) = param_groups(grown, folder, RATE)
    assert group["params"] == [grown.lm_head.weight]
    grown.requires_grad_(False)
    with pytest.raises(fc.InputError, match="unfreeze"):
        param_groups(grown, folder, RATE)
    with pytest.raises(fc.InputError, match="unfreeze"):
        grow_optimizer(optimizer, small, grown, folder)


def test_trainers_schedule_multiplies_every_groups_rate(doubled):
    _, grown, folder = doubled
    optimizer = torch.optim.AdamW(param_groups(grown, folder, RATE))
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = transformers.get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=4)
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.75 * rate for rate in rates])


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "lion"}, "the optimizer is 'lion'; there are factors for sgd, adafactor, adam"),
        ({"lr": 0.0}, "lr is 0.0; it must be finite and positive"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0; it must be finite and not negative"),
        ({"folder": "small"}, "there is no .*growth.json: it is written beside the weights"),
        ({"model": "small"}, "has shape .* but the growth's is .*load the model from the folder"),
        ({"model": "bare"}, "has the parameter .*embed_tokens.weight, which the growth does not know; load the model"),
        ({"model": 3}, "a model is a int"),
    ],
)
def test_groups_that_cannot_be_made_are_refused(doubled, change, message):
    small, grown, folder = doubled
    given = {"model": grown, "folder": folder, "lr": RATE, "optimizer": "adamw"} | change
    given["model"] = {"small": small, "bare": grown.model}.get(change.get("model"), given["model"])
    given["folder"] = folder.parent / "small" if "folder" in change else folder
    with pytest.raises(fc.InputError, match=message):
        param_groups(**given)


def test_a_model_that_lacks_parameters_is_refused(doubled):
    _, grown, folder = doubled
    headless = torch.nn.ModuleDict({"model": grown.model})
    with pytest.raises(fc.InputError, match=r"lacks the parameter lm_head.weight \(of 1 that it lacks\)"):
        param_groups(headless, folder, RATE)


def adafactor_with_steps(small):
    optimizer = torch.optim.Adafactor(small.parameters(), 0.8)
    train(small, optimizer, 1)
    return optimizer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda small: torch.optim.ASGD(small.parameters()), "the optimizer is ASGD; one of sgd"),
        (
            lambda small: torch.optim.AdamW(copy.deepcopy(small).parameters()),
            "12 of the optimizer's 12 parameters are not",
        ),
        (lambda small: transformers.Adafactor(small.parameters()), "relative_step=True ignores its groups' rates"),
        (adafactor_with_steps, r"the smaller of lr \(0.8\) and 1/√step \(0.7071\)"),
    ],
)
def test_optimizers_that_cannot_be_grown_are_refused(doubled, make, message):
    small, grown, folder = copy.deepcopy(doubled[0]), doubled[1], doubled[2]
    with pytest.raises(fc.InputError, match=message):
        grow_optimizer(make(small), small, grown, folder)


def test_a_state_of_an_unknown_kind_is_refused(doubled):
    small, grown, folder = copy.deepcopy(doubled[0]), doubled[1], doubled[2]
    optimizer = torch.optim.RMSprop(small.parameters())
    train(small, optimizer, 1)
    with pytest.raises(fc.InputError, match=r"RMSprop keeps 'square_avg' .* start a new optimizer on param_groups"):
        grow_optimizer(optimizer, small, grown, folder)
    with pytest.raises(fc.InputError, match=r"the small model: .* give the model that was grown"):
        grow_optimizer(optimizer, grown, grown, folder)


def test_pytorch_is_named_if_it_is_missing(doubled, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(fc.InputError, match="pip install 'deepfusion\\[torch\\]'"):
        param_groups(doubled[1], doubled[2], RATE)
