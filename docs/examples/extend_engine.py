"""An engine of your own: FSDP2 that leaves out a step whose gradients are far too large.

[engine]
name = "extend_engine:Careful"
largest_norm = 10.0
"""

from adrpo_scale import setting
from adrpo_scale.engines.fsdp2 import Fsdp2Config, Fsdp2Engine


class CarefulConfig(Fsdp2Config):
    largest_norm: float = setting(
        10.0, "a step whose global gradient norm is above it is skipped", effect="maths", gt=0
    )


class Careful(Fsdp2Engine):
    Config = CarefulConfig

    def accepts(self, norm: float) -> bool:
        """The norm before clipping is the same on every rank, so all ranks decide alike."""
        return super().accepts(norm) and norm <= self.config.largest_norm
