"""Completions that share their prompt's pass: the terms and gradients of passes of their own."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from adrpo_scale.algorithms.terms import ExactLikelihoodTerms, LikelihoodTerms
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.domains import shared_prefix
from adrpo_scale.domains.shared_prefix import Lengths, arranged
from adrpo_scale.run.build import build_domain
from tests.domains.test_text import Parts
from tests.support import audio_parts
from tests.support.closeness import LOGP
from tests.support.tiny_audio import save_full
from tests.support.tiny_text import save_tiny, text_config

# Rows 0 and 1 have one prompt, 2 another, 3 to 5 a third.
LAYOUTS = {
    "a row": [[(0, 1), (2,), (3, 4, 5)]],
    "a row a prompt": [[(0, 1)], [(2,)], [(3, 4, 5)]],
    "a prompt in two rows": [[(5, 3), (0,)], [(1,), (2,), (4,)]],
    "passes of their own": [[(row,)] for row in range(6)],
}
SHARED = "domain.shared_prefix=true"


def made(kind, folder):
    if kind == "audio":
        parts = audio_parts.Parts(save_full(folder / "m"), SHARED)
        audio_parts.shaken(parts.policy)
        parts.rows = parts.sample(chosen=(0, 0, 1, 2, 2, 2))
    else:
        parts = Parts(folder, f"domain.train={kind}", SHARED)
        audio_parts.shaken(parts.policy)
        parts.rows = parts.sample()
    return parts


@pytest.fixture(scope="module", params=["full", "lora", "audio"])
def parts(request, tmp_path_factory):
    return made(request.param, tmp_path_factory.mktemp("model"))


def plainly(parts, wanted=LikelihoodTerms):
    parts.domain.shares_prompts = False
    try:
        return parts.terms(wanted=wanted)
    finally:
        parts.domain.shares_prompts = True


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_terms_and_gradients_are_those_of_plain_passes(parts, layout, monkeypatch):
    monkeypatch.setattr(shared_prefix, "arranged", lambda *_: layout)
    assert len(set(parts.rows.tensors["lengths"].tolist())) > 1
    kinds = (LikelihoodTerms, ExactLikelihoodTerms)
    trained = [p for p in parts.policy.parameters() if p.requires_grad]
    weights = torch.randn(6, generator=torch.Generator().manual_seed(0))
    for wanted in kinds:
        plain, found = plainly(parts, wanted), parts.terms(wanted=wanted)
        for name in ("logp_K", "logp_ref_K", "entropy_K", "logp_old_K"):
            torch.testing.assert_close(getattr(found, name), getattr(plain, name), **LOGP)
        assert torch.equal(found.segment_K, plain.segment_K)
        both = [
            torch.autograd.grad((weights * (t.divergence() - t.supervised())).sum(), trained)
            for t in (plain, found)
        ]
        norm = torch.stack([g.norm() for g in both[0]]).norm()
        for expected, ours in zip(*both, strict=True):
            assert (ours - expected).norm() <= 2e-5 * norm


def test_what_is_remembered_has_the_ratio_one(parts):
    rows = parts.domain.remember(parts.policy, parts.rows)
    terms = parts.terms(rows)
    assert torch.equal(terms.logp_old_K, terms.logp_K.detach())


def operations(parts):
    with FlopCounterMode(display=False) as counter:
        parts.terms().logp_K.sum().backward()
    parts.policy.zero_grad()
    return counter.get_total_flops()


def test_a_shared_pass_has_fewer_operations(tmp_path):
    parts = made("full", tmp_path)
    shared = operations(parts)
    parts.domain.shares_prompts = False
    assert shared < operations(parts)


# --- arrangements ---------------------------------------------------------------------------------


def test_the_cheapest_arrangement_is_taken():
    long_prompts = Lengths([400] * 4, [20] * 4)
    assert arranged([7, 7, 8, 8], long_prompts, 896) in ([[(0, 1)], [(2, 3)]],)
    # Attention over one long row would cost more than the short prompt saves.
    assert arranged([7] * 8, Lengths([10] * 8, [1500] * 8), 64) is None
    assert arranged([1, 2, 3], Lengths([30] * 3, [50] * 3), 64) is None
    # Different prompts share a row where padding would cost more than the keys of the others.
    found = arranged([1, 2, 3], Lengths([10, 10, 10], [1000, 20, 30]), 4096)
    assert found is not None and sorted(p for row in found for p in row) == [(0,), (1,), (2,)]
    assert len(found) == 1


def test_every_row_lies_in_one_piece_of_its_own_prompt():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        ids = torch.randint(5, (12,), generator=generator).tolist()
        prompts = [20 + 10 * i for i in ids]
        completions = torch.randint(1, 200, (12,), generator=generator).tolist()
        layout = arranged(ids, Lengths(prompts, completions), 256)
        for pieces in layout or []:
            for piece in pieces:
                assert len({ids[row] for row in piece}) == 1
        if layout is not None:
            assert sorted(r for row in layout for p in row for r in p) == list(range(12))


# --- where it does not fit ------------------------------------------------------------------------


def test_other_attention_than_full_takes_the_plain_pass(tmp_path):
    window = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}
    folder = save_tiny(tmp_path / "model", layer_types=None, **window)
    domain = build_domain(text_config(folder, [SHARED]))
    assert domain.shares_prompts is False


def test_other_implementations_than_sdpa_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r'attention = "eager".*set attention = "sdpa"'):
        text_config(save_tiny(tmp_path / "model"), [SHARED, "domain.attention=eager"])
