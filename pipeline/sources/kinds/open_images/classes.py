"""Which Open Images classes are the target, its ancestors, near it or ambiguous.

Classes are named by MID or by display name. The classes below and above one come from the
hierarchy file (`bbox_labels_600_hierarchy.json`) and from the presets.
"""

import csv
import difflib
import functools
import gzip
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from pipeline import storage
from pipeline.dataset.schema import Stratum
from pipeline.errors import ConfigError
from pipeline.sources.readers.compression import DAMAGED, GZIP_MAGIC

_MID = re.compile(r"/[a-z]/[0-9a-z_]+")
_HEADER = ["LabelName", "DisplayName"]  # V6 and V7; V5 and before have none


@dataclass(frozen=True)
class TargetClasses:
    """Sets of MIDs by their relation to one target, and the ancestors of each."""

    roots: frozenset[str]  # the target's classes as named
    targets: frozenset[str]  # they and all below them
    ambiguous: frozenset[str]
    near: frozenset[str]
    mid: frozenset[str]
    lineage: Mapping[str, frozenset[str]]  # of each class that matters: itself and its ancestors
    known: frozenset[str] = frozenset()  # roots that a preset, a description or the hierarchy has

    @property
    def relevant(self) -> tuple[str, ...]:
        """Every class whose label matters, in a fixed order, the target's first."""
        return (*sorted(self.targets), *sorted(self.lineage.keys() - self.targets))

    def is_denied(self, mid: str, absent: Set[str]) -> bool:
        """Whether this class or one of its ancestors is absent."""
        return not absent.isdisjoint(self.lineage[mid])

    def is_absent(self, absent: Set[str]) -> bool:
        """Whether the target is absent: an absent breed does not rule out a cat."""
        return all(self.is_denied(root, absent) for root in self.roots)

    def most_specific(self, mids: Set[str]) -> str | None:
        """The deepest class of the target, else of the near, mid, ambiguous or other classes."""
        groups = (self.targets, self.near, self.mid, self.ambiguous)

        def rank(mid: str) -> tuple[int, int, str]:
            group = next((n for n, group in enumerate(groups) if mid in group), len(groups))
            return group, -len(self.lineage.get(mid, ())), mid

        return min(mids, key=rank, default=None)

    def stratum(self, mids: Set[str]) -> Stratum | None:
        if not self.near.isdisjoint(mids):
            return "near"
        return None if self.mid.isdisjoint(mids) else "mid"


def find_target_classes(
    target: str,
    classes: Sequence[str],
    *,
    near: Sequence[str] | None,
    mid: Sequence[str] | None,
    descriptions: Sequence[str],
    hierarchy: Sequence[str],
) -> TargetClasses:
    """`classes` (), and near and mid None, are those of the preset `target`.

    Raises ConfigError for a name that is unknown or means several classes.
    """
    names = functools.cache(lambda: list(_read_names(descriptions)))

    def resolved(texts: Sequence[str], setting: str) -> frozenset[str]:
        return frozenset(
            text if _MID.fullmatch(text) else _find(text, names(), setting) for text in texts
        )

    roots = resolved(classes, "params.target_classes") or _preset_root(target)
    parents = _read_parents(hierarchy)
    lineage = functools.cache(lambda mid: _closure(mid, parents))
    targets = roots | {mid for mid in parents if not roots.isdisjoint(lineage(mid))}
    presets = [preset for preset in PRESETS.values() if preset.root in roots]

    def named(texts: Sequence[str] | None, setting: str, preset: str) -> frozenset[str]:
        if texts is not None:
            return resolved(texts, setting) - targets
        return frozenset().union(*(getattr(each, preset) for each in presets)) - targets

    chosen_near = named(near, "params.near_classes", "near")
    chosen_mid = named(mid, "params.mid_classes", "mid") - chosen_near
    ambiguous = named(None, "", "ambiguous")
    mids = targets | chosen_near | chosen_mid | ambiguous
    mids |= frozenset().union(*map(lineage, targets))
    listed = {preset.root for preset in PRESETS.values()} | parents.keys()
    if not roots <= listed:
        listed |= {mid for mid, _ in names()}
    return TargetClasses(
        roots,
        targets,
        ambiguous,
        chosen_near,
        chosen_mid,
        {mid: lineage(mid) for mid in mids},
        known=roots & listed,
    )


