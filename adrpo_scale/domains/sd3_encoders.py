"""The text encoders of Stable Diffusion 3 as readers of prompts: their tokenizers and lengths, as
diffusers' pipeline applies them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adrpo_scale.data.readings import Encoder
from adrpo_scale.hub.foreign import read_json
from adrpo_scale.hub.loaders import load_settings

_NUMBERS = ("", "_2", "_3")


def encoders_of(folder: Path, t5: bool, max_sequence_length: int) -> list[Encoder]:
    """The encoders that a pipeline's folder has. The CLIP ones cut at the length of the first
    tokenizer, T5 at `max_sequence_length`."""
    index = read_json(folder / "model_index.json")
    tokenizers = {
        number: _load(folder / f"tokenizer{number}", index.get(f"tokenizer{number}"))
        for number in (_NUMBERS if t5 else _NUMBERS[:2])
    }
    first = tokenizers[""]
    clip = 77 if first is None else int(first.model_max_length)
    found = []
    for number, tokenizer in tokenizers.items():
        if tokenizer is None:
            continue
        is_t5 = number == "_3"
        found.append(
            Encoder(
                f"text_encoder{number}",
                max_sequence_length if is_t5 else clip,
                _ids_by(tokenizer),
                "raise domain.max_sequence_length, or shorten them" if is_t5 else "shorten them",
            )
        )
    return found


def _load(folder: Path, stated: Any) -> Any:
    """The tokenizer by the class in model_index.json; None where the pipeline has none."""
    import transformers

    if not isinstance(stated, list) or not stated[1] or not folder.is_dir():
        return None
    kind: Any = getattr(transformers, stated[1], None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedTokenizerBase)):
        kind = transformers.AutoTokenizer  # never another class that the file names: it loads more
    return load_settings(kind, folder, "tokenizer")


def _ids_by(tokenizer: Any) -> Any:
    def tokenize(texts: list[str]) -> Sequence[Sequence[int]]:
        return tokenizer(texts)["input_ids"]  # type: ignore[no-any-return]

    return tokenize
