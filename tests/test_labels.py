import pytest

from schemas import labels
from schemas.labels import UnknownLabelError, id_map, label_set


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("affectnet-8", "neutral happiness sadness surprise fear disgust anger contempt"),
        ("affectnet-7", "neutral happiness sadness surprise fear disgust anger"),
        ("fer2013", "anger disgust fear happiness sadness surprise neutral"),
        ("ferplus", "neutral happiness surprise sadness anger disgust fear contempt"),
        ("raf-db", "surprise fear disgust happiness sadness anger neutral"),
    ],
)
def test_each_set_keeps_the_order_of_its_published_ids(name, order):
    assert label_set(name).names == tuple(order.split())


def test_other_spellings_mean_the_same_class():
    assert labels.FER_2013.id_of("Happy") == 3
    assert labels.FER_2013.id_of("angry") == labels.FER_2013.id_of(" ANGER ") == 0


def test_a_class_whose_own_name_is_an_alias_elsewhere_is_found():
    assert labels.LabelSet("mine", ("happy", "angry")).id_of("Angry") == 1


def test_what_does_not_exist_is_refused_by_name():
    with pytest.raises(UnknownLabelError, match="'contempt' is no class of fer2013: it has anger, disgust"):
        labels.FER_2013.id_of("contempt")
    with pytest.raises(UnknownLabelError, match="unknown label set 'fer': choose affectnet-8"):
        label_set("fer")


def test_a_map_between_sets_goes_by_name_and_says_what_has_no_counterpart():
    assert id_map(labels.FER_2013, labels.AFFECTNET_8) == (6, 5, 4, 1, 2, 3, 0)
    assert id_map(labels.AFFECTNET_8, labels.FER_2013) == (6, 3, 4, 5, 2, 1, 0, None)
