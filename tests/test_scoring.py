"""Scoring without an engine: every image ends in one place, every name follows from the input, a death is noted."""

import json

import numpy as np
import pyarrow as pa
import pytest

from dataset_tools import parquet, storage
from dataset_tools.detection import Face
from dataset_tools.encoding import encode
from dataset_tools.faces import Recipe
from dataset_tools.limits import Limits
from dataset_tools.listing import read_refs
from dataset_tools.sources import ImageRef, list_images
from infer import score_journal, score_page, score_parts, scoring
from infer.predictor import load_predictor
from infer.score_counts import ScoreCounts
from infer.score_journal import Journal
from infer.score_parts import SegmentWriter
from infer.scoring import FaceSource, Segment, crop_recipe, read_pieces, score_piece
from schemas.manifest import Manifest
from tests import toy_model
from tests.test_sources import make_tar
from workflows import beam_options, cli, score_archive
from workflows.beam_job import Where

POINTS = ((40.0, 50.0), (60.0, 50.0), (50.0, 60.0), (43.0, 70.0), (57.0, 70.0))


def detector(pixels):
    """As many faces as the green of the first pixel says."""
    if pixels[0, 0, 1] == 255:
        raise RuntimeError("no such layer")
    return [Face((20.0 + n, 20.0, 80.0 + n, 80.0), POINTS, 0.9) for n in range(pixels[0, 0, 1])]


def picture(red, faces=0, side=100):
    return encode(np.full((side, side, 3), (red, faces, 0), np.uint8), "png")


@pytest.fixture
def predictor(tmp_path):
    return load_predictor(str(toy_model.folder(tmp_path / "model", threshold=0.9)), threads=1)


def source(predictor, detect=True):
    return FaceSource(Recipe(), predictor.spec, detect)


def score(out, refs, face_source, predictor, segment_images=2048, unit=0, **more):
    """A plain loop: a whole run is no more than this."""
    total = ScoreCounts()
    writer = None
    for piece in read_pieces(unit, refs, face_source, detector, segment_images, **more):
        writer = writer or SegmentWriter(out, piece.segment, predictor)
        if (counts := writer.add(score_piece(piece, predictor))) is not None:
            total.add(counts)
            writer = None
    assert writer is None
    return total


def rows(out, folder):
    parts = parquet.parts(storage.join(out, folder))
    return pa.concat_tables([parquet.read_part(part) for part in parts]).to_pylist()


def tar(tmp_path, members):
    return list_images(make_tar(tmp_path / "x.tar", members), Limits()).refs()


def test_every_image_ends_in_one_place_and_the_sums_add_up(tmp_path, predictor):
    members = [
        ("two.png", picture(255, 2)),
        ("none.png", picture(255)),
        ("page.png", b"<html>"),
        ("crash.png", picture(0, 255)),
        ("one.png", picture(0, 1)),
    ]
    refs = tar(tmp_path, members)
    out = str(tmp_path / "out")
    counts = score(out, refs, source(predictor), predictor)
    assert (counts.images, counts.scored, counts.no_face, counts.failed) == (5, 2, 1, 2)
    assert (counts.faces, counts.faces_failed, counts.not_sure) == (3, 0, 1)
    assert counts.reasons == {"not_an_image": 1, "detector_crash": 1}
    assert counts.expressions == {"anger": 2, "fear": 1}
    url = refs[0].container
    assert [(row["key"], row["face_index"], row["expression"]) for row in rows(out, "predictions")] == [
        (f"{url}#two.png", 0, "anger"),
        (f"{url}#two.png", 1, "anger"),
        (f"{url}#one.png", 0, "fear"),
    ]
    first = rows(out, "predictions")[0]
    expected = np.exp([4.0, 4 * 2 / 255, 0.0]) / np.exp([4.0, 4 * 2 / 255, 0.0]).sum()
    assert [first[f"p_{name}"] for name in toy_model.NAMES] == pytest.approx(expected, abs=1e-6)
    assert first["confidence"] == first["p_anger"]
    assert first["bbox"] == [20, 20, 80, 80]
    assert first["landmarks"][0] == [40, 50]
    assert [row["not_sure"] for row in rows(out, "predictions")] == [False, False, True]
    assert [(row["key"].partition("#")[2], row["stage"], row["reason"]) for row in rows(out, "failures")] == [
        ("none.png", "detect", "no_face"),
        ("page.png", "decode", "not_an_image"),
        ("crash.png", "detect", "detector_crash"),
    ]
    marker = json.loads(storage.read_bytes(f"{out}/done/000000-0000.json"))
    assert (marker["last"], ScoreCounts.from_dict(marker).fingerprint) == (True, counts.fingerprint)


