"""A reward of your own, with its own settings.

[[rewards]]
kind = "extend_reward:Colour"
colour = [0, 0, 255]
"""

import torch

from adrpo_scale import Reward, RewardConfig, setting


class ColourConfig(RewardConfig):
    colour: list[int] = setting([255, 0, 0], "red, green, blue", min_length=3, max_length=3)
    reach: float = setting(120.0, "distance, of 255, at which a pixel still counts", gt=0)


class Colour(Reward):
    Config = ColourConfig

    def __init__(self, config, device):
        super().__init__(config)
        self.colour, self.reach = torch.tensor(config.colour).float(), config.reach

    def __call__(self, artifacts, prompts):
        """How much of a picture is near the colour, 0 to 100."""
        images = torch.stack([torch.from_numpy(image).float() for image in artifacts])
        distances = (images - self.colour).norm(dim=-1)
        return 100 * (-((distances / self.reach) ** 2)).exp().mean((1, 2))
