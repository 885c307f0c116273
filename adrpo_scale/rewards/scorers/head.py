"""The predictor on top of an embedding that the aesthetic score and ImageReward share in shape."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from adrpo_scale.rewards.scorers.original import filled

_WIDTHS = (1024, 128, 64, 16, 1)
_DROPOUT = (0.2, 0.2, 0.1)


class Head(nn.Module):
    """Five linear layers without activations; dropout between the first four, none in use."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for place, (inside, outside) in enumerate(zip((width, *_WIDTHS), _WIDTHS, strict=False)):
            layers.append(nn.Linear(inside, outside))
            layers += [nn.Dropout(share) for share in _DROPOUT[place : place + 1]]
        self.layers = nn.Sequential(*layers)

    def forward(self, embeddings: Tensor) -> Tensor:
        """[N, width] → [N]."""
        found: Tensor = self.layers(embeddings)
        return found[:, 0]


def load_head(file: Path, width: int, device: torch.device) -> nn.Module:
    """The predictor of a file, in float32. Raises as `filled`."""
    return filled(partial(Head, width), file, _name, torch.float32).to(device)


def _name(stored: str) -> str | None:
    found = re.fullmatch(r"(mlp\.)?(layers\.\d+\.(weight|bias))", stored)
    return found[2] if found else None
