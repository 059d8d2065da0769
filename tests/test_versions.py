"""Versions of workers elsewhere: what differs is told in one line, and refused where the work would fail."""

from importlib import metadata

import pytest

from schemas import versions
from schemas.versions import VersionError, compare, installed_versions, unlike

HERE = {"python": "3.12.4", "facemill": "0.2.0", "numpy": "2.4.0"}


def test_what_is_installed_is_listed_and_the_rest_left_out():
    found = installed_versions(("numpy", "facemill", "a-package-that-nobody-has"))
    assert found.keys() == {"python", "numpy", "facemill"}
    assert found["numpy"] == metadata.version("numpy")


def test_each_difference_is_named_with_both_versions():
    assert unlike(HERE, HERE | {"ray": "2.0"}) == []
    assert unlike(HERE, {"python": "3.12.4", "numpy": "2.3.0"}) == [
        "facemill missing there, 0.2.0 here",
        "numpy 2.3.0 there, 2.4.0 here",
    ]


def test_equal_versions_are_no_news():
    assert compare(HERE, dict(HERE), "Beam") is None


def test_another_package_is_told():
    line = compare(HERE, HERE | {"numpy": "2.3.0", "python": "3.12.9"}, "tcp://head:8786")
    assert line == (
        "the workers of tcp://head:8786 differ: python 3.12.9 there, 3.12.4 here; numpy 2.3.0 there, 2.4.0 here; "
        "results may differ in single pixels"
    )


@pytest.mark.parametrize(
    ("there", "named"),
    [
        (HERE | {"facemill": "0.1.0"}, "facemill 0.1.0 there, 0.2.0 here"),
        ({"python": "3.12.4", "numpy": "2.4.0"}, "facemill missing there, 0.2.0 here"),
        (HERE | {"python": "3.11.9"}, "python 3.11.9 there, 3.12.4 here"),
        (HERE | {"python": "3.1.4"}, "python 3.1.4 there, 3.12.4 here"),
    ],
)
def test_another_release_of_this_project_or_of_python_is_refused(there, named):
    with pytest.raises(VersionError) as raised:
        compare(HERE, there, "Beam")
    assert str(raised.value) == (
        f"the workers of Beam differ: {named}: install the same on both: uv pip install -c requirements.lock facemill"
    )


def test_a_beam_worker_compares_before_it_loads_anything(caplog):
    pytest.importorskip("apache_beam")
    from dataset_tools.faces import Recipe
    from infer.beam_score import FindFaces
    from infer.scoring import FaceSource, Scoring
    from schemas.model import ModelSpec

    spec = ModelSpec("tiny", 16, "grey", "toy", ("left", "right"), {})

    def worker(client):
        return FindFaces(Scoring("out", "model", "onnx", FaceSource(Recipe(), spec, detect=False), 10, client))

    here = versions.installed_versions()
    worker(here).setup()
    assert caplog.messages == []
    worker(here | {"pyarrow": "1.0"}).setup()
    (told,) = caplog.messages
    assert told.startswith("the workers of Beam differ: pyarrow ")
    with pytest.raises(VersionError, match=r"facemill .* there, 9\.9 here"):
        worker(here | {"facemill": "9.9"}).setup()
