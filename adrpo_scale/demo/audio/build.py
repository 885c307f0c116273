"""Builds the sounds demo's model, clips and questions, in the formats of real ones.

    config.json  model.safetensors      a thinker of Qwen2.5-Omni, towers included
    tokenizer.json  processor_config.json  chat_template.jinja …
    prompts/train.jsonl  prompts/held_out.jsonl  prompts/clips-00000.tar
                                        as `adrpo-scale prepare avqa` writes rows and clips

`Qwen2_5OmniThinkerForConditionalGeneration` and `Qwen2_5OmniProcessor` load the folder by
`from_pretrained`. Seeds and steps are pinned: the same machine writes the same bytes again. Models
written by other machines differ by rounding.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from transformers import Qwen2_5OmniProcessor

from adrpo_scale.data import questions as avqa
from adrpo_scale.demo.audio.model import (
    SOUNDS_SFT,
    build_processor,
    build_thinker,
    build_tokenizer,
    spoken_batch,
)
from adrpo_scale.demo.audio.task import (
    POSITIONS,
    SAMPLE_RATE,
    Order,
    Question,
    Samples,
    draw_clip,
    draw_demonstration,
    draw_question,
    split_orders,
    words,
)
from adrpo_scale.demo.text.build import pinned, write_rows
from adrpo_scale.demo.text.model import Batch, SftRecipe, train_sft

LISTENING = 0.6  # first share of the steps, in which all completions reason
REASONING = 0.3  # share of completions with reasoning in the later steps
SHARD = "clips-00000.tar"


def prompt_of(question: Question) -> str:
    return avqa.prompt_text(question.text, question.choices, think=True)


def build_audio(
    to: Path,
    *,
    seed: int = 0,
    log: Callable[[str], object] = print,
    recipe: SftRecipe = SOUNDS_SFT,
) -> None:
    """Trains the sounds demo's thinker; writes it, its processor, the clips and the questions.

    About three minutes on one CPU thread with the default recipe; 4 MB. Files in `to` of the same
    names are replaced. The global random state and the number of threads are left as they were.
    Needs the packages of `adrpo_scale[audio]`.
    """
    train, held_out = split_orders(seed)
    with pinned():
        tokenizer = build_tokenizer(
            words([avqa.prompt_text("", [], think) for think in (False, True)])
        )
        processor = build_processor(tokenizer)
        model = build_thinker(recipe.size, tokenizer, seed)
        train_sft(model, _batches(processor, train, recipe.steps, seed + 1), recipe, log)
        # float32: transformers loads the stored dtype, and 16 bits would slow training on a CPU.
        model.save_pretrained(to)
        processor.save_pretrained(to)
    _write_questions(to / "prompts", {"train": train, "held_out": held_out}, seed + 2)


def _batches(
    processor: Qwen2_5OmniProcessor, orders: Sequence[Order], steps: int, seed: int
) -> Callable[[int], Batch]:
    """Draws the batches of a training: new clips of these orders, each with a question and a
    demonstration. The model first learns to recognise sounds, then the style of answers."""
    rng = np.random.default_rng(seed)
    drawn = count(1)

    def draw(size: int) -> Batch:
        share = 1.0 if next(drawn) <= LISTENING * steps else REASONING
        some = [orders[i] for i in rng.integers(len(orders), size=size)]
        questions = [draw_question(order, int(rng.integers(3)), rng) for order in some]
        return spoken_batch(
            processor,
            [draw_clip(order, rng) for order in some],
            [prompt_of(question) for question in questions],
            [draw_demonstration(q, rng, reasons=rng.random() < share) for q in questions],
        )

    return draw


def _write_questions(to: Path, splits: dict[str, list[Order]], seed: int) -> None:
    """A clip of each order, and three questions about each clip."""
    rng = np.random.default_rng(seed)
    to.mkdir(parents=True, exist_ok=True)
    orders = [order for split in splits.values() for order in split]
    clips = {"-".join(order): draw_clip(order, rng) for order in orders}
    references = _write_shard(to / SHARD, clips.items())
    for split, some in splits.items():
        asked = [draw_question(order, k, rng) for order in some for k in range(len(POSITIONS))]
        write_rows((_row(question, references) for question in asked), to / f"{split}.jsonl")


def _row(question: Question, references: dict[str, str]) -> dict[str, Any]:
    """A row in the format of `prepare avqa`."""
    clip = "-".join(question.order)
    return {
        "id": f"{clip}-{question.place}",
        "question": question.text,
        "choices": list(question.choices),
        "answer": question.answer,
        "audio": references[clip],
    }


def _write_shard(to: Path, clips: Iterable[tuple[str, Samples]]) -> dict[str, str]:
    """Writes a plain tar of FLAC files; returns the reference of each clip for
    `clips.read_clip`."""
    import soundfile

    with tarfile.open(to, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, samples in clips:
            flac = io.BytesIO()
            soundfile.write(flac, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
            member = tarfile.TarInfo(f"{name}.flac")
            member.size = flac.getbuffer().nbytes
            flac.seek(0)
            tar.addfile(member, flac)
    with tarfile.open(to) as tar:
        members = tar.getmembers()
    return {
        one.name.removesuffix(".flac"): f"{to.name}:{one.offset_data}:{one.size}" for one in members
    }
