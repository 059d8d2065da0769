"""Copies over splits: found, counted, and what is to be left out because of them."""

from dataset_tools import leaks

A, B, C, D = "00ff00ff00ff00ff", "ffff0000ffff0000", "aaaa5555aaaa5555", "0123456789abcdef"
A_NEARLY = "00ff00ff00ff00fc"


def find(*images, near=True):
    """images: (key, content, perceptual hash, split)."""
    keys, contents, phashes, splits = zip(*images, strict=True) if images else ((), (), (), ())
    return leaks.find(keys, contents, phashes, splits, near=near)


def test_copies_are_left_out_of_the_splits_below_and_never_out_of_test():
    found = find(
        ("train copy", "x", A, "train"),
        ("val copy", "x", A, "validation"),
        ("test copy", "x", A, "test"),
        ("train of val", "y", B, "train"),
        ("val", "y", B, "validation"),
        ("alone", "z", C, "train"),
    )
    assert found.to_drop == {"train copy", "val copy", "train of val"}
    assert found.tainted == {"test copy", "val copy", "val"}
    assert (found.exact_groups, found.exact_images, found.copies) == (2, 5, 3)
    assert (found.near_groups, found.near_images) == (2, 5)


def test_copies_within_a_split_are_no_leaks():
    found = find(("1", "x", A, "train"), ("2", "x", A, "train"), ("3", "y", B, "test"))
    assert (found.exact_groups, found.copies, found.to_drop, found.tainted) == (0, 1, frozenset(), frozenset())


def test_near_copies_count_unless_only_exact_ones_are_meant():
    images = [("train", "x", A, "train"), ("test", "y", A_NEARLY, "test"), ("other", "z", D, "train")]
    found = find(*images)
    assert (found.exact_groups, found.near_groups, found.near_images, found.to_drop) == (0, 1, 2, {"train"})
    assert find(*images, near=False).to_drop == frozenset()
    assert find(*images, near=False).near_groups == 1


def test_flat_pictures_are_copies_only_when_they_are_equal():
    flat = "8000000000000000"
    found = find(("1", "x", flat, "train"), ("2", "y", flat, "test"), ("3", "x", flat, "test"))
    assert (found.exact_groups, found.near_groups, found.to_drop) == (1, 0, {"1"})


def test_a_set_without_images_has_no_leaks():
    found = find()
    assert (found.exact_groups, found.near_groups, found.copies) == (0, 0, 0)
