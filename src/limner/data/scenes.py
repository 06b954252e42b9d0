"""Scenes: an endless data set that Limner draws itself, and a grammar that knows every true caption of each.

A scene holds one group of equal shapes, or two groups in a relation:

    a small red circle at the top left          one shape: its place is told
    three large blue stars                      several: scattered over the picture
    two small white squares above a big star    two groups: left of, right of, above, below

A scene is a pure function of (seed, split, index). Some combinations never occur in training (`HELD_OUT_KINDS`,
`HELD_OUT_RELATIONS`, `HELD_OUT_COUNTS`), though each of their parts does; the held-out splits hold one in every
scene. A recipe is chosen on the `validation` splits and reported on the `test` splits.

Positions and radii are fractions of the picture's side, x to the right and y downwards.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import Literal, NamedTuple, get_args

import numpy as np

from limner.data.records import Record, Splits, split_name
from limner.data.scene_drawing import COLOURS, SHAPES, Item, draw

Split = Literal["train", "validation", "validation-held-out", "test", "test-held-out"]

PIXELS = 64
"""Side of the pictures that records hold."""
SIZES = {"small": (0.070, 0.094), "large": (0.140, 0.172)}
"""Range of the radius."""
OPPOSITES = {"left": "right", "right": "left", "above": "below", "below": "above"}


class Kind(NamedTuple):
    """What a shape is like."""

    size: str
    colour: str
    shape: str


@dataclass(frozen=True)
class Group:
    """``len(spots)`` shapes of one kind, each with its centre and radius (x, y, r)."""

    kind: Kind
    spots: tuple[tuple[float, float, float], ...]

    @property
    def count(self) -> int:
        return len(self.spots)


# Every held-out kind has its colour and shape together in the other size, its size and colour in other shapes,
# and its size and shape in other colours, all in training: what must be new is only the combination.
HELD_OUT_KINDS = frozenset(
    Kind(*words.split())
    for words in (
        "small red star",
        "large yellow circle",
        "large green star",
        "small blue circle",
        "small white square",
        "large black triangle",
    )
)
HELD_OUT_RELATIONS = frozenset(
    {
        ("green", "triangle", "above"),
        ("blue", "square", "left"),
        ("white", "star", "right"),
        ("red", "circle", "below"),
    }
)
"""A shape of this colour never stands in this relation to anything, in training."""
HELD_OUT_COUNTS = frozenset({(2, "yellow", "square"), (3, "blue", "star"), (2, "black", "circle")})


@cache
def _held_out(kind: Kind, count: int, relation: str | None) -> bool:
    _, colour, shape = kind
    return (
        kind in HELD_OUT_KINDS
        or (colour, shape, relation) in HELD_OUT_RELATIONS
        or (count, colour, shape) in HELD_OUT_COUNTS
    )


@cache
def _held_out_changes(kind: Kind, count: int, relation: str | None) -> list[tuple[Kind, int]]:
    """The group with one size, colour, shape or count changed, where that is held out in this relation."""
    changes = [(kind._replace(size=size), count) for size in SIZES if size != kind.size]
    changes += [(kind._replace(colour=colour), count) for colour in COLOURS if colour != kind.colour]
    changes += [(kind._replace(shape=shape), count) for shape in SHAPES if shape != kind.shape]
    changes += [(kind, other) for other in COUNT_WORDS if other != count]
    return [change for change in changes if _held_out(*change, relation)]


@dataclass(frozen=True)
class Scene:
    """What is to be seen, and all that can be truly said of it.

    ``relation`` is that of the first group to the second ("left", "right", "above", "below"); None: one group.
    """

    key: tuple[int, Split, int]
    groups: tuple[Group, ...]
    relation: str | None

    @property
    def image_id(self) -> str:
        seed, split, index = self.key
        return f"scene-{seed}-{split}-{index:06d}"

    @property
    def relations(self) -> tuple[str | None, str | None]:
        """That of the first group to the second, and that of the second to the first."""
        return self.relation, OPPOSITES.get(self.relation or "")

    @property
    def held_out(self) -> bool:
        """Whether the scene has a combination that training never shows."""
        groups = zip(self.groups, self.relations, strict=False)
        return any(_held_out(group.kind, group.count, relation) for group, relation in groups)

    @cached_property
    def held_out_neighbours(self) -> list[Scene]:
        """What a scene of training would be with one size, colour, shape, count or relation changed, where that is
        held out."""
        neighbours = []
        for place, (group, relation) in enumerate(zip(self.groups, self.relations, strict=False)):
            for kind, count in _held_out_changes(group.kind, group.count, relation):
                other = Group(kind, group.spots[:1] * count)
                groups = (*self.groups[:place], other, *self.groups[place + 1 :])
                neighbours.append(Scene(self.key, groups, self.relation))
        if self.relation is not None:
            others = (Scene(self.key, self.groups, relation) for relation in OPPOSITES if relation != self.relation)
            neighbours += [scene for scene in others if scene.held_out]
        return neighbours

    def picture(self, pixels: int = PIXELS) -> np.ndarray:
        """The drawn scene: uint8 (pixels, pixels, 3). Background, outlines and noise are the scene's own."""
        items = [Item(g.kind.shape, g.kind.colour, *spot) for g in self.groups for spot in g.spots]
        return draw(items, self._random("picture"), pixels)

    @cached_property
    def _templates(self) -> list[list[tuple[str, ...]]]:
        return list(_templates(self))

    def captions(self, count: int | None = None, salt: object = "") -> list[str]:
        """``count`` different captions in varied wording; None: one to five, as a person would leave them.

        A scene of two groups is told from both ends in turn: what tells them apart is learned from the pair.

        Raises:
            ValueError: the grammar has fewer than ``count`` ways to say this scene.
        """
        rng = self._random(f"captions{salt}")
        count = rng.randint(1, 5) if count is None else count
        if count > FEWEST_WAYS and count > len(self.all_captions):
            raise ValueError(f"{self.image_id} can be said in {len(self.all_captions)} ways, not {count}.")
        chosen: dict[str, None] = {}
        turn = rng.randrange(len(self._templates))
        while len(chosen) < count:
            template = self._templates[turn % len(self._templates)]
            chosen[" ".join(map(rng.choice, template)).strip()] = None
            turn += 1
        return list(chosen)

    def untold(self, caption: str) -> set[tuple[int, str]]:
        """The words that could stand in a place of ``caption``, after the words before, only if the scene were one
        of its `held_out_neighbours`: (place, word), places counted in words."""
        words = tuple(caption.split())
        neighbours: set[tuple[int, str]] = set()
        for neighbour in self.held_out_neighbours:
            neighbours.update(*(_branches(template, words) for template in neighbour._templates))
        return neighbours.difference(*(_branches(template, words) for template in self._templates))

    @cached_property
    def all_captions(self) -> frozenset[str]:
        """Every caption that the grammar can say of this scene (some dozens to some hundreds)."""
        return frozenset(
            " ".join(words).strip() for template in self._templates for words in itertools.product(*template)
        )

    def accepts(self, caption: str) -> bool:
        """Whether ``caption`` is one of `all_captions`. Only case and spacing are forgiven."""
        return " ".join(caption.lower().split()) in self.all_captions

    def record(self) -> Record:
        return Record(self.picture(), self.captions(), self.image_id, split_name(self.key[1].split("-")[0]))

    def _random(self, purpose: str) -> random.Random:
        return random.Random(f"{self.key} {purpose}")


