"""The audio domain on a small Qwen2.5-Omni, against transformers' own processor and model."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from transformers import (
    Qwen2_5OmniThinkerForConditionalGeneration,
)

from adrpo_scale.algorithms.terms import ExactLikelihoodTerms
from adrpo_scale.data.clip_headers import clip_of
from adrpo_scale.data.clips import read_clip
from adrpo_scale.domains import audio, decoding, omni
from adrpo_scale.domains.decoding import audio_inputs
from adrpo_scale.engines.adapters import is_adapter
from tests.support.audio_parts import AUDIO, BANNED, CHOSEN, KEY, TEMPERATURE, Parts
from tests.support.closeness import LOGP
from tests.support.tiny_audio import (
    PROMPTS,
    save_prompts,
    save_thinker,
)


def whole_model(parts):
    """transformers' own model with all its towers, and the policy's weights."""
    model = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(parts.domain.folder).eval()
    weights = {n.replace(".base_layer", ""): p.detach() for n, p in parts.policy.named_parameters()}
    for name in [n for n in weights if n.endswith(".lora_B.default.weight")]:
        down, owner = weights[name.replace("lora_B", "lora_A")], name.partition(".lora_B")[0]
        weights[f"{owner}.weight"] = weights[f"{owner}.weight"] + weights[name] @ down
    unknown = model.load_state_dict(
        {n: p for n, p in weights.items() if not is_adapter(n)}, strict=False
    ).unexpected_keys
    assert not unknown
    return model


# ---- the same numbers as transformers' -----------------------------------------------------------


def test_prompts_are_what_the_processor_makes_of_them(parts):
    for prompt in parts.prompts:
        theirs = parts.processed([prompt])["input_ids"][0].tolist()
        assert list(parts.domain._tokens(prompt.id)) == theirs
        assert theirs.count(AUDIO) > 1


def test_features_are_what_the_processor_makes_of_clips(parts, monkeypatch):
    heard = []
    monkeypatch.setattr(parts.domain._tower, "forward", lambda mel, **_: heard.append(mel) or parts)
    monkeypatch.setattr(type(parts), "last_hidden_state", None, raising=False)
    for prompt in parts.prompts:
        clip = read_clip(*clip_of(prompt))
        omni.encode_clip(parts.domain._tower, parts.domain.model.features, clip)
    together = parts.processed(parts.prompts)
    for mel, theirs, mask in zip(
        heard, together["input_features"], together["feature_attention_mask"], strict=True
    ):
        torch.testing.assert_close(mel, theirs[:, mask.bool()], rtol=0, atol=1e-6)


def test_terms_equal_those_of_the_whole_model(parts):
    """Padded on the right, clips encoded once and merged, against one row after the other."""
    assert len(set(parts.rows.tensors["lengths"].tolist())) > 1
    terms = parts.terms()
    with torch.no_grad():
        policy = parts.by_transformers(whole_model(parts))
        base = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(parts.domain.folder)
        reference = parts.by_transformers(base.eval())
    logp, entropy = (torch.cat([row[k] for row in policy]) for k in (0, 1))
    torch.testing.assert_close(terms.logp_K.detach(), logp, **LOGP)
    torch.testing.assert_close(terms.entropy_K.detach(), entropy, **LOGP)
    torch.testing.assert_close(terms.logp_ref_K, torch.cat([row[0] for row in reference]), **LOGP)
    assert float(terms.divergence().detach().min()) > 0


def test_the_gradient_equals_that_of_the_whole_model(parts):
    """Of the parameters that are trained; with adapters, of their B at B's and A's own values."""
    trained = {n: p for n, p in parts.policy.named_parameters() if p.requires_grad}
    weights = torch.randn(6, generator=torch.Generator().manual_seed(0))
    loss = -(weights * parts.terms().supervised()).sum()
    ours = dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))
    model = whole_model(parts)
    rows = parts.by_transformers(model)
    (weights * torch.stack([logp.mean() for logp, _ in rows])).sum().backward()
    theirs = {n: p.grad for n, p in model.named_parameters()}
    for name, gradient in ours.items():
        if is_adapter(name):
            owner = name.partition(".lora_")[0]
            whole = theirs[f"{owner}.weight"]
            down, up = (trained[f"{owner}.lora_{x}.default.weight"].detach() for x in "AB")
            expected = whole @ down.T if ".lora_B." in name else up.T @ whole
        else:
            expected = theirs[name]
        assert (gradient - expected).norm() <= 1e-4 * expected.norm() + 1e-6, name


def recorded_steps(monkeypatch, sample):
    """(rows, log-probabilities of the tokens as they were drawn, [N, T])."""
    steps, pick = [], decoding.pick

    def recorded(logits, uniforms, sampling):
        tokens = pick(logits, uniforms, sampling)
        steps.append((logits / TEMPERATURE).log_softmax(-1).gather(1, tokens[:, None])[:, 0])
        return tokens

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "pick", recorded)
        patch.setattr(decoding, "SHRINK", 0.0)  # rows stay where they are
        rows = sample()
    return rows, torch.stack(steps, 1)


def test_generated_log_probabilities_are_the_trained_ones(parts, monkeypatch):
    """Padded on the left, with a cache, against padded on the right without one."""
    rows, drawn = recorded_steps(monkeypatch, parts.sample)
    assert torch.equal(rows.tensors["completion"], parts.rows.tensors["completion"])
    inside = torch.arange(drawn.shape[1]) < rows.tensors["lengths"][:, None]
    torch.testing.assert_close(drawn[inside], parts.terms().logp_K.detach(), **LOGP)


def test_the_exact_kl_is_that_of_all_words_but_those_of_modalities(parts):
    """Of the tokens that were drawn, as they were drawn: padded on the left, with a cache."""
    exact = parts.terms(wanted=ExactLikelihoodTerms)
    all_logp = []
    with torch.no_grad():
        for asked in (nullcontext(parts.policy), parts.reference()):
            with asked as model:
                rows = _packed_logits(parts, model)
            rows[:, BANNED] = -torch.inf
            all_logp.append((rows / TEMPERATURE).log_softmax(-1))
    logp, logq = (x[:, [i for i in range(x.shape[1]) if i not in BANNED]] for x in all_logp)
    expected = (logp.exp() * (logp - logq)).sum(-1)
    assert float(expected.min()) > 1e-4
    torch.testing.assert_close(exact.kl_K.detach(), expected, **LOGP)


def _packed_logits(parts, model):
    """[K, vocabulary] of the tokens of all rows, each alone."""
    found = []
    for n, prompt_id in enumerate(parts.rows.prompt_ids_N.tolist()):
        prompt = list(parts.domain._tokens(prompt_id))
        length = int(parts.rows.tensors["lengths"][n])
        ids = torch.tensor([[*prompt, *parts.rows.tensors["completion"][n, :length].tolist()]])
        heard = audio_inputs(parts.domain._audio([prompt_id]))
        found.append(model(input_ids=ids, **heard).logits[0, len(prompt) - 1 : -1].float())
    return torch.cat(found)


def test_a_batch_padded_on_the_left_is_each_sample_alone(parts, monkeypatch):
    rows, drawn = recorded_steps(monkeypatch, parts.sample)
    for n, chosen in enumerate(CHOSEN):
        prompt = [parts.prompts[chosen]]

        def alone(n=n, prompt=prompt):
            return parts.domain.sample(parts.policy, prompt, torch.tensor([n]), KEY)

        row, logp = recorded_steps(monkeypatch, alone)
        length = int(row.tensors["lengths"][0])
        assert torch.equal(row.tensors["completion"][0], rows.tensors["completion"][n])
        torch.testing.assert_close(logp[0, :length], drawn[n, :length], **LOGP)


def test_equal_tokens_with_another_clip_are_another_prompt(parts):
    first, third = parts.prompts[0], parts.prompts[2]
    assert list(parts.domain._tokens(first.id)) == list(parts.domain._tokens(third.id))
    audio_of = parts.domain._audio([first.id, third.id])
    assert not torch.allclose(*audio_of)
    uniforms = torch.zeros(2, 1)
    ids = [parts.domain._tokens(p.id) for p in (first, third)]
    logits = decoding.prefill(parts.policy.eval(), ids, 1, 0, uniforms.device, audio_of)[0]
    parts.policy.train()
    assert not torch.allclose(logits[0], logits[1], atol=1e-3)


# ---- once per clip -------------------------------------------------------------------------------


def test_a_clip_is_encoded_once_for_rollout_policy_and_reference(tmp_path, monkeypatch):
    made = Parts(tmp_path / "m")
    made.domain._encoded.clear()
    calls, encode = [], audio.encode_clip

    def counted(*arguments):
        calls.append(1)
        return encode(*arguments)

    monkeypatch.setattr(audio, "encode_clip", counted)
    made.domain.begin_rollout(made.policy)
    rows = made.domain.remember(made.policy, made.sample())
    made.terms(rows)
    made.terms(rows.take(torch.tensor([5, 0])))
    assert len(calls) == len(set(CHOSEN)) and made.domain.sizes(rows).min() > 10
    once = made.terms(rows).logp_K.detach()
    made.domain.config = made.domain.config.model_copy(update={"clip_megabytes": 0.0})
    made.domain._encoded.clear()
    again = made.terms(rows).logp_K.detach()  # encoded again and again
    assert len(calls) > 2 * len(set(CHOSEN)) and torch.equal(once, again)


def test_prompts_without_a_clip_may_stand_beside_those_with_one(tmp_path, caplog):
    folder = save_thinker(tmp_path / "m")
    save_prompts(folder / "prompts.jsonl", PROMPTS, [0.3, None, 0.2, 0.5, None, 0.4])
    made = Parts(folder)
    assert "2 of 6 prompts name no clip" in caplog.text
    assert list(made.domain._tokens(1)).count(AUDIO) == 0
    alone = made.sample(chosen=(1,))
    assert torch.isfinite(made.terms(alone).logp_K).all()
    assert torch.isfinite(made.terms().logp_K).all()


def test_a_rank_without_samples_has_the_same_columns(parts):
    none = parts.domain.sample(parts.policy, [], torch.empty(0, dtype=torch.int64), KEY)
    assert none.tensors.keys() == parts.rows.tensors.keys()
    for name, tensor in none.tensors.items():
        assert tensor.shape[1:] == parts.rows.tensors[name].shape[1:]
        assert tensor.dtype == parts.rows.tensors[name].dtype
    assert parts.domain.artifacts(none) == []


def test_tokens_of_modalities_have_no_chance(tmp_path, monkeypatch):
    """Also where the model would say nothing else."""
    made = Parts(tmp_path / "m", "domain.train=full")
    assert list(made.domain.model.banned) == BANNED
    with torch.no_grad():
        direction = made.policy.lm_head.weight.mean(0)
        made.policy.lm_head.weight[BANNED] = 50 * direction
        made.policy.lm_head.weight[BANNED[:3]] = -50 * direction
    made.rows, drawn = recorded_steps(monkeypatch, made.sample)
    inside = torch.arange(drawn.shape[1]) < made.rows.tensors["lengths"][:, None]
    assert not torch.isin(made.rows.tensors["completion"][inside], torch.tensor(BANNED)).any()
    terms = made.terms()
    torch.testing.assert_close(drawn[inside], terms.logp_K.detach(), **LOGP)
    assert torch.isfinite(terms.entropy_K).all()
    (terms.entropy_K.sum() - terms.supervised().sum()).backward()
    gradient = made.policy.lm_head.weight.grad
    assert torch.isfinite(gradient).all() and float(gradient[BANNED].abs().max()) == 0
    greedy = made.sample("greedy").tensors["completion"]
    assert not torch.isin(greedy, torch.tensor(BANNED)).any()
