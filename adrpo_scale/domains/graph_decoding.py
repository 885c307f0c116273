"""Decoding whose passes over one token all have the same shapes: on a GPU they are CUDA graphs.

An eager pass launches a thousand small kernels and more, and the host needs longer to launch them
than the GPU to run them. A captured pass is launched as a whole. For that its cache has a fixed
length, whose columns beyond the last token are masked, and the sampler runs inside the pass. After
GRAPH_TOKENS tokens rows that have ended leave, the cache grows, and the pass is captured again; so
a graph never outlives the weights that it was captured with.

Tokens are those of `decoding.generate` from the same uniform numbers, but for roundings: sums run
over masked columns too. A CPU computes the same passes one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from adrpo_scale.domains.decoding import LOOK, SHRINK, Generated, SamplingConfig, pick, prefill

GRAPH_TOKENS = 128  # tokens by one graph; a capture costs as much as a few eager passes
WORTH = 8  # passes: fewer are not captured
ALIGNED = 8  # a cache's length is a multiple: kernels of attention copy other masks


class FixedLayer(CacheLayerMixin):
    """Keys and values [N, heads, columns, width] of one layer; the next ones go to column place
    (int64 [1] on the device, the same tensor for all layers)."""

    def __init__(self, keys: Tensor, values: Tensor, place: Tensor) -> None:
        super().__init__()
        self.keys, self.values, self._place = keys, values, place
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        return None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.keys.index_copy_(2, self._place, key_states)
        self.values.index_copy_(2, self._place, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_max_length(), 0

    def get_seq_length(self) -> int:
        """Never asked: positions and masks are given with every pass."""
        return self.get_max_length()

    def get_max_length(self) -> int:
        return int(self.keys.shape[2])


@dataclass(frozen=True)
class Batch:
    """The rows under way, n of N, all tensors on the device; `advance` changes them in place.

    logits_nV: of the next token. uniforms_nT, tokens_nT, lengths_n, finished_n: of the whole
    completions. first_n: the first column that is no padding. step, place: int64 [1], the next
    token and its column. layers: of the cache.
    """

    logits_nV: Tensor
    uniforms_nT: Tensor
    tokens_nT: Tensor
    lengths_n: Tensor
    finished_n: Tensor
    first_n: Tensor
    step: Tensor
    place: Tensor
    layers: list[FixedLayer]
    ending: Tensor
    pad: int

    def choose(self, sampling: SamplingConfig) -> Tensor:
        """Draws and writes the tokens of this step; int64 [n]."""
        uniforms_n = self.uniforms_nT.index_select(1, self.step)[:, 0]
        drawn_n = pick(self.logits_nV, uniforms_n, sampling)
        drawn_n = torch.where(self.finished_n, self.pad, drawn_n)
        ends_n = (drawn_n[:, None] == self.ending).any(1) & ~self.finished_n
        self.tokens_nT.index_copy_(1, self.step, drawn_n[:, None])
        self.lengths_n.copy_(torch.where(ends_n, self.step + 1, self.lengths_n))
        self.finished_n.logical_or_(ends_n)
        return drawn_n

    def advance(self, model: Any, sampling: SamplingConfig) -> None:
        """Draws the tokens of this step and computes the logits of the next."""
        drawn_n = self.choose(sampling)
        columns = torch.arange(self.layers[0].get_max_length(), device=self.place.device)
        seen_nL = (columns >= self.first_n[:, None]) & (columns <= self.place)
        logits_nV = model(
            input_ids=drawn_n[:, None],
            attention_mask=seen_nL[:, None, None],
            position_ids=(self.place - self.first_n)[:, None],
            past_key_values=Cache(layers=list(self.layers)),
            use_cache=True,
        ).logits[:, -1]
        self.logits_nV.copy_(logits_nV)
        self.step.add_(1)
        self.place.add_(1)

    def moved(self, kept: Tensor, columns: int) -> Batch:
        """The rows `kept` (int64, in order), with so many columns of cache. This batch loses its
        layers one by one, so that the cache is never there twice."""
        whole = ("logits_nV", "uniforms_nT", "tokens_nT", "lengths_n", "finished_n", "first_n")
        tensors = {name: getattr(self, name)[kept] for name in whole}
        layers: list[FixedLayer] = []
        while self.layers:
            old = self.layers.pop(0)
            keys, values = (grown(states, kept, columns) for states in (old.keys, old.values))
            layers.append(FixedLayer(keys, values, self.place))
        return replace(self, layers=layers, **tensors)


def given_up(layer: Any) -> tuple[Tensor, Tensor]:
    """Keys and values of a layer of another cache, which no longer holds them."""
    states = layer.keys, layer.values
    layer.keys = layer.values = None
    return states


def grown(states: Tensor, kept: Tensor, columns: int) -> Tensor:
    """Keys or values [N, heads, have, width] of the rows `kept`, with `columns` columns. New ones
    are 0: a masked NaN would still spread."""
    _, heads, have, width = states.shape
    found = states.new_zeros(len(kept), heads, columns, width)
    found[:, :, :have] = states[kept]
    return found


@torch.no_grad()
def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    uniforms_NT: Tensor,
    sampling: SamplingConfig,
    ends: Sequence[int],
    pad: int,
    audio_N: Sequence[Tensor] | None = None,
) -> Generated:
    """As `decoding.generate`."""
    device, (rows, steps) = uniforms_NT.device, uniforms_NT.shape
    logits, cache, mask, lengths = prefill(model, prompts, steps, pad, device, audio_N)
    width = mask.shape[1] - steps
    place = torch.tensor([width], device=device)
    batch = Batch(
        logits_nV=logits,
        uniforms_nT=uniforms_NT,
        tokens_nT=torch.full((rows, steps), pad, device=device),
        lengths_n=torch.full((rows,), steps, device=device),
        finished_n=torch.zeros(rows, dtype=torch.bool, device=device),
        first_n=width - lengths,
        step=torch.zeros(1, dtype=torch.int64, device=device),
        place=place,
        layers=[FixedLayer(*given_up(layer), place) for layer in cache.layers],
        ending=torch.tensor(list(ends), dtype=torch.int64, device=device),
        pad=pad,
    )
    made = Generated(batch.tokens_nT.clone(), batch.lengths_n.clone(), batch.finished_n.clone())
    here = kept = torch.arange(rows, device=device)  # the rows of the batch; places in it
    passes = steps - 1  # after the last token there is none
    for begin in range(0, max(passes, 1), GRAPH_TOKENS):
        end = min(begin + GRAPH_TOKENS, passes)
        columns = -(-(width + end) // ALIGNED) * ALIGNED
        batch, here = batch.moved(kept, columns), here[kept]
        left = run(batch, model, sampling, end - begin)
        if left and end == passes:
            batch.choose(sampling)
        made.tokens_NT[here] = batch.tokens_nT
        made.lengths_N[here] = batch.lengths_n
        made.finished_N[here] = batch.finished_n
        if not left:
            break
        if left <= SHRINK * len(here):
            kept = (~batch.finished_n).nonzero()[:, 0]
        else:
            kept = torch.arange(len(here), device=device)
    return made


def run(batch: Batch, model: Any, sampling: SamplingConfig, passes: int) -> int:
    """Advances a batch by so many passes, or until all rows have ended; returns how many have not.
    The host waits for a GPU once in LOOK passes."""
    device = batch.place.device

    def advance() -> None:
        batch.advance(model, sampling)

    do, left = advance, len(batch.lengths_n)
    for number in range(passes):
        if number == 1 and device.type == "cuda" and passes >= WORTH:
            do = captured(advance)  # after an eager pass, in which libraries allocate
        do()
        if device.type == "cpu" or number % LOOK == LOOK - 1 or number == passes - 1:
            left = int((~batch.finished_n).sum())
            if not left:
                break
    return left


def captured(work: Callable[[], None]) -> Callable[[], None]:
    """Launches all kernels of `work` at once. Capturing runs none of them. Raises RuntimeError
    where a model does something on the way that a graph cannot hold."""
    graph = torch.cuda.CUDAGraph()
    try:
        # Other threads copy weights for a checkpoint meanwhile, or watch NCCL.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            work()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RuntimeError(
            f"a token's pass cannot be captured in a CUDA graph ({error}); set "
            'domain.decoding = "eager"'
        ) from error
    return graph.replay
