"""What a user of `just score` can get wrong is one line that names the next step, and an exit code."""

import signal
import subprocess
import sys
import zipfile

import cv2
import numpy as np
import pytest

from tests import score_toy, toy_model
from tests.collection import ROOT
from workflows import beam_job, score_archive, score_run


@pytest.fixture
def model(tmp_path):
    return toy_model.folder(tmp_path / "toy")


@pytest.fixture
def archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as file:
        for number in range(3):
            pixels = np.full((16, 16, 3), 80 * number, np.uint8)
            file.writestr(f"{number}.png", cv2.imencode(".png", pixels)[1].tobytes())
    return tmp_path / "in.zip"


@pytest.fixture
def without_beam(monkeypatch):
    """The work is done in this process."""
    monkeypatch.setattr(beam_job, "run", score_toy.run_here)


def run(capsys, *arguments, code=0):
    """The lines on stderr of a command that ends with this code."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            score_archive.main([str(argument) for argument in arguments])
    finally:
        signal.signal(signal.SIGTERM, before)
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == code, lines
    return lines


def refused(capsys, *arguments):
    """The one line of a command that ends as a usage error."""
    (line,) = [line for line in run(capsys, *arguments, code=2) if not line.startswith("listing ")]
    return line


@pytest.mark.parametrize("option", [(), ("--runner=FlinkRunner",)])
def test_without_beam_the_extra_is_named(archive, model, tmp_path, capsys, monkeypatch, option):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "workflows.beam_engine", raising=False)
    line = refused(capsys, archive, "--model", model, "--out", tmp_path / "out", *option)
    assert line == "error: just score needs the extra score: uv pip install 'facemill[score]'"


def test_a_model_that_is_not_there(archive, tmp_path, capsys):
    line = refused(capsys, archive, "--model", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert line == f"error: {tmp_path}/nowhere has no model.json: name the folder that training wrote"


def test_a_model_without_its_network(archive, model, tmp_path, capsys):
    (model / "model.onnx").unlink()
    line = refused(capsys, archive, "--model", model, "--out", tmp_path / "out")
    assert line == f"error: {model} has no model.onnx: name the folder that training wrote"


def test_a_model_whose_classes_are_not_those_of_its_label_set(archive, tmp_path, capsys):
    model = toy_model.folder(tmp_path / "other", label_set="fer2013")
    line = refused(capsys, archive, "--model", model, "--out", tmp_path / "out")
    assert line == (
        f"error: {model}: model.json says fer2013, which has anger, disgust, fear, happiness, sadness, surprise, "
        "neutral, but its classes are anger, fear, neutral"
    )


def test_without_a_model_that_ships_one_has_to_be_named(archive, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(score_run, "SHIPPED_MODEL", tmp_path / "none")
    line = refused(capsys, archive, "--out", tmp_path / "out")
    assert line == "error: name a model folder with --model: there is none at models/ of this installation"


def test_a_glob_that_matches_nothing(model, tmp_path, capsys):
    line = refused(capsys, tmp_path / "*.tar", "--faces", "given", "--model", model, "--out", tmp_path / "out")
    assert line == f"error: nothing matches {tmp_path}/*.tar"


def test_an_archive_that_is_not_there(model, tmp_path, capsys):
    line = refused(capsys, tmp_path / "no.tar", "--faces", "given", "--model", model, "--out", tmp_path / "out")
    assert line == f"error: {tmp_path}/no.tar does not exist"


def test_out_inside_the_source(model, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    line = refused(capsys, tmp_path / "photos", "--model", model, "--out", tmp_path / "photos" / "out")
    assert line == (f"error: OUT {tmp_path}/photos/out lies inside SOURCE {tmp_path}/photos: choose an --out beside it")


def test_out_that_holds_something_else_or_the_run_of_another_model(archive, model, tmp_path, capsys, without_beam):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    line = refused(capsys, archive, "--faces", "given", "--model", model, "--out", out)
    assert line == f"error: {out} is not empty and holds no run of facemill: choose another --out"
    (out / "thesis.tex").unlink()

    run(capsys, archive, "--faces", "given", "--model", model, "--out", out)
    other = toy_model.folder(tmp_path / "other", fingerprint="another")
    line = refused(capsys, archive, "--faces", "given", "--model", other, "--out", out)
    assert line == (
        f"error: {out} holds a run with other parameters (model: was '', now 'another'): "
        "choose another --out, or start anew with --overwrite"
    )
    assert len(score_toy.predictions(out)) == 3
    run(capsys, archive, "--faces", "given", "--model", other, "--out", out, "--overwrite")
    assert {row["model"] for row in score_toy.predictions(out)} == {"another"}


def test_more_failures_than_the_user_bears_is_exit_code_3(model, tmp_path, capsys, without_beam):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "page.jpg").write_text("<html>404</html>")
    arguments = (tmp_path / "in", "--faces", "given", "--model", model, "--out", tmp_path / "out")
    run(capsys, *arguments, "--max-failed", 1)
    run(capsys, *arguments, "--max-failed", 0, code=3)


def test_options_that_beam_lacks_and_runners_that_lose_data_are_refused(archive, model, tmp_path):
    """In a process of its own: importing Beam takes seconds, and warns."""
    code = """
import sys
from workflows import score_archive
for option in ("--runer=FlinkRunner", "--direct_num_worker=2", "--runner=DaskRunner"):
    try:
        score_archive.main([*sys.argv[1:], option])
    except SystemExit as ended:
        print(ended.code, file=sys.stderr)
"""
    arguments = [str(archive), "--model", str(model), "--out", str(tmp_path / "out")]
    told = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    lines = told.stderr.splitlines()
    assert lines[0].startswith("error: unknown option --runer: did you mean --runner")
    assert lines[2].startswith("error: unknown option --direct_num_worker: did you mean --direct_num_workers")
    assert lines[4].startswith("error: Beam's DaskRunner loses data while it reports success")
    assert (lines[1::2], len(lines)) == (["2", "2", "2"], 6)
    assert not (tmp_path / "out").exists()
