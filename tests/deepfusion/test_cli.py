import gzip
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

import fusion_core as fc
from deepfusion import cli
from tests.strategies.networks import random_t5, tiny
from tests.strategies.texts import documents

SMALL = {"vocab_size": 20, "num_layers": 1, "num_decoder_layers": 1}


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_the_help_of_every_command_teaches_by_example(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert "Usage:" in out
    assert [line for line in out.splitlines() if line.strip().startswith(f"deepfusion {command}")]


def test_the_help_names_every_command_and_where_to_start(run, monkeypatch):
    code, out, _ = run("--help")
    assert code == 0
    assert "deepfusion demo" in out
    assert run()[1] == out
    listed = out.split("Commands:")[1].splitlines()[1:]
    assert [line.split()[0] for line in listed] == list(cli.COMMANDS)
    assert all(len(line) <= 80 and line.endswith(".") and not line.endswith("...") for line in listed)


def test_an_unknown_command_and_a_wrong_flag_exit_with_2(refused):
    refused("No such command 'shrink'; see deepfusion --help", "shrink")
    refused("No such option: --bogus", "fuse", "--bogus")


SLOW = ("jax", "numpy", "scipy", "sympy", "diffrax", "matplotlib", "rich")


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        ((), ()),
        (("--help",), ()),
        (("fuse", "--bogus"), ()),
        (("derive", "--order", "0", "--momentum", "b"), ()),
        *(((command, "--help"), ()) for command in cli.COMMANDS),
        (("derive", "--loss", "x**2"), ("sympy", "numpy")),  # sympy imports numpy
    ],
    ids=" ".join,
)
def test_nothing_slow_is_imported_before_it_is_needed(arguments, allowed):
    program = (
        "import sys; from deepfusion import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        f"print('loaded:', *(name for name in {SLOW!r} if name in sys.modules))"
    )
    words = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    assert set(done.stdout.splitlines()[-1].split()[1:]) <= set(allowed)


@pytest.mark.parametrize(
    "arguments",
    [
        ("demo",),
        ("diff", "a", "b"),
        ("figures", "--all"),
        ("finetune", "a", "--task", "sst2", "--train", "a", "--validation", "b", "--out", "c"),
        ("fuse", "a", "b", "--out", "c"),
        ("generate", "a", "text"),
        ("grow", "--list"),
        ("info",),
        ("plan", "a.toml"),
        ("train", "a.toml", "--out", "b"),
    ],
    ids=lambda words: words[0],
)
def test_a_command_says_that_it_loads_jax_before_it_does(arguments, tmp_path):
    program = """
import sys
class NoJax:
    def find_spec(self, name, *more):
        if name == "jax":
            raise ImportError("blocked", name=name)
sys.meta_path.insert(0, NoJax())
from deepfusion import cli
try:
    cli.main()
except ImportError as error:
    sys.exit(0 if error.name == "jax" else 1)
"""
    words = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("loading JAX")
    assert not list(tmp_path.iterdir())


def test_info_prints_versions_devices_and_paths(run):
    code, out, _ = run("info")
    assert code == 0
    for word in ("jax", jax.__version__, "cpu", "fusion_core", "commit"):
        assert word in out


def test_info_prints_one_json_object(run):
    code, out, err = run("info", "--json")
    facts = json.loads(out)
    assert code == 0
    assert not err
    assert facts["versions"]["jax"] == jax.__version__
    assert len(facts["devices"]) == len(jax.local_devices())
    assert set(facts["paths"]) == {"bea", "fusion_core", "runs"}


def test_an_unknown_figure_is_refused(refused):
    refused("no_such_figure", "figures", "no_such_figure")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["demo", "--text", "a", "b", "--seed", "1"], ["demo", "--text", "a", "--text", "b", "--seed", "1"]),
        (["--text", "a", "--text", "b", "c"], ["--text", "a", "--text", "b", "--text", "c"]),
        (["fuse", "a", "b", "--out", "c"], ["fuse", "a", "b", "--out", "c"]),
        (["--seed", "1", "--text", "a"], ["--seed", "1", "--text", "a"]),
    ],
)
def test_an_option_may_have_several_values(given, wanted):
    assert cli.repeat_option(given, "--text") == wanted