# ---- the grammar: a sentence takes one alternative of each slot ---------------------------------------------

FEWEST_WAYS = 8
"""Every scene can be said in at least so many ways: openings times size words."""
OPENINGS = ("", "", "there {is}", "a picture of", "we see")
"""The empty opening stands twice: most captions begin with what they name."""
SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
COUNT_WORDS = {1: ("a", "one"), 2: ("two",), 3: ("three",)}
RELATION_WORDS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
PLACES = {
    (0, 0): ("at the top left", "in the top left corner"),
    (1, 0): ("at the top",),
    (2, 0): ("at the top right", "in the top right corner"),
    (0, 1): ("on the left",),
    (1, 1): ("in the middle", "in the centre"),
    (2, 1): ("on the right",),
    (0, 2): ("at the bottom left", "in the bottom left corner"),
    (1, 2): ("at the bottom",),
    (2, 2): ("at the bottom right", "in the bottom right corner"),
}
"""Column and row of the third of the picture in which a lone shape has its centre."""


def _templates(scene: Scene) -> Iterator[list[tuple[str, ...]]]:
    first, *rest = scene.groups
    if scene.relation is not None:
        yield _sentence(first, [RELATION_WORDS[scene.relation], *_phrase(rest[0])])
        yield _sentence(rest[0], [RELATION_WORDS[OPPOSITES[scene.relation]], *_phrase(first)])
    elif first.count == 1:
        x, y, _ = first.spots[0]
        yield _sentence(first, [PLACES[int(3 * x), int(3 * y)]])
    else:
        yield _sentence(first, [])