def _preset_root(target: str) -> frozenset[str]:
    if target not in PRESETS:
        raise ConfigError(
            f"`params.target` {target!r} is none of {', '.join(PRESETS)}; "
            "give `params.target_classes`"
        )
    return frozenset({PRESETS[target].root})


def _read_names(uris: Sequence[str]) -> Iterator[tuple[str, str]]:
    """MID and display name of each distinct row."""
    seen = set()
    for uri in uris:
        for row in csv.reader(io.StringIO(_read_text(uri, "params.class_descriptions"))):
            if not row or row == _HEADER:
                continue
            if len(row) != 2 or not _MID.fullmatch(row[0]):
                raise ConfigError(
                    f"{uri}: a row is {','.join(row)[:80]!r}, expected a MID and a name; "
                    "check `params.class_descriptions`"
                )
            if tuple(row) not in seen:
                seen.add((row[0], row[1]))
                yield row[0], row[1]


def _find(text: str, names: Sequence[tuple[str, str]], setting: str) -> str:
    """The MID of a display name in any case; "Jaguar" finds "Jaguar (Animal)" if that is unique."""
    wanted = text.casefold()
    found = [each for each in names if each[1].casefold() == wanted]
    if not found:
        found = [each for each in names if each[1].casefold().startswith(f"{wanted} (")]
    mids = {mid for mid, _ in found}
    if len(mids) == 1:
        return found[0][0]
    if found:
        listed = ", ".join(f"{mid} ({name})" for mid, name in found)
        raise ConfigError(f"`{setting}` {text!r} may be {listed}; name the MID")
    if not names:
        raise ConfigError(
            f"`{setting}` {text!r} is not a MID such as /m/01yrx; give `params.class_descriptions`"
        )
    by_name = {name.casefold(): f"{name} ({mid})" for mid, name in names}
    close = difflib.get_close_matches(wanted, by_name, n=5, cutoff=0.6)
    hint = f"; close are {', '.join(by_name[name] for name in close)}" if close else ""
    raise ConfigError(f"`{setting}` {text!r} is none of {len(names):,} class names{hint}")


def _read_parents(uris: Sequence[str]) -> dict[str, set[str]]:
    """Child -> parents, from the hierarchy files and all presets."""
    parents: dict[str, set[str]] = {}
    for preset in PRESETS.values():
        for child, parent in _preset_edges(preset):
            parents.setdefault(child, set()).add(parent)
    for uri in uris:
        try:
            edges = list(_edges(json.loads(_read_text(uri, "params.hierarchy"))))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ConfigError(
                f'{uri}: expected nested {{"LabelName": "/m/...", "Subcategory": [...]}}; '
                "check `params.hierarchy`"
            ) from None
        for child, parent in edges:
            parents.setdefault(child, set()).add(parent)
    return parents


@dataclass(frozen=True)
class MidPreset:
    """A target class, and sets of MIDs by their relation to it."""

    root: str
    kinds: frozenset[str]  # an image of one of these shows the target
    ancestors: tuple[str, ...]  # if one of these is absent, so is the target
    ambiguous: frozenset[str] = frozenset()  # may be the target: used on neither side
    near: frozenset[str] = frozenset()  # easily taken for the target
    mid: frozenset[str] = frozenset()


def _preset_edges(preset: MidPreset) -> Iterator[tuple[str, str]]:
    yield from ((kind, preset.root) for kind in preset.kinds)
    yield from zip((preset.root, *preset.ancestors), preset.ancestors, strict=False)


