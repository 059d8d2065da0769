"""The page and the card of a finished run: what they say adds up, nothing in them comes from outside or runs."""

import hashlib
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml

from dataset_tools import cards, figures, near_duplicates, parquet, report, storage, survey
from schemas.outcomes import Reason
from schemas.tables import FACES, LEDGER
from tests import toy

VOID = {"meta", "img", "br", "path", "rect"}


class Page(HTMLParser):
    """Reads a page strictly: every tag that opens closes. text: what a reader sees; tags: (name, attributes)."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags, self.open = "", [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


def page_of(out) -> Page:
    return Page(storage.read_bytes(report.write_report(str(out))).decode())


def many_faces(count: int) -> list[toy.Photo]:
    """Photos that are not alike, with a face each: scores from 0.6 to 0.999, sharpness 1, 2, 3 and so on."""
    photos = []
    for n, score in enumerate(np.linspace(0.6, 0.999, count)):
        key = f"in/{n:04d}.jpg"
        face = toy.face(key, "train", (10.0, 10.0, 60.0, 60.0), score=float(score), sharpness=n + 1.0)
        photos.append(toy.photo(key, "train", [face], hashlib.sha256(key.encode()).hexdigest()[:16]))
    return photos


# --- The page ---------------------------------------------------------------------------------------------------------


def test_the_page_states_counts_that_add_up(tmp_path):
    toy.build(str(tmp_path))
    text = page_of(tmp_path).text
    for said in (
        "6 faces from 8 images",
        "5 with faces 62 %1 without a face 12 %2 failed 25 %",
        "7 faces found6 written 86 %1 held back by the quality bounds 14 %",
        "3 train 50 %2 validation 33 %1 test 17 %",
        "3 files beside the photos were left alone: 2 .txt, 1 without a suffix.",
        "1 min 20 s with 2 workers",
        "21 November 2026, 01:40 UTC",
        "0.1 images/s",
        "not an image · 1in/page.jpgan HTML page",
        "happiness150 %",
    ):
        assert said in text
    assert json.loads((tmp_path / "summary.json").read_text())["fingerprint"] in text


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing(tmp_path):
    toy.build(str(tmp_path))
    page = page_of(tmp_path)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "form"}
    for _, attributes in page.tags:
        assert all(attributes.get(name, "data:").startswith("data:") for name in ("src", "href", "srcset"))
        assert not [name for name in attributes if name.startswith("on")]
    policy = next(attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert "url(" not in (tmp_path / "report.html").read_text()


EVIL = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>${headline}$command"


def test_names_from_outside_are_shown_and_never_run(tmp_path):
    face = toy.face(EVIL, "train", (10.0, 10.0, 60.0, 60.0))
    twin = toy.face(f"{EVIL}2", "train", (10.0, 10.0, 60.0, 60.0))
    data = [
        toy.photo(EVIL, "train", [face]),
        toy.photo(f"{EVIL}2", "train", [twin]),
        toy.failure(f"b{EVIL}", detail=EVIL),
    ]
    toy.build(str(tmp_path), [data], sources=(EVIL,), ignored={EVIL: 1})
    page = page_of(tmp_path)
    assert "script" not in {tag for tag, _ in page.tags}
    assert not [attributes for _, attributes in page.tags if "onerror" in attributes]
    assert page.text.count(EVIL) == 6  # source, ignored suffix, failed key, its detail, both near duplicates
    card = storage.read_bytes(cards.write_card(str(tmp_path))).decode()
    assert "<" not in card.replace("n<1K", "")


def test_sixty_faces_over_the_whole_range_of_scores_are_shown(tmp_path):
    toy.build(str(tmp_path), [many_faces(300)])
    found = survey.survey(str(tmp_path))
    scores = [pick.score for pick in found.contact]
    assert len(scores) == 60
    assert scores == sorted(scores, reverse=True)
    bands = np.bincount([int((score - 0.6) / 0.05) for score in scores], minlength=8)
    assert bands.min() >= 7
    assert len([tag for tag, _ in page_of(tmp_path).tags if tag == "img"]) == 60 + 12 + 12
    assert (tmp_path / "report.html").stat().st_size < 1_500_000


def test_the_faces_to_doubt_are_the_lowest_and_the_least_sharp(tmp_path):
    photos = many_faces(40)
    toy.build(str(tmp_path), [photos[::2], photos[1::2]])
    found = survey.survey(str(tmp_path))
    assert [pick.key for pick in found.lowest_score] == [f"in/{n:04d}.jpg" for n in range(12)]
    assert [pick.sharpness for pick in found.least_sharp] == list(range(1, 13))


def test_which_faces_are_shown_does_not_depend_on_the_shards(tmp_path):
    photos = many_faces(150)
    toy.build(str(tmp_path / "one"), [photos])
    toy.build(str(tmp_path / "three"), [photos[100:], photos[:50], photos[50:100]])
    one, three = survey.survey(str(tmp_path / "one")), survey.survey(str(tmp_path / "three"))
    assert one.contact == three.contact
    assert one.lowest_score == three.lowest_score
    assert one.least_sharp == three.least_sharp
    assert (one.sharpness.counts == three.sharpness.counts).all()


def test_each_pick_is_shown_with_its_own_crop(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ROW_GROUP_ROWS", 7)
    monkeypatch.setattr(survey, "_CROP_ROWS", 3)
    data = [
        toy.photo(
            f"in/{n}", "train", [toy.face(f"in/{n}", "train", (0, 0, 9, 9), image={"bytes": b"%d" % n, "path": ""})]
        )
        for n in range(40)
    ]
    toy.build(str(tmp_path), [data[:25], data[25:]])
    shown = {pick.key: crop for pick, crop in survey.read_crops(survey.survey(str(tmp_path)).contact)}
    assert shown == {f"in/{n}": b"%d" % n for n in range(40)}


def test_a_crop_that_cannot_be_read_leaves_a_gap(tmp_path):
    face = toy.face("in/a.jpg", "train", (0, 0, 9, 9), image={"bytes": b"not a picture", "path": ""})
    toy.build(str(tmp_path), [[toy.photo("in/a.jpg", "train", [face])]])
    assert ("span", "lost") in {(tag, attributes.get("class")) for tag, attributes in page_of(tmp_path).tags}


@pytest.mark.parametrize(
    "data",
    [
        [[]],
        [[toy.failure("in/a.jpg")]],
        [[toy.photo("in/a.jpg", "train")], [toy.photo("in/b.jpg", "train", phash="0" * 16)]],
        [[toy.photo("in/a.jpg", "train", screened=2)]],
    ],
    ids=["nothing", "all failed", "no faces", "all faces screened"],
)
def test_a_run_without_faces_has_a_page_and_a_card(tmp_path, data):
    toy.build(str(tmp_path), data, ignored={})
    text = page_of(tmp_path).text
    assert "No face was written" in text
    assert "0 faces from" in text
    assert "Faces to doubt" not in text
    config = yaml.safe_load(storage.read_bytes(cards.write_card(str(tmp_path))).decode().split("---")[1])
    assert [entry["config_name"] for entry in config["configs"]] == ["ledger"]


def test_more_failures_than_are_shown_are_counted(tmp_path):
    toy.build(str(tmp_path), [[toy.failure(f"in/{n}.jpg") for n in range(8)], [toy.failure("in/x", Reason.TOO_LARGE)]])
    text = page_of(tmp_path).text
    assert "9 images failed" in text
    assert "truncated · 8" in text
    assert "and 3 more" in text
    assert "in/4.jpg" in text
    assert "in/5.jpg" not in text


def test_photos_almost_the_same_in_two_splits_are_pointed_out(tmp_path):
    toy.build(str(tmp_path))
    text = page_of(tmp_path).text
    assert "2 photos form 1 group" in text
    assert "1 group reaches over more than one split" in text
    found = survey.survey(str(tmp_path)).duplicates
    assert found.examples[0][0] == 2
    assert {(twin.key, twin.split, twin.face.face_index) for twin in found.examples[0][1]} == {
        ("in/a.jpg", "train", 0),
        ("in/a copy.jpg", "test", 0),
    }


# --- Near duplicates --------------------------------------------------------------------------------------------------


def test_groups_are_those_that_comparing_every_pair_gives():
    rng = np.random.default_rng(1)
    hashes = rng.integers(0, 2**64, 400, dtype=np.uint64)
    for n in range(100):  # copies with 0 to 5 bits flipped
        flips = np.uint64(sum(1 << int(bit) for bit in rng.choice(64, n % 6, replace=False)))
        hashes[300 + n] = hashes[n] ^ flips
    near = np.bitwise_count(hashes[:, None] ^ hashes[None, :]) <= 3
    groups = near_duplicates.group_of(hashes)
    assert ((groups[:, None] == groups[None, :]) & (groups[:, None] >= 0) | np.eye(400, dtype=bool) == near).all()
    assert groups.max() + 1 == sum(n % 6 <= 3 for n in range(100))


def test_groups_are_numbered_by_their_first_photo_and_flat_pictures_stand_alone():
    hashes = near_duplicates.parse_hashes(
        ["00ff" * 4, "0" * 16, "0123456789abcdef", "00ff" * 4, "0" * 16, "0123456789abcdee"]
    )
    assert near_duplicates.group_of(hashes).tolist() == [0, -1, 1, 0, -1, 1]


def test_a_chain_is_one_group():
    base = 0x0123456789ABCDEF
    hashes = np.array([base, base ^ 0b111, base ^ 0b111111, base ^ 0xFFFF << 40], np.uint64)
    assert near_duplicates.group_of(hashes).tolist() == [0, 0, 0, -1]


def test_a_hash_of_another_length_is_refused():
    with pytest.raises(ValueError):
        near_duplicates.parse_hashes(["0123"])


# --- Histograms -------------------------------------------------------------------------------------------------------


def test_a_histogram_counts_values_on_an_edge_upwards_and_those_beyond_in_the_end_bins():
    histogram = survey.Histogram.between(0, 1, 0.1)
    histogram.add(np.array([0.7, 0.3, -5, 1.0, 9, math.nan, math.inf]))
    assert histogram.counts.tolist() == [1, 0, 0, 1, 0, 0, 0, 1, 0, 2]


def test_quantiles_are_those_of_numpy_within_a_bin():
    values = np.random.default_rng(0).uniform(20, 900, 5000)
    histogram = survey.Histogram.between(3, 14, 1 / 8, log=True)
    histogram.add(values)
    for share in (0.05, 0.5, 0.95):
        assert abs(math.log2(histogram.quantile(share) / np.quantile(values, share))) < 1 / 8


def test_bars_hold_every_value_and_are_few():
    for scale in (0.5, 5, 500):
        histogram = survey.Histogram.between(-180, 180, 1)
        histogram.add(np.random.default_rng(0).normal(0, scale, 1000))
        first, width, bars = histogram.bars()
        assert sum(bars) == 1000
        assert 12 <= len(bars) <= 42
        assert first + width * len(bars) <= 360 + width


def test_an_empty_histogram_says_so():
    histogram = survey.Histogram.between(0, 1, 0.1)
    assert math.isnan(histogram.quantile(0.5))
    assert "No values." in figures.histogram(histogram, "Score", "")


def test_ticks_are_round_numbers():
    assert figures._ticks(18, 900, log=True) == [20, 50, 100, 200, 500]
    assert figures._ticks(0.6, 1.0, log=False) == [0.6, 0.7, 0.8, 0.9, 1.0]
    assert figures._ticks(-40, 50, log=False) == [-30, -15, 0, 15, 30, 45]


@pytest.mark.parametrize(
    ("count", "total", "said"),
    [(0, 0, "0 %"), (0, 9, "0 %"), (9, 9, "100 %"), (1, 10**6, "<0.1 %"), (999_999, 10**6, "99.9 %"), (1, 3, "33 %")],
)
def test_a_share_never_rounds_to_none_or_all(count, total, said):
    assert figures.share(count, total) == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.44, "0.4 s"), (59.7, "1 min 0 s"), (3725, "1 h 02 min"), (360_000, "100 h 00 min")]
)
def test_durations_read_like_speech(seconds, said):
    assert report.duration(seconds) == said


# --- The card ---------------------------------------------------------------------------------------------------------


def test_the_cards_front_matter_names_the_files_there_are(tmp_path):
    toy.build(str(tmp_path), toy.shards()[:2])
    front = yaml.safe_load(storage.read_bytes(cards.write_card(str(tmp_path))).decode().split("---")[1])
    assert front["size_categories"] == ["n<1K"]
    assert "license" not in front
    assert front["configs"] == [
        {
            "config_name": "faces",
            "default": True,
            "data_files": [
                {"split": "train", "path": "data/train-*.parquet"},
                {"split": "test", "path": "data/test-*.parquet"},
            ],
        },
        {"config_name": "ledger", "data_files": [{"split": "images", "path": "ledger/*.parquet"}]},
    ]
    for entry in front["configs"]:
        for files in entry["data_files"]:
            assert list(tmp_path.glob(files["path"]))


def test_the_card_explains_every_column_there_is():
    assert list(cards.COLUMNS["faces"]) == FACES.names
    assert list(cards.COLUMNS["ledger"]) == LEDGER.names


def test_the_card_tells_counts_recipe_and_fingerprint(tmp_path):
    toy.build(str(tmp_path))
    card = storage.read_bytes(cards.write_card(str(tmp_path))).decode()
    for said in (
        "6 faces from 8 images",
        "| … failed | 2 |",
        "| …… not\\_an\\_image | 1 |",
        "Detector: mtcnn, faces of 40 px and up",
        "aligned by five landmarks",
        "train 1, validation 0, test 0, seed 0",
        json.loads((tmp_path / "summary.json").read_text())["fingerprint"],
        "| `bbox` | 4 × float32 | x1, y1, x2, y2 in pixels of the upright photo |",
        "grants no licence",
    ):
        assert said in card


def test_a_source_cannot_break_out_of_the_card(tmp_path):
    toy.build(str(tmp_path), sources=("a|b`c`\n# Heading\n[x](y) *z* <b>",))
    card = storage.read_bytes(cards.write_card(str(tmp_path))).decode()
    assert r"a\|b\`c\` \# Heading \[x\](y) \*z\* &lt;b&gt;" in card
    assert not re.search(r"^# Heading", card, re.MULTILINE)


@pytest.mark.parametrize(("faces", "said"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**7, "10M<n<100M")])
def test_the_hubs_size_category_follows_the_number_of_faces(faces, said):
    assert f"- {said}\n" in cards._front_matter({"faces": faces, "splits": {}})


def test_snippets_say_what_can_be_loaded(tmp_path):
    toy.build(str(tmp_path), labels="pose", images=False)
    manifest = report.Manifest.from_json((tmp_path / "manifest.json").read_bytes())
    summary = json.loads((tmp_path / "summary.json").read_text())
    snippets = cards.loading_snippets("gs://b/out", manifest, summary)
    assert "{'train': 'gs://b/out/data/train-*.parquet'}" in snippets["Hugging Face datasets"]
    assert "yolo11n-pose.pt" in snippets["YOLO"]
    assert "first bring the photos" in snippets["YOLO"]
    for code in snippets.values():
        compile(code, "snippet", "exec")
