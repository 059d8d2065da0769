"""What a scoring run remembers of an attempt that broke off: what was counted, and which image is to blame."""

import io
import tarfile
from collections import Counter

import cv2
import numpy as np

from dataset_tools.faces import Recipe
from dataset_tools.sources import list_images
from infer import score_journal
from infer.predictor import load_predictor
from infer.score_journal import Journal
from infer.scoring import FaceSource, read_pieces
from tests import toy_model


def test_a_resumed_unit_counts_what_is_passed_over_once(tmp_path):
    png = cv2.imencode(".png", np.full((16, 16, 3), 9, np.uint8))[1].tobytes()
    with tarfile.open(tmp_path / "in.tar", "w") as file:
        for name in ("a.txt", "1.png", "2.png", "b.json", "3.png", "c.txt", "4.png", "d.txt"):
            info = tarfile.TarInfo(name)
            info.size = len(png)
            file.addfile(info, io.BytesIO(png))
    spec = load_predictor(str(toy_model.folder(tmp_path / "toy"))).spec
    source = FaceSource(Recipe(), spec, detect=False)
    refs = list_images(str(tmp_path / "in.tar"), source.recipe.limits, whole=("tar",)).refs()

    def pieces(done):
        return [
            (piece.segment.number, [image.key[-5:] for image in piece.images], piece.ignored, piece.last)
            for piece in read_pieces(0, refs, source, lambda _: [], segment_images=2, done=done)
        ]

    # That another image follows is known only when it comes: what lies before it counts with the images before.
    first = (0, ["1.png", "2.png"], Counter({".txt": 1, ".json": 1}), False)
    second = (1, ["3.png", "4.png"], Counter({".txt": 2}), True)
    assert pieces(0) == [first, second]
    assert pieces(1) == [second]
    assert pieces(2) == [(2, [], Counter(), True)]  # a bundle that is run again though all of it is written


def die(journal, *keys):
    """An attempt that works on these images, in order, and breaks off at the last."""
    for key in keys:
        assert not journal.blamed(key)


def test_an_image_is_given_up_at_its_second_death(tmp_path):
    out = str(tmp_path)
    die(Journal(out, 3), "a", "b")  # nothing is noted yet
    die(Journal(out, 3), "a", "b")
    assert score_journal.given_up(out) == 0
    die(Journal(out, 3), "a", "b")
    assert score_journal.given_up(out) == 1
    journal = Journal(out, 3)
    assert [journal.blamed(key) for key in "abc"] == [False, True, False]


def test_who_was_ended_with_another_is_not_blamed(tmp_path):
    out = str(tmp_path)
    for unit in (1, 2):
        Journal(out, unit)
    for _ in range(3):
        for unit in (1, 2):
            die(Journal(out, unit), f"image-{unit}")
        assert len(score_journal.processes(out)) == 1  # both are this one
        score_journal.acquit(out, {-1})
        score_journal.acquit(out)
        assert score_journal.processes(out) == set()
    assert score_journal.given_up(out) == 0
    assert not Journal(out, 1).blamed("image-1")


def test_after_a_complete_segment_nothing_is_noted_until_the_next_death(tmp_path):
    out = str(tmp_path)
    Journal(out, 1)
    journal = Journal(out, 1)
    die(journal, "a", "b")
    journal.calm()
    before = (tmp_path / "attempts" / "000001.json").read_bytes()
    die(journal, "c", "d")
    assert (tmp_path / "attempts" / "000001.json").read_bytes() == before
    again = Journal(out, 1)
    die(again, "c", "d")
    assert (tmp_path / "attempts" / "000001.json").read_bytes() != before


def test_a_unit_that_is_complete_leaves_no_note(tmp_path):
    out = str(tmp_path)
    Journal(out, 1)
    score_journal.forget(out, 1)
    assert (score_journal.processes(out), score_journal.given_up(out)) == (set(), 0)
    assert not Journal(out, 1).careful