def test_a_given_face_is_the_whole_picture(tmp_path, predictor):
    refs = tar(tmp_path, [("a.png", picture(255, side=48))])
    score(str(tmp_path / "out"), refs, source(predictor, detect=False), predictor)
    (row,) = rows(str(tmp_path / "out"), "predictions")
    assert row["bbox"] == [0, 0, 48, 48]
    assert row["score"] is None
    assert np.isnan(row["landmarks"]).all()


@pytest.mark.parametrize("detect", [True, False])
def test_the_predictions_do_not_depend_on_units_segments_or_pieces(tmp_path, predictor, monkeypatch, detect):
    members = [(f"{number}.png", picture(10 * number, number % 4)) for number in range(20)]
    refs = tar(tmp_path, members)
    whole = score(str(tmp_path / "whole"), refs, source(predictor, detect), predictor)
    monkeypatch.setattr(scoring, "PIECE_FACES", 3)
    monkeypatch.setattr(scoring, "_PIECE_IMAGES", 4)
    halves = ScoreCounts()
    for unit, some in enumerate((refs[:7], refs[7:])):
        halves.add(score(str(tmp_path / "halves"), some, source(predictor, detect), predictor, 3, unit))
    archive = [ImageRef(refs[0].container, refs[0].container, "archive")]
    stream = score(str(tmp_path / "stream"), archive, source(predictor, detect), predictor, 6)
    assert whole.fingerprint == halves.fingerprint == stream.fingerprint
    assert whole.images == halves.images == stream.images == 20
    tables = [rows(str(tmp_path / name), "predictions") for name in ("whole", "halves", "stream")]
    assert [row["key"] for row in tables[0]] == [row["key"] for row in tables[1]] == [row["key"] for row in tables[2]]
    assert sorted(url.rsplit("/", 1)[-1] for url, _ in storage.list_files(str(tmp_path / "halves" / "done"))) == [
        "000000-0000.json", "000000-0001.json", "000000-0002.json",
        "000001-0000.json", "000001-0001.json", "000001-0002.json", "000001-0003.json", "000001-0004.json",
    ]  # fmt: skip


def test_a_unit_goes_on_after_the_segments_that_are_done(tmp_path, predictor):
    refs = tar(tmp_path, [(f"{number}.png", picture(10 * number, 1)) for number in range(8)])
    archive = [ImageRef(refs[0].container, refs[0].container, "archive")]
    whole, out = str(tmp_path / "whole"), str(tmp_path / "out")
    score(whole, archive, source(predictor), predictor, 3)
    for piece in read_pieces(0, archive, source(predictor), detector, 3):
        SegmentWriter(out, piece.segment, predictor).add(score_piece(piece, predictor))
        break  # killed after the first segment
    assert score_parts.segments_done(out, 0) == 1
    seen = []
    rest = score(out, archive, source(predictor), predictor, 3, done=1, blamed=lambda key: bool(seen.append(key)))
    assert (rest.images, len(seen)) == (5, 5)
    assert rows(out, "predictions") == rows(whole, "predictions")


def test_a_face_that_the_network_fails_on_costs_no_other(tmp_path, predictor):
    refs = tar(tmp_path, [("a.png", picture(10, 1)), ("b.png", picture(20, 2)), ("c.png", picture(30, 1))])

    def network(pixels):
        if (pixels[:, 0, 0, 0] == 20).any():
            raise RuntimeError("out of range")
        return predictor.network(pixels)

    broken = type(predictor)(predictor.spec, network, predictor.folder)
    out = str(tmp_path / "out")
    counts = score(out, refs, source(predictor), broken)
    assert (counts.scored, counts.failed, counts.faces, counts.faces_failed) == (2, 1, 2, 2)
    assert [(row["key"].partition("#")[2], row["face_index"], row["stage"]) for row in rows(out, "failures")] == [
        ("b.png", 0, "score"),
        ("b.png", 1, "score"),
        ("b.png", None, "score"),
    ]


def test_a_network_that_gives_no_number_is_a_failure_and_no_prediction(tmp_path, predictor):
    refs = tar(tmp_path, [("a.png", picture(10, 1))])
    broken = type(predictor)(predictor.spec, lambda pixels: np.full((len(pixels), 3), np.inf, np.float32), "x")
    counts = score(str(tmp_path / "out"), refs, source(predictor), broken)
    assert (counts.scored, counts.failed, counts.reasons) == (0, 1, {"model_error": 1})
    assert rows(str(tmp_path / "out"), "predictions") == []


