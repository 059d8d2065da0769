"""The loop in one process: exact sums, the same epoch again after a death, what is frozen, and what is kept."""

from dataclasses import replace

import numpy as np
import pytest

from dataset_tools import metrics
from tests import train_toy
from train.augment import augment, generator, mixed
from train.data import Batch, DataError, Feed, Fold, class_factors, describe, load, make_feed, read_rows
from train.prefetch import prefetched
from train.recipes_io import Augment, Recipe

keras = pytest.importorskip("keras")
from train import loop, models  # noqa: E402
from train.checkpoint import read_state  # noqa: E402
from train.loop import Worker, train  # noqa: E402

# Keras asks a TensorFlow variable for an array in the way of numpy 1 (keras/src/backend/tensorflow/core.py).
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STRONG = Augment(0.5, 10.0, 0.05, 0.1, 0.1, 0.2, 0.3, 1.0, 0.3, 0.2)
RECIPE = Recipe(model="linear", input_px=16, batch_size=16, epochs=3, rate=0.003, seed=5)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return describe(train_toy.build(str(tmp_path_factory.mktemp("toy") / "set")))


@pytest.fixture(scope="module")
def rows(data):
    return read_rows(data, "train"), read_rows(data, "validation")


def feeds(rows, batch=16, **options):
    return make_feed(rows[0], train_toy.SPEC, batch, seed=5, **options), make_feed(
        rows[1], train_toy.SPEC, 8, shuffle=False
    )


def linear(dropout=0.0):
    keras.utils.set_random_seed(0)
    return models.build("linear", train_toy.SPEC, dropout=dropout)


