import dataclasses
import json
import pathlib
import re

import matplotlib
import pytest

import paper_figures
from fusion_core.errors import InputError
from paper_figures.__main__ import main
from paper_figures.cache import COMPUTED
from paper_figures.gallery import verdict
from paper_figures.results import Results


def test_build_writes_images_results_and_a_gallery(tiny_figure, tmp_path):
    out = tmp_path / "out"
    files = paper_figures.build(["tiny"], "smoke", out)
    assert files == [out / "tiny.png", out / "tiny.pdf", out / "tiny.svg", out / "index.html"]
    assert files[0].read_bytes()[:4] == b"\x89PNG"
    assert files[1].read_bytes()[:4] == b"%PDF"
    assert b"<svg" in files[2].read_bytes()
    (results,) = (out / "results").iterdir()
    assert re.fullmatch(r"tiny-smoke-seed0-[0-9a-f]{16}\.json", results.name)


def test_the_gallery_is_self_contained_and_escapes_the_caption(tiny_figure, tmp_path):
    text = paper_figures.build(["tiny"], "smoke", tmp_path / "out")[-1].read_text(encoding="utf-8")
    assert "A tiny &lt;figure&gt;." in text
    assert "One should see a line." in text
    assert "It is a line." in text
    assert "data:image/png;base64," in text
    assert not re.search(r"""(src|href)=["']?(https?:|//|[\w/]+\.(png|css|js))""", text)


def test_numbers_are_computed_once(tiny_figure, tmp_path):
    first = paper_figures.build(["tiny", "tiny"], "smoke", tmp_path / "out")[0].read_bytes()
    assert paper_figures.build(["tiny"], "smoke", tmp_path / "out")[0].read_bytes() == first
    assert tiny_figure.computed == ["smoke"]


@pytest.mark.parametrize("what", ["force", "preset", "seed", "source"])
def test_numbers_are_computed_again_when_they_may_differ(tiny_figure, tmp_path, what):
    paper_figures.build(["tiny"], "smoke", tmp_path / "out")
    if what == "seed":
        tiny_figure.SEED = 1
    if what == "source":
        pathlib.Path(tiny_figure.__file__).write_text("# version 2\n")
    paper_figures.build(["tiny"], "full" if what == "preset" else "smoke", tmp_path / "out", what == "force")
    assert len(tiny_figure.computed) == 2


def test_a_damaged_cache_is_an_error_and_force_mends_it(tiny_figure, tmp_path):
    paper_figures.build(["tiny"], "smoke", tmp_path / "out")
    (results,) = (tmp_path / "out" / "results").iterdir()
    results.write_text("{")
    with pytest.raises(paper_figures.ResultsError, match=r"is not JSON.*--force"):
        paper_figures.build(["tiny"], "smoke", tmp_path / "out")
    paper_figures.build(["tiny"], "smoke", tmp_path / "out", force=True)


def test_results_of_another_run_under_the_same_name_are_refused(tiny_figure, tmp_path):
    paper_figures.build(["tiny"], "smoke", tmp_path / "out")
    (results,) = (tmp_path / "out" / "results").iterdir()
    results.write_text(json.dumps(json.loads(results.read_text()) | {"seed": 7}))
    with pytest.raises(paper_figures.ResultsError, match=r"\('tiny', 'smoke', 7\), not \('tiny', 'smoke', 0\)"):
        paper_figures.build(["tiny"], "smoke", tmp_path / "out")


def test_drawing_leaves_the_users_style_alone(tiny_figure, tmp_path):
    with matplotlib.rc_context({"font.size": 31.0}):
        paper_figures.build(["tiny"], "smoke", tmp_path / "out")
        assert matplotlib.rcParams["font.size"] == 31.0