def test_pieces_out_of_order_are_refused(tmp_path, predictor):
    refs = tar(tmp_path, [(f"{number}.png", picture(9, 40)) for number in range(3)])
    first, second, *_ = read_pieces(0, refs, source(predictor), detector, 2048)
    assert (len(first.faces), first.number, second.number) == (scoring.PIECE_FACES, 0, 1)
    writer = SegmentWriter(str(tmp_path / "out"), Segment(0, 0), predictor)
    with pytest.raises(ValueError, match="piece 1"):
        writer.add(score_piece(second, predictor))


def test_the_crop_is_that_of_the_model(predictor):
    recipe = {"aligned": False, "margin": 0.1, "size_px": 96, "format": "jpeg", "quality": 95}
    assert crop_recipe(toy_model.spec(crop=recipe)).to_dict() == recipe
    assert crop_recipe(toy_model.spec(crop={})) is None


def test_an_image_that_killed_its_process_twice_with_its_name_noted_is_given_up(tmp_path):
    out = str(tmp_path)
    first = Journal(out, 7)
    assert not first.careful
    assert not any(first.blamed(key) for key in "abc")  # dies at c, and nobody knows where
    for _ in range(2):
        again = Journal(out, 7)
        assert again.careful
        assert [again.blamed(key) for key in "abc"] == [False, False, False]
    last = Journal(out, 7)
    assert [last.blamed(key) for key in "abcd"] == [False, False, True, False]
    score_journal.forget(out, 7)
    assert not Journal(out, 7).careful


def test_rows_of_a_listing_on_the_store_are_those_of_the_listing(tmp_path, monkeypatch):
    listing = list_images(make_tar(tmp_path / "x.tar", [(f"{n}.jpg", b"x") for n in range(50)]), Limits())
    monkeypatch.setattr("dataset_tools.listing._GROUP_ROWS", 16)
    url = str(tmp_path / "listing.parquet")
    listing.to_parquet(url)
    for start, stop in ((0, 50), (0, 1), (15, 17), (16, 32), (31, 50)):
        assert read_refs(url, start, stop) == listing.refs(start, stop)


def test_the_page_adds_up_and_escapes_names(tmp_path, predictor):
    members = [("<b>.png", b"<html>"), ("a.png", picture(255, 2)), ("none.png", picture(0))]
    refs = tar(tmp_path, members)
    out = str(tmp_path / "out")
    counts = score(out, refs, source(predictor), predictor)
    manifest = Manifest("score", ("<i>source",), 3, 1, {}, "f", 1, 3, {"faces": "detect"}, "2026-11-24T10:00:00+00:00")
    summary = counts.to_dict() | {"model": "<u>m", "wall_seconds": 1.0, "workers": 2, "images_per_second": 3.0}
    score_page.write_report(out, manifest, summary | {"counters": {"images": 3}}, predictor.spec)
    page = storage.read_bytes(f"{out}/report.html").decode()
    assert "2 faces scored in 3 images" in page
    assert "&lt;b&gt;.png" in page
    assert not any(tag in page for tag in ("<b>.png", "<i>source", "<u>m"))
    assert page.count("data:image/jpeg;base64") == 4  # two faces, under their expression and among the least sure


# --- Options ----------------------------------------------------------------------------------------------------------


def parsed(*words):
    return beam_options.beam_options(score_archive.build_parser(), words)


def test_pipeline_options_pass_through_wherever_they_stand():
    args, options = parsed("--runner", "DataflowRunner", "a.tar", "--region=europe-west4", "b.tar", "--model", "m")
    assert (args.source, args.model) == (["a.tar", "b.tar"], "m")
    assert options == ("--runner=DataflowRunner", "--region=europe-west4")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["a.tar", "--regoin=x"], "unknown option --regoin: did you mean --region"),
        (["a.tar", "--modle=x"], "unknown option --modle: did you mean --model"),
        (["a.tar", "--runner=DaskRunner"], "loses data"),
        (["a.tar", "--runner=apache_beam.runners.dask.dask_runner.DaskRunner"], "loses data"),
    ],
)
def test_options_that_nobody_would_read_are_refused(words, told):
    with pytest.raises(cli.UserError, match=told):
        parsed(*words)


def test_a_runner_with_a_job_server_may_have_options_of_its_own():
    _, options = parsed("a.tar", "--runner=FlinkRunner", "--flink_master=host:8081", "--object_reuse=true")
    assert options == ("--runner=FlinkRunner", "--flink_master=host:8081", "--object_reuse=true")


@pytest.mark.parametrize(
    ("options", "local"),
    [((), True), (("--runner=DirectRunner",), True), (("--runner=FlinkRunner",), False), (("--region=x",), True)],
)
def test_without_a_runner_of_its_own_a_run_is_local(options, local):
    assert Where(options, 2).local is local