def _edges(node: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Child and parent; a part (the wheel of a car) is no child, but what is below it counts."""
    for child in node.get("Subcategory", []):
        yield child["LabelName"], node["LabelName"]
    for child in (*node.get("Subcategory", []), *node.get("Part", [])):
        yield from _edges(child)


def _closure(mid: str, parents: Mapping[str, Set[str]]) -> frozenset[str]:
    """The class and all its ancestors."""
    found, open_ends = {mid}, [mid]
    while open_ends:
        new = parents.get(open_ends.pop(), set()) - found
        found |= new
        open_ends.extend(new)
    return frozenset(found)


def _read_text(uri: str, setting: str) -> str:
    try:
        data = storage.read_bytes(uri)
        if data.startswith(GZIP_MAGIC):
            data = gzip.decompress(data)
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{uri}: no such file; check `{setting}`") from None
    except (UnicodeDecodeError, gzip.BadGzipFile, *DAMAGED):
        raise ConfigError(f"{uri}: not UTF-8 text; check `{setting}`") from None


def _mids(names: str) -> frozenset[str]:
    return frozenset(f"/m/{name}" for name in names.split())


_CAT = MidPreset(
    root="/m/01yrx",
    kinds=_mids(
        # Kitten, tabby, black, polydactyl, domestic long-haired and short-haired, rex.
        "0hjzp 0g4cd0 03dj64 08x9c0 0k8hs 012c9l 06jdsz "
        # Breeds from Abyssinian to Ukrainian levkoy. Snowshoe is 03c_kl; 0l_yv is footwear.
        "09747c 02zfvv 0132vv 017fr0 0gzxy 012ltm 02zfy2 0cb37 08b02s 01mvkt 04myxc 02zg0m 03_27x "
        "07nr9d 0h05_ 012lr2 03bx2rr 0229mb 04c41_ 0jc3n 012lnv 0132wl 02zh3c 07kdjg0 01rn4d "
        "0j60j 012jg5 0gvvmf6 017fv0 017fsk 012k6q 02zjz9 0j46v 081lg8 03ttd9 02w7c7 012cc2 "
        "068m4y 012jh9 0g_3r 02zkbf 02zkd7 012zzh 03c_kl 0h5fb 02vrfqg 02s4ff 0891tx 02zkf9 0j45k "
        "043lfs6 02rcwpb 03c_ndy"
    )
    | {"/g/1q5yy2zkf"},  # hairless cat
    ancestors=("/m/01lrl", "/m/04rky", "/m/0jbk"),  # carnivore, mammal, animal
    # Felidae, small to medium-sized cats, whiskers, tom cat.
    ambiguous=_mids("0307l 07k6w8 01l7qd 03bw_6d"),
    near=_mids(
        # Lion, Masai lion, tiger, Bengal and Siberian tiger, liger, leopard, African, snow and
        # clouded leopard, black panther, cheetah, jaguar, big cats; lynx, bobcat, cougar,
        # ocelot, jaguarundi, wild cat, rusty-spotted cat, saber-toothed cat.
        "096mb 0bm9sv0 07dm6 01g8p4 02nf1k 01rnrn 0c29q 09yhzf 0dfdv 0cf45 0by6z 0cd4d 0449p 0cdnk "
        "04g2r 0172jz 0kff3 01nmp6 021crq 01nq_x 01pdqb 0409r1"
    ),
    mid=_mids(
        # Dog, bear, otter; fox, red, kit, swift, grey and Arctic fox, red panda, raccoon, ferret,
        # meerkat, mongoose, civet, Viverridae; stuffed toy, plush, teddy bear, litter box.
        "0bt9lr 01dws 0cn6p 0306r 02r5q6 027tn4 02mwvg 03mr8x 0xp0 06l9r 0dq75 01205h 01djxm "
        "01f0zq 02q0vj7 01j33z 021mh_ 025rgl 0kmg4 031_tp"
    ),
)


PRESETS = {"cat": _CAT}
