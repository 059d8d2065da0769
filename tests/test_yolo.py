"""What a YOLO trainer is given: names, label lines, data.yaml, index files; and the check of what it would skip."""

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from dataset_tools import yolo
from dataset_tools.detection import Face
from tests import toy

HOSTILE_KEYS = [
    "gs://bucket/photos/Anna & Ben.jpg",
    "/data/archive.tar#../../etc/passwd",
    "../../../secret",
    "/",
    "#",
    "",
    "Größe/日本語.png",
    "日本語",
    "a" * 300 + ".jpeg",
    "C:\\photos\\me.JPG",
    "new\nline\tand\0nul.jpg",
    "-rf.jpg",
    ".hidden",
    "CON.jpg",
    "https://host/a.jpg?name=x/y.png&size=1",
]


@pytest.mark.parametrize("key", HOSTILE_KEYS)
def test_any_key_gives_a_plain_file_name(key):
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_]{0,59}-[0-9a-f]{12}\.jpg", yolo.image_name(key))


def test_a_name_is_the_stem_and_the_start_of_the_keys_sha256():
    assert yolo.image_name("in/abc.jpg") == "abc-39b980e335ce.jpg"


def test_keys_that_clean_to_the_same_stem_keep_names_of_their_own():
    keys = ["x/a b.jpg", "x/a_b.jpg", "y/a_b.jpg", "x/A_B.jpg", "x/a_b.png", "t.tar#a_b.jpg"]
    assert len({yolo.image_name(key).lower() for key in keys}) == len(keys)


def test_a_box_becomes_centre_and_size_as_fractions():
    assert yolo.label_lines([toy.found((20, 30, 80, 100))], 200, 100, pose=False) == (
        "0 0.250000 0.650000 0.300000 0.700000\n"
    )


def test_a_box_that_reaches_out_is_clipped_and_one_that_lies_outside_is_left_out():
    faces = [toy.found(box) for box in [(-50, -10, 50, 50), (210, 0, 260, 50), (150, 90, 150, 95)]]
    assert yolo.label_lines(faces, 200, 100, pose=False) == "0 0.125000 0.250000 0.250000 0.500000\n"


def test_a_photo_without_faces_has_an_empty_label_file():
    assert yolo.label_lines([], 200, 100, pose=False) == ""


def test_a_line_is_never_repeated():
    box = (20.0, 30.0, 80.0, 100.0)
    assert yolo.label_lines([toy.found(box)] * 2, 200, 100, pose=False).count("\n") == 1


def test_pose_adds_five_points_and_marks_those_outside_as_absent():
    points = ((10.0, 20.0), (200.0, 100.0), (200.5, 50.0), (50.0, -0.5), (0.0, 0.0))
    assert yolo.label_lines([Face((0, 0, 200, 100), points, 1.0)], 200, 100, pose=True) == (
        "0 0.500000 0.500000 1.000000 1.000000"
        " 0.050000 0.200000 2 1.000000 1.000000 2 0 0 0 0 0 0 0.000000 0.000000 2\n"
    )


def test_boxes_are_those_of_the_table_within_half_a_pixel_even_on_a_huge_photo():
    width, height = 30_000, 4_000
    corners = np.random.default_rng(0).uniform((0, 0, 10, 10), (25_000, 3_000, 4_000, 900), (200, 4))
    for x, y, w, h in corners:
        _, cx, cy, lw, lh = map(
            float, yolo.label_lines([toy.found((x, y, x + w, y + h))], width, height, pose=False).split()
        )
        box = np.array([cx - lw / 2, cy - lh / 2, cx + lw / 2, cy + lh / 2]) * [width, height, width, height]
        assert np.abs(box - [x, y, x + w, y + h]).max() < 0.1


def test_data_yaml_names_the_splits_there_are_and_can_be_moved():
    assert yaml.safe_load(yolo.data_yaml({"test", "train", "validation"}, pose=False)) == {
        "train": "images/train",
        "val": "images/val",
        "test": "images/test",
        "names": {0: "face"},
    }


def test_a_missing_split_that_is_required_points_to_one_there_is_and_says_so():
    text = yolo.data_yaml({"train"}, pose=False)
    assert yaml.safe_load(text) == {"train": "images/train", "val": "images/train", "names": {0: "face"}}
    assert "# This data set has no validation split" in text
    assert yaml.safe_load(yolo.data_yaml({"validation"}, pose=False))["train"] == "images/val"


def test_pose_declares_the_points_and_which_swap_in_a_mirror():
    config = yaml.safe_load(yolo.data_yaml({"train"}, pose=True))
    assert config["kpt_shape"] == [5, 3]
    assert config["flip_idx"] == [1, 0, 2, 4, 3]


def test_the_index_names_every_readable_photo_and_its_key(tmp_path):
    hostile = 'in/a,"b"\nc.jpg'
    toy.build(
        str(tmp_path), [[toy.photo(hostile, "train"), toy.failure("in/x.jpg")], [toy.photo("in/z.jpg", "validation")]]
    )
    rows = list(csv.reader(io.StringIO((tmp_path / "yolo/sources.csv").read_text())))
    assert rows == [
        ["name", "split", "key"],
        [yolo.image_name(hostile), "train", hostile],
        [yolo.image_name("in/z.jpg"), "val", "in/z.jpg"],
    ]
    assert not (tmp_path / "yolo/train.txt").exists()


def test_without_pictures_list_files_say_where_they_belong(tmp_path):
    toy.build(str(tmp_path), images=False)
    name = yolo.image_name("in/a copy.jpg")
    assert (tmp_path / "yolo/test.txt").read_text() == f"./images/test/{name}\n"
    assert yaml.safe_load((tmp_path / "yolo/data.yaml").read_text())["test"] == "test.txt"
    assert yolo.validate(str(tmp_path / "yolo")) == [
        "train.txt: 3 of its pictures are not there",
        "val.txt: 2 of its pictures are not there",
        "test.txt: 1 of its pictures are not there",
    ]


