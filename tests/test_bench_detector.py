"""The detector benchmark: its matching by toy boxes, and the command by a run over two photos."""

import argparse
import importlib.util
import math
import subprocess
import sys
import tarfile

import pytest

from benchmarks import detector as bench
from benchmarks.matching import Annotation, Counts, count_matches, count_same, iou_matrix, read_annotations
from dataset_tools.detection import Face

BOX = (0.0, 0.0, 40.0, 40.0)
FAR = (500.0, 500.0, 540.0, 540.0)
SMALL = (100.0, 100.0, 130.0, 130.0)


def face(box, score=0.9):
    return Face(box, (), score)


def moved(box, x):
    return (box[0] + x, box[1], box[2] + x, box[3])


def test_iou_of_toy_boxes():
    half = (0.0, 0.0, 20.0, 40.0)
    assert iou_matrix([BOX, FAR], [BOX, half, moved(BOX, 20)]).tolist() == [[1, 0.5, 1 / 3], [0, 0, 0]]
    assert iou_matrix([], [BOX]).shape == (0, 1)
    assert iou_matrix([(5, 5, 5, 5)], [(5, 5, 5, 5)]).tolist() == [[0]]


def test_found_missed_and_wrong_are_counted():
    counts = count_matches([face(BOX), face((900, 0, 950, 50))], [Annotation(BOX), Annotation(FAR)], min_face_px=40)
    assert counts == Counts(found=1, missed=1, wrong=1)
    assert (counts.recall, counts.precision) == (0.5, 0.5)


def test_overlap_of_one_half_is_enough_and_less_is_not():
    assert count_matches([face((0, 0, 20, 40))], [Annotation(BOX)]) == Counts(1, 0, 0)
    assert count_matches([face((0, 0, 19, 40))], [Annotation(BOX)]) == Counts(0, 1, 1)


def test_second_detection_of_a_face_is_wrong():
    assert count_matches([face(BOX, 0.8), face(moved(BOX, 1), 0.9)], [Annotation(BOX)]) == Counts(1, 0, 1)


def test_better_scored_detection_chooses_first_and_takes_what_it_overlaps_most():
    first, second = Annotation(BOX), Annotation(moved(BOX, 10))
    # At +6 px the second annotation is nearer; at +12 px only the second is near enough, and it is taken then.
    assert count_matches([face(moved(BOX, 6), 0.9), face(moved(BOX, 14), 0.8)], [first, second]) == Counts(1, 1, 1)
    assert count_matches([face(moved(BOX, 6), 0.8), face(moved(BOX, 14), 0.9)], [first, second]) == Counts(2, 0, 0)


def test_invalid_annotation_forgives_any_number_of_detections_and_is_never_missed():
    invalid = [Annotation(BOX, invalid=True)]
    assert count_matches([], invalid) == Counts(0, 0, 0)
    assert count_matches([face(BOX), face(moved(BOX, 2))], invalid) == Counts(0, 0, 0)


def test_countable_annotation_goes_before_an_invalid_one():
    annotations = [Annotation(BOX, invalid=True), Annotation(moved(BOX, 5))]
    assert count_matches([face(BOX)], annotations) == Counts(1, 0, 0)


def test_annotation_below_the_bound_forgives_a_detection_above_it():
    detection = (100.0, 100.0, 130.0, 140.0)
    assert count_matches([face(detection)], [Annotation(SMALL)], min_face_px=40) == Counts(0, 0, 0)
    assert count_matches([face(detection)], [Annotation(SMALL)], min_face_px=30) == Counts(1, 0, 0)


def test_detection_below_the_bound_may_match_a_face_but_is_never_wrong():
    short = (0.0, 0.0, 38.0, 38.0)
    assert count_matches([face(short), face(SMALL)], [Annotation(BOX)], min_face_px=40) == Counts(1, 0, 0)


def test_size_is_the_longer_side():
    narrow = (0.0, 0.0, 25.0, 40.0)
    assert count_matches([], [Annotation(narrow)], min_face_px=40) == Counts(0, 1, 0)
    assert count_matches([face(narrow)], [], min_face_px=40) == Counts(0, 0, 1)


def test_counts_add_up_and_have_no_share_of_nothing():
    assert Counts(1, 2, 3) + Counts(10, 20, 30) == Counts(11, 22, 33)
    assert math.isnan(Counts().recall)
    assert math.isnan(Counts().precision)


def test_annotations_are_read_as_corners_and_boxes_without_area_are_left_out():
    text = "image,x,y,w,h,invalid\na.jpg,1,2,30,40,0\na.jpg,5,5,0,9,0\na.jpg,5,5,6,7,1\nb.jpg,1,1,9,-1,0\n"
    assert read_annotations(text) == {
        "a.jpg": [Annotation((1, 2, 31, 42)), Annotation((5, 5, 11, 12), invalid=True)],
        "b.jpg": [],
    }


def test_same_faces_are_matched_one_to_one():
    assert count_same([face(BOX), face(moved(BOX, 1))], [face(BOX)]) == 1
    assert count_same([face(BOX), face(FAR)], [face(FAR), face(BOX), face(SMALL)]) == 2
    assert count_same([face(BOX)], [face(moved(BOX, 5))]) == 0
    assert count_same([], [face(BOX)]) == 0


