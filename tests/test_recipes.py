"""Recipes: a misspelt key never trains with a default, and each that ships says what to expect of it."""

from dataclasses import replace

import pytest

from train import recipes_io
from train.data import DataSet
from train.recipes_io import Augment, Recipe, RecipeError


@pytest.mark.parametrize("name", recipes_io.names())
def test_every_shipped_recipe_loads_and_says_command_time_and_result(name):
    recipe, about = recipes_io.load(name)
    assert f"--recipe {name}" in about.command
    assert all((about.title, about.expected_time, about.expected_result))
    assert recipe.epochs > 1
    assert bool(recipe.head_epochs) == bool(recipe.weights)


def test_the_recipes_that_were_asked_for_ship():
    asked = {"mobilenetv2_affectnet", "resnet34_fer2013", "resnet34_affectnet", "mobilenetv2_fer2013"}
    assert asked | {"resnet50_affectnet", "alexnet_affectnet", "compact48_fer2013"} == set(recipes_io.names())


def test_the_resnet34_recipe_for_affectnet_is_plain_sgd():
    recipe, _ = recipes_io.load("resnet34_affectnet")
    assert (recipe.optimizer, recipe.rate, recipe.momentum) == ("sgd", 0.001, 0.9)
    assert (recipe.batch_size, recipe.epochs, recipe.schedule) == (32, 50, "constant")


def test_values_are_overridden_by_name():
    recipe = recipes_io.override(Recipe(), ["epochs=3", "rate=0.5", "augment.mirror=1", "jit=true", "optimizer=sgd"])
    assert recipe == Recipe(epochs=3, rate=0.5, augment=Augment(mirror=1.0), jit=True, optimizer="sgd")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("epoch=3", "unknown recipe key 'epoch': did you mean epochs or head_epochs or warmup_epochs?"),
        ("mirror=0.5", "unknown recipe key 'mirror': did you mean augment.mirror?"),
        ("epochs", "--set epochs: write key=value, such as epochs=3"),
        ("epochs=1.5", "epochs must be a whole number, not '1.5'"),
        ("jit=yes", "jit must be true or false, not 'yes'"),
        ("colour=blue", "colour must be one of rgb, grey, not 'blue'"),
        ("augment.mirror=2", "augment.mirror is a probability from 0 to 1, not 2.0"),
        ("soft_labels=1.5", "soft_labels is a part from 0 to 1, not 1.5"),
        ("crop.framing=square", "crop.framing must be upright or aligned, not 'square'"),
        ("rate=0", "rate and head_rate must be above 0"),
        ("rate=nan", "rate and head_rate must be above 0"),
    ],
)
def test_an_override_that_makes_no_sense_is_one_line(setting, message):
    with pytest.raises(RecipeError) as raised:
        recipes_io.override(Recipe(), [setting])
    assert str(raised.value) == message


def test_an_unknown_key_in_a_file_names_the_near_one(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[augment]\nmiror = 0.5\n")
    with pytest.raises(RecipeError, match=r"unknown recipe key 'augment.miror': did you mean augment.mirror"):
        recipes_io.load(str(file))


def test_a_recipe_survives_its_dictionary():
    recipe, _ = recipes_io.load("compact48_fer2013")
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_an_unknown_recipe_names_the_near_ones():
    with pytest.raises(RecipeError, match="no recipe is called 'resnet34': choose resnet34_"):
        recipes_io.load("resnet34")


def test_a_recipe_states_the_crop_only_of_a_data_set_that_does_not():
    pytest.importorskip("keras")
    from train.job import make_spec

    recipe, _ = recipes_io.load("compact48_fer2013")
    as_they_came = DataSet("faces", "fer2013", ("anger", "disgust"), {}, "")
    upright = {"aligned": False, "margin": 0.0, "size_px": 48, "format": "jpeg", "quality": 95}
    assert make_spec(as_they_came, recipe).crop == upright
    assert make_spec(replace(as_they_came, crop={"margin": 0.3}), recipe).crop == {"margin": 0.3}
    assert make_spec(as_they_came, Recipe()).crop == {}