def test_a_folder_whose_pictures_are_brought_later_is_fine(tmp_path):
    toy.build(str(tmp_path), images=False)
    for split in ("train", "val", "test"):
        for line in (tmp_path / f"yolo/{split}.txt").read_text().splitlines():
            path = tmp_path / "yolo" / line
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(toy.jpeg())
    assert yolo.validate(str(tmp_path / "yolo")) == []


def test_an_index_of_nothing_but_failures_has_no_photos(tmp_path):
    toy.build(str(tmp_path), [[toy.failure("in/x.jpg")]])
    assert (tmp_path / "yolo/sources.csv").read_text() == "name,split,key\n"
    assert yaml.safe_load((tmp_path / "yolo/data.yaml").read_text())["train"] == "images/train"


@pytest.mark.parametrize("labels", ["boxes", "pose"])
def test_what_is_written_is_valid(tmp_path, labels):
    toy.build(str(tmp_path), labels=labels)
    assert yolo.validate(str(tmp_path / "yolo")) == []


LINE = "0 0.5 0.5 0.1 0.1"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"{LINE} 0.9\n", "line 1: one column too many, as if it held a confidence"),
        ("0 0.5 0.5 0.1\n", "line 1: 4 columns instead of 5"),
        (f"{LINE} " + "0.5 0.5 2 " * 5, "line 1: 20 columns instead of 5"),
        ("1 0.5 0.5 0.1 0.1\n", "line 1: class 1 of 1"),
        (f"{LINE}\n0 1.02 0.5 0.1 0.1\n", "line 2: a position outside the picture"),
        ("0 -0.011 0.5 0.1 0.1\n", "line 1: a position outside the picture"),
        ("0 0.5 0.5 0 0.1\n", "line 1: a box without area"),
        ("0 0.5 0.5 nan 0.1\n", "line 1: not all numbers"),
        ("face 0.5 0.5 0.1 0.1\n", "line 1: not all numbers"),
        (f"{LINE}\n{LINE}\n", "the same line twice"),
    ],
)
def test_a_label_line_that_a_trainer_would_refuse_is_named(tmp_path, text, problem):
    toy.build(str(tmp_path))
    label = next((tmp_path / "yolo/labels/test").iterdir())
    label.write_text(text)
    assert yolo.validate(str(tmp_path / "yolo")) == [f"labels/test/{label.name}: {problem}"]


def test_one_hundredth_beyond_the_picture_is_forgiven(tmp_path):
    toy.build(str(tmp_path))
    next((tmp_path / "yolo/labels/test").iterdir()).write_text("0 1.01 -0.01 0.1 0.1\n")
    assert yolo.validate(str(tmp_path / "yolo")) == []


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (toy.jpeg()[:-2], "a JPEG that does not end in FF D9"),
        (b"<html>", "not a picture"),
        (toy.jpeg(9, 40), "smaller than 10 px"),
    ],
)
def test_a_picture_that_a_trainer_would_refuse_is_named(tmp_path, data, problem):
    toy.build(str(tmp_path))
    picture = next((tmp_path / "yolo/images/test").iterdir())
    picture.write_bytes(data)
    assert yolo.validate(str(tmp_path / "yolo")) == [f"{picture.stem}: {problem}"]


def test_a_picture_that_a_viewer_would_turn_is_named(tmp_path):
    from PIL import Image

    toy.build(str(tmp_path))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = next((tmp_path / "yolo/images/test").iterdir())
    picture.write_bytes(toy.jpeg(exif=exif))
    assert yolo.validate(str(tmp_path / "yolo")) == [
        f"{picture.stem}: EXIF orientation 6: boxes are those of the upright picture"
    ]


def test_labels_and_pictures_must_pair(tmp_path):
    toy.build(str(tmp_path))
    picture = next((tmp_path / "yolo/images/test").iterdir())
    label = next((tmp_path / "yolo/labels/val").iterdir())
    picture.rename(picture.with_stem("other"))
    label.unlink()
    assert sorted(yolo.validate(str(tmp_path / "yolo"))) == sorted(
        [
            "images/test: other has no label file",
            f"labels/test/{picture.stem}.txt: no picture belongs to it",
            f"images/val: {label.stem} has no label file",
        ]
    )


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (None, "data.yaml: missing"),
        ("a: [", "data.yaml: not YAML"),
        ("- a", "data.yaml: not a mapping"),
        ("train: images/train\nnames: {0: face}", "data.yaml: lacks val"),
        ("train: a\nval: b\nnames: {0: f}\nkpt_shape: [5, 3]", "data.yaml: flip_idx does not name each of the 5"),
        ("train: a\nval: b\nnames: {0: f}\nkpt_shape: 5", "data.yaml: kpt_shape is not"),
    ],
)
def test_a_wrong_description_is_named(tmp_path, config, problem):
    if config is not None:
        (tmp_path / "data.yaml").write_text(config)
    assert [line[: len(problem)] for line in yolo.validate(str(tmp_path))] == [problem]


def test_the_check_runs_as_a_command(tmp_path, capsys):
    toy.build(str(tmp_path))
    assert yolo.main([str(tmp_path / "yolo")]) == 0
    Path(tmp_path / "yolo/data.yaml").unlink()
    assert yolo.main([str(tmp_path / "yolo")]) == 1
    assert yolo.main([]) == 2
    assert capsys.readouterr().out == "no problems\ndata.yaml: missing\n"
