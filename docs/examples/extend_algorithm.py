"""An algorithm of your own: advantages that saturate smoothly in the place of a clip.

[algorithm]
name = "extend_algorithm:Smooth"
temperature = 0.5
"""

from adrpo_scale import (
    Algorithm,
    AlgorithmConfig,
    advantages,
    combined,
    included_sum,
    plain_credit,
    setting,
)


class SmoothConfig(AlgorithmConfig):
    temperature: float = setting(1.0, "advantage at which tanh bends, in units of reward", gt=0)
    beta: float = setting(1.0, "coefficient of the divergence", ge=0)


class Smooth(Algorithm):
    Config = SmoothConfig

    def credit(self, rewards):
        """A = tanh((R - mean of the group) / temperature), of all samples on every rank alike."""
        total_PG = combined(rewards, self.config.combine)
        centred_PG = advantages(total_PG, rewards.mask_PG)
        smooth_PG = (centred_PG / self.config.temperature).tanh()
        return plain_credit(smooth_PG.flatten(), self.config.beta, rewards)

    def loss(self, terms, credit):
        """The sum over rows, with squared errors and with likelihoods alike."""
        return included_sum(terms.surrogate(credit) + terms.penalty(credit), credit)
