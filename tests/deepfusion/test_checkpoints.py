"""``deepfusion fuse``, ``diff`` and ``info DIR`` as the command line gives them."""

import json

import numpy as np
import pytest

from deepfusion.commands.fuse import parse_size
from fusion_core.errors import InputError
from fusion_core.growth import GROWTH_OPERATORS
from fusion_core.text import train_tokenizer
from tests.strategies.checkpoints import replace_tensors, saved_decoder, saved_t5, tensors_of
from tests.strategies.texts import documents, sentences


@pytest.fixture
def pair(tmp_path):
    return saved_t5(tmp_path / "a"), saved_t5(tmp_path / "b", seed=1)


def test_a_dry_run_prints_the_plan_and_writes_nothing(run, pair, tmp_path):
    code, out, _ = run("fuse", *pair, "--out", tmp_path / "c", "--dtype", "bf16", "--dry-run")
    assert code == 0
    for part in ("block-diagonal", "20×16 + 20×16", "20×32", "bf16", "The mean is not exact"):
        assert part in out
    code, out, _ = run(
        "fuse", *pair, "--out", tmp_path / "c", "--dtype", "bf16", "--max-shard", "2KB", "--dry-run", "--json"
    )
    facts = json.loads(out)
    assert code == 0
    assert facts["bytes"] == 2 * facts["parameters"] == sum(facts["shards"].values())
    assert not facts["exact"]
    shared = next(tensor for tensor in facts["tensors"] if tensor["name"] == "shared.weight")
    assert (shared["from"], shared["shape"], shared["rule"]) == ([[20, 16], [20, 16]], [20, 32], "concatenated")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_copies_without_noise_between_them_are_warned_of(run, pair, tmp_path):
    warned = lambda *options: (
        "rounding alone parts" in run("fuse", *options, "--out", tmp_path / "c", "--dry-run", "--json")[2]
    )
    assert warned(pair[0], pair[0])
    assert not warned(pair[0], pair[0], "--noise", "0.5")
    assert not warned(*pair)


def test_fuse_writes_what_the_plan_says_and_the_card_says_what_was_measured(run, pair, tmp_path):
    code, out, _ = run(
        "fuse",
        pair[0],
        pair[0],
        "--noise",
        "0.1",
        "--seed",
        "5",
        "--max-shard",
        "4KB",
        "--out",
        tmp_path / "c",
        "--json",
    )
    facts = json.loads(out)
    assert (code, facts["exact"]) == (0, True)
    assert facts["deviation"]["largest"] < 1e-5
    found = tensors_of(tmp_path / "c")
    assert {t["name"]: tuple(t["shape"]) for t in facts["tensors"]} == {name: x.shape for name, x in found.items()}
    assert set(facts["shards"]) == {path.name for path in (tmp_path / "c").glob("*.safetensors")}
    card = (tmp_path / "c" / "README.md").read_text()
    for part in ("# Fusion of a, a", "seed 5", "exact", f"at most {facts['deviation']['largest']:.3g}"):
        assert part in card


def test_without_a_probe_nothing_is_measured(run, pair, tmp_path):
    code, out, _ = run("fuse", *pair, "--no-probe", "--out", tmp_path / "c")
    assert code == 0
    assert "was not measured" in out
    assert "not measured" in (tmp_path / "c" / "README.md").read_text()


def test_diff_measures_on_text_and_on_random_tokens(run, refused, tmp_path):
    tokenizer = train_tokenizer(sentences(seed=0, n=300), 300)
    a, b = (saved_t5(tmp_path / name, seed=i, vocab_size=tokenizer.vocab_size) for i, name in enumerate("ab"))
    refused(f"there is no file or folder {tmp_path / 'text.txt'}", "diff", a, b, "--text", tmp_path / "text.txt")
    (tmp_path / "text.txt").write_text("\n\n\n".join(documents(seed=1, n=10)))
    message = "tokenizer.json; give the folder of a checkpoint with its tokenizer"
    refused(message, "diff", a, b, "--text", tmp_path / "text.txt")
    tokenizer.save(a)
    code, out, _ = run("diff", a, b, "--text", tmp_path / "text.txt", "--rows", "4", "--json")
    facts = json.loads(out)
    assert (code, facts["text"]) == (0, True)
    assert facts["tokens"] % 4 == 0
    assert facts["logits_largest"] > facts["logits_mean"] > 0.01
    assert len(facts["different"]) + facts["equal"] == len(tensors_of(a))
    code, out, _ = run("diff", a, b)
    assert code == 0
    for part in ("random tokens", "nats", "Both prefer the same token", "Tensors:"):
        assert part in out


