"""Multiple-choice questions about audio: AVQA's rows, and the prompts made from them.

Rows in two forms are read:

    AVQA's own    {"id", "video_name", "question_text", "multi_choice": [4 texts], "answer": 0 .. 3,
                   "question_type", ..., "audio_path" where the sound was extracted}
    prepared      {"id", "question", "choices", "answer": text, "audio": reference, ...}, written by
                   `adrpo-scale prepare avqa` and `prepare mmau`

A prompt is the question, the options and the form of the answer, in the words of R1-AQA
(github.com/xiaomi-research/r1-aqa), so that models trained by either can be compared. AVQA asks
about videos; `about_audio` turns that into audio. R1-AQA replaces parts of words too, this module
does not ("videotape" stays).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adrpo_scale.data.foreign_rows import check_name

OPTIONS = "Please choose the answer from the following options: {options}."
ANSWER_ONLY = "Output the final answer in <answer> </answer>."
THINK_FIRST = (
    "Output the thinking process in <think> </think> and final answer in <answer> </answer>."
)
_VIDEO = re.compile(r"(?<![\w-])video(s?)(?![\w-])", re.IGNORECASE)
_CASES = {
    "video": "audio",
    "Video": "Audio",
    "VIDEO": "AUDIO",
    "videos": "audios",
    "Videos": "Audios",
    "VIDEOS": "AUDIOS",
}
_OWN = ("question_text", "multi_choice")  # keys that AVQA's own rows have and prepared ones do not
_PREPARED = ("question", "choices", "answer", "audio")


@dataclass(frozen=True)
class Question:
    """One question. answer: the text of the right option. clip: a reference (see `data.clips`);
    None where a row of AVQA names no audio. video: the name of the video, without suffix; None
    where the row has none. others: the other fields of the row."""

    id: int | str | None
    text: str
    choices: tuple[str, ...]
    answer: str
    clip: str | None
    video: str | None
    others: Mapping[str, Any] = field(default_factory=dict)


def is_question(entry: Mapping[str, Any]) -> bool:
    """Whether a row has the keys of one of the two forms; their values may be wrong."""
    return all(key in entry for key in _OWN) or all(key in entry for key in _PREPARED)


def parse_question(entry: Mapping[str, Any]) -> Question:
    """The question of a row of either form. Raises ValueError that names the fault of the row."""
    return _own(entry) if _OWN[0] in entry else _prepared(entry)


def _own(entry: Mapping[str, Any]) -> Question:
    choices = _choices(entry, "multi_choice")
    place = entry.get("answer")
    if type(place) is not int or not 0 <= place < len(choices):
        raise ValueError(f"'answer' is {place!r}, expected an integer 0 to {len(choices) - 1}")
    clip, video = entry.get("audio_path") or None, entry.get("video_name") or None
    if not isinstance(clip or video, str):
        raise ValueError(f"'video_name' is {video!r}, expected the name of the video")
    for key, name in (("audio_path", clip), ("video_name", _name(video))):
        if name is not None:
            check_name(name, key)
    return Question(
        id=entry.get("id"),
        text=_text(entry, "question_text"),
        choices=choices,
        answer=choices[place],
        clip=clip,
        video=_name(video),
        others={"type": entry.get("question_type"), "relation": entry.get("question_relation")},
    )


def _prepared(entry: Mapping[str, Any]) -> Question:
    known = ("id", "question", "choices", "answer", "audio", "video")
    return Question(
        id=entry.get("id"),
        text=_text(entry, "question"),
        choices=_choices(entry, "choices"),
        answer=_text(entry, "answer"),
        clip=_text(entry, "audio"),
        video=_name(entry.get("video")),
        others={key: value for key, value in entry.items() if key not in known},
    )


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _text(entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    if not _is_text(value):
        raise ValueError(f"{key!r} is {value!r}, expected a text")
    return str(value).strip()


def _choices(entry: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = entry.get(key)
    if not isinstance(value, list) or len(value) < 2 or not all(map(_is_text, value)):
        raise ValueError(f"{key!r} is {value!r}, expected a list of two texts or more")
    return tuple(choice.strip() for choice in value)


# ---- wording -------------------------------------------------------------------------------------


def about_audio(question: str) -> str:
    """The question with "audio(s)" in place of every whole word "video(s)", in the same case."""
    return _VIDEO.sub(lambda found: _CASES.get(found[0], "audio" + found[1].lower()), question)


def prompt_text(question: str, choices: Sequence[str], think: bool) -> str:
    """The prompt of a question. think: asks for reasoning in <think> before the <answer>.

    The options are written as a Python list, as in R1-AQA's prompts.
    """
    options = OPTIONS.format(options=list(choices))
    return f"{about_audio(question)} {options} {THINK_FIRST if think else ANSWER_ONLY}"


def prompt_row(entry: Mapping[str, Any], folder: str, think: bool) -> tuple[str, dict[str, Any]]:
    """(text, metadata) of the prompt of a row; folder: that of the row's file.

    metadata: answer (the right option's text), choices, audio (a reference), audio_folder (the
    folder of the reference), id, question, and the other fields of the row. Raises ValueError as
    `parse_question` does, and for a row that has no audio yet.
    """
    question = parse_question(entry)
    if question.clip is None:
        raise ValueError("it has no 'audio_path'; run `adrpo-scale prepare avqa` on this file")
    metadata = {
        **question.others,
        "id": question.id,
        "question": question.text,
        "choices": list(question.choices),
        "answer": question.answer,
        "audio": question.clip,
        "audio_folder": folder,
    }
    return prompt_text(question.text, question.choices, think), metadata
