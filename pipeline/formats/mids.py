"""What an Open Images class says about a target: the MIDs (Freebase ids) of a preset.

The published hierarchy has 601 classes and ends at Cat, the list of classes has 20,931: what lies
below Cat is told here.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class MidPreset:
    """A target class and sets of MIDs, by what they say of it."""

    root: str
    kinds: frozenset[str]  # whatever is one of these is the target
    ancestors: tuple[str, ...]  # an image verified to show none of one of these shows no target
    ambiguous: frozenset[str] = frozenset()  # may well be the target: neither side
    near: frozenset[str] = frozenset()  # easily taken for the target
    mid: frozenset[str] = frozenset()


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