def _sentence(subject: Group, rest: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    verb = "is" if subject.count == 1 else "are"
    return [tuple(opening.format(**{"is": verb}) for opening in OPENINGS), *_phrase(subject), *rest]


def _phrase(group: Group) -> list[tuple[str, ...]]:
    """The noun phrase: "two little red crosses"."""
    size, colour, shape = group.kind
    noun = shape if group.count == 1 else shape + ("es" if shape.endswith("s") else "s")
    return [COUNT_WORDS[group.count], SIZE_WORDS[size], (colour,), (noun,)]


def _branches(template: Sequence[tuple[str, ...]], said: tuple[str, ...]) -> set[tuple[int, str]]:
    """What a sentence may go on with at each place of ``said``, as long as it agrees with it: (place, word)."""
    branches: set[tuple[int, str]] = set()
    place = 0
    # The opening may be empty, and then the words after it come first: three slots are taken as one.
    for ways in (_ways(*template[:3]), *map(_ways, template[3:])):
        while ways:
            branches.update((place, word) for word in ways)
            if place == len(said) or said[place] not in ways:
                return branches
            ways, place = ways[said[place]], place + 1
    return branches


Ways = dict[str, "Ways"]
"""The words that may come next, each with what may come after it; none: the slots are filled."""


@lru_cache(maxsize=1024)
def _ways(*slots: tuple[str, ...]) -> Ways:
    """All ways to fill the slots. None of them begins with another one."""
    ways: Ways = {}
    for words in itertools.product(*slots):
        following = ways
        for word in " ".join(words).split():
            following = following.setdefault(word, {})
    return ways


def vocabulary() -> list[str]:
    """Every word of the grammar, sorted."""
    slots = [OPENINGS, *SIZE_WORDS.values(), *COUNT_WORDS.values(), *RELATION_WORDS.values(), *PLACES.values()]
    words = {word for slot in slots for choice in slot for word in choice.replace("{is}", "is are").split()}
    nouns = {shape + ending for shape in SHAPES for ending in ("", "es" if shape.endswith("s") else "s")}
    return sorted(words | nouns | set(COLOURS))


# ---- the generator ------------------------------------------------------------------------------------------


def make_scene(index: int, split: Split = "train", seed: int = 42) -> Scene:
    """The scene of this number: the same for the same arguments, on every machine.

    Raises:
        ValueError: there is no such split.
    """
    if split not in get_args(Split):
        raise ValueError(f"There is no split '{split}' of scenes; choose one of {', '.join(get_args(Split))}.")
    key = (seed, split, index)
    rng = random.Random(f"{key} content")
    wanted = split.endswith("held-out")
    while True:
        scene = _compose(key, rng, rng.randrange(3) if wanted else None)
        if scene is not None and scene.held_out == wanted:
            return scene


def scene_splits(train: int = 5000, validation: int = 500, test: int = 500, seed: int = 42) -> Splits:
    """A finite set of scenes as records, like every other data set; none has a held-out combination."""
    counts: dict[Split, int] = {"train": train, "validation": validation, "test": test}
    return Splits(**{split: [make_scene(i, split, seed).record() for i in range(n)] for split, n in counts.items()})


def _compose(key: tuple[int, Split, int], rng: random.Random, novelty: int | None) -> Scene | None:
    """Draws what is in the scene, then where; None where it found no room.

    ``novelty`` plants a held-out combination: 0 a kind, 1 a relation, 2 a count.
    """
    kinds = [_draw_kind(rng), _draw_kind(rng)]
    counts = [1, 1]
    related = 0.8 if key[1] == "train" else 0.6  # what is learned last is shown more often
    relation = rng.choice(list(OPPOSITES)) if rng.random() < related else None
    if relation is None:
        counts[0] = rng.choice((1, 1, 2, 3))
    elif rng.random() < 0.4:
        counts = [rng.randint(1, 3), rng.randint(1, 2)]
        rng.shuffle(counts)
    if novelty == 0:
        kinds[0] = rng.choice(sorted(HELD_OUT_KINDS))
    elif novelty == 1:
        colour, shape, relation = rng.choice(sorted(HELD_OUT_RELATIONS))
        kinds[0] = Kind(kinds[0].size, colour, shape)
    elif novelty == 2:
        counts[0], colour, shape = rng.choice(sorted(HELD_OUT_COUNTS))
        kinds[0] = Kind(kinds[0].size, colour, shape)
    if relation is None:
        spots = _lone_spot(kinds[0], rng) if counts[0] == 1 else _spots(kinds[0], counts[0], (0, 1), (0, 1), rng)
        return Scene(key, (Group(kinds[0], spots),), None) if spots else None
    if kinds[0] == kinds[1] or sum(counts) > 5:
        return None
    groups = _related(kinds, counts, relation, rng)
    return Scene(key, groups, relation) if groups else None


def _draw_kind(rng: random.Random) -> Kind:
    return Kind(rng.choice(list(SIZES)), rng.choice(list(COLOURS)), rng.choice(SHAPES))


Spots = tuple[tuple[float, float, float], ...]


def _lone_spot(kind: Kind, rng: random.Random) -> Spots:
    """One place well inside one of the nine thirds, so that its name is beyond doubt."""
    r = rng.uniform(*SIZES[kind.size])
    x, y = (min(max(rng.choice((0.2, 0.5, 0.8)) + rng.uniform(-0.07, 0.07), r), 1 - r) for _ in range(2))
    return ((x, y, r),)


def _related(kinds: Sequence[Kind], counts: Sequence[int], relation: str, rng: random.Random) -> tuple[Group, ...]:
    """Two groups on two sides of the middle; () where the relation would be in doubt.

    Along the relation's axis the groups do not overlap, and their means are at least twice as far apart there
    as across it: only one of the four relations can be said.
    """
    axis = 0 if relation in ("left", "right") else 1
    halves: list[tuple[float, float]] = [(0.0, 0.48), (0.52, 1.0)]
    if relation in ("right", "below"):
        halves.reverse()
    groups = []
    for kind, count, half in zip(kinds, counts, halves, strict=True):
        across = (0.0, 1.0)
        spots = _spots(kind, count, *((half, across) if axis == 0 else (across, half)), rng)
        if not spots:
            return ()
        groups.append(Group(kind, spots))
    means = [[sum(spot[k] for spot in group.spots) / group.count for k in (0, 1)] for group in groups]
    apart = [abs(first - second) for first, second in zip(*means, strict=True)]
    return tuple(groups) if apart[axis] >= 2 * apart[1 - axis] else ()


def _spots(kind: Kind, count: int, xs: tuple[float, float], ys: tuple[float, float], rng: random.Random) -> Spots:
    """``count`` places inside a rectangle that do not touch; () where there was no room."""
    spots: list[tuple[float, float, float]] = []
    for _ in range(12 * count):
        r = rng.uniform(*SIZES[kind.size])
        x, y = rng.uniform(xs[0] + r, xs[1] - r), rng.uniform(ys[0] + r, ys[1] - r)
        if all((x - other[0]) ** 2 + (y - other[1]) ** 2 > (r + other[2] + 0.03) ** 2 for other in spots):
            spots.append((x, y, r))
            if len(spots) == count:
                return tuple(spots)
    return ()
