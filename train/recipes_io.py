"""Training recipes: a TOML file and `--set key=value` overrides in, one frozen Recipe out. Standard library only.

Everything that decides what a training run gives is a field here, so that a run can be compared with the one it is to
continue, and the model card can state it. An unknown key is an error that names the near ones: a misspelt learning
rate must not train for a night with the default.
"""

import difflib
import tomllib
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from dataset_tools import storage

FOLDER = Path(__file__).parent / "recipes"
_CHOICES = {
    "colour": ("rgb", "grey"),
    "optimizer": ("adam", "adamw", "sgd"),
    "schedule": ("cosine", "constant"),
    "balance": ("none", "weights", "sampling"),
    "monitor": ("macro_f1", "accuracy", "balanced_accuracy", "loss"),
    "precision": ("float32", "mixed"),
}


class RecipeError(ValueError):
    """A recipe that does not exist or holds a key or value it cannot; one line that names the next step."""


@dataclass(frozen=True)
class Augment:
    """Strengths of the random changes of a training face; 0 is off. See train.augment for what each does.

    mirror: probability. rotate_deg: largest angle. shift: largest, as a fraction of the side. zoom: largest relative
    change of scale. brightness: largest change, as a fraction of 255. contrast: largest relative change. blur, erase:
    probability. blur_px: largest sigma. mixup: alpha of the Beta distribution.
    """

    mirror: float = 0.0
    rotate_deg: float = 0.0
    shift: float = 0.0
    zoom: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    blur: float = 0.0
    blur_px: float = 1.0
    erase: float = 0.0
    mixup: float = 0.0


@dataclass(frozen=True)
class Crop:
    """How to cut faces from photos so that they stand as in a data set that came as crops and does not say it.

    framing: `upright` or `aligned`, "" is not stated. margin: as in dataset_tools.crop.
    """

    framing: str = ""
    margin: float = 0.0

    def __post_init__(self) -> None:
        if self.framing not in ("", "upright", "aligned"):
            raise RecipeError(f"crop.framing must be upright or aligned, not {self.framing!r}")
        if not 0 <= self.margin <= 2:
            raise RecipeError(f"crop.margin must be from 0 to 2, not {self.margin}")


