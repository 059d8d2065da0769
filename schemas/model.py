"""model.json: what a model takes and gives, so that training, evaluation and scoring prepare a face in one way.

The network itself takes uint8 pixels as they come (the scaling is its first layer), so nothing but size, colour and
crop recipe is left to agree on. It gives logits; probabilities are softmax(logits / temperature).
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

FORMAT = 1
COLOURS = ("rgb", "grey")
_Bytes = bytes


class ModelSpecError(ValueError):
    """A model.json that is not ours or lacks a value; one line."""


@dataclass(frozen=True)
class ModelSpec:
    """architecture: name in train.models. input_px: side of the square. colour: `rgb` (3 channels) or `grey` (1).

    equalise: histogram equalisation before the network. crop: the CropRecipe (as a dict) of the faces it was trained
    on. temperature: divides the logits, fitted on validation. threshold: a top-1 probability below it means "not sure".
    dataset_fingerprint: of the data set's faces. fingerprint: sha256 of model.keras.
    """

    architecture: str
    input_px: int
    colour: str
    label_set: str
    label_names: tuple[str, ...]
    crop: dict[str, Any]
    temperature: float = 1.0
    threshold: float = 0.0
    equalise: bool = False
    dataset_fingerprint: str = ""
    fingerprint: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.colour not in COLOURS:
            raise ModelSpecError(f"colour must be one of {', '.join(COLOURS)}, not {self.colour!r}")
        if not self.temperature > 0:
            raise ModelSpecError(f"temperature must be above 0, not {self.temperature}")

    def to_json(self) -> _Bytes:
        return (json.dumps(asdict(self), indent=2, sort_keys=True) + "\n").encode()

    @classmethod
    def from_json(cls, data: _Bytes) -> "ModelSpec":
        """Raises ModelSpecError for anything that `to_json` did not write."""
        try:
            values = json.loads(data)
            if values["format"] != FORMAT:
                raise ModelSpecError(f"model.json has format {values['format']}; this version reads {FORMAT}")
            return cls(**{**values, "label_names": tuple(values["label_names"])})
        except ModelSpecError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ModelSpecError("model.json is not one that facemill wrote") from None