# fuse


def save(folder, name, config, seed=0, tokenizer=None):
    fc.save_pretrained(folder / name, random_t5(config, seed), config)
    if tokenizer is not None:
        (folder / name / "tokenizer.json").write_text(tokenizer)
    return folder / name


def test_fuse_writes_the_fused_checkpoint_and_its_tokenizer(run, tmp_path):
    config = tiny("v1.1", **SMALL)
    a, b = (save(tmp_path, name, config, seed, "{}") for seed, name in enumerate("ab"))
    code, out, _ = run("fuse", a, b, "--out", tmp_path / "c")
    assert code == 0
    assert "d_model 16 + 16 → 32" in out
    assert "num_heads 2 + 2 → 4" in out
    read, read_config = fc.load_pretrained(tmp_path / "c")
    wanted, wanted_config = fc.fuse([fc.load_pretrained(a), fc.load_pretrained(b)])
    assert read_config == wanted_config
    jax.tree.map(np.testing.assert_array_equal, read, wanted)
    assert (tmp_path / "c" / "tokenizer.json").read_text() == "{}"


def test_fuse_takes_weights_and_prints_json(run, tmp_path):
    config = tiny("v1.1", **SMALL)
    a, b = (save(tmp_path, name, config, seed) for seed, name in enumerate("ab"))
    code, out, _ = run("fuse", a, b, "--weights", "0.25,0.75", "--out", tmp_path / "deep" / "c", "--json")
    assert code == 0
    facts = json.loads(out)
    read, _ = fc.load_pretrained(facts["out"])
    assert facts["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(read))
    assert facts["config"]["d_model"] == 32
    b_head = fc.load_pretrained(b)[0]["lm_head"]["weight"]
    np.testing.assert_array_equal(read["lm_head"]["weight"][:, 16:], 0.75 * b_head)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 2}, "cannot fuse depth 1 with depth 2 (num_layers of networks 1 and 2)"),
        ({"vocab_size": 21}, "vocab_size is 20 and 21; it must agree"),
    ],
)
def test_checkpoints_that_do_not_fit_are_not_fused(refused, tmp_path, changes, message):
    a = save(tmp_path, "a", tiny("v1.0", **SMALL))
    b = save(tmp_path, "b", tiny("v1.0", **{**SMALL, **changes}))
    refused(message, "fuse", a, b, "--out", tmp_path / "c")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_fuse_refuses_what_is_no_checkpoint_too_few_and_weights_that_are_none(refused, tmp_path):
    a = save(tmp_path, "a", tiny("v1.0", **SMALL))
    out = ("--out", tmp_path / "c")
    refused("is no checkpoint: there is no such folder", "fuse", a, tmp_path / "absent", *out)
    refused("at least two networks, but got 1", "fuse", a, *out)
    refused("--weights is 'half'; give numbers with commas", "fuse", a, a, "--weights", "half", *out)
    refused("must be positive and sum to 1", "fuse", a, a, "--weights", "nan,1", *out)
    refused("2 networks; give one each", "fuse", a, a, "--weights", "1", *out)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_fuse_does_not_write_over_a_folder(refused, tmp_path):
    a = save(tmp_path, "a", tiny("v1.0", **SMALL))
    before = {p.name: p.read_bytes() for p in a.iterdir()}
    refused("exists and is not an empty folder", "fuse", a, a, "--out", a)
    assert {p.name: p.read_bytes() for p in a.iterdir()} == before


# demo: everything here is refused before anything is compiled


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_bytes(GOOD)
    return tmp_path / "text.txt"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "run"


def smoke(out, *more):
    return ["demo", "--preset", "smoke", "--out", out, *more]