def equal(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


# --- the feed


def test_a_data_set_says_what_it_is(data):
    assert (data.label_set, data.label_names) == ("toy-3", ("left", "middle", "right"))
    assert data.crop["margin"] == 0.2
    assert len(data.fingerprint) == 64


def test_shares_of_workers_are_equal_and_together_the_whole_set(rows):
    shares = [make_feed(rows[0], train_toy.SPEC, 8, rank=rank, world=2) for rank in range(2)]
    assert [one.rows for one in shares] == [23, 22]
    seen = [face.tobytes() for one in shares for b in one.batches(0, 3) for face in b.images[b.weights > 0]]
    assert len(seen) == len(set(seen)) == 45


def test_an_epoch_is_drawn_from_seed_epoch_and_rank_alone(rows):
    first, again = (list(feeds(rows)[0].batches(3, 3)) for _ in range(2))
    assert all(equal(a, b) for a, b in zip(first, again, strict=True))
    other = list(feeds(rows)[0].batches(4, 3))
    assert not np.array_equal(first[0].images, other[0].images)


def test_short_batches_are_filled_with_real_faces_of_weight_0(rows):
    batches = list(feeds(rows)[0].batches(0, 4))
    assert [int(one.weights.sum()) for one in batches] == [16, 16, 13, 0]
    assert {one.images.shape for one in batches} == {(16, 16, 16, 1)}
    assert all(one.images.reshape(16, -1).any(axis=1).all() for one in batches)


def test_a_set_that_does_not_fit_is_streamed_whole_and_in_another_order_each_epoch(rows):
    kept, streamed = feeds(rows)[0], feeds(rows, memory_bytes=1)[0]
    whole = [
        sorted(face.tobytes() for b in one.batches(epoch, 3) for face in b.images[b.weights > 0])
        for one, epoch in ((kept, 0), (streamed, 0), (streamed, 1))
    ]
    assert whole[0] == whole[1] == whole[2]
    first, again, other = (next(streamed.batches(epoch, 3)).images for epoch in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_streamed_shares_are_together_the_whole_set_and_targets_follow_faces(rows):
    shares = [make_feed(rows[0], train_toy.SPEC, 8, rank=rank, world=2, memory_bytes=1) for rank in range(2)]
    images, _ = load(rows[0], train_toy.SPEC)
    label_of = {face.tobytes(): label for face, label in zip(images, rows[0].labels, strict=True)}
    seen = [
        (face.tobytes(), int(target.argmax()))
        for one in shares
        for b in one.batches(0, 4)
        for face, target in zip(b.images[b.weights > 0], b.targets[b.weights > 0], strict=True)
    ]
    assert dict(seen) == label_of
    assert len(seen) == 45


def test_balanced_sampling_draws_rare_classes_as_often(rows):
    draw = class_factors(rows[0].counts(), 1.0)
    feed = make_feed(rows[0], train_toy.SPEC, 45, draw=draw)
    counts = sum(next(feed.batches(epoch, 1)).targets.sum(axis=0) for epoch in range(40))
    assert np.allclose(counts / counts.sum(), 1 / 3, atol=0.03)
    with pytest.raises(DataError, match="balance = sampling needs the faces in memory"):
        make_feed(rows[0], train_toy.SPEC, 45, draw=draw, memory_bytes=1)


def test_class_factors_count_all_classes_alike_and_leave_the_mean_weight_at_1():
    counts = np.array([10, 30, 0])
    assert np.allclose(class_factors(counts, 1.0), [2.0, 2 / 3, 0.0])
    assert np.allclose((class_factors(counts, 0.5) * counts).sum(), 40)
    assert np.allclose(class_factors(counts, 0.0), [1.0, 1.0, 0.0])


def test_folds_split_photos_and_cover_every_face_once(data):
    found = [read_rows(data, "validation", Fold(number, 3)) for number in range(3)]
    assert sum(len(one) for one in found) == 65
    training = read_rows(data, "train", Fold(0, 3))
    assert len(training) + len(found[0]) == 65


def test_votes_become_soft_targets(tmp_path):
    soft = describe(train_toy.build(str(tmp_path / "votes"), votes=(6, 3, 1)))
    assert np.allclose(read_rows(soft, "train", soft=True).targets[0], [0.6, 0.3, 0.1])
    wrong = describe(train_toy.build(str(tmp_path / "wrong"), votes=(6, 3, 1, 0)))
    with pytest.raises(DataError, match="has 4 votes for 3 classes"):
        read_rows(wrong, "train", soft=True)


def test_an_unreadable_face_is_left_out_and_counted(tmp_path):
    broken = {"bytes": b"no picture", "path": "x.png"}
    url = train_toy.build(str(tmp_path / "set"), train=9)
    table_rows = [train_toy.row("train", 100, 1), train_toy.row("train", 101, 1, image=broken)]
    train_toy.write(url, "train", 2, 3, table_rows)
    found = read_rows(describe(url), "train")
    feed = make_feed(found, train_toy.SPEC, 4)
    assert (len(found), feed.rows, feed.unreadable) == (11, 10, 1)
    streamed = make_feed(found, train_toy.SPEC, 4, memory_bytes=1)
    assert sum(b.weights.sum() for b in streamed.batches(0, 3)) == 10


def test_folders_that_cannot_be_trained_on_say_so(tmp_path):
    with pytest.raises(DataError, match="is no data set"):
        describe(str(tmp_path))
    unlabelled = describe(train_toy.build(str(tmp_path / "set"), validation=0))
    with pytest.raises(DataError, match="no labelled face in its validation split"):
        read_rows(unlabelled, "validation")


def test_prefetching_keeps_order_passes_errors_on_and_ends_its_thread():
    assert list(prefetched(iter(range(20)), 3)) == list(range(20))

    def failing():
        yield 1
        raise ValueError("no more")

    items = prefetched(failing(), 3)
    assert next(items) == 1
    with pytest.raises(ValueError, match="no more"):
        next(items)
    endless = prefetched(iter(int, 1), 2)
    next(endless)
    endless.close()


# --- augmentation


def test_the_same_step_draws_the_same_changes_and_another_rank_others():
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
    targets = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2, 0, 1]]
    first, again, other = (augment(images, targets, STRONG, generator(1, 2, 3, rank)) for rank in (0, 0, 1))
    assert equal(first, again)
    assert not np.array_equal(first[0], other[0])
    assert first[0].shape == images.shape
    assert first[0].dtype == np.uint8


