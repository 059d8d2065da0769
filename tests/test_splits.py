import pytest

from dataset_tools.splits import parse_fractions, split_of

HASHES = [f"{number:016x}" for number in range(20_000)]


def test_the_shares_come_out_as_asked_for():
    splits = [split_of(phash, (0.8, 0.1, 0.1)) for phash in HASHES]
    shares = [splits.count(name) / len(HASHES) for name in ("train", "validation", "test")]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.01)


def test_a_photo_stays_where_it_is_for_ever():
    hashes = ["0" * 16, "f" * 16, "8f2c4e1a90b3d657", "3", "4", "5"]
    assert [split_of(phash, (0.5, 0.25, 0.25)) for phash in hashes] == [
        "test",
        "train",
        "train",
        "train",
        "train",
        "test",
    ]


def test_a_seed_draws_another_split():
    before = [split_of(phash, (0.5, 0.25, 0.25)) for phash in HASHES[:100]]
    assert before != [split_of(phash, (0.5, 0.25, 0.25), seed=1) for phash in HASHES[:100]]


def test_nothing_falls_into_a_split_without_a_share():
    assert {split_of(phash, (0.5, 0.5, 0.0)) for phash in HASHES} == {"train", "validation"}
    assert {split_of(phash, (0.0, 0.0, 1.0)) for phash in HASHES[:100]} == {"test"}


@pytest.mark.parametrize("text", ["0.8,0.1", "0.8,0.1,0.2", "a,b,c", "1.1,-0.1,0", ""])
def test_fractions_that_do_not_add_up_are_refused(text):
    with pytest.raises(ValueError, match="three fractions that add up to 1"):
        parse_fractions(text)


def test_fractions_are_read():
    assert parse_fractions("0.8,0.1,0.1") == (0.8, 0.1, 0.1)