SHORT = "\n\n\n".join(documents(seed=0, n=1)).encode()
GOOD = "\n\n\n".join(documents(seed=0, n=40)).encode()
# case -> content of the text, options, message
BAD_TEXTS = {
    "empty": (b"", (), "no text in"),
    "white space": (b" \n\n\n \n", (), "no text in"),
    "latin-1": ("grün ".encode("latin-1") * 900, (), "is not UTF-8: byte 0xfc at offset 2"),
    "damaged gzip": (gzip.compress(b"text " * 999)[:-9], (), "cannot be read"),
    "too short for its vocabulary": (b"a few words only", (), "pieces, but a vocabulary of 512 was asked for"),
    "too short for a vocabulary": (GOOD, ("--vocab", 30000), "but a vocabulary of 30000 was asked for"),
    "too short for a batch": (SHORT, ("--vocab", 300, "--batch", 32), "windows of 64 source tokens, but a batch needs 32"),
    "too short for validation": (
        "\n\n\n".join(documents(seed=0, n=1, length=30)).encode(), ("--vocab", 300), "the validation text has"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TEXTS)
@pytest.mark.parametrize("existing", [False, True], ids=["new folder", "empty folder"])
def test_text_that_is_no_use_is_refused_and_leaves_nothing(refused, out, tmp_path, case, existing):
    content, options, message = BAD_TEXTS[case]
    file = tmp_path / ("bad.txt.gz" if content[:2] == b"\x1f\x8b" else "bad.txt")
    file.write_bytes(content)
    if existing:
        out.mkdir()
    err = refused(message, *smoke(out, *options, "--text", file))
    assert not any(out.iterdir()) if existing else not out.exists()
    if "--batch" in options:
        assert "the training text has" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--text", "absent"), "there is no file or folder absent; check the path given to --text"),
        (("--vocab", 0), "--vocab is 0; it must be at least 260"),
        (("--vocab", 100), "--vocab is 100; it must be at least 260"),
        (("--batch", -8), "--batch is -8; it must be at least 1"),
        (("--budget", 99), "--budget is 99; it must be at least 100"),
        (("--seed", -1), "--seed is -1; it must be a whole number from 0 on"),
        (("--preset", "huge"), "there is no preset 'huge'; there are default, smoke"),
        (("--minutes", 0), "--minutes is 0.0; it must be positive"),
    ],
)
def test_settings_that_make_no_run_are_refused(refused, out, text, options, message):
    refused(message, *smoke(out, "--text", text, *options))
    assert not out.exists()


def test_a_batch_that_the_devices_cannot_share_is_refused(refused, out, text, monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: [None] * 4)
    refused("a batch of 6 cannot be shared evenly by 4 devices", *smoke(out, "--batch", "6", "--text", text))
    assert not out.exists()


def test_a_folder_with_something_in_it_is_not_written_into(refused, out, text):
    out.mkdir()
    (out / "mine").write_text("precious")
    refused("exists and is not an empty folder; choose another, or use --resume", *smoke(out, "--text", text))
    assert [p.name for p in out.iterdir()] == ["mine"]


def test_a_folder_without_a_run_cannot_be_resumed(refused, out):
    refused("holds no demo run (no settings.json)", "demo", "--resume", out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not JSON"), ("[]", "holds no JSON object"), ('{"colour": 1}', "cannot be read")],
)
def test_damaged_settings_cannot_be_resumed(refused, out, content, message):
    out.mkdir()
    (out / "settings.json").write_text(content)
    refused(f"settings.json {message}", "demo", "--resume", out)


@pytest.mark.parametrize(
    "option", [("--seed", "0"), ("--vocab", "300"), ("--preset", "smoke"), ("--text", "x"), ("--out", "y")]
)
def test_a_resumed_run_keeps_its_settings(refused, out, option):
    refused(f"{option[0]} cannot be changed by a resumed run", "demo", "--resume", out, *option)
