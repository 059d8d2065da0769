"""A run that stands in OUT is continued, refused or replaced, and replaced only when the new one is sure to start."""

import pytest

from dataset_tools import storage
from dataset_tools.limits import Limits
from dataset_tools.run_folder import FolderError, RunFolder
from dataset_tools.sources import list_images
from tests.collection import crop_faces
from tests.test_sources import make_tar
from workflows.listed_run import begin, standing


def test_a_run_is_continued_by_its_own_command_with_its_own_parameters(tmp_path):
    listing = list_images(make_tar(tmp_path / "x.tar", [(f"{n}.jpg", b"x") for n in range(5)]), Limits())
    folder = RunFolder(str(tmp_path / "out"))
    assert standing(folder, "score", ["x.tar"], {"size": 1}) is None
    manifest = begin(folder, "score", ["x.tar"], {"size": 1}, listing, 2)
    assert (manifest.images, manifest.shards) == (5, 3)
    found, again = standing(folder, "score", ["x.tar"], {"size": 1})
    assert again == manifest
    assert found.refs() == listing.refs()
    with pytest.raises(FolderError, match="holds a run of score"):
        standing(folder, "crop-faces", ["x.tar"], {"size": 1})
    with pytest.raises(FolderError, match="size: was 1, now 2"):
        standing(folder, "score", ["x.tar"], {"size": 2})


def test_overwriting_with_a_source_that_is_not_there_keeps_what_stands(tmp_path):
    listing = list_images(make_tar(tmp_path / "x.tar", [("a.jpg", b"x")]), Limits())
    folder = RunFolder(str(tmp_path / "out"))
    begin(folder, "crop-faces", ["x.tar"], {}, listing, 2)
    storage.write_bytes(folder.at("done", "00000.json"), b"{}")
    done = crop_faces(tmp_path / "gone.tar", "--out", folder.out, "--overwrite")
    assert (done.returncode, "does not exist" in done.stderr) == (2, True)
    assert storage.exists(folder.at("done", "00000.json"))
