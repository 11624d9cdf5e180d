"""How each ImageNet class relates to a target: presets of WordNet 3.0 ids (wnids), class lists.

A wnid is "n" and the offset of a noun synset in WordNet 3.0, whose files are ordered by topic: all
animals are together, species and breeds after general words such as "pet".
"""

import functools
import re
from dataclasses import dataclass

from pipeline import storage
from pipeline.dataset.schema import LabelState, Stratum
from pipeline.errors import ConfigError
from pipeline.sources.readers.text import decode_text


@dataclass(frozen=True)
class ClassRules:
    """Sets of wnids, and ranges of WordNet offsets, by their relation to one target."""

    targets: frozenset[str] = frozenset()
    ambiguous: frozenset[str] = frozenset()  # may be the target: used on neither side
    near: frozenset[str] = frozenset()  # easily taken for the target, and never it
    general: frozenset[str] = frozenset()  # classes that include the target and much else
    general_offsets: range = range(0)  # likewise
    mid: tuple[range, ...] = ()
    excludes_target: range = range(0)  # an image of this class does not show the target
    elsewhere: Stratum | None = None  # of every other class

    def stratum(self, wnid: str) -> Stratum | None:
        if wnid in self.near:
            return "near"
        if self._is_general(wnid):
            return None
        if any(_offset(wnid) in offsets for offsets in self.mid):
            return "mid"
        return self.elsewhere

    def label_state(self, wnid: str) -> LabelState:
        """Of a class that is neither target nor ambiguous."""
        is_other = _offset(wnid) in self.excludes_target and not self._is_general(wnid)
        return "verified_absent" if is_other or wnid in self.near else "unknown"

    def _is_general(self, wnid: str) -> bool:
        return wnid in self.general or _offset(wnid) in self.general_offsets


def _offset(wnid: str) -> int:
    return int(wnid[1:])


def _wnids(offsets: str) -> frozenset[str]:
    return frozenset(f"n{offset}" for offset in offsets.split())


_CAT = ClassRules(
    # The subtree of n02121808, domestic cat. ILSVRC-2012 has five of them.
    targets=_wnids(
        "02121808 02122298 02122430 02122510 02122580 02122725 02122810 02122878 02122948 "
        "02123045 02123159 02123242 02123394 02123478 02123597 02123785 02123917 02124075 "
        "02124157 02124313 02124484"
    ),
    ambiguous=_wnids("02120997 02121620"),  # feline; cat, true cat
    # Wild felids from wildcat to Smilodon, then lion cub and tiger cub.
    near=_wnids(
        "02124623 02125010 02125081 02125311 02125494 02125689 02125872 02126028 02126139 "
        "02126317 02126640 02126787 02127052 02127292 02127381 02127482 02127586 02127678 "
        "02127808 02128385 02128598 02128669 02128757 02128925 02129165 02129463 02129530 "
        "02129604 02129837 02129923 02129991 02130086 02130308 02130545 02130925 "
        "01322898 01323068"
    ),
    # Ancestors of cat and words for a way of life: animal; chordate, vertebrate, amniote; mammal,
    # female mammal, placental, livestock, yearling; carnivore, omnivore; predator, prey;
    # tetrapod, quadruped; digitigrade mammal.
    general=_wnids(
        "00015388 01466257 01471682 01472303 01861778 01862399 01886756 01887474 01888181 "
        "02075296 02075612 02152740 02152881 02156732 02156871 02507148"
    ),
    # Other four-legged animals: canines to meerkats; rabbits, rodents, ungulates, weasels,
    # primates, elephants and raccoons. Civets and genets, the most cat-like, are among them.
    mid=(range(2083346, 2139199), range(2323449, 2512053)),
    general_offsets=range(1314388, 1326291),  # pest, pet, young, kit and the like
    excludes_target=range(1314388, 2666196),  # all animals: noun.animal ends before abacus
    elsewhere="far",
)


PRESETS = {"cat": _CAT}

IMAGENET_1K, IMAGENET_22K = "imagenet-1k", "imagenet-22k"
_LIST_NAME = re.compile(r"imagenet-?(1k|12k|22k)")
_WNID = re.compile(r"n\d{8}")


def is_wnid(text: object) -> bool:
    return isinstance(text, str) and _WNID.fullmatch(text) is not None


@functools.lru_cache(maxsize=4)
def read_synsets(name_or_path: str) -> tuple[str, ...]:
    """Wnids of `imagenet-1k`, `-12k`, `-22k` or a file: one per line, before the first space."""
    if known := _LIST_NAME.fullmatch(name_or_path):
        # Imported here: it takes seconds, and few copies of ImageNet need it.
        from timm.data import ImageNetInfo

        return tuple(ImageNetInfo(f"imagenet-{known[1]}").label_names())
    try:
        text = decode_text(storage.read_bytes(name_or_path), name_or_path)
    except FileNotFoundError:
        text = ""
    wnids = tuple(line.split()[0] for line in text.splitlines() if line.strip())
    if not wnids or not all(map(is_wnid, wnids)):
        raise ConfigError(
            f"{name_or_path}: expected imagenet-1k, imagenet-12k, imagenet-22k or a file with one "
            "wnid per line, in order of class number; check `params.synsets`"
        )
    return wnids


def wnid_of(number: int, wnids: tuple[str, ...], where: str) -> str | None:
    """None for -1, the class of test images; raises ConfigError if the list is too short."""
    if number < 0:
        return None
    if number >= len(wnids):
        raise ConfigError(
            f"{where}: class {number}, but the list of classes has {len(wnids)}; give the copy's "
            "own as `params.synsets`, a file with one wnid per line"
        )
    return wnids[number]
