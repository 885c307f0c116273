"""Prompt embeddings of Stable Diffusion 3: computed once, cached on disk, shared by all ranks.

Every rank encodes its share of the missing ones, and then frees the encoders (T5 alone is 9 GB).
The key of a cached embedding is its text, the encoder and tokenizer files, the sequence length, the
precision and the version of this code. Texts are encoded in the same batches at any number of
ranks, so that the embeddings are the same to the bit.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from adrpo_scale.core import dist
from adrpo_scale.core.caches import unwritable, why_unwritable
from adrpo_scale.core.disk_space import check_space
from adrpo_scale.core.errors import AdrpoError, ModelNotFoundError, agreed
from adrpo_scale.core.file_hashes import file_hashes, known_hashes
from adrpo_scale.core.pace import Pace
from adrpo_scale.domains.embedding_ranks import embedding_ranks, encoder_bytes
from adrpo_scale.domains.embedding_store import (
    ASIDE,
    StoreReader,
    StoreWriter,
    adopt,
    cache_folder,
    damaged,
    index_of,
    join,
    store_folder,
    text_hash,
)
from adrpo_scale.domains.pipelines import T5, encoders, load_encoder
from adrpo_scale.hub.foreign import read_json
from adrpo_scale.hub.loaders import load_settings
from adrpo_scale.hub.weight_files import TRANSFORMERS, weight_files

log = logging.getLogger(__name__)
VERSION = 1  # to be raised when embeddings are computed differently
ENCODE_BATCH = 16


def encoder_fingerprint(
    model: Path,
    t5: bool,
    max_sequence_length: int,
    dtype: str,
    hashes: Callable[[Iterable[Path]], Mapping[Path, str]] = file_hashes,
) -> str:
    """Hash of everything that an embedding depends on, except its text. hashes: of files.

    Raises ModelNotFoundError where an encoder or tokenizer is missing.
    """
    folders = ["text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"]
    folders += [T5, "tokenizer_3"] if t5 else []
    parts = [f"v{VERSION}", str(max_sequence_length), dtype]
    for folder in folders:
        files = sorted(p for p in (model / folder).glob("*") if p.is_file())
        if not files:
            raise ModelNotFoundError(
                f"{model} has no {folder}/: a Stable Diffusion 3 pipeline folder is expected"
                + ("; without T5, set domain.t5 = false" if folder.endswith("_3") else "")
            )
        if folder.startswith("text_encoder"):
            weight_files(model / folder, TRANSFORMERS)  # raises; the library would try a pickle
        parts += [f"{folder}/{p.name}={digest}" for p, digest in hashes(files).items()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def row_bytes(model: Path, max_sequence_length: int, dtype: torch.dtype) -> int:
    """Bytes of one embedding. model: a pipeline's folder, or that of its config files."""
    transformer = read_json(model / "transformer" / "config.json")
    clip = read_json(model / "text_encoder" / "config.json")
    tokens = clip.get("max_position_embeddings", 77) + max_sequence_length
    numbers = tokens * transformer["joint_attention_dim"] + transformer["pooled_projection_dim"]
    return int(numbers) * dtype.itemsize


def bytes_to_cache(
    model: Path, texts: Sequence[str], t5: bool, max_sequence_length: int, dtype: torch.dtype
) -> int:
    """Bytes by which the cache grows when these texts are loaded. Hashes nothing: where a file of
    the encoders has no known hash, nothing can have been cached."""

    def known(files: Iterable[Path]) -> Mapping[Path, str]:
        found = known_hashes(list(files))
        if found is None:
            raise LookupError
        return found

    unique = {*texts}
    try:
        fingerprint = encoder_fingerprint(model, t5, max_sequence_length, str(dtype), known)
        there = index_of(store_folder(fingerprint).glob("*.safetensors"))
    except (LookupError, AdrpoError):
        there = {}
    missing = sum(text_hash(text) not in there for text in unique)
    return missing * row_bytes(model, max_sequence_length, dtype)


