"""Prompt embeddings of Stable Diffusion 3: computed once, cached on disk, shared by all ranks.

Rank 0 encodes the missing ones and then frees the encoders (T5 alone is 9 GB); every rank maps the
files. The key of a cached embedding is its text, the encoder and tokenizer files, the sequence
length, the precision and the version of this code.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file, save_file
from torch import Tensor

from adrpo_scale.core import dist
from adrpo_scale.core.errors import ModelNotFoundError
from adrpo_scale.core.file_hashes import cache_root, file_hashes
from adrpo_scale.hub.weights import SafetensorsFolder

VERSION = 1  # to be raised when embeddings are computed differently
ENCODE_BATCH = 16


def cache_folder() -> Path:
    """$ADRPO_CACHE/embeddings, or ~/.cache/adrpo_scale/embeddings. All nodes must see it."""
    return cache_root() / "embeddings"


def encoder_fingerprint(model: Path, t5: bool, max_sequence_length: int, dtype: str) -> str:
    """Hash of everything that an embedding depends on, except its text.

    Raises ModelNotFoundError where an encoder or tokenizer is missing.
    """
    folders = ["text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"]
    folders += ["text_encoder_3", "tokenizer_3"] if t5 else []
    parts = [f"v{VERSION}", str(max_sequence_length), dtype]
    for folder in folders:
        files = sorted(p for p in (model / folder).glob("*") if p.is_file())
        if not files:
            raise ModelNotFoundError(
                f"{model} has no {folder}/: a Stable Diffusion 3 pipeline folder is expected"
                + ("; without T5, set domain.t5 = false" if folder.endswith("_3") else "")
            )
        if folder.startswith("text_encoder"):
            SafetensorsFolder(model / folder, "model")  # raises; transformers would try a pickle
        parts += [f"{folder}/{p.name}={digest}" for p, digest in file_hashes(files).items()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


class PromptEmbeddings:
    """Embeddings by prompt text: `sequence` [L, D] and `pooled` [D_pooled], on the CPU."""

    def __init__(self, by_text: dict[str, dict[str, Tensor]]) -> None:
        self._by_text = by_text

    def batch(self, texts: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """(sequence [N, L, D], pooled [N, D_pooled]) on `device`. KeyError for an unknown text."""
        entries = [self._by_text[text] for text in texts]
        stacked = [torch.stack([e[name] for e in entries]) for name in ("sequence", "pooled")]
        return stacked[0].to(device), stacked[1].to(device)


def load_embeddings(
    model: Path,
    texts: Sequence[str],
    *,
    t5: bool,
    max_sequence_length: int,
    device: torch.device,
    dtype: torch.dtype,
) -> PromptEmbeddings:
    """Embeddings of `texts`; those that are not cached are encoded. Collective.

    Raises ModelNotFoundError where encoders are missing, or this node does not see the cache.
    """
    unique = sorted(set(texts))

    def encode_missing() -> dict[str, Path]:
        fingerprint = encoder_fingerprint(model, t5, max_sequence_length, str(dtype))
        files = {text: embedding_file(fingerprint, text) for text in unique}
        missing = [text for text in unique if not files[text].is_file()]
        if missing:
            _encode(
                model,
                {text: files[text] for text in missing},
                t5,
                max_sequence_length,
                device,
                dtype,
            )
        return files

    files = dist.run_on_main(encode_missing)
    absent = [path for path in files.values() if not path.is_file()]
    if absent:
        raise ModelNotFoundError(
            f"rank 0 wrote prompt embeddings that this node does not see, e.g. {absent[0]}; "
            "point ADRPO_CACHE at a folder that all nodes share"
        )
    # load_file maps the file, so the ranks of a node share one copy in the page cache.
    return PromptEmbeddings({text: load_file(path) for text, path in files.items()})


def embedding_file(fingerprint: str, text: str) -> Path:
    digest = hashlib.sha256(f"{fingerprint}\n{text}".encode()).hexdigest()
    return cache_folder() / digest[:2] / f"{digest}.safetensors"


@torch.no_grad()
def _encode(
    model: Path,
    files: dict[str, Path],
    t5: bool,
    max_sequence_length: int,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    without = {} if t5 else {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        model, transformer=None, vae=None, dtype=dtype, local_files_only=True, **without
    ).to(device)
    # Without T5 the pipeline reads the width of its zeros from the transformer's config.
    transformer_config = SD3Transformer2DModel.load_config(model / "transformer")
    with init_empty_weights():
        pipeline.transformer = SD3Transformer2DModel.from_config(transformer_config)
    texts = list(files)
    for start in range(0, len(texts), ENCODE_BATCH):
        chunk = texts[start : start + ENCODE_BATCH]
        sequence, _, pooled, _ = pipeline.encode_prompt(
            prompt=chunk,
            prompt_2=None,
            prompt_3=None,
            device=device,
            do_classifier_free_guidance=False,
            max_sequence_length=max_sequence_length,
        )
        for text, row, pooled_row in zip(chunk, sequence.cpu(), pooled.cpu(), strict=True):
            path = files[text]
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}.part")
            save_file({"sequence": row.contiguous(), "pooled": pooled_row.contiguous()}, part)
            part.replace(path)