def test_diff_refuses_other_vocabularies(refused, pair, tmp_path):
    other = saved_t5(tmp_path / "c", vocab_size=21)
    refused("their kinds or vocabularies differ (20 and 21 pieces)", "diff", pair[0], other)


def test_info_describes_a_folder(run, refused, pair):
    code, out, _ = run("info", pair[0])
    assert code == 0
    for part in ("model_type", "t5", "parameters", "f32", "tied head", "d_model", "model.safetensors"):
        assert part in out
    facts = json.loads(run("info", pair[0], "--json")[1])
    assert facts["parameters"] == sum(tensor.size for tensor in tensors_of(pair[0]).values())
    refused("is no checkpoint: there is no such folder", "info", pair[0] / "absent")


@pytest.mark.parametrize("columns", ["40", "60", "80"])
def test_tables_of_checkpoints_cut_no_number(run, pair, tmp_path, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    recipe = run("fuse", *pair, "--out", tmp_path / "c", "--dry-run")[1]
    difference, facts = run("diff", *pair)[1], run("info", pair[0])[1]
    assert "…" not in recipe + difference + facts
    for whole in ("20×16 + 20×16", "20×32", "2.56 kB"):
        assert whole in recipe
    found = json.loads(run("diff", *pair, "--json")[1])
    assert f" {found['logits_largest']:.3g}" in difference
    assert f" {json.loads(run('info', pair[0], '--json')[1])['bytes']:,}" in facts


def test_grow_keeps_the_function_and_the_tokenizer(run, tmp_path):
    small = saved_t5(tmp_path / "small")
    (small / "tokenizer.json").write_text("{}")
    grow = ("grow", small, "--operator", "hypercloning", "--factor", 2)
    code, out, err = run(*grow, "--out", tmp_path / "wide")
    assert code == 0, err
    assert "d_model 16 → 32" in out
    assert "Deviation from the source's logits on 24 random tokens: at most " in out
    assert (tmp_path / "wide" / "tokenizer.json").read_text() == "{}"
    assert json.loads(run("diff", small, tmp_path / "wide", "--json")[1])["logits_largest"] < 1e-5
    facts = json.loads(run(*grow, "--noise", 0.1, "--out", tmp_path / "noisy", "--json")[1])
    assert facts["deviation"]["largest"] < 1e-4 < facts["deviation"]["spread"]
    assert facts["parameters"] == sum(tensor.size for tensor in tensors_of(tmp_path / "noisy").values())
    drawn = ("grow", small, "--operator", "random_block", "--factor", 2, "--out", tmp_path / "drawn")
    assert "d_model 16 → 32" in (out := run(*drawn)[1])
    assert "eviation" not in out
    assert "not measured (the operator changes the function)" in (tmp_path / "drawn" / "README.md").read_text()
    deep = ("grow", small, "--operator", "identity_layers", "--depth", "num_layers=3", "--out", tmp_path / "deep")
    assert "num_layers 1 → 3" in (out := run(*deep, "--no-probe")[1])
    assert "The deviation from the source was not measured." in out


def test_grow_prints_its_recipe_and_converts(run, tmp_path):
    grow = (
        "grow",
        saved_t5(tmp_path / "small"),
        "--operator",
        "random_block",
        "--factor",
        2,
        "--out",
        tmp_path / "wide",
    )
    code, out, err = run(*grow, "--dry-run")
    assert code == 0, err
    assert "block-diagonal, with draws" in out
    assert "The function is not kept: the operator changes it." in out
    assert not (tmp_path / "wide").exists()
    facts = json.loads(run(*grow, "--dtype", "bf16", "--max-shard", "4KB", "--json")[1])
    assert facts["dtypes"] == {"BF16": len(facts["tensors"])}
    assert len(facts["shards"]) == len(list((tmp_path / "wide").glob("*.safetensors"))) > 1


def test_fields_may_be_allowed_to_differ(run, refused, tmp_path):
    a, b = saved_t5(tmp_path / "a"), saved_t5(tmp_path / "b", seed=1, dropout_rate=0.25)
    fuse = ("fuse", a, b, "--out", tmp_path / "c", "--dry-run", "--json")
    refused("dropout_rate is 0.0 and 0.25; it must agree, or be allowed to differ by name", *fuse)
    code, out, err = run(*fuse, "--allow-different", "dropout")
    assert code == 0, err
    assert "dropout_rate is 0.0, kept from a (0.25 in b)." in err
    assert json.loads(out)["kept"] == {"dropout_rate": [0.0, 0.25]}


def test_grow_lists_the_operators(run):
    code, out, _ = run("grow", "--list")
    assert code == 0
    listed = json.loads(run("grow", "--list", "--json")[1])
    assert list(listed) == list(GROWTH_OPERATORS)
    assert all(name in out for name in GROWTH_OPERATORS)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_decoders_grow_too(run, kind, tmp_path):
    small = saved_decoder(tmp_path / "small", kind, 0, 0)
    for operator in ("hypercloning", "identity_layers"):
        code, _, err = run(
            "grow", small, "--operator", operator, "--factor", 2, "--out", tmp_path / operator, "--no-probe"
        )
        assert code == 0, err
        assert json.loads(run("diff", small, tmp_path / operator, "--json")[1])["logits_largest"] < 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--operator", "widen", "--factor", 2], "'widen'"),
        (["--operator", "hypercloning"], "give exactly one of factor"),
        (["--operator", "identity_layers", "--depth", "many"], "--depth is 'many'; give whole numbers"),
        (["--operator", "net2net_width", "--width", "8", "--width", "d_ff=9"], "--width is '8 d_ff=9'; give whole"),
        (["--factor", 2], "--operator is missing"),
    ],
)
def test_a_growth_that_is_none_is_refused_and_writes_nothing(refused, pair, tmp_path, options, message):
    refused(message, "grow", pair[0], "--out", tmp_path / "c", *options)
    refused("exists and is not an empty folder", "grow", pair[0], "--out", pair[1], "--operator", "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--norm", "grouped"], "grouped norms cannot be written: Hugging Face's format has one norm"),
        (["--norm", "odd"], "the norm mode is 'odd'; it can be plain or calibrated"),
        (["--norm", "calibrated"], "--norm calibrated is fitted to text: give --calibration-text FILE"),
        (["--norm", "calibrated", "--calibration-text", "absent.txt"], "absent.txt"),
        (["--calibration-text", __file__.replace(".py", ".md")], "test_checkpoints.md"),
        (["--max-shard", "big"], "--max-shard is 'big'; give a size such as 5GB"),
        (["--dtype", "int4"], "the dtype is 'int4'"),
        (["--noise", "0.1"], "noise keeps the function only where the sources are one network"),
    ],
)
def test_a_bad_option_is_one_line_and_writes_nothing(refused, pair, tmp_path, options, message):
    err = refused(message, "fuse", *pair, "--out", tmp_path / "c", *options)
    assert len(err.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("1.5 MB", 1_500_000), ("1GiB", 2**30), ("700", 700), ("2k", 2000)]
)
def test_sizes_are_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "5TBB", "1I"])
def test_sizes_that_are_none_are_refused(text):
    with pytest.raises(InputError, match="--max-shard is"):
        parse_size(text)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_decoders_are_fused_compared_on_text_and_described(run, kind, tmp_path):
    text = " ".join(sentences(0, 60))
    tokenizer = train_tokenizer([text], 300)
    a, b = (saved_decoder(tmp_path / "ab"[i], kind, i, i, vocab_size=tokenizer.vocab_size) for i in range(2))
    tokenizer.save(a)
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    options = ["--norm", "calibrated", "--calibration-text", tmp_path / "text.txt"]
    code, out, err = run("fuse", a, b, "--out", tmp_path / "c", "--json", *options)
    assert code == 0, err
    facts = json.loads(out)
    assert facts["norm"] == "calibrated"
    assert facts["deviation"]["largest"] > 0.01
    code, out, err = run("diff", a, tmp_path / "c", "--text", tmp_path / "text.txt", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["text"]
    assert len(found["reshaped"]) == len(facts["tensors"])
    assert "cannot be fused yet" not in run("info", tmp_path / "c")[1]
    assert json.loads(run("info", tmp_path / "c", "--json")[1])["supported"]


# What the real command would refuse, found earlier


def not_finite(tmp_path):
    tensors = tensors_of(saved_t5(tmp_path / "a"))
    name = sorted(tensors)[-1]
    tensors[name].flat[-1] = np.nan
    replace_tensors(tmp_path / "a", tensors)
    return "has entries that are not finite"


def too_large_for_f16(tmp_path):
    tensors = tensors_of(saved_t5(tmp_path / "a"))
    tensors["shared.weight"].flat[-1] = 1e6
    replace_tensors(tmp_path / "a", tensors)
    return "which F16 cannot hold"


def without_a_form_in_files(tmp_path):
    saved_decoder(tmp_path / "a", "llama", hidden_size=9, num_attention_heads=2, num_key_value_heads=1)
    return "cannot be exported"


def a_folder_that_is_there(tmp_path):
    saved_t5(tmp_path / "a")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "file").touch()
    return "exists and is not an empty folder"