def test_no_strength_changes_nothing_and_a_sure_mirror_only_mirrors():
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 1), np.uint8)
    targets = np.eye(4, dtype=np.float32)
    assert equal(augment(images, targets, Augment(), generator(0, 0, 0, 0)), (images, targets))
    mirrored, _ = augment(images, targets, Augment(mirror=1.0), generator(0, 0, 0, 0))
    assert np.array_equal(mirrored, images[:, :, ::-1])
    warped, _ = augment(images, targets, Augment(mirror=1.0, rotate_deg=1e-9), generator(0, 0, 0, 0))
    assert np.array_equal(warped, mirrored)


def test_mixed_targets_add_up_to_1_and_keep_the_face_the_greater_part():
    targets = np.eye(8, dtype=np.float32)
    images = np.arange(8, dtype=np.uint8)[:, None, None, None] * np.ones((8, 2, 2, 1), np.uint8)
    blended, shares = mixed(images, targets, 0.4, generator(0, 0, 0, 0))
    assert np.allclose(shares.sum(axis=1), 1)
    assert (shares[np.arange(8), np.arange(8)] >= 0.5).all()
    assert np.allclose(blended[:, 0, 0, 0], shares @ np.arange(8), atol=0.51)


# --- the loop


def test_training_learns_and_keeps_the_best_epoch(rows):
    model = linear()
    state = train(
        Recipe(model="linear", input_px=16, batch_size=16, epochs=12, rate=0.01), model, *feeds(rows), Worker()
    )
    assert [row["epoch"] for row in state.history] == list(range(1, 13))
    best = max(state.history, key=lambda row: row["val_macro_f1"])
    assert best["val_macro_f1"] > 0.9
    assert best["val_macro_f1"] == state.best_value
    assert equal(model.get_weights(), state.best)
    images, _ = load(rows[1], train_toy.SPEC)
    predicted = np.asarray(model(images)).argmax(-1)
    assert metrics.macro_f1(metrics.confusion_matrix(rows[1].labels, predicted, 3)) == pytest.approx(state.best_value)


def test_a_run_that_died_continues_to_the_same_weights_with_everything_random_on(rows, tmp_path):
    recipe = replace(RECIPE, augment=STRONG, ema=0.9, balance="weights", label_smoothing=0.1, epochs=4)
    counts = rows[0].counts()
    undisturbed = train(recipe, linear(0.3), *feeds(rows), Worker(), counts)

    class Killed(Exception):
        pass

    def save(row, write):
        write(str(tmp_path))
        if row["epoch"] == 2:
            raise Killed

    with pytest.raises(Killed):
        train(recipe, linear(0.3), *feeds(rows), Worker(save=save), counts)
    assert read_state(str(tmp_path)).epoch == 2
    keras.utils.set_random_seed(99)
    model = models.build("linear", train_toy.SPEC, dropout=0.3)
    again = train(recipe, model, *feeds(rows), Worker(restore=str(tmp_path)), counts)
    assert equal(again.best, undisturbed.best)

    assert [row["val_loss"] for row in again.history] == [row["val_loss"] for row in undisturbed.history]
    assert len(again.history) == 4


def test_fillers_have_no_part_in_the_result(rows):
    def with_noise(feed):
        def batches(epoch, steps):
            for images, targets, weights in feed.batches(epoch, steps):
                yield Batch(np.where(weights[:, None, None, None] > 0, images, 255).astype(np.uint8), targets, weights)

        return Feed(feed.rows, feed.batch, batches)

    training, held_out = feeds(rows)
    first = train(RECIPE, linear(), training, held_out, Worker())
    second = train(RECIPE, linear(), with_noise(training), held_out, Worker())
    assert equal(first.best, second.best)


