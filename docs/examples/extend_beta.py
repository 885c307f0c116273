"""ADRPO with a beta of your own: beta0 minus a tanh of the advantage.

[algorithm]
name = "extend_beta:SmoothBeta"
beta0 = 0.04
height = 0.03
scale = "group_std"
advantage_min = -2.0
advantage_max = 2.0
"""

from adrpo_scale import GroupRelative, GroupRelativeConfig, setting


class SmoothBetaConfig(GroupRelativeConfig):
    height: float = setting(0.04, "largest distance of beta from beta0", ge=0)
    temperature: float = setting(1.0, "advantage at which tanh bends", gt=0)


class SmoothBeta(GroupRelative):
    Config = SmoothBetaConfig

    def beta(self, advantage_clipped):
        """The beta of each sample. The argument: its advantage, clipped to the two limits."""
        bend = (advantage_clipped / self.config.temperature).tanh()
        return self.config.beta0 - self.config.height * bend
