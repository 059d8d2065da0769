"""What the readers of labelled sets make of them, and what becomes of one of their images."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from dataset_tools.crop import CropRecipe
from dataset_tools.detection import DetectorSettings, Face
from dataset_tools.faces import Recipe
from dataset_tools.importers import affectnet, annotations, fer2013, ferplus, files, formats, listed
from dataset_tools.importers.annotations import Annotation, LabelledSet, UnmappedError, mapped
from dataset_tools.importers.formats import Options
from dataset_tools.importers.step import ImportRecipe, best_face, import_image
from dataset_tools.limits import Limits
from dataset_tools.listing import ImageRef, SourceError
from schemas.labels import AFFECTNET_7, AFFECTNET_8, FER_2013, FER_PLUS, RAF_DB
from schemas.outcomes import Reason, Status
from tests import labelled

OPTIONS = Options(Limits())


def read(source, form, **options):
    return formats.read(str(source), form, Options(Limits(), **options))


def said(found):
    """(file name or row, class name, split) of every image."""
    return [
        (one.ref.key.rsplit("/", 1)[-1], None if one.label is None else found.labels.names[one.label], one.split)
        for one in found.annotations
    ]


# --- FER-2013 ---------------------------------------------------------------------------------------------------------


def test_a_fer_csv_gives_labels_and_splits_by_its_columns(tmp_path):
    rows = [(0, 1, "Training"), (3, 2, "PublicTest"), (6, 3, "PrivateTest")]
    found = read(labelled.fer_csv(tmp_path / "fer2013.csv", rows), "fer2013")
    assert found.labels is FER_2013
    assert said(found) == [
        ("fer2013.csv#0", "anger", "train"),
        ("fer2013.csv#1", "happiness", "validation"),
        ("fer2013.csv#2", "neutral", "test"),
    ]
    for (ref, data), number in zip(fer2013.read_rows([one.ref for one in found.annotations]), (1, 2, 3), strict=True):
        assert data == labelled.pixels(number).tobytes(), ref


def test_the_later_order_of_the_columns_and_quotes_are_read_too(tmp_path):
    text = " ".join(map(str, labelled.pixels(4).ravel()))
    path = tmp_path / "icml_face_data.csv"
    path.write_text(f'emotion, Usage, pixels\r\n4,Training,"{text}"\r\n')
    found = read(path, "fer2013")
    assert said(found) == [("icml_face_data.csv#0", "sadness", "train")]
    assert [data for _, data in fer2013.read_rows([found.annotations[0].ref])] == [labelled.pixels(4).tobytes()]


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        (("7", 1, "Training"), annotations.BAD_ANNOTATION, "label '7' is not from 0 to 6"),
        (("-1", 1, "Training"), annotations.BAD_ANNOTATION, "label '-1' is not from 0 to 6"),
        (("0", 1, "Trainig"), annotations.BAD_ANNOTATION, "unknown Usage 'Trainig'"),
        (("0", "1 2 3", "Training"), Reason.TRUNCATED, "3 pixels, not 48 × 48"),
        (("0", "1 " * 2305, "Training"), Reason.TRUNCATED, "2,305 pixels, not 48 × 48"),
        (("0", "256 " * 2304, "Training"), Reason.NOT_AN_IMAGE, "a pixel is no number from 0 to 255"),
        (("0", "x", "Training"), Reason.NOT_AN_IMAGE, "a pixel is no number from 0 to 255"),
        (("0,0", 1, "Training"), annotations.BAD_ANNOTATION, "the row has 4 columns, not 3"),
        (("0", "9 " * 100_000, "Training"), annotations.BAD_ANNOTATION, "the row has 2 columns, not 3"),
    ],
)
def test_a_bad_row_of_the_csv_is_a_failure_and_its_neighbours_are_not(tmp_path, row, reason, detail):
    path = labelled.fer_csv(tmp_path / "fer2013.csv", [(1, 5, "Training"), row, (2, 6, "Training")])
    found = read(path, "fer2013")
    results = [
        import_image(one, data, ImportRecipe(), None)
        for one, (_, data) in zip(
            found.annotations, fer2013.read_rows([one.ref for one in found.annotations]), strict=True
        )
    ]
    assert [result.ledger.status for result in results] == [Status.OK, Status.FAILED, Status.OK]
    assert (results[1].ledger.reason, results[1].ledger.detail) == (reason, detail)


def test_class_folders_are_known_by_name_and_the_public_test_is_for_validation(tmp_path):
    found = read(labelled.fer_folders(tmp_path / "fer"), "fer2013")
    assert sorted(said(found)) == [
        ("PrivateTest_7.jpg", "happiness", "test"),
        ("PrivateTest_8.jpg", "sadness", "test"),
        ("PublicTest_5.jpg", "anger", "validation"),
        ("PublicTest_6.jpg", "disgust", "validation"),
        ("Training_1.jpg", "anger", "train"),
        ("Training_2.jpg", "happiness", "train"),
        ("Training_3.jpg", "neutral", "train"),
        ("Training_4.jpg", "surprise", "train"),
    ]


@pytest.mark.parametrize(("mode", "name"), [("w:xz", "fer.tar.xz"), ("w", "fer.tar")])
def test_an_archive_gives_what_its_folder_gives(tmp_path, mode, name):
    folder = labelled.fer_folders(tmp_path / "fer")
    archive = labelled.pack(folder, tmp_path / name, mode)
    assert formats.detect_format(str(archive), OPTIONS) == "fer2013"
    assert sorted(said(read(archive, "fer2013"))) == sorted(said(read(folder, "fer2013")))


# --- FER+ -------------------------------------------------------------------------------------------------------------

#                 neutral, happiness, surprise, sadness, anger, disgust, fear, contempt, unknown, no face
VOTES = [
    ("Training", "fer0000000.png", 4, 0, 0, 1, 3, 2, 0, 0, 0, 0),
    ("Training", "fer0000001.png", 0, 0, 0, 0, 4, 0, 4, 0, 2, 0),
    ("PublicTest", "", 0, 0, 0, 0, 0, 0, 0, 0, 0, 10),
    ("PrivateTest", "fer0000003.png", 1, 0, 0, 0, 0, 0, 3, 0, 6, 0),
    ("PrivateTest", "fer0000004.png", 0, 0, 0, 0, 0, 3, 1, 5, 1, 0),
]


def fer_with_votes(tmp_path, votes=VOTES, form="ferplus"):
    usages = [row[0] for row in VOTES]
    source = labelled.fer_csv(tmp_path / "fer2013.csv", [(0, n, usage) for n, usage in enumerate(usages)])
    return read(source, form, votes=str(labelled.votes_csv(tmp_path / "fer2013new.csv", votes)))


def test_ferplus_takes_the_majority_and_drops_what_has_none(tmp_path):
    found = fer_with_votes(tmp_path)
    assert found.labels is FER_PLUS
    assert [None if one.label is None else FER_PLUS.names[one.label] for one in found.annotations] == [
        *("neutral", "anger", None, None, "contempt")
    ]
    assert [one.dropped for one in found.annotations] == [None, None, *["no emotion, by the votes"] * 2, None]
    assert found.annotations[0].votes == (4, 0, 0, 1, 3, 2, 0, 0)
    assert found.annotations[2].votes is None
    assert found.notes == ("1 ties between emotions, decided by the order of ids",)


def test_votes_columns_are_read_by_name(tmp_path):
    order = (*labelled.VOTE_COLUMNS[:2], *reversed(labelled.VOTE_COLUMNS[2:]))
    turned = [(*row[:2], *reversed(row[2:])) for row in VOTES]
    rows = ferplus.read_votes(str(labelled.votes_csv(tmp_path / "votes.csv", turned, order)))
    assert rows[4].emotions == (0, 0, 0, 0, 0, 3, 1, 5)
    assert rows[3].others == (6, 0)


def test_votes_beside_fer_labels_are_in_the_order_of_fer_ids(tmp_path):
    found = fer_with_votes(tmp_path, form="fer2013")
    assert [one.label for one in found.annotations] == [0] * 5
    # anger, disgust, fear, happiness, sadness, surprise, neutral
    assert found.annotations[0].votes == (3, 2, 0, 0, 1, 0, 4)
    assert found.annotations[4].votes == (0, 3, 1, 0, 0, 0, 0)
    assert found.annotations[2].votes is None


def test_votes_for_another_file_are_refused(tmp_path):
    with pytest.raises(SourceError, match="the votes have 4 rows and the csv 5"):
        fer_with_votes(tmp_path, VOTES[:4])
    with pytest.raises(SourceError, match="row 0 of the votes is for another split"):
        fer_with_votes(tmp_path, VOTES[::-1])
    with pytest.raises(SourceError, match="row 0 has votes that are no whole numbers"):
        fer_with_votes(tmp_path, [("Training", "x", *["many"] * 10)])


def test_votes_find_class_folders_by_file_name(tmp_path):
    source = labelled.fer_folders(tmp_path / "fer")
    columns = (*labelled.VOTE_COLUMNS, "kaggle_jpg")
    rows = [
        ("Training", "fer0000000.png", 0, 9, 1, 0, 0, 0, 0, 0, 0, 0, "train/happy/Training_2.jpg"),
        ("PrivateTest", "fer0000001.png", 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, "test/sad/PrivateTest_8.jpg"),
    ]
    votes = labelled.votes_csv(tmp_path / "index.csv", rows, columns)
    found = read(source, "ferplus", votes=str(votes))
    of = {one.ref.key.rsplit("/", 1)[-1]: one for one in found.annotations}
    assert (of["Training_2.jpg"].label, of["Training_2.jpg"].votes) == (1, (0, 9, 1, 0, 0, 0, 0, 0))
    assert of["PrivateTest_8.jpg"].dropped == "no emotion, by the votes"
    assert of["Training_1.jpg"].dropped == "it has no votes"
    with pytest.raises(SourceError, match="no row of the votes names a file of this set"):
        read(source, "ferplus", votes=str(labelled.votes_csv(tmp_path / "fer2013new.csv", VOTES)))


def test_the_pictures_that_the_ferplus_scripts_write_get_split_and_label_from_the_votes(tmp_path):
    for number in (0, 1):
        labelled.write(tmp_path / "FER2013Train" / f"fer000000{number}.png", number)
    votes = labelled.votes_csv(tmp_path / "fer2013new.csv", VOTES)
    found = read(tmp_path / "FER2013Train", "ferplus", votes=str(votes))
    assert said(found) == [("fer0000000.png", "neutral", "train"), ("fer0000001.png", "anger", "train")]


# --- AffectNet --------------------------------------------------------------------------------------------------------


def test_the_full_affectnet_gives_boxes_points_and_feelings(tmp_path):
    found = read(labelled.affectnet_full(tmp_path), "affectnet")
    assert found.labels is AFFECTNET_8
    assert said(found) == [
        ("a.jpg", "neutral", "train"),
        ("b.jpg", "contempt", "train"),
        ("c.jpg", None, "train"),
        ("d.jpg", None, "train"),
        ("e.jpg", None, "train"),
        ("missing.jpg", "happiness", "train"),
        ("v.jpg", "anger", "validation"),
    ]
    first, second = found.annotations[:2]
    assert first.box == (12, 18, 72, 84)
    assert first.landmarks == pytest.approx(np.array(labelled.FIVE_POINTS))
    assert (first.valence, first.arousal) == (0.25, -0.5)
    assert (second.valence, second.arousal) == (None, None)  # -2 stands for "not given"
    assert [one.dropped for one in found.annotations[2:5]] == [
        *("none of the expressions", "uncertain expression", "no face, by the annotators")
    ]


def test_the_later_affectnet_reads_arrays_whose_values_are_text(tmp_path):
    found = read(labelled.affectnet_later(tmp_path), "affectnet")
    assert said(found) == [
        ("0.jpg", "happiness", "train"),
        ("17.jpg", "contempt", "train"),
        ("3.jpg", "fear", "validation"),
    ]
    assert [one.valence for one in found.annotations] == [0.5, None, -0.75]
    assert found.annotations[0].box is None
    assert found.annotations[0].landmarks == pytest.approx(np.array(labelled.FIVE_POINTS))


def test_an_array_that_would_run_code_is_refused(tmp_path):
    folder = labelled.affectnet_later(tmp_path) / "train_set" / "annotations"
    np.save(folder / "0_exp.npy", np.array([{"a": 1}], object), allow_pickle=True)
    (folder / "17_val.npy").unlink()
    found = read(tmp_path, "affectnet")
    assert [one.failure and one.failure.detail for one in found.annotations] == [
        *("an array of its annotation cannot be read", "an array of its annotation is missing", None)
    ]


def test_affectnet_rows_that_make_no_sense_are_failures(tmp_path):
    labelled.affectnet_full(tmp_path)
    rows = [
        labelled.affectnet_row("3/v.jpg", 11),
        labelled.affectnet_row("../../etc/passwd", 1),
        labelled.affectnet_row("/etc/passwd", 1),
        (*labelled.affectnet_row("3/v.jpg", 1)[:3], 0, 10, "", 1, 0, 0),
    ]
    labelled.write_csv(tmp_path / "Manually_Annotated_file_lists" / "validation.csv", labelled.AFFECTNET_COLUMNS, rows)
    failures = [one.failure for one in read(tmp_path, "affectnet").annotations[6:]]
    assert [failure.detail for failure in failures] == [
        "expression '11' is not from 0 to 10",
        "the path leaves the folder: '../../etc/passwd'",
        "the path leaves the folder: '/etc/passwd'",
        "the row gives no box of the face",
    ]
    assert failures[1].reason == Reason.UNREADABLE


@pytest.mark.parametrize("count", [0, 5, 67, 69])
def test_other_numbers_of_points_give_no_landmarks(count):
    assert affectnet.five_points(np.zeros(2 * count)) is None


# --- RAF-DB -----------------------------------------------------------------------------------------------------------


def test_raf_db_counts_labels_from_one_and_splits_by_name(tmp_path):
    found = read(labelled.raf_db(tmp_path), "raf-db")
    assert found.labels is RAF_DB
    assert said(found) == [
        ("train_00001_aligned.jpg", "sadness", "train"),
        ("train_00002_aligned.jpg", "surprise", "train"),
        ("test_0001_aligned.jpg", "neutral", "test"),
        ("test_0002_aligned.jpg", "happiness", "test"),
    ]
    assert {one.box for one in found.annotations} == {None}


def test_raf_db_without_aligned_pictures_takes_the_boxes(tmp_path):
    found = read(labelled.raf_db(tmp_path, aligned=False), "raf-db")
    assert found.annotations[0].ref.key.endswith("Image/original/train_00001.jpg")
    assert {one.box for one in found.annotations} == {(30.5, 40, 130.5, 150)}


def test_raf_db_lines_that_make_no_sense_are_failures(tmp_path):
    labelled.raf_db(tmp_path)
    (tmp_path / "basic" / "EmoLabel" / "list_patition_label.txt").write_text(
        "train_00001.jpg 8\nvalid_1.jpg 2\ntrain_00002.jpg\n../../x.jpg 1\n"
    )
    assert [one.failure.detail for one in read(tmp_path, "raf-db").annotations] == [
        "label '8' is not from 1 to 7",
        "'valid_1.jpg' begins with neither train_ nor test_",
        "the line has 1 values, not a name and a label",
        "the path leaves the folder: '../../x_aligned.jpg'",
    ]


# --- Class folders and lists ------------------------------------------------------------------------------------------


def test_class_folders_give_their_own_names_or_those_of_a_set(tmp_path):
    for name in ("Happy/1.jpg", "sad/2.jpg", "sad/deep/3.jpg", "loose.jpg"):
        labelled.write(tmp_path / "set" / name, 1)
    found = read(tmp_path / "set", "folders")
    assert found.labels.names == ("Happy", "sad")
    assert said(found) == [
        ("1.jpg", "Happy", None),
        ("loose.jpg", None, None),
        ("2.jpg", "sad", None),
        ("3.jpg", "sad", None),
    ]
    assert found.annotations[1].dropped == "it lies in no class folder"
    known = mapped(read(tmp_path / "set", "folders", label_set=RAF_DB), RAF_DB, drop_unmapped=False)
    assert said(known) == [
        *(("1.jpg", "happiness", None), ("loose.jpg", None, None)),
        *(("2.jpg", "sadness", None), ("3.jpg", "sadness", None)),
    ]


def test_splits_above_class_folders_are_taken_and_a_folder_round_everything_is_not(tmp_path):
    for name in ("train/a/1.jpg", "val/b/2.jpg", "Test/a/3.jpg"):
        labelled.write(tmp_path / "in" / "my-set" / name, 1)
    found = read(tmp_path / "in", "folders")
    assert sorted(said(found)) == [("1.jpg", "a", "train"), ("2.jpg", "b", "validation"), ("3.jpg", "a", "test")]


def test_a_list_gives_paths_labels_splits_and_boxes(tmp_path):
    columns = ("Path", "label", "split", "x1", "y1", "x2", "y2", "valence", "arousal")
    rows = [
        ("a.jpg", "happy", "val", 1, 2, 30, 40, 0.5, -2),
        ("below\\b.jpg", "sad", "", "", "", "", "", "", ""),
        ("a.jpg", "3", "train", "", "", "", "", "", ""),
    ]
    path = labelled.write_csv(tmp_path / "list.csv", columns, rows)
    found = read(path, "csv", label_set=FER_2013)
    assert said(found) == [
        ("a.jpg", "happiness", "validation"),
        ("b.jpg", "sadness", None),
        ("a.jpg~2", "happiness", "train"),
    ]
    first = found.annotations[0]
    assert (first.box, first.valence, first.arousal) == ((1, 2, 30, 40), 0.5, None)
    assert found.annotations[1].ref.container == str(tmp_path / "below" / "b.jpg")
    assert found.annotations[2].ref.container == str(tmp_path / "a.jpg")


def test_a_parquet_list_says_the_same(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"path": ["a.jpg", None], "label": [2, 1]}), tmp_path / "list.parquet")
    found = read(tmp_path / "list.parquet", "csv", label_set=FER_2013)
    assert said(found)[0] == ("a.jpg", "fear", None)
    assert found.annotations[1].failure.reason == Reason.UNREADABLE


@pytest.mark.parametrize(
    ("row", "detail"),
    [
        (("a.jpg", "9"), "label '9' is no id of fer2013"),
        (("a.jpg", ""), "the row has no label"),
        (("a.jpg", "fear", "tets"), "split 'tets' is none of train, validation and test"),
        (("a.jpg", "fear", "", 5, 5, 5, 9), "the box has no area, or is not four numbers"),
        (("a.jpg", "fear", "", "nan", 5, 6, 9), "the box has no area, or is not four numbers"),
        (("../a.jpg", "fear"), "the path leaves the folder: '../a.jpg'"),
        (("b/../../a.jpg", "fear"), "the path leaves the folder: 'b/../../a.jpg'"),
        (("file:///etc/passwd", "fear"), "the path leaves the folder: 'file:///etc/passwd'"),
        (("gs://bucket/a.jpg", "fear"), "the path leaves the folder: 'gs://bucket/a.jpg'"),
        (("", "fear"), "the path leaves the folder: ''"),
    ],
)
def test_a_row_of_a_list_that_makes_no_sense_is_a_failure(tmp_path, row, detail):
    columns = ("path", "label", "split", "x1", "y1", "x2", "y2")
    path = labelled.write_csv(tmp_path / "list.csv", columns, [row, ("b.jpg", "fear")])
    found = read(path, "csv", label_set=FER_2013).annotations
    assert (found[0].failure.detail, found[1].failure) == (detail, None)


def test_lists_that_cannot_be_read_are_refused_in_one_line(tmp_path):
    path = labelled.write_csv(tmp_path / "list.csv", ("file", "label"), [("a.jpg", "x")])
    with pytest.raises(SourceError, match="has no column path: it has file, label"):
        listed.read(str(path), None, None)
    path = labelled.write_csv(tmp_path / "list.csv", ("path", "label"), [("a.jpg", "1"), ("b.jpg", "0")])
    with pytest.raises(SourceError, match="are numbers: name the set they belong to with --label-set"):
        listed.read(str(path), None, None)


# --- Which form -------------------------------------------------------------------------------------------------------


def test_every_form_is_told_by_what_lies_there(tmp_path):
    sets = {
        "affectnet": [labelled.affectnet_full(tmp_path / "full"), labelled.affectnet_later(tmp_path / "later")],
        "raf-db": [labelled.raf_db(tmp_path / "raf"), tmp_path / "raf" / "basic"],
        "fer2013": [
            labelled.fer_folders(tmp_path / "fer"),
            labelled.fer_csv(tmp_path / "fer2013.csv", [(0, 1, "Training")]),
        ],
        "csv": [labelled.write_csv(tmp_path / "list.csv", ("path", "label"), [("a.jpg", "happy")])],
    }
    labelled.write(tmp_path / "classes" / "a" / "1.jpg", 1)
    labelled.write(tmp_path / "classes" / "b" / "2.jpg", 2)
    sets["folders"] = [tmp_path / "classes"]
    for form, sources in sets.items():
        for source in sources:
            assert formats.detect_format(str(source), OPTIONS) == form
    votes = Options(Limits(), votes="fer2013new.csv")
    assert formats.detect_format(str(tmp_path / "fer2013.csv"), votes) == "ferplus"


def test_nothing_or_more_than_one_set_is_one_clear_line(tmp_path):
    labelled.write(tmp_path / "photos" / "1.jpg", 1)
    with pytest.raises(SourceError, match="has no form that is known here: name it with --format affectnet"):
        formats.detect_format(str(tmp_path / "photos"), OPTIONS)
    labelled.fer_csv(tmp_path / "photos" / "a.csv", [(0, 1, "Training")])
    labelled.write_csv(tmp_path / "photos" / "b.csv", ("path", "label"), [("1.jpg", "x")])
    with pytest.raises(SourceError, match=r"more than one labelled set \(fer2013: a.csv, csv: b.csv\)"):
        formats.detect_format(str(tmp_path / "photos"), OPTIONS)
    with pytest.raises(SourceError, match="does not exist"):
        formats.detect_format(str(tmp_path / "nowhere"), OPTIONS)


# --- Between label sets -----------------------------------------------------------------------------------------------


def of_labels(labels, *ids, votes=None):
    return LabelledSet(
        labels, [Annotation(ImageRef(str(n), str(n)), label, votes=votes) for n, label in enumerate(ids)]
    )


def test_labels_and_votes_are_moved_by_name():
    found = mapped(of_labels(FER_PLUS, 2, 4, votes=(1, 2, 3, 4, 5, 6, 7, 8)), AFFECTNET_8, drop_unmapped=False)
    assert [AFFECTNET_8.names[one.label] for one in found.annotations] == ["surprise", "anger"]
    # neutral, happiness, sadness, surprise, fear, disgust, anger, contempt
    assert found.annotations[0].votes == (1, 2, 4, 3, 7, 6, 5, 8)


def test_a_class_without_counterpart_is_refused_or_dropped_with_its_count():
    found = of_labels(FER_PLUS, 0, 7, 7)
    with pytest.raises(
        UnmappedError, match=r"fer2013 has no class for contempt \(2 images\): drop them with --drop-unm"
    ):
        mapped(found, FER_2013, drop_unmapped=False)
    dropped = mapped(found, FER_2013, drop_unmapped=True)
    assert [one.dropped for one in dropped.annotations] == [None, *["contempt, which fer2013 lacks"] * 2]
    assert dropped.notes == ("2 images of contempt dropped: fer2013 lacks it",)


def test_affectnet_7_drops_contempt_by_its_name():
    found = mapped(of_labels(AFFECTNET_8, 6, 7), AFFECTNET_7, drop_unmapped=False)
    assert [(one.label, one.dropped) for one in found.annotations] == [
        (6, None),
        (None, "contempt, which affectnet-7 lacks"),
    ]


def test_annotations_come_back_from_disk_as_they_were(tmp_path):
    some = [
        Annotation(ImageRef("a", "a"), 1, "train", (1, 2, 3, 4), labelled.FIVE_POINTS, 0.5, None, (1, 0)),
        Annotation(ImageRef("t#b", "t", "tar", 512, 10), dropped="x"),
        files.outside("l.csv", 3, "../x"),
        annotations.bad(ImageRef("c", "c"), "why"),
    ]
    annotations.write_table(str(tmp_path / "l.parquet"), annotations.to_table(some), ["a note"])
    table, notes = annotations.read_table(str(tmp_path / "l.parquet"))
    assert notes == ("a note",)
    assert list(annotations.from_table(table)) == some


# --- One image --------------------------------------------------------------------------------------------------------


def encoded(image, kind, **options):
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def grey(number=1, side=48):
    return Image.fromarray(labelled.pixels(number, side))


REF = ImageRef("in/a.jpg", "in/a.jpg")


def test_a_crop_keeps_its_bytes_and_says_what_is_not_known():
    data = encoded(grey(), "JPEG", quality=95)
    result = import_image(Annotation(REF, 3, "test"), data, ImportRecipe(), None)
    (face,) = result.faces
    assert face.image["bytes"] == data
    assert face.image["path"].endswith(".jpg")
    assert (face.label, face.split, face.bbox) == (3, "test", (0, 0, 48, 48))
    assert np.isnan(face.landmarks).all()
    assert (face.score, face.inter_eye_distance_px, face.head_roll_deg) == (None, None, None)
    assert (face.crop_aligned, face.crop_margin, face.crop_size_px) == (None, None, 48)
    assert result.ledger.pixels_sha256 == face.pixels_sha256
    assert (result.ledger.status, result.ledger.faces, result.ledger.split) == (Status.OK, 1, "test")


def test_the_pixels_of_a_csv_row_are_kept_without_loss():
    pixels = labelled.pixels(5)
    row = ImageRef("fer.csv#0", "fer.csv", fer2013.CSV_ROW, 0, 10)
    (face,) = import_image(Annotation(row, 0, "train"), pixels.tobytes(), ImportRecipe(), None).faces
    assert np.array_equal(labelled.decode(face.image["bytes"]), pixels)
    assert face.image["path"].endswith(".png")


@pytest.mark.parametrize(
    ("image", "kind", "options"),
    [
        (grey().convert("RGB"), "JPEG", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"}),
        (grey().convert("RGB"), "WEBP", {"lossless": True}),
    ],
)
def test_what_is_turned_or_of_another_format_is_kept_as_upright_png(image, kind, options):
    data = encoded(image, kind, **options)
    (face,) = import_image(Annotation(REF), data, ImportRecipe(), None).faces
    assert face.image["bytes"][:4] == b"\x89PNG"
    upright = labelled.decode(face.image["bytes"])
    expected = labelled.decode(data)
    assert np.array_equal(upright, np.rot90(expected, -1) if kind == "JPEG" else expected)


def test_exact_copies_have_one_digest_whatever_their_files_are():
    png, bmp = encoded(grey(), "PNG"), encoded(grey(), "BMP")
    digests = {import_image(Annotation(REF), data, ImportRecipe(), None).ledger.pixels_sha256 for data in (png, bmp)}
    assert len(digests) == 1


def test_a_given_box_is_cut_out_upright_with_its_margin():
    pixels = np.zeros((120, 160, 3), np.uint8)
    pixels[30:70, 40:80] = 255
    data = encoded(Image.fromarray(pixels), "PNG")
    recipe = ImportRecipe(Recipe(crop=CropRecipe(aligned=False, margin=0.5, size_px=80, format="png")))
    (face,) = import_image(Annotation(REF, 1, "train", (40, 30, 80, 70), valence=0.5), data, recipe, None).faces
    crop = labelled.decode(face.image["bytes"])
    assert crop.shape == (80, 80, 3)
    assert crop[20:60, 20:60].min() == 255
    assert crop[:19].max() == crop[61:].max() == 0
    assert (face.bbox, face.crop_aligned, face.crop_margin, face.crop_size_px) == ((40, 30, 80, 70), False, 0.5, 80)
    assert (face.score, face.label, face.valence, face.arousal) == (None, 1, 0.5, None)
    assert math.isnan(face.landmarks[0][0])


def test_a_box_beside_the_picture_is_no_face():
    result = import_image(Annotation(REF, 1, "train", (90, 0, 95, 9)), encoded(grey(), "PNG"), ImportRecipe(), None)
    assert (result.ledger.status, result.ledger.detail) == (Status.NO_FACE, "the given box lies outside of the picture")


SMALL, LARGE = Face((0, 0, 45, 45), labelled.FIVE_POINTS, 0.9), Face((60, 60, 120, 120), labelled.FIVE_POINTS, 0.8)


def test_the_face_that_is_meant_is_the_one_of_the_box_or_the_largest():
    assert best_face([LARGE, SMALL], None) == [LARGE]
    assert best_face([LARGE, SMALL], (5, 5, 40, 40)) == [SMALL]
    assert best_face([LARGE], (5, 5, 40, 40)) == []
    assert best_face([], None) == []


def test_a_detected_face_carries_the_label():
    data = encoded(grey(1, 120).convert("RGB"), "PNG")
    recipe = ImportRecipe(Recipe(detector=DetectorSettings("yunet", 40)), detect=True)
    (face,) = import_image(Annotation(REF, 2, "validation"), data, recipe, lambda _: [SMALL, LARGE]).faces
    assert (face.bbox, face.label, face.split, face.score) == (LARGE.box, 2, "validation", 0.8)
    result = import_image(Annotation(REF, 2, "validation"), data, recipe, lambda _: [])
    assert (result.ledger.status, result.ledger.split, result.faces) == (Status.NO_FACE, "validation", ())


def test_a_dropped_image_is_well_and_has_no_face_row():
    result = import_image(Annotation(REF, split="train", dropped="why"), encoded(grey(), "PNG"), ImportRecipe(), None)
    row = result.ledger
    assert (row.status, row.faces, row.faces_screened, row.detail) == (Status.OK, 0, 1, "dropped: why")
    no_face = Annotation(REF, split="train", dropped=affectnet.NO_FACE)
    assert import_image(no_face, encoded(grey(), "PNG"), ImportRecipe(), None).ledger.status == Status.NO_FACE


def test_a_huge_picture_is_refused_by_the_limits():
    recipe = ImportRecipe(Recipe(limits=Limits(max_pixels=1000)))
    row = import_image(Annotation(REF, 1), encoded(grey(), "PNG"), recipe, None).ledger
    assert (row.status, row.reason) == (Status.FAILED, Reason.TOO_LARGE)


def test_a_share_of_training_moves_to_validation_and_nothing_else_does():
    recipe = ImportRecipe(validation=0.5)
    moved = [
        import_image(Annotation(REF, 1, "train"), encoded(grey(n), "PNG"), recipe, None).faces[0].split
        for n in range(40)
    ]
    assert 8 < moved.count("validation") < 32
    assert set(moved) == {"train", "validation"}
    assert import_image(Annotation(REF, 1, "test"), encoded(grey(), "PNG"), recipe, None).faces[0].split == "test"
