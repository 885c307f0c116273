"""A reward with state: a picture in its prompt's colour, worth more where fewer prompts ask for it.

    python docs/examples/reward_with_state.py

`check` is given all prompts of the run before anything is loaded, so its counts are the same on
every rank and after a resume. Counts that grew with the samples would be neither.
"""

from collections import Counter

import torch

import adrpo_scale
from adrpo_scale import Reward, RewardConfig, setting

COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "yellow": (1, 1, 0)}
ME = "reward_with_state:RareColours"


class RareColoursConfig(RewardConfig):
    power: float = setting(0.5, "0: every colour is worth the same; 1: in inverse proportion", ge=0)


class RareColours(Reward):
    Config = RareColoursConfig

    def __init__(self, config, device):
        super().__init__(config)
        self.power = config.power

    def check(self, prompts):
        self.counts = Counter(colour for prompt in prompts for colour in named(prompt))

    def __call__(self, artifacts, prompts):
        return torch.tensor([self.of(*pair) for pair in zip(artifacts, prompts, strict=True)])

    def of(self, image, prompt):
        """Mean light in the channels of the colours, in percent, the more for a rare colour."""
        mean = torch.from_numpy(image).float().mean((0, 1)) / 255
        shares = {c: float(mean @ torch.tensor(COLOURS[c]).float()) for c in named(prompt)}
        return 100 * sum(share / self.counts[c] ** self.power for c, share in shares.items())


def named(prompt):
    return [word for word in prompt.text.split() if word in COLOURS]


def main(config="configs/demo/image_adrpo.toml", run_dir="runs/rare-colours", overrides=()):
    mine = f'rewards=[{{kind="{ME}", power=1.0}}]'
    return adrpo_scale.train(config, run_dir=run_dir, overrides=[mine, *overrides])


if __name__ == "__main__":
    main()