def test_a_selection_is_spread_over_the_annotated_photos_and_zero_takes_all():
    photos = [bench.Photo("dev_detection", str(i), ()) for i in range(6)] + [bench.Photo("photos", "6")]
    assert [photo.member for photo in bench.choose(photos, 3)] == ["0", "2", "4"]
    assert bench.choose(photos, 100) == photos[:6]
    assert bench.choose(photos, 0) == photos


def toy_report():
    """Two rounds over two photos; mtcnn fails on the second."""
    photos = [bench.Photo("dev_detection", "a.jpg", (Annotation(BOX),)), bench.Photo("photos", "b.jpg")]
    outcomes = {}
    for number, name in enumerate(bench.CANDIDATES):
        slow = [0.4, 0.2] if number == 0 else [0.1, 0.1]
        outcomes[name] = bench.Outcome({0: 2.0, 1: 16.0}, {0: slow, 1: [9, 9]}, {0: [face(BOX)], 1: []}, {}, 100)
    reference = outcomes[bench.REFERENCE]
    del reference.seconds[1], reference.faces[1]
    reference.failed[1] = "MemoryError: no"
    return bench.report(photos, outcomes, argparse.Namespace(photos=0, rounds=2))


def rows(report):
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in report.splitlines() if line[:1] == "|"]
    return cells[0], {cell[0]: cell[1:] for cell in cells[2:]}


def test_report_takes_medians_of_rounds_over_the_photos_that_all_managed():
    _, found = rows(toy_report())
    perfect = ["1.000 / 1.000", "1.000 / 1.000", "100"]
    assert found[bench.REFERENCE] == ["150.0", "1.0", "", "", *perfect]
    assert found[bench.EXACT] == ["50.0", "3.0", "100.00% of 1", "1 of 1 photos", *perfect]
    assert found["facemill yunet, 40 px"] == ["50.0", "3.0", "", "", *perfect]


def test_report_notes_the_photo_that_a_detector_failed_on():
    assert "- mtcnn 1.0.0 failed on b.jpg (16.0 MP): MemoryError: no" in toy_report()


def test_written_table_replaces_the_one_before_and_nothing_else(tmp_path):
    doc = tmp_path / "benchmarks.md"
    doc.write_text(f"before\n{bench.DOC_START}\nold\n{bench.DOC_END}\nafter\n")
    bench.write_doc("| new |", doc)
    bench.write_doc("| newer |", doc)
    assert doc.read_text() == f"before\n{bench.DOC_START}\n\n| newer |\n\n{bench.DOC_END}\nafter\n"
    doc.write_text("no markers")
    with pytest.raises(bench.BenchmarkError, match="has lost its lines"):
        bench.write_doc("| new |", doc)


def test_the_document_has_the_markers():
    text = bench.DOC.read_text(encoding="utf-8")
    assert text.index(bench.DOC_START) < text.index(bench.DOC_END)


def test_missing_data_is_one_line_and_exit_code_2(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("FACEMILL_DATA", str(tmp_path))
    assert bench.main([]) == 2
    error = capsys.readouterr().err
    assert "set FACEMILL_DATA" in error
    assert error.count("\n") == 1


def test_missing_packages_are_one_line_and_exit_code_2(monkeypatch, tmp_path, capsys):
    for archive in ("dev_detection", "photos"):
        (tmp_path / f"{archive}.tar").touch()
    monkeypatch.setenv("FACEMILL_DATA", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorflow" else object())
    assert bench.main([]) == 2
    assert capsys.readouterr().err == (
        "bench-detector: tensorflow not installed: run `uv pip install 'facemill[dev]'`\n"
    )


def test_a_detector_that_dies_is_started_again_without_the_photo(tmp_path):
    photos = [bench.Photo("photos", "absent.jpg")]
    for archive in ("dev_detection", "photos"):
        tarfile.open(tmp_path / f"{archive}.tar", "w").close()
    with bench.Child("facemill yunet, 40 px", tmp_path, photos) as child:
        # A member that is not there ends the child, as running out of memory would.
        assert child.detect(0) == {"failed": "its process died (exit 1)"}
        assert child.process is not None
        assert child.process.poll() is None


@pytest.mark.slow
def test_two_photos_give_a_table_with_a_row_for_each_detector():
    try:
        bench.find_data()
    except bench.BenchmarkError as error:
        pytest.skip(str(error))
    pytest.importorskip("tensorflow", reason="the mtcnn package needs it")
    command = [sys.executable, "-m", "benchmarks.detector", "--photos", "2", "--rounds", "1"]
    done = subprocess.run(command, cwd=bench.PROJECT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    header, found = rows(done.stdout)
    assert list(found) == list(bench.CANDIDATES)
    assert all(len(cells) == len(header) - 1 for cells in found.values())
    assert float(found[bench.REFERENCE][1]) == 1.0
    assert float(found["facemill yunet, 40 px"][1]) > 2
    assert float(found[bench.EXACT][2].split("%")[0]) > 95
