"""Back-ends that draw the tokens of rollouts; the default is the policy itself.

A back-end gets the policy's weights before it generates (`sync`), and one uniform number per
(sample, position). One with its own random numbers sets `is_reproducible = False` and returns the
log-probabilities of its tokens; truncated importance weights then correct the loss
(`algorithm.importance_cap`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adrpo_scale.core.errors import given
from adrpo_scale.domains.decoding import Generated, SamplingConfig, generate
from adrpo_scale.domains.generation.process import GenerationProcess


def generate_by_graphs(*arguments: Any) -> Generated:
    """`graph_decoding.generate`; that module imports transformers."""
    from adrpo_scale.domains import graph_decoding

    return graph_decoding.generate(*arguments)


DECODERS: dict[str, Callable[..., Generated]] = {"eager": generate, "graph": generate_by_graphs}


class Backend(ABC):
    """The contract of a back-end. is_reproducible: its tokens follow from `uniforms_NT`."""

    is_reproducible: ClassVar[bool] = True

    @abstractmethod
    def sync(self, policy: nn.Module) -> None:
        """Takes over the policy's weights. Called inside `engine.sampling()`, where every rank
        holds them whole."""

    def rest(self) -> None:
        """Gives back, after the last `generate` of a rollout, what is not needed until the next
        `sync`."""
        return None

    @abstractmethod
    def generate(
        self,
        policy: nn.Module,
        prompts: Sequence[Sequence[int]],
        sample_seeds: Sequence[int],
        uniforms_NT: Tensor,
        sampling: SamplingConfig,
        audio_N: Sequence[Tensor] | None = None,
    ) -> Generated:
        """Completions of N ≥ 1 prompts of token ids, on the device of `uniforms_NT`.

        sample_seeds: N integers, for back-ends that draw by themselves. The other arguments are
        those of `decoding.generate`.
        """


class InProcess(Backend):
    """Generation by the policy itself, in its own process and precision. decoding: a key of
    DECODERS."""

    def __init__(self, ends: Sequence[int], pad: int, decoding: str = "eager") -> None:
        self._ends, self._pad, self._decode = ends, pad, DECODERS[decoding]

    def sync(self, policy: nn.Module) -> None:
        pass

    def generate(
        self,
        policy: nn.Module,
        prompts: Sequence[Sequence[int]],
        sample_seeds: Sequence[int],
        uniforms_NT: Tensor,
        sampling: SamplingConfig,
        audio_N: Sequence[Tensor] | None = None,
    ) -> Generated:
        with evaluating(policy):
            ends, pad = self._ends, self._pad
            return self._decode(policy, prompts, uniforms_NT, sampling, ends, pad, audio_N)


class Elsewhere(Backend):
    """Generation by another program, in one process of its own for this rank.

    start: starts that process, for a policy of so many bytes. It is called at the first `sync`:
    evaluations and `sample` need none.
    """

    def __init__(self, start: Callable[[int], GenerationProcess]) -> None:
        self._start = start
        self._process: GenerationProcess | None = None

    def sync(self, policy: nn.Module) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # memory that this process keeps is not the other's
        if self._process is None:
            self._process = self._start(sum(p.nbytes for p in policy.parameters()))
        self._process.load(plain_weights(policy))

    def generate(
        self,
        policy: nn.Module,
        prompts: Sequence[Sequence[int]],
        sample_seeds: Sequence[int],
        uniforms_NT: Tensor,
        sampling: SamplingConfig,
        audio_N: Sequence[Tensor] | None = None,
    ) -> Generated:
        if audio_N is not None:
            raise RuntimeError("another process takes tokens only here; please open an issue")
        request = {
            "prompts": [list(prompt) for prompt in prompts],
            "seeds": list(sample_seeds),
            "sampling": sampling.model_dump(),
        }
        made = given(self._process).generate(request, {"uniforms": uniforms_NT.cpu()})
        return generated(made, uniforms_NT)

    def rest(self) -> None:
        given(self._process).rest()


class OwnProcess(Elsewhere):
    """A copy of the policy in another process. It draws the policy's own tokens, to the bit."""


class Vllm(Elsewhere):
    """vLLM in another process. See `generation.vllm`."""

    is_reproducible = False


def generated(made: Mapping[str, Tensor], uniforms_NT: Tensor) -> Generated:
    """The answer of a process, on the device of `uniforms_NT`. Raises RuntimeError where it has
    another shape."""
    rows = (len(uniforms_NT),)
    shapes = {"tokens": uniforms_NT.shape, "lengths": rows, "finished": rows}
    shapes |= {"logp": uniforms_NT.shape} if "logp" in made else {}
    found = {name: tuple(tensor.shape) for name, tensor in made.items()}
    if found != {name: tuple(shape) for name, shape in shapes.items()}:
        raise RuntimeError(
            f"the process of rollouts has sent {found}, expected {shapes}; please open an issue"
        )
    device = uniforms_NT.device
    return Generated(
        made["tokens"].to(device),
        made["lengths"].to(device),
        made["finished"].to(device),
        made["logp"].to(device) if "logp" in made else None,
    )


def plain_weights(policy: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The policy's weights with adapters merged, one at a time, by the base model's names."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {n: m for n, m in policy.named_modules() if isinstance(m, BaseTunerLayer)}
    for name, parameter in policy.named_parameters():
        owner = name.removesuffix(".base_layer.weight")
        if ".lora_" in name:
            continue
        layer: Any = layers.get(owner)
        if layer is not None and name.endswith(".weight") and not layer.disable_adapters:
            weight = parameter + sum(layer.get_delta_weight(a) for a in layer.active_adapters)
            yield f"{owner}.weight", weight.to(parameter.dtype)
        else:
            yield name.replace(".base_layer", ""), parameter


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A context in which the model is in eval mode: with activation checkpointing, transformers
    keeps no cache in train mode."""
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)