@pytest.mark.parametrize("spoil", [not_finite, too_large_for_f16, without_a_form_in_files, a_folder_that_is_there])
@pytest.mark.parametrize("command", ["fuse", "grow"])
def test_a_dry_run_refuses_what_the_command_would(run, tmp_path, monkeypatch, spoil, command):
    if spoil is without_a_form_in_files:
        monkeypatch.setattr("fusion_core.models.decoder.files.check_heads_divide", lambda config: None)
        message = spoil(tmp_path)
        monkeypatch.undo()
    else:
        message = spoil(tmp_path)
    folder = tmp_path / "a"
    own = {"fuse": [folder, folder], "grow": [folder, "--operator", "hypercloning", "--factor", 2]}[command]
    arguments = [command, *own, "--out", tmp_path / "c", "--dtype", "f16"]
    before = sorted(tmp_path.rglob("*"))
    dry = run(*arguments, "--dry-run")
    assert sorted(tmp_path.rglob("*")) == before
    real = run(*arguments)
    assert (dry[0], real[0]) == (2, 2)
    last = lambda found: found[2].splitlines()[-1]
    assert message in last(dry)
    assert last(dry) == last(real)


def test_info_says_that_a_tokenizer_does_not_fit(run, tmp_path):
    tokenizer = train_tokenizer(sentences(seed=0, n=300), 300)
    folder = saved_t5(tmp_path / "a", vocab_size=tokenizer.vocab_size - 1)
    tokenizer.save(folder)
    code, out, _ = run("info", folder, "--json")
    facts = json.loads(out)["tokenizer"]
    assert (code, facts["pieces"]) == (0, tokenizer.vocab_size)
    assert f"the tokenizer has {tokenizer.vocab_size} pieces, but the network has" in facts["unfit"]
    assert "tokenizer does not fit" in run("info", folder)[1]
    fitting = saved_t5(tmp_path / "b", vocab_size=tokenizer.vocab_size)
    tokenizer.save(fitting)
    assert json.loads(run("info", fitting, "--json")[1])["tokenizer"]["unfit"] is None
