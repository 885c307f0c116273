"""A reward of your own, with its own settings.

    [[rewards]]
    kind = "extend_reward:Colour"
    colour = [0, 0, 255]
"""

import torch

from adrpo_scale import Reward, RewardConfig, setting


class ColourConfig(RewardConfig):
    colour: list[int] = setting([255, 0, 0], "red, green, blue", min_length=3, max_length=3)
    reach: float = setting(120.0, "how far from it a pixel may be, of 255", gt=0)


class Colour(Reward):
    Config = ColourConfig

    def __init__(self, config, device):
        super().__init__(config)
        self.colour, self.reach = torch.tensor(config.colour).float(), config.reach

    def __call__(self, artifacts, prompts):
        """The share of a picture's pixels that are near the colour, 0 to 100."""
        images = torch.stack([torch.from_numpy(image).float() for image in artifacts])
        near = (images - self.colour).norm(dim=-1) < self.reach
        return 100 * near.float().mean((1, 2))
