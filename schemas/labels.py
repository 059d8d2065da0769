"""Expression label sets. Every public loader numbers the classes differently, so a label is always (label set, name).

Ids are positions in a set's `names`. The orders are those of the published data: AffectNet's annotation ids, the csv of
FER-2013, the vote columns of FER+ in their id order, RAF-DB's list (which counts from 1, here from 0).
"""

from dataclasses import dataclass, field


class UnknownLabelError(ValueError):
    """A label set or a class name that does not exist; the message names those that do."""


@dataclass(frozen=True)
class LabelSet:
    """name: how commands and files refer to it. names: class names, id 0 first. aliases: other spellings of a name."""

    name: str
    names: tuple[str, ...]
    aliases: dict[str, str] = field(default_factory=dict, hash=False)

    def id_of(self, label: str) -> int:
        """The id of a class name or alias, upper or lower case. Raises UnknownLabelError."""
        wanted = label.strip().lower()
        for name in (wanted, self.aliases.get(wanted), _ALIASES.get(wanted)):
            if name in self.names:
                return self.names.index(name)
        raise UnknownLabelError(f"{label!r} is no class of {self.name}: it has {', '.join(self.names)}")


_ALIASES = {
    "angry": "anger",
    "disgusted": "disgust",
    "fearful": "fear",
    "happy": "happiness",
    "sad": "sadness",
    "surprised": "surprise",
}

AFFECTNET_8 = LabelSet(
    "affectnet-8", ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")
)
AFFECTNET_7 = LabelSet("affectnet-7", AFFECTNET_8.names[:7])
FER_2013 = LabelSet("fer2013", ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral"))
FER_PLUS = LabelSet("ferplus", ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt"))
RAF_DB = LabelSet("raf-db", ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral"))

LABEL_SETS = {labels.name: labels for labels in (AFFECTNET_8, AFFECTNET_7, FER_2013, FER_PLUS, RAF_DB)}


def label_set(name: str) -> LabelSet:
    """The label set of this name. Raises UnknownLabelError, which names the known ones."""
    try:
        return LABEL_SETS[name.lower()]
    except KeyError:
        raise UnknownLabelError(f"unknown label set {name!r}: choose {', '.join(LABEL_SETS)}") from None


def id_map(source: LabelSet, target: LabelSet) -> tuple[int | None, ...]:
    """For each id of `source` the id of the same class in `target`, or None where it has no counterpart there."""
    return tuple(target.names.index(name) if name in target.names else None for name in source.names)
