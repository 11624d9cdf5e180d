"""RandAugment and TrivialAugment against torchvision's, but with chance that is passed in."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandAugment, TrivialAugmentWide

from train.data.augment import OPERATIONS, apply, augment

NUM_BINS = 31


@pytest.fixture(scope="module")
def picture() -> Tensor:
    """Smooth with an edge, as photographs are: uint8 CHW."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 48), torch.linspace(0, 1, 48), indexing="ij")
    channels = [200 * x, 255 * y * x, torch.where(x > y, 180.0, 20.0)]
    return torch.stack(channels).to(torch.uint8)


@pytest.mark.parametrize("is_wide", [False, True], ids=["randaugment", "trivialaugment"])
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("level", [0, 9, 30])
def test_operations_are_those_of_torchvision(
    picture: Tensor, name: str, level: int, is_wide: bool
) -> None:
    peer = (TrivialAugmentWide if is_wide else RandAugment)(fill=128)
    magnitudes_of, is_signed = peer._AUGMENTATION_SPACE[name]
    magnitudes = magnitudes_of(NUM_BINS, 48, 48)
    magnitude = 0.0 if magnitudes is None else float(magnitudes[level])
    both = {
        sign: peer._apply_image_or_video_transform(
            picture, name, sign * magnitude, InterpolationMode.NEAREST, peer._fill
        )
        for sign in ((1, -1) if is_signed else (1,))
    }
    seen = set()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        ours = apply(picture, name, level / (NUM_BINS - 1), rng, is_wide=is_wide)
        # A magnitude in float32 or in float64 may round a level apart.
        equal = [sign for sign, theirs in both.items() if (ours - theirs.float()).abs().max() <= 1]
        assert equal
        seen |= set(equal)
    assert seen == set(both), "both directions occur"


@pytest.mark.parametrize("strength", ["randaugment", "trivialaugment"])
def test_chance_comes_from_the_generator_alone(picture: Tensor, strength: str) -> None:
    def view(seed: int, of_torch: int) -> Tensor:
        torch.manual_seed(of_torch)
        return augment(picture, size=32, strength=strength, rng=np.random.default_rng(seed))

    for seed in range(30):
        assert torch.equal(view(seed, 0), view(seed, 1))
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    views = [
        augment(picture, size=32, strength=strength, rng=np.random.default_rng(seed))
        for seed in range(30)
    ]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert {(view.shape, view.dtype) for view in views} == {((3, 32, 32), torch.uint8)}
    assert len({view.numpy().tobytes() for view in views}) == 30
