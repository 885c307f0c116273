"""Prompts that encoders cut: counted and named whether or not their embeddings are cached.

The demo's CLIP reads 12 tokens. `TWO` differ in their last word, which it does not read.
"""

from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch
from transformers import T5Tokenizer

from adrpo_scale.cluster.status.read import read
from adrpo_scale.cluster.status.state import judge
from adrpo_scale.core.paths import resolve_path
from adrpo_scale.core.types import Prompt
from adrpo_scale.data.prompts import load_prompts
from adrpo_scale.data.readings import Encoder, read_prompts
from adrpo_scale.rewards.image import ClipReward, ClipRewardConfig
from adrpo_scale.run.build import build_domain
from adrpo_scale.run.cut_prompts import FILE, cut_text, report_cut
from tests.support.tiny import MODEL, demo_config, demo_trainer

SAME = "a red ring and a blue ring and a green ring and a red disc and a "
TWO = [f"{SAME}blue square", f"{SAME}green disc"]
PROMPTS = [Prompt(i, text) for i, text in enumerate(["a red ring", *TWO, "a red ring"])]
CPU = torch.device("cpu")


def test_what_the_models_encoders_do_not_read_is_counted_and_named():
    found = build_domain(demo_config()).reads(PROMPTS)
    assert [each.name for each in found.encoders] == ["text_encoder", "text_encoder_2"]
    for each in found.encoders:
        assert each.limit == 12 and each.cut == {1: 24, 2: 27}
    assert found.alike == ((1, 2),)
    cut, alike = found.warnings()
    assert cut.startswith(
        "2 of 4 prompts are cut: text_encoder and text_encoder_2 of the model read 12 tokens, the "
        "longest has 27 (prompt 1 'a red ring and a blue"
    )
    assert alike.startswith("2 different prompts share 1 embedding of the model, because their")


def test_cut_prompts_are_named_by_file_and_line(tmp_path):
    file = tmp_path / "prompts.txt"
    long = [f"{SAME}{colour} square" for colour in ("blue", "red", "green", "pink", "white")]
    file.write_text("\n".join(["a red ring", "", *long]))
    found = build_domain(demo_config()).reads(load_prompts(file))
    cut, alike = found.warnings()
    assert f"({file}, line 3)" in cut and f"; and {file}, lines 6-7): " in cut
    assert f"({file}, line 5); and {file}, lines 6-7): " in alike
    assert found.as_json()["places"]["4"] == f"{file}, line 6"


def test_equal_tokens_are_equal_embeddings_and_others_are_not(tmp_path, monkeypatch):
    """What `reads` says without a model is what the encoders do, with and without the cache."""
    monkeypatch.setenv("ADRPO_CACHE", str(tmp_path))
    domain = build_domain(demo_config())
    for _ in range(2):
        domain.prepare(PROMPTS, CPU, torch.float32)
        sequence, pooled = domain._embeddings.batch([p.text for p in PROMPTS], CPU)
        assert torch.equal(sequence[1], sequence[2]) and torch.equal(pooled[1], pooled[2])
        assert not torch.equal(sequence[0], sequence[1])


def test_the_libraries_own_notices_are_silent(tmp_path, monkeypatch, capfd, caplog):
    monkeypatch.setenv("ADRPO_CACHE", str(tmp_path))
    library = logging.getLogger("transformers.tokenization_utils_base")
    library.addHandler(caplog.handler)  # other tests may have silenced the loggers above it
    try:
        with caplog.at_level(logging.WARNING, library.name):
            domain = build_domain(demo_config())
            domain.reads(PROMPTS)
            domain.prepare(PROMPTS, CPU, torch.float32)
            said = caplog.text + "".join(capfd.readouterr())
            assert "truncated" not in said and "Token indices" not in said
            library.warning("another notice")
            assert "another notice" in caplog.text
    finally:
        library.removeHandler(caplog.handler)


def test_a_second_encoder_that_reads_on_tells_prompts_apart():
    def words(texts):
        return [[0, *(hash(word) for word in text.split()), 1] for text in texts]

    short, long = Encoder("short", 4, words), Encoder("long", 40, words, "raise the limit")
    prompts = [Prompt(0, "a b c d"), Prompt(1, "a b c e"), Prompt(2, "a b")]
    # The last one just fits, and is what is left of the others.
    assert read_prompts("x", [short], prompts).alike == ((0, 1, 2),)
    both = read_prompts("x", [short, long], prompts)
    assert both.alike == () and both.encoders[1].cut == {}
    assert read_prompts("x", [short], [Prompt(0, "a"), Prompt(1, "a b c")]).alike == ()


@pytest.mark.parametrize("texts", [["a red ring"], []])
def test_prompts_that_are_read_whole_give_no_line(texts, tmp_path):
    domain = build_domain(demo_config())
    prompts = [Prompt(i, text) for i, text in enumerate(texts)]
    assert domain.reads(prompts).warnings() == []
    report_cut(domain, [], prompts, tmp_path)
    assert cut_text(tmp_path) is None


def test_a_run_warns_lists_and_status_says_it(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(["a red ring", *TWO]) + "\n")
    run, given = tmp_path / "run", [f"prompts.train={file}", "prompts.held_out=null"]
    # The second start takes all embeddings from the cache.
    for start in (1, 2):
        caplog.clear()
        demo_trainer(run, demo_config(overrides=given))
        lines = [r.getMessage() for r in caplog.records if r.name.endswith("cut_prompts")]
        assert len(lines) == 4, start  # the model's and the reward's CLIP: cut, and alike
        assert "reward clip" in lines[2]
    stated = json.loads((run / FILE).read_text())
    assert stated["the model"] == {
        "prompts": 3,
        "encoders": {
            name: {"limit": 12, "cut": {"1": 24, "2": 27}}
            for name in ("text_encoder", "text_encoder_2")
        },
        "alike": [[1, 2]],
        "places": {"1": f"{file}, line 2", "2": f"{file}, line 3"},
    }
    (run / "config.json").write_text('{"iterations": 1}')
    line = judge(read(run)).cut
    assert line.startswith("2 of 3 are cut by the model (text_encoder, text_encoder_2), 2 share")


def test_a_clip_reward_says_what_it_does_not_read():
    reward = ClipReward(ClipRewardConfig(model="demo:image/reward_clip"), CPU)
    found = reward.reads(PROMPTS)
    assert found.encoders[0].cut.keys() == {1, 2} and found.alike == ((1, 2),)
    texts = reward._encoder.texts(TWO)
    torch.testing.assert_close(texts[0], texts[1], rtol=0, atol=0)


def test_t5_reads_as_many_tokens_as_it_is_told(tmp_path):
    """CLIP cuts both prompts; T5 tells them apart where its length allows it."""
    folder = tmp_path / "m"
    shutil.copytree(resolve_path(MODEL), folder)
    words = sorted({f"▁{word}" for text in TWO for word in text.split()})
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *((word, -2.0) for word in words)]
    T5Tokenizer(vocab=vocabulary, extra_ids=0).save_pretrained(folder / "tokenizer_3")
    for length, cut, alike in ((12, {1: 20, 2: 20}, ((1, 2),)), (20, {}, ())):
        settings = [f"domain.model={folder}", "domain.t5=true"]
        settings += [f"domain.max_sequence_length={length}"]
        found = build_domain(demo_config(overrides=settings)).reads(PROMPTS)
        assert [each.name for each in found.encoders][2:] == ["text_encoder_3"]
        assert (found.encoders[2].cut, found.alike) == (cut, alike)
        assert any("raise domain.max_sequence_length" in line for line in found.warnings()) == (
            length == 12
        )
