"""The classes of a map: their ids, names, colours and place in a nomenclature."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

NODATA = 0
"""The label of pixels that hold no class."""

MAX_CLASS_ID = 254
"""Largest class id of a model; 255 stays free, since many label rasters use it for 'unlabelled'."""

_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
# What terminals take for commands, XML can't hold, or is no text at all.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True, slots=True)
class LandClass:
    """One class of a legend.

    Parameters
    ----------
    class_id
        Its value in rasters and tables.
    name
        Its name, as shown in maps and tables; without line breaks and other control characters.
    colour
        ``#rrggbb``.
    parent
        ``class_id`` of the class above it in a nested nomenclature, or None at the top.
    """

    class_id: int
    name: str
    colour: str
    parent: int | None = None

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError(f"class {self.class_id} has no name")
        if found := _UNPRINTABLE.search(self.name):
            raise ValueError(f"the name of class {self.class_id} has the control character {found[0]!a}")
        if not _COLOUR.fullmatch(self.colour):
            raise ValueError(f"colour '{self.colour}' of class '{self.name}' is not of the form #rrggbb")

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Red, green and blue, 0 to 255."""
        return int(self.colour[1:3], 16), int(self.colour[3:5], 16), int(self.colour[5:7], 16)


@dataclass(frozen=True, slots=True)
class Legend:
    """Classes in the order of the model's output channels.

    Law: ``legend.class_ids[k]`` is the label of the pixels where channel ``k`` has the largest probability.

    Parameters
    ----------
    classes
        At least one.
    affinity
        By (class id of a small polygon, class id of a neighbour): how much a metre of their border counts when the
        neighbour that the polygon joins is chosen; 1 where nothing is said.

    Raises
    ------
    ValueError
        If there is no class, an id or a name stands twice, or a parent or an affinity names no class of the legend.
    """

    classes: tuple[LandClass, ...]
    affinity: Mapping[tuple[int, int], float] = field(default_factory=dict)
    _by_id: Mapping[int, LandClass] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.classes:
            raise ValueError("a legend needs at least one class")
        by_id = {c.class_id: c for c in self.classes}
        if len(by_id) != len(self.classes):
            raise ValueError("a class id stands twice in the legend")
        if len({c.name for c in self.classes}) != len(self.classes):
            raise ValueError("a class name stands twice in the legend")
        for c in self.classes:
            if c.parent is not None and (c.parent not in by_id or c.parent == c.class_id):
                raise ValueError(f"parent {c.parent} of class '{c.name}' is not another class of the legend")
        for (small, neighbour), weight in self.affinity.items():
            if small not in by_id or neighbour not in by_id or weight < 0:
                raise ValueError(f"the affinity {weight:g} of class {small} to class {neighbour} makes no sense")
        object.__setattr__(self, "_by_id", by_id)

    def __len__(self) -> int:
        return len(self.classes)

    def __iter__(self) -> Iterator[LandClass]:
        return iter(self.classes)

    def __getitem__(self, class_id: int) -> LandClass:
        return self._by_id[class_id]

    def check_labels(self) -> None:
        """Raise ValueError where a class id can't be a label of landseg's own maps."""
        for c in self.classes:
            if not 1 <= c.class_id <= MAX_CLASS_ID:
                raise ValueError(f"class id {c.class_id} of '{c.name}' is not within 1 to {MAX_CLASS_ID}")

    @property
    def class_ids(self) -> tuple[int, ...]:
        """Labels in channel order."""
        return tuple(c.class_id for c in self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in channel order."""
        return tuple(c.name for c in self.classes)