class PromptEmbeddings:
    """Embeddings by prompt text: `sequence` [L, D] and `pooled` [D_pooled], on the CPU."""

    def __init__(self, reader: StoreReader) -> None:
        self._reader = reader

    def batch(self, texts: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """(sequence [N, L, D], pooled [N, D_pooled]) on `device`. KeyError for an unknown text."""
        rows = {text: self._reader.row(text) for text in dict.fromkeys(texts)}
        sequence, pooled = (torch.stack([rows[text][k] for text in texts]) for k in (0, 1))
        return sequence.to(device), pooled.to(device)


def load_embeddings(
    model: Path,
    texts: Sequence[str],
    *,
    t5: bool,
    max_sequence_length: int,
    device: torch.device,
    dtype: torch.dtype,
) -> PromptEmbeddings:
    """Embeddings of `texts`; those that are not cached are encoded, on all ranks. Collective.

    Raises ModelNotFoundError where encoders are missing, or this node does not see the cache;
    CacheError and DiskSpaceError where it cannot be written; StopRequested after a signal, with
    everything kept that was encoded.
    """
    unique = sorted(set(texts))
    fingerprint: str = dist.run_on_main(
        lambda: encoder_fingerprint(model, t5, max_sequence_length, str(dtype))
    )
    folder = store_folder(fingerprint)
    needed = row_bytes(model, max_sequence_length, dtype)
    files, missing = _whole(folder, fingerprint, unique, needed)
    if missing:
        batches = [missing[i : i + ENCODE_BATCH] for i in range(0, len(missing), ENCODE_BATCH)]
        written = _encode(model, folder, batches, t5, max_sequence_length, device, dtype)
        files = [*files, *written]
    found = index_of(files)
    place = {text: found[key] for text in unique if (key := text_hash(text)) in found}
    absent = [text for text in unique if text not in place]
    if absent:
        raise ModelNotFoundError(
            f"the ranks wrote prompt embeddings that this node does not see, of {len(absent)} "
            f"prompts, in {folder}; point ADRPO_CACHE at a folder that all nodes share"
        )
    return PromptEmbeddings(StoreReader(place))


def _whole(
    folder: Path, fingerprint: str, texts: Sequence[str], bytes_each: int
) -> tuple[list[Path], list[str]]:
    """As `_look_up`, after every row that is there was compared with its hash, each on one rank. A
    file with a damaged row is removed. Collective."""
    passed_over: frozenset[Path] = frozenset()
    while True:
        look = partial(_look_up, folder, fingerprint, texts, bytes_each, passed_over)
        files, missing = dist.run_on_main(look)
        found = index_of(files)
        there = [found[key] for text in texts if (key := text_hash(text)) in found]
        share = dist.block(len(there), dist.rank(), dist.world_size())
        told = dist.gather_objects(damaged([there[k] for k in share]))
        fresh = frozenset[Path]().union(*told)
        if not fresh:
            return files, missing
        dist.run_on_main(partial(_remove, fresh))
        passed_over |= fresh


def _remove(files: Iterable[Path]) -> None:
    for path in files:
        log.warning("%s is damaged: its prompt embeddings are made anew", path)
        with suppress(OSError):  # a cache that cannot be written: passed over
            path.unlink()


def _look_up(
    folder: Path, fingerprint: str, texts: Sequence[str], bytes_each: int, without: Set[Path]
) -> tuple[list[Path], list[str]]:
    """(the files that hold any of the texts, the texts that none holds), on rank 0. Where some are
    to be written, the folder must take them. without: files that do not count."""
    adopt([path for path in folder.glob(f"*{ASIDE}") if time.time() - _age(path)[0] / 1e9 > _LEFT])
    # The oldest first: which of two files with one text counts never changes.
    there = [path for path in sorted(folder.glob("*.safetensors"), key=_age) if path not in without]
    found = index_of(there)
    files = list(dict.fromkeys(found[key][0] for t in texts if (key := text_hash(t)) in found))
    missing = [text for text in texts if text_hash(text) not in found]
    if missing:
        why = why_unwritable(folder)
        if why is not None:
            raise unwritable(folder, why)
        check_space(folder, len(missing) * bytes_each, 1, None, "prompt embeddings", _ROOM)
        taken = _taken_over(folder, fingerprint, missing)
        files += taken
        kept = index_of(taken)
        missing = [text for text in missing if text_hash(text) not in kept]
    return files, missing


def _age(path: Path) -> tuple[int, Path]:
    return path.lstat().st_mtime_ns, path


_LEFT = 3600.0  # seconds, after which rows set aside are those of a run that was killed
_ROOM = "Make room, or point ADRPO_CACHE at a larger disk that all nodes share"


def _taken_over(folder: Path, fingerprint: str, texts: Sequence[str]) -> list[Path]:
    """Files with those of the texts that earlier versions kept, each in a file of its own."""
    writer = StoreWriter(folder)
    if not any(len(path.name) == 2 for path in cache_folder().glob("??")):
        return writer.files
    pace = Pace("reading prompt embeddings of earlier runs", len(texts), "prompts")
    for text in texts:
        pace.step()
        try:
            tensors = load_file(embedding_file(fingerprint, text))
            writer.add(text, tensors["sequence"].clone(), tensors["pooled"].clone())
        except (OSError, SafetensorError, KeyError):
            continue
    writer.flush()
    return writer.files


def embedding_file(fingerprint: str, text: str) -> Path:
    """The file of one text, as versions before had it."""
    digest = hashlib.sha256(f"{fingerprint}\n{text}".encode()).hexdigest()
    return cache_folder() / digest[:2] / f"{digest}.safetensors"


def _encode(
    model: Path,
    folder: Path,
    batches: Sequence[Sequence[str]],
    t5: bool,
    max_sequence_length: int,
    device: torch.device,
    dtype: torch.dtype,
) -> list[Path]:
    """Encodes the batches, each on one of `embedding_ranks`; returns the files of all, small ones
    joined. Collective: an error of one rank is raised on all, after the others have kept what they
    have."""
    ranks = embedding_ranks(dist.run_on_main(partial(encoder_bytes, model, t5, dtype)))
    shares = [range(0)] * dist.world_size()
    for place, rank in enumerate(ranks):
        shares[rank] = dist.block(len(batches), place, len(ranks))
    mine = shares[dist.rank()]
    pipeline, writer = None, StoreWriter(folder)
    error: AdrpoError | None = None
    pace = Pace("embedding prompts", sum(map(len, batches)), "prompts", together=True)
    try:
        for k in range(max(map(len, shares))):
            try:
                if k < len(mine) and error is None:
                    pipeline = pipeline or _pipeline(model, t5, device, dtype)
                    _add(writer, pipeline, batches[mine[k]], device, max_sequence_length)
            except AdrpoError as caught:
                error = caught
            pace.step(sum(len(batches[share[k]]) for share in shares if k < len(share)))
    except BaseException:
        with suppress(AdrpoError):
            writer.flush()
        raise
    aside: list[Path] = []
    try:
        aside = writer.set_aside()
    except AdrpoError as caught:
        error = error or caught
    told = dist.gather_objects((writer.files, aside, error))
    for _, _, fault in told:
        if fault is not None:
            adopt(aside)
            raise agreed(fault)
    parts = [path for _, paths, _ in told for path in paths]
    joined = dist.run_on_main(partial(join, folder, parts))
    return [path for files, _, _ in told for path in files] + joined


@torch.no_grad()
def _add(
    writer: StoreWriter,
    pipeline: Any,
    texts: Sequence[str],
    device: torch.device,
    max_sequence_length: int,
) -> None:
    """Encodes one batch."""
    sequence, _, pooled, _ = pipeline.encode_prompt(
        prompt=list(texts),
        prompt_2=None,
        prompt_3=None,
        device=device,
        do_classifier_free_guidance=False,
        max_sequence_length=max_sequence_length,
    )
    for text, row, pooled_row in zip(texts, sequence.cpu(), pooled.cpu(), strict=True):
        writer.add(text, row, pooled_row)


def _pipeline(model: Path, t5: bool, device: torch.device, dtype: torch.dtype) -> Any:
    """The pipeline with its text encoders alone."""
    from accelerate import init_empty_weights
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    without = {} if t5 else {T5: None, "tokenizer_3": None}
    given: dict[str, Any] = {name: load_encoder(model / name, dtype) for name in encoders(t5)}
    given |= {"transformer": None, "vae": None, "dtype": dtype, **without}
    given |= {"use_safetensors": True}  # of what model_index.json could name beside them
    pipeline = load_settings(StableDiffusion3Pipeline, model, "tokenizers", **given).to(device)
    # Without T5 the pipeline reads the width of its zeros from the transformer's config.
    transformer_config = SD3Transformer2DModel.load_config(model / "transformer")
    with init_empty_weights():
        pipeline.transformer = SD3Transformer2DModel.from_config(transformer_config)
    return pipeline
