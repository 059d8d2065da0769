import json

import pytest

from schemas.manifest import Manifest, ManifestError, differences

MANIFEST = Manifest(
    "crop-faces", ("a", "b"), 3, 99, {".txt": 1}, "ff", 2, 2, {"x": {"y": 1}}, "2026-01-01T00:00:00+00:00"
)


def test_a_manifest_comes_back_as_it_was():
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"not json", b'{"format": 1}', b'{"format": 1, "sources": 3}'])
def test_what_is_no_manifest_is_refused(data):
    with pytest.raises(ManifestError, match="not a manifest of facemill"):
        Manifest.from_json(data)


def test_a_manifest_of_another_format_is_refused():
    values = json.loads(MANIFEST.to_json()) | {"format": 9}
    with pytest.raises(ManifestError, match="has format 9; this version reads 1"):
        Manifest.from_json(json.dumps(values).encode())


def test_differences_are_named_with_both_values():
    before = {"detector": {"name": "mtcnn", "min_face_px": 40}, "split": [1, 0, 0], "limit": None}
    now = {"detector": {"name": "mtcnn", "min_face_px": 20}, "split": (1, 0, 0), "limit": None}
    assert differences(before, now) == ["detector.min_face_px: was 40, now 20"]
    assert differences(before, json.loads(json.dumps(before))) == []
    assert differences({}, {"limit": 3}) == ["limit: was None, now 3"]
