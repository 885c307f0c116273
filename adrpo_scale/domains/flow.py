"""Flow matching on Stable Diffusion 3 (paper, eq. 5 and 6, Algorithm 1).

Paper's time: t = 0 is noise, t = 1 is data, x_t = (1 - t)·x0 + t·x1, the velocity is u = x1 - x0.
diffusers' time: sigma = 1 - t, and the network predicts -u at timestep 1000·sigma. `velocity`
converts between the two; everything else here is in the paper's time.

    error      = mean over latent elements of (v - u)²
    divergence = mean over latent elements of (v - v_ref)²

The policy, the reference and both terms share x0, t and x_t. Rollouts solve dx = v dt with Euler
steps; training terms use the conditional velocity without guidance.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor, nn

from adrpo_scale.algorithms.old_error_terms import OldErrorTerms
from adrpo_scale.algorithms.terms import RegressionTerms, Terms
from adrpo_scale.algorithms.velocity_terms import VelocityTerms
from adrpo_scale.core.bounds import COUNT, SIDE, TOKENS
from adrpo_scale.core.errors import ConfigError, given
from adrpo_scale.core.seeding import Purpose, normal
from adrpo_scale.core.settings import REQUIRED, setting
from adrpo_scale.core.types import DrawKey, Prompt, Rows
from adrpo_scale.data.readings import Readings, read_prompts, without_notices
from adrpo_scale.domains.base import (
    DomainConfig,
    Mode,
    Published,
    Reference,
    measured_under,
)
from adrpo_scale.domains.embeddings import bytes_to_cache, load_embeddings
from adrpo_scale.domains.export_target import ExportTarget
from adrpo_scale.domains.flow_terms import OLD_ERROR, Points
from adrpo_scale.domains.given_pictures import GivenPictures
from adrpo_scale.domains.pipelines import (
    PIPELINE,
    check_components,
    check_weights,
    load_vae,
    read_configs,
)
from adrpo_scale.domains.sd3 import ATTENTION, WEIGHTS, fixed_inputs, transformer_spec
from adrpo_scale.domains.sd3_encoders import encoders_of
from adrpo_scale.domains.solver import SolverConfig, solver_times
from adrpo_scale.engines.planning import Rung, halves
from adrpo_scale.engines.spec import DTYPES, LoraConfig, ModelSpec
from adrpo_scale.engines.workload import Workload
from adrpo_scale.hub.needs import HubNeed
from adrpo_scale.hub.shapes import config_folder
from adrpo_scale.hub.soundness import loading
from adrpo_scale.hub.weights import SafetensorsFolder, find_model

# Copies of the same weights, e.g. 11 GB in half precision in stable-diffusion-3-medium.
UNREAD = ("*.fp16*", "*.bin", "*.bin.index.json", "*.msgpack", "*.onnx*")


class FlowConfig(DomainConfig):
    name: str = setting("flow", "flow matching: Stable Diffusion 3")
    model: str = setting(
        REQUIRED, "diffusers pipeline folder, hub id, or demo:image", effect="content"
    )
    train: Literal["lora", "full"] = setting(
        "lora", "adapters, or all parameters of the transformer", paper="image experiments"
    )
    lora: LoraConfig | None = setting(None, "adapter settings, with train = lora only")
    t5: bool = setting(True, "use the third text encoder (T5)")
    max_sequence_length: int = setting(
        256, "tokens of the T5 part of a prompt embedding", ge=1, le=TOKENS
    )
    height: int | None = setting(
        None, "image height in pixels; the model's own by default", ge=1, le=SIDE
    )
    width: int | None = setting(
        None, "image width in pixels; the model's own by default", ge=1, le=SIDE
    )
    rollout: SolverConfig = setting(SolverConfig(), "solver of rollouts")
    evaluation: SolverConfig = setting(
        SolverConfig(), "solver of evaluation and of `sample`", effect="none"
    )
    noise: Literal["independent", "rollout"] = setting(
        "independent",
        "x0 of training: drawn independently, or the one that the sample was made from",
    )
    decode_chunk: int = setting(8, "latents decoded at once", effect="rounding", ge=1, le=COUNT)
    vae_dtype: Literal["float32", "bfloat16"] = setting("float32", "precision of the VAE")

    @model_validator(mode="after")
    def _lora_goes_with_lora(self) -> FlowConfig:
        if self.train == "full" and self.lora is not None:
            raise ValueError(
                '[domain.lora] together with train = "full": remove the section, or train adapters '
                'with train = "lora"'
            )
        return self

    def needs_from_hub(self) -> list[HubNeed]:
        parts = ["transformer", "vae", "scheduler", "text_encoder", "text_encoder_2"]
        parts += ["tokenizer", "tokenizer_2", *(["text_encoder_3", "tokenizer_3"] * self.t5)]
        # Exports copy the card and the licence.
        allow = ("model_index.json", *(f"{part}/*" for part in parts), "README.md", "LICENSE*")
        return [HubNeed(self.model, "domain.model", allow, UNREAD)]


class FlowDomain(GivenPictures):
    """The domain `flow`; the module docstring has its maths."""

    gives: ClassVar = (RegressionTerms, VelocityTerms, OldErrorTerms)
    medium: ClassVar[Literal["pictures", "completions"]] = "pictures"
    Config: ClassVar[type[FlowConfig]] = FlowConfig
    adapted: ClassVar[tuple[str, ...]] = ATTENTION

    @classmethod
    def recognises(cls, model: Published) -> bool:
        return model.has(PIPELINE)

    @classmethod
    def weights_in(cls, folder: Path) -> SafetensorsFolder:
        return SafetensorsFolder(folder / "transformer", WEIGHTS)

    @classmethod
    def workload(cls, config: FlowConfig, dtype: torch.dtype) -> Workload:
        from adrpo_scale.domains.flow_workload import flow_workload

        folder = config_folder(config.model, "domain.model", "transformer/config.json")
        domain = cls(config.model_copy(update={"model": str(folder)}))
        return flow_workload(config, folder, domain.latent_shape, dtype)

    @classmethod
    def bytes_to_cache(
        cls, config: FlowConfig, prompts: Sequence[Prompt], dtype: torch.dtype
    ) -> int:
        folder = config_folder(config.model, "domain.model", "transformer/config.json")
        texts = [*(prompt.text for prompt in prompts), ""]
        return bytes_to_cache(folder, texts, config.t5, config.max_sequence_length, dtype)

    @classmethod
    def rungs(cls, config: FlowConfig) -> list[Rung]:
        return halves("domain.decode_chunk", config.decode_chunk, "rollout")

    def __init__(self, config: FlowConfig) -> None:
        self.config = config
        (need,) = config.needs_from_hub()
        self.folder = find_model(need)
        check_components(self.folder, config.t5)
        parts = read_configs(self.folder, config.model)
        self._transformer_config = parts["transformer"]
        with loading(self.folder, "config"):
            self.shift = float(parts["scheduler"].get("shift", 1.0))
            factor = 2 ** (len(parts["vae"]["block_out_channels"]) - 1)
            self.latent_shape = self._latent_shape(factor)

    def _latent_shape(self, vae_factor: int) -> tuple[int, int, int]:
        transformer = self._transformer_config
        own = transformer["sample_size"] * vae_factor
        multiple = vae_factor * transformer["patch_size"]
        largest = multiple * transformer["pos_embed_max_size"]
        height, width = self.config.height or own, self.config.width or own
        for name, size in (("height", height), ("width", width)):
            if size % multiple or size > largest:
                raise ConfigError(
                    f"domain.{name} = {size}: this model takes multiples of {multiple} pixels up "
                    f"to {largest}"
                )
        return transformer["in_channels"], height // vae_factor, width // vae_factor

    def policy_spec(self) -> ModelSpec:
        lora = self.config.lora or LoraConfig()
        return self._spec(lora if self.config.train == "lora" else None)

    def reference_spec(self) -> ModelSpec | None:
        return None if self.config.train == "lora" else self._spec(None)

    def _spec(self, lora: LoraConfig | None) -> ModelSpec:
        return transformer_spec(self._transformer_config, self.weights_in(self.folder), lora)

    def frozen_files(self) -> list[Path]:
        parts = ["vae", "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"]
        parts += ["text_encoder_3", "tokenizer_3"] if self.config.t5 else []
        files = [self.folder / "transformer" / "config.json"]
        (need,) = self.config.needs_from_hub()
        for part in parts:
            there = sorted(path for path in (self.folder / part).glob("*") if path.is_file())
            # A shared hub cache may hold further files, which are not read.
            files += [path for path in there if need.covers(f"{part}/{path.name}")]
        return files

    def export_target(self) -> ExportTarget:
        config, solver = self.config, self.config.evaluation
        call = {"steps": solver.steps, "guidance_scale": solver.guidance}
        sizes = {"height": config.height, "width": config.width}
        return ExportTarget(
            library="diffusers",
            pipeline="StableDiffusion3Pipeline",
            model="SD3Transformer2DModel",
            component="transformer",
            stem=WEIGHTS,
            unused=() if config.t5 else ("text_encoder_3", "tokenizer_3"),
            task="text-to-image",
            inputs=fixed_inputs(self._transformer_config),
            call=call
            | {name: size for name, size in sizes.items() if size is not None}
            | {"max_sequence_length": config.max_sequence_length},
        )

    def reads(self, prompts: Sequence[Prompt]) -> Readings:
        config = self.config
        encoders = encoders_of(self.folder, config.t5, config.max_sequence_length)
        return read_prompts("the model", encoders, prompts)

    def prepare(self, prompts: Sequence[Prompt], device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._text = {prompt.id: prompt.text for prompt in prompts}
        with without_notices():  # `reads` has said it
            self._embeddings = load_embeddings(
                self.folder,
                [*self._text.values(), ""],  # "" is the unconditional side of guidance
                t5=self.config.t5,
                max_sequence_length=self.config.max_sequence_length,
                device=device,
                dtype=dtype,
            )
        self._vae = load_vae(self.folder / "vae", DTYPES[self.config.vae_dtype]).to(device)

    def check_training(self) -> None:
        check_weights(self.folder, self.config.t5)

    @torch.no_grad()
    def sample(
        self,
        policy: nn.Module,
        prompts_N: Sequence[Prompt],
        sample_ids_N: Tensor,
        key: DrawKey,
        mode: Mode = "rollout",
    ) -> Rows:
        rollout = mode == "rollout"
        solver = self.config.rollout if rollout else self.config.evaluation
        purpose = Purpose.ROLLOUT_NOISE if rollout else Purpose.EVALUATION
        x0 = normal(key, sample_ids_N.tolist(), purpose, self.latent_shape).to(self.device)
        tensors = {"x1": x0}
        if len(prompts_N):
            tensors["x1"] = self._solve(policy, x0, [p.text for p in prompts_N], solver)
        if self.config.noise == "rollout":
            tensors["x0"] = x0
        ids = torch.tensor([p.id for p in prompts_N], dtype=torch.int64)
        return Rows(sample_ids_N, ids, tensors)

    def _solve(
        self, policy: nn.Module, x: Tensor, texts: Sequence[str], solver: SolverConfig
    ) -> Tensor:
        """x1 [N, C, H, W] from x0 by Euler steps along the guided velocity."""
        guided = solver.guidance != 1.0
        sequence, pooled = self._embeddings.batch(
            [*texts, *[""] * len(texts)] if guided else texts, self.device
        )
        times = solver_times(solver.steps, self.shift).tolist()
        for t, t_next in itertools.pairwise(times):
            t_N = torch.full((len(sequence),), t, device=self.device)
            v = self.velocity(policy, torch.cat([x, x]) if guided else x, t_N, sequence, pooled)
            if guided:
                conditional, unconditional = v.chunk(2)
                v = unconditional + solver.guidance * (conditional - unconditional)
            x = x + (t_next - t) * v
        return x

    def velocity(
        self, model: nn.Module, x: Tensor, t_N: Tensor, sequence: Tensor, pooled: Tensor
    ) -> Tensor:
        """v(x, t) in the paper's time, float32 [N, C, H, W]. x: [N, C, H, W]; t_N: [N].

        Only here is sigma used.
        """
        prediction = model(
            hidden_states=x.to(self.dtype),
            timestep=1000.0 * (1.0 - t_N),
            encoder_hidden_states=sequence.to(self.dtype),
            pooled_projections=pooled.to(self.dtype),
            return_dict=False,
        )[0]
        return -prediction.float()

    @torch.no_grad()
    def artifacts(self, rows: Rows) -> list[np.ndarray]:
        images: list[np.ndarray] = []
        if not len(rows):
            return images  # a VAE with attention cannot decode an empty batch
        config = self._vae.config
        for latents in rows.tensors["x1"].split(self.config.decode_chunk):
            scaled = latents.to(self._vae.dtype) / config.scaling_factor + config.shift_factor
            decoded = self._vae.decode(scaled, return_dict=False)[0].float()
            pixels = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
            images += list(pixels.permute(0, 2, 3, 1).cpu().numpy())
        return images

    def terms(
        self,
        policy: nn.Module,
        reference: Reference | None,
        rows: Rows,
        noise_ids_N: Tensor,
        key: DrawKey,
        wanted: type[Terms],
        base: Reference | None = None,
    ) -> RegressionTerms:
        points = self._points(rows, noise_ids_N, key)
        velocity = self._velocity_at(points, rows)
        v_ref, v_base = measured_under(reference, velocity), measured_under(base, velocity)
        return points.terms(velocity(policy), v_ref, v_base, rows, key, wanted)

    @torch.no_grad()
    def remember_draws(
        self, policy: nn.Module, rows: Rows, noise_ids_N: Tensor, keys: Sequence[DrawKey]
    ) -> Rows:
        drawn = (self._points(rows, noise_ids_N, key) for key in keys)
        errors = [points.errors(self._velocity_at(points, rows)(policy)) for points in drawn]
        tensors = {**rows.tensors, OLD_ERROR: torch.stack(errors, 1)}
        return Rows(rows.sample_ids_N, rows.prompt_ids_N, tensors)

    def _points(self, rows: Rows, noise_ids_N: Tensor, key: DrawKey) -> Points:
        x0 = rows.tensors["x0"] if self.config.noise == "rollout" else None
        return Points.drawn(rows.tensors["x1"], x0, noise_ids_N, key)

    def _velocity_at(self, points: Points, rows: Rows) -> Callable[[nn.Module], Tensor]:
        """The conditional velocity of a model there."""
        texts = [self._text[i] for i in rows.prompt_ids_N.tolist()]
        inputs = self._embeddings.batch(texts, points.x_t.device)
        return lambda model: self.velocity(model, points.x_t, points.t_N, *inputs)

    def divergence_metrics(self, terms: Terms) -> dict[str, Tensor]:
        """`w2_sum`: the sum over latent elements of (v - v_ref)², a bound of the W2 distance."""
        return {"w2_sum": given(terms.divergence()) * float(np.prod(self.latent_shape))}