def test_the_first_stage_trains_the_head_alone_and_the_second_starts_from_its_best(rows, tmp_path):
    model, kept = train_toy.tiny_model(), train_toy.tiny_model()
    before = [one.copy() for one in models.base_of(model).get_weights()]
    seen = []

    def save(row, write):
        if (row["stage"], row["epoch"]) != ("main", 2):  # by then the state holds the best again, maybe the head's
            write(str(tmp_path))
            kept.set_weights(read_state(str(tmp_path)).weights)
            seen.append((row["stage"], equal(models.base_of(kept).get_weights(), before)))

    recipe = Recipe(input_px=16, batch_size=16, head_epochs=2, epochs=2, rate=0.01)
    state = train(recipe, model, *feeds(rows), Worker(save=save))
    assert seen == [("head", True), ("head", True), ("main", False)]
    assert [row["stage"] for row in state.history] == ["head", "head", "main", "main"]


def test_early_stopping_ends_after_patience_and_leaves_the_best(rows):
    recipe = Recipe(model="linear", input_px=16, batch_size=16, epochs=30, rate=1e-12, patience=2)
    state = train(recipe, linear(), *feeds(rows), Worker())
    assert [row["best"] for row in state.history] == [True, False, False]


def test_batchnorm_statistics_become_the_mean_of_all_workers():
    model = train_toy.tiny_model()
    (norm,) = models.batchnorms(model)
    norm.moving_mean.assign([1.0, 2.0, 3.0, 4.0])
    other = np.array([3.0, 2.0, 1.0, 0.0, 1.0, 1.0, 1.0, 3.0])
    loop._average_statistics(model, Worker(world=2, all_reduce=lambda own: own + other))
    assert np.array_equal(norm.moving_mean, [2.0, 2.0, 2.0, 2.0])
    assert np.array_equal(norm.moving_variance, [1.0, 1.0, 1.0, 2.0])


def test_averaged_weights_are_kept_with_averaged_statistics(rows):
    recipe = replace(RECIPE, ema=0.2, epochs=1, rate=1e-12)
    state = train(recipe, train_toy.tiny_model(), *feeds(rows), Worker())
    twin = train_toy.tiny_model()
    (norm,) = models.batchnorms(twin)
    mean = np.asarray(norm.moving_mean).copy()
    for decay, batch in zip((2 / 11, 0.2, 0.2), feeds(rows)[0].batches(0, 3), strict=True):
        twin(batch.images, training=True)
        mean += (1 - decay) * (np.asarray(norm.moving_mean) - mean)
    newest = np.asarray(norm.moving_mean).copy()
    twin.set_weights(state.best)
    assert np.allclose(norm.moving_mean, mean, atol=1e-6)
    assert not np.allclose(norm.moving_mean, newest, atol=1e-4)


def test_the_rate_warms_up_and_falls_along_a_cosine():
    recipe = Recipe(warmup_epochs=1, final_rate=0.1)
    rates = [loop.rate_at(recipe, 1.0, step, 30, 10) for step in (0, 9, 10, 20, 30)]
    assert np.allclose(rates, [0.1, 1.0, 1.0, 0.55, 0.1])
    assert loop.rate_at(Recipe(schedule="constant"), 0.5, 29, 30, 10) == 0.5


def test_a_loss_that_is_no_number_names_the_rate(rows):
    recipe = Recipe(model="linear", input_px=16, batch_size=16, epochs=1, rate=1e38, optimizer="sgd")
    with pytest.raises(loop.TrainError, match=r"the loss of epoch 1 is (nan|inf): lower the rate"):
        train(recipe, linear(), *feeds(rows), Worker())


def test_more_workers_than_faces_is_one_line(rows):
    small = rows[0].take(np.arange(1)), rows[1]
    worker = Worker(rank=0, world=2, all_reduce=lambda own: own)
    with pytest.raises(loop.TrainError, match="2 workers for 1 faces leave one without any"):
        train(RECIPE, linear(), *feeds(small, rank=0, world=2), worker)
