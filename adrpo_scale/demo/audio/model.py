"""The sounds demo's model: a small thinker of Qwen2.5-Omni with its processor, and its training.

Classes and folder are those of transformers: an audio tower and a language model of about 0.5 M
parameters, and the smallest possible vision tower, which is not used.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    WhisperFeatureExtractor,
)

from adrpo_scale.demo.audio.task import WORD, Samples
from adrpo_scale.demo.text.model import Batch, ModelSize, SftRecipe, sft_batch

POSITIONS = 192  # longest sequence
MEL_BINS = 64
WINDOW_SECONDS = 2  # longest clip
SPECIAL = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# About 160 CPU-seconds on one thread.
SOUNDS_SFT = SftRecipe(
    ModelSize(hidden=96, layers=2, intermediate=256, head_dim=24), steps=480, batch=48
)


def build_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token per word, tag or punctuation mark. Tags such as `<think>` are ordinary words, since
    special ones would vanish when decoding with `skip_special_tokens`."""
    special = ["<pad>", "<unk>", "<|im_start|>", "<|im_end|>", *SPECIAL.values()]
    vocab = list(dict.fromkeys([*special, "system", "user", "assistant", *words]))
    ids = {word: index for index, word in enumerate(vocab)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), "removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        extra_special_tokens=SPECIAL,
        padding_side="left",
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
        chat_template=_CHAT,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5OmniProcessor:
    features = WhisperFeatureExtractor(feature_size=MEL_BINS, chunk_length=WINDOW_SECONDS)
    return Qwen2_5OmniProcessor(
        Qwen2VLImageProcessor(),
        Qwen2VLVideoProcessor(),
        features,
        tokenizer,
        chat_template=_CHAT,
    )


def build_thinker(
    size: ModelSize, tokenizer: PreTrainedTokenizerFast, seed: int
) -> Qwen2_5OmniThinkerForConditionalGeneration:
    """A thinker before training, float32."""
    id_of = tokenizer.convert_tokens_to_ids
    if size.head_dim * size.heads != size.hidden:
        raise ValueError(f"{size}: hidden must be head_dim * heads")
    sixth = size.head_dim // 6  # of its pairs: height and width each; time has the rest
    sections = [size.head_dim // 2 - 2 * sixth, sixth, sixth]
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}
    torch.manual_seed(seed)
    config = Qwen2_5OmniThinkerConfig(
        audio_config={
            "d_model": 64,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 192,
            "num_mel_bins": MEL_BINS,
            "max_source_positions": 50 * WINDOW_SECONDS,
            "output_dim": size.hidden,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "patch_size": 4,
            "out_hidden_size": size.hidden,
            "fullatt_block_indexes": [0],
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": size.hidden,
            "intermediate_size": size.intermediate,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.kv_heads,
            "max_position_embeddings": POSITIONS,
            "rope_parameters": rope,
            "tie_word_embeddings": False,
        },
        image_token_index=id_of(SPECIAL["image_token"]),
        video_token_index=id_of(SPECIAL["video_token"]),
        audio_token_index=id_of(SPECIAL["audio_token"]),
        audio_start_token_id=id_of(SPECIAL["audio_bos_token"]),
        audio_end_token_id=id_of(SPECIAL["audio_eos_token"]),
        vision_start_token_id=id_of(SPECIAL["vision_bos_token"]),
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2_5OmniThinkerForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def spoken_ids(
    processor: Qwen2_5OmniProcessor, clips: Sequence[Samples], texts: Sequence[str]
) -> tuple[list[list[int]], Batch]:
    """(token ids of each prompt, audio features of the batch) of prompts with a clip and then a
    text, made by the processor."""
    content = [{"type": "audio", "audio": ""}, {"type": "text", "text": ""}]
    chats = [
        processor.apply_chat_template(
            [{"role": "user", "content": [content[0], content[1] | {"text": text}]}],
            add_generation_prompt=True,
            tokenize=False,
        )
        for text in texts
    ]
    found = processor(text=chats, audio=list(clips), padding=True, return_tensors="pt")
    ids = [
        row[mask.bool()].tolist()
        for row, mask in zip(found.input_ids, found.attention_mask, strict=True)
    ]
    heard = {name: found[name] for name in ("input_features", "feature_attention_mask")}
    return ids, heard


def spoken_batch(
    processor: Qwen2_5OmniProcessor,
    clips: Sequence[Samples],
    texts: Sequence[str],
    completions: Sequence[str],
) -> Batch:
    """`sft_batch` of prompts that begin with a clip."""
    ids, heard = spoken_ids(processor, clips, texts)
    return sft_batch(processor.tokenizer, ids, completions) | heard