@dataclass(frozen=True)
class Recipe:
    """model: name in train.models. weights: "" from scratch, or a path or URL. batch_size: of all workers together.

    head_epochs, head_rate: first stage, with the pretrained base frozen. epochs, rate: of the main stage.
    frozen_batchnorm: BatchNorm keeps the base's statistics in the main stage. warmup_epochs: linear, from 0.
    final_rate: where the cosine ends, as a fraction of the rate.
    balance, balance_power: weights or draws by class count to the minus power: 1 counts all classes alike, 0.5 is
    half-way. soft_labels: part of a target that the annotators' votes make, 1 is the votes alone. soft_translate: the
    votes are another jury's than the labels (train.votes). teacher, teacher_part: a model folder, path or URL, and the
    part of a target that this model's chances make (distillation). ema: decay of the averaged weights that are
    validated and kept, 0 is off. patience: epochs without a better `monitor` before a stage ends, 0 is never.
    mirrored: the model that is written averages over a face and its mirror image, at twice the time of one.
    memory_gb: of decoded faces in each worker; a larger set is streamed. precision: `mixed` computes in bfloat16 where
    the processor is fast at it (a GPU, or a CPU with AMX), and in float32 elsewhere. jit: on a GPU only, since it is
    slower on a CPU.
    """

    model: str = "compact48"
    input_px: int = 48
    colour: str = "grey"
    equalise: bool = False
    weights: str = ""
    dropout: float = 0.2
    batch_size: int = 128
    head_epochs: int = 0
    head_rate: float = 1e-3
    epochs: int = 30
    rate: float = 1e-3
    frozen_batchnorm: bool = False
    optimizer: str = "adam"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup_epochs: float = 0.0
    final_rate: float = 0.01
    label_smoothing: float = 0.0
    balance: str = "none"
    balance_power: float = 1.0
    soft_labels: float = 0.0
    soft_translate: bool = False
    teacher: str = ""
    teacher_part: float = 0.5
    ema: float = 0.0
    patience: int = 0
    monitor: str = "macro_f1"
    mirrored: bool = False
    precision: str = "float32"
    jit: bool = False
    memory_gb: float = 4.0
    seed: int = 0
    crop: Crop = field(default_factory=Crop)
    augment: Augment = field(default_factory=Augment)

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise RecipeError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        for name in ("input_px", "batch_size", "epochs"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} must be 1 or more, not {getattr(self, name)}")
        for name in ("dropout", "label_smoothing", "ema", "final_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise RecipeError(f"{name} must be from 0 to below 1, not {getattr(self, name)}")
        for name in ("soft_labels", "teacher_part"):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"{name} is a part from 0 to 1, not {getattr(self, name)}")
        if not (self.rate > 0 and self.head_rate > 0):
            raise RecipeError("rate and head_rate must be above 0")
        for name in ("mirror", "blur", "erase"):
            if not 0 <= getattr(self.augment, name) <= 1:
                raise RecipeError(f"augment.{name} is a probability from 0 to 1, not {getattr(self.augment, name)}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Recipe":
        """Raises RecipeError for an unknown key or a value of another kind."""
        recipe = cls()
        for key, value in flat(values).items():
            recipe = _with(recipe, key, value)
        return recipe


@dataclass(frozen=True)
class About:
    """What a recipe's file says of itself, for the card and `--list`. terms: of the data it is made for."""

    title: str = ""
    command: str = ""
    expected_time: str = ""
    expected_result: str = ""
    terms: str = ""


def names() -> list[str]:
    """The recipes that ship."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name_or_file: str) -> tuple[Recipe, About]:
    """A recipe by the name of a shipped one, or a TOML file by path or URL. Raises RecipeError."""
    shipped = FOLDER / f"{name_or_file}.toml"
    if "/" not in name_or_file and shipped.exists():
        text = shipped.read_bytes()
    elif name_or_file.endswith(".toml"):
        text = storage.read_bytes(name_or_file)
    else:
        near = difflib.get_close_matches(name_or_file, names(), 3, 0.4) or names()
        raise RecipeError(f"no recipe is called {name_or_file!r}: choose {', '.join(near)}, or give a .toml file")
    try:
        values = tomllib.loads(text.decode())
    except ValueError as error:
        raise RecipeError(f"{name_or_file} is not valid TOML: {error}") from None
    about = values.pop("about", {})
    wrong = sorted(about.keys() - {one.name for one in fields(About)})
    if wrong:
        raise RecipeError(f"{name_or_file}: [about] has an unknown key {wrong[0]!r}")
    return Recipe.from_dict(values), About(**about)


def override(recipe: Recipe, settings: list[str]) -> Recipe:
    """`recipe` with each `key=value` applied, such as `epochs=3` or `augment.mirror=0`. Raises RecipeError."""
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise RecipeError(f"--set {setting}: write key=value, such as epochs=3")
        recipe = _with(recipe, key.strip(), value.strip())
    return recipe


def flat(values: dict[str, Any]) -> dict[str, Any]:
    """{"augment": {"mirror": 0.5}} → {"augment.mirror": 0.5}."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= {f"{key}.{name}": one for name, one in value.items()} if isinstance(value, dict) else {key: value}
    return found


def _with(recipe: Recipe, key: str, value: Any) -> Recipe:
    known = flat(asdict(recipe))
    if key not in known:
        ends = [name for name in known if name.split(".")[-1] == key]
        near = ends or difflib.get_close_matches(key, known, 3, 0.5)
        step = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
        raise RecipeError(f"unknown recipe key {key!r}: {step}")
    typed = _typed(key, value, type(known[key]))
    table, _, name = key.rpartition(".")
    if table:
        return replace(recipe, **{table: replace(getattr(recipe, table), **{name: typed})})
    return replace(recipe, **{key: typed})


def _typed(key: str, value: Any, kind: type) -> Any:
    """A TOML value, or the text of the command line, as the field's kind; 1 is a fine float, 1.5 no fine int."""
    if isinstance(value, kind) and not (kind is not bool and isinstance(value, bool)):
        return value
    try:
        if kind is bool:
            return {"true": True, "false": False}[value.lower()]
        if isinstance(value, bool):
            raise ValueError
        if kind is int and isinstance(value, float):
            raise ValueError
        if kind is str:
            raise ValueError
        return kind(value)
    except (ValueError, KeyError, AttributeError, TypeError):
        wanted = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text"}[kind.__name__]
        raise RecipeError(f"{key} must be {wanted}, not {value!r}") from None
