"""A domain of your own: flow matching whose pictures are judged enlarged.

[domain]
name = "extend_domain:Enlarged"
times = 2
model = "demo:image"
"""

from adrpo_scale import setting
from adrpo_scale.domains.flow import FlowConfig, FlowDomain


class EnlargedConfig(FlowConfig):
    times: int = setting(2, "side of the square that a pixel becomes", ge=1)


class Enlarged(FlowDomain):
    Config = EnlargedConfig

    def artifacts(self, rows):
        """uint8 [H · times, W · times, 3]: for a reward that wants larger pictures."""
        times = self.config.times
        return [image.repeat(times, 0).repeat(times, 1) for image in super().artifacts(rows)]

    def row_metrics(self, rows):
        """Logged as a mean over rows: how far the latents are from the noise that they came of."""
        latents = rows.tensors["x1"].double().flatten(1)
        return {**super().row_metrics(rows), "latent_rms": latents.square().mean(1).sqrt().cpu()}
