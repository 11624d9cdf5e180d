"""Groups of a backbone's parameters, for unfreezing and rates by depth.

A *group* is one of timm: the stem, a stage or a transformer block; in other networks a child of
the top level (deeper if there are few). Group 0 is nearest to the image.
"""

from typing import Any

from timm.models import group_parameters
from torch import nn

_MIN_GROUPS = 4  # with fewer children, their children are the groups


def backbone_groups(backbone: nn.Module) -> list[list[nn.Parameter]]:
    """All parameters, group by group from the image's side."""
    network: Any = backbone.get_submodule("backbone") if hasattr(backbone, "backbone") else backbone
    if hasattr(network, "group_matcher"):
        of_group = group_parameters(network, network.group_matcher(coarse=True))
        parameters = dict(network.named_parameters())
        return [[parameters[name] for name in of_group[number]] for number in sorted(of_group)]
    parts = [*network.children()]
    while len(parts := [part for part in parts if any(True for _ in part.parameters())]) < (
        _MIN_GROUPS
    ) and any(True for part in parts for _ in part.children()):
        parts = [child for part in parts for child in ([*part.children()] or [part])]
    groups = [list(part.parameters()) for part in parts]
    grouped = {id(parameter) for group in groups for parameter in group}
    # Parameters of no child, such as a position embedding, are near the image.
    groups[0] += [p for p in network.parameters() if id(p) not in grouped]
    return groups


def open_last_groups(backbone: nn.Module, number: int) -> None:
    """Only the last `number` groups require gradients from now on."""
    groups = backbone_groups(backbone)
    for index, group in enumerate(groups):
        for parameter in group:
            parameter.requires_grad_(index >= len(groups) - number)
