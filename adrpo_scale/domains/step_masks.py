"""Attention masks of decoding steps that no device is asked about.

transformers leaves a mask out where no row is padded, and asks the tensor whether one is: on a GPU
the host then waits for the device at every token. Here the host knows, because prompts are lists.
What the model gets is what transformers would make of the mask: nothing, or booleans [N, 1, 1, T].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class StepMasks:
    """The masks of one batch. config: of a transformers model. is_padded: whether any prompt is
    shorter than the longest. On the CPU, and for models with another attention than full and
    scaled-dot-product, transformers goes on to decide."""

    def __init__(self, config: Any, device: torch.device, is_padded: bool) -> None:
        is_sdpa = config.get_text_config()._attn_implementation == "sdpa"
        self._is_ready = device.type != "cpu" and is_sdpa and takes_masks(config)
        self._is_padded = is_padded

    def rows_left(self, prompts_NW: Tensor) -> None:
        """Rows have left the batch. prompts_NW: the mask of those that stay, over their prompts.
        The host waits for the device."""
        if self._is_ready and self._is_padded:
            self._is_padded = not bool(prompts_NW.all())

    def of_step(self, mask_NT: Tensor) -> Tensor | None:
        """The `attention_mask` of a step of one token. mask_NT: 1 where a key is a token."""
        if not self._is_ready:
            return mask_NT
        return mask_NT.bool()[:, None, None] if self._is_padded else None


def takes_masks(config: Any) -> bool:
    """True where every layer has full, causal attention. config: of a transformers model."""
    text = config.get_text_config()
    layers = set(getattr(text, "layer_types", None) or ())
    return layers == {"full_attention"} and getattr(text, "is_causal", True)