@pytest.mark.parametrize(
    ("names", "preset", "message"),
    [
        (["nope"], "smoke", "there is no figure 'nope'; there are: order_of_accuracy"),
        ([], "smoke", "no figure is named"),
        (["tiny"], "huge", "there is no preset 'huge'; there are: smoke, full"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tiny_figure, tmp_path, names, preset, message):
    with pytest.raises(InputError, match=message):
        paper_figures.build(names, preset, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_in_place_of_the_folder_is_refused(tiny_figure, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="is a file; pass a folder"):
        paper_figures.build(["tiny"], "smoke", tmp_path / "out")


def test_the_command_lists_the_figures(tiny_figure, capsys):
    assert main([]) == 0
    assert "tiny  A tiny <figure>." in capsys.readouterr().out
    assert main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["figures"]["tiny"] == "A tiny <figure>."


def test_the_command_draws_and_prints_the_files(tiny_figure, tmp_path, capsys):
    assert main(["tiny", "--preset", "smoke", "--out", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"][-1] == str(tmp_path / "out" / "index.html")


def test_the_command_says_bad_input_in_one_line_with_code_2(tmp_path, capsys):
    assert main(["nope", "--out", str(tmp_path / "out")]) == 2
    assert re.fullmatch("error: there is no figure 'nope'.*\n", capsys.readouterr().err)
    with pytest.raises(SystemExit) as stop:
        main(["--all", "nope"])
    assert stop.value.code == 2


@pytest.mark.parametrize("name", ["order_of_accuracy", "separation", "growth_operators", "finetune"])
def test_a_figure_of_committed_numbers_is_drawn_alike_byte_for_byte_and_says_how_to_compute_it_anew(name, tmp_path):
    once, again = (paper_figures.build([name], "full", tmp_path / folder) for folder in "ab")
    for one, two in zip(once, again, strict=True):
        if one.name != "index.html" or name in (
            "order_of_accuracy",
            "separation",
        ):  # the time of reading records is in it
            assert one.read_bytes() == two.read_bytes(), one.name
    text = once[-1].read_text(encoding="utf-8")
    assert "Not recomputed: " in text
    assert "anew" in text
    assert re.search("<b>(Seen|Measured|Not all of it is as one should see):</b>", text)
    assert list((tmp_path / "a" / "results").glob("*")) == [] or name in ("growth_operators", "finetune")


@pytest.mark.parametrize("path", sorted(COMPUTED.glob("*.json")), ids=lambda path: path.stem)
def test_committed_numbers_are_of_the_settings_that_the_code_has(path):
    results, module = Results.load(path), paper_figures.FIGURES[path.stem]
    assert (results.figure, results.preset, results.seed) == (path.stem, "full", module.SEED)
    assert results.config == json.loads(json.dumps(dataclasses.asdict(module.PRESETS["full"])))
    assert results.commit
    assert "dirty" not in results.commit
    assert module.finding(results)


@pytest.mark.parametrize(
    ("finding", "said"),
    [
        ("Slopes (as predicted, to 0.15): 2.", "Seen"),
        ("Slopes (NOT as predicted): 2.", "Not all of it is as one should see"),
        ("It ends at 2.4.", "Measured"),
    ],
)
def test_only_what_the_numbers_judge_is_said_to_be_seen(finding, said):
    assert verdict(finding) == said


def test_what_is_computed_now_says_so_and_what_is_not_as_expected_too(tiny_figure, tmp_path):
    tiny_figure.finding = lambda results: "It is NOT a line."
    text = paper_figures.build(["tiny"], "smoke", tmp_path / "out")[-1].read_text(encoding="utf-8")
    assert "Computed by this code, in " in text
    assert "<b>Not all of it is as one should see:</b> It is NOT a line." in text
    assert "Not drawn here" not in text


def test_a_slow_figure_without_committed_numbers_is_left_out_and_named(tiny_figure, monkeypatch, tmp_path):
    monkeypatch.setattr("paper_figures.cache.COMPUTED", tmp_path)
    assert "tiny" in paper_figures.drawable("full")
    tiny_figure.SLOW = "an hour"
    assert "tiny" not in paper_figures.drawable("full")
    assert "tiny" in paper_figures.drawable("smoke")
    text = paper_figures.build(["finetune"], "full", tmp_path / "out")[-1].read_text(encoding="utf-8")
    assert "<b>tiny</b>: its numbers take an hour; deepfusion figures tiny computes them" in text
    read, how, *left = paper_figures.not_computed(["finetune"], "full")
    assert read == "not recomputed, but drawn from committed numbers: finetune"
    assert "index.html" in how
    assert "not drawn: tiny: its numbers take an hour; deepfusion figures tiny computes them" in left
    assert paper_figures.not_computed(["finetune"], "smoke") == []
    results = tiny_figure.compute("full")
    results.save(tmp_path / "tiny.json")
    assert "tiny" in paper_figures.drawable("full")
    tiny_figure.computed.clear()
    paper_figures.build(["tiny"], "full", tmp_path / "out")
    assert tiny_figure.computed == []
    paper_figures.build(["tiny"], "full", tmp_path / "out", force=True)
    assert tiny_figure.computed == ["full"]


def test_the_command_lists_one_name_a_line_and_the_titles_as_json(tiny_figure, capsys):
    from deepfusion.commands.figures import figures

    figures(list_figures=True)
    assert capsys.readouterr().out.split("\n") == [*paper_figures.FIGURES, ""]
    figures(list_figures=True, as_json=True)
    assert json.loads(capsys.readouterr().out)["tiny"] == "A tiny <figure>."


@pytest.mark.parametrize("name", sorted(paper_figures.FIGURES))
def test_every_figure_has_what_a_figure_has(name):
    module = paper_figures.FIGURES[name]
    assert module.__doc__.split("\n")[0].endswith(".")
    assert "one should see" in module.__doc__
    assert isinstance(module.SEED, int)
    assert module.DEPENDS
    assert callable(module.compute)
    assert callable(module.draw)
    assert callable(module.finding)


def test_all_figures_are_those_whose_experiments_have_records(tiny_figure, monkeypatch, tmp_path):
    monkeypatch.setattr("paper_figures.experiments.record.HERE", tmp_path)
    assert "t5_medium" in paper_figures.drawable("smoke")
    assert {"t5_medium", "tiny"} & set(paper_figures.drawable("full")) == {"tiny"}
    (tmp_path / "t5_medium.json").write_text("{}")
    assert "t5_medium" in paper_figures.drawable("full")
