"""The text domain on a small Qwen3: terms against the plain formula, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MambaConfig

from adrpo_scale.algorithms.grpo import Grpo, GrpoConfig
from adrpo_scale.algorithms.terms import ExactLikelihoodTerms, LikelihoodTerms
from adrpo_scale.algorithms.tokens import kl_estimate, per_row
from adrpo_scale.core.errors import ConfigError, ModelNotFoundError, PromptError, WeightsError
from adrpo_scale.core.types import Credit, DrawKey, Prompt
from adrpo_scale.data.prompts import build_prompts
from adrpo_scale.domains import decoding
from adrpo_scale.domains.backends import InProcess, plain_weights
from adrpo_scale.domains.chat import encode, without_long
from adrpo_scale.run.build import build_domain, build_engine, build_reference, build_trainer
from tests.support.closeness import LOGP
from tests.support.tiny_text import TEMPLATE, save_tiny, text_config, tiny_tokenizer

TEMPERATURE = 0.8
KEY = DrawKey(0, 3)


class Parts:
    """A domain with its policy, and rows that it sampled."""

    def __init__(self, folder, *overrides):
        overrides = [f"domain.rollout.temperature={TEMPERATURE}", *overrides]
        self.config = text_config(folder, overrides)
        self.domain, engine = build_domain(self.config), build_engine(self.config)
        self.prompts, _ = build_prompts(self.config.prompts)
        self.domain.prepare(self.prompts, engine.device, engine.dtype)
        self.engine, self.policy = engine, engine.build_policy(self.domain.policy_spec())
        spec = self.domain.reference_spec()
        self.reference, _ = build_reference(spec, engine, self.policy)
        self.rows = self.sample()

    def sample(self, mode="rollout"):
        chosen = [self.prompts[i] for i in (0, 0, 1, 2, 2, 2)]
        return self.domain.sample(self.policy, chosen, torch.arange(6), KEY, mode)

    def terms(self, rows=None, with_reference=True, wanted=LikelihoodTerms):
        rows = self.rows if rows is None else rows
        reference = self.reference if with_reference else None
        return self.domain.terms(self.policy, reference, rows, rows.sample_ids_N, KEY, wanted)

    def by_all_logits(self, model):
        """[(log-probability [L], entropy [L]) of each row], one row at a time."""
        found = []
        for n, prompt_id in enumerate(self.rows.prompt_ids_N.tolist()):
            prompt = encode(self.domain.tokenizer, self.prompts[prompt_id], self.config.domain.chat)
            length = int(self.rows.tensors["lengths"][n])
            completion = self.rows.tensors["completion"][n, :length]
            ids = torch.cat([torch.tensor(prompt), completion])[None]
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
            logp = (logits / TEMPERATURE).log_softmax(-1)
            entropy = -(logp.exp() * logp).sum(-1)
            found.append((logp.gather(1, completion[:, None])[:, 0], entropy))
        return found


@pytest.fixture(scope="module", params=["full", "lora"])
def parts(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    made = Parts(folder, f"domain.train={request.param}")
    with torch.no_grad():  # away from the reference, or every divergence is 0
        for name, parameter in made.policy.named_parameters():
            if parameter.requires_grad:
                noise = torch.Generator().manual_seed(len(name))
                parameter += 0.03 * torch.randn(parameter.shape, generator=noise)
    made.rows = made.sample()
    return made


def test_terms_equal_those_of_all_logits(parts):
    lengths = parts.rows.tensors["lengths"].tolist()
    assert len(set(lengths)) > 2
    terms = parts.terms()
    policy = parts.by_all_logits(parts.policy)
    with parts.reference() as model, torch.no_grad():
        reference = parts.by_all_logits(model)
    packed = [torch.cat([row[k] for row in policy]) for k in (0, 1)]
    torch.testing.assert_close(terms.logp_K, packed[0], **LOGP)
    torch.testing.assert_close(terms.entropy_K, packed[1], **LOGP)
    assert terms.segment_K.tolist() == [
        n for n, length in enumerate(lengths) for _ in range(length)
    ]
    assert torch.equal(terms.logp_old_K, terms.logp_K.detach())
    for n, ((logp, _), (logp_ref, _)) in enumerate(zip(policy, reference, strict=True)):
        close = {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(terms.supervised()[n], -logp.mean(), **close)
        torch.testing.assert_close(terms.log_ratio()[n], logp.sum() - logp_ref.sum(), **close)
        torch.testing.assert_close(
            terms.divergence()[n], kl_estimate(logp, logp_ref).mean(), **close
        )
    assert float(terms.divergence().detach().min()) > 0
    assert parts.domain.segments(parts.rows).tolist() == lengths


def test_the_gradient_equals_that_of_all_logits(parts):
    trained = [p for p in parts.policy.parameters() if p.requires_grad]
    weights = torch.randn(6, generator=torch.Generator().manual_seed(0))
    terms = parts.terms()
    ours = torch.autograd.grad((weights * (terms.divergence() - terms.supervised())).sum(), trained)
    with parts.reference() as model, torch.no_grad():
        reference = [logp for logp, _ in parts.by_all_logits(model)]
    rows = zip(parts.by_all_logits(parts.policy), reference, strict=True)
    plain = [logp.mean() + kl_estimate(logp, ref).mean() for (logp, _), ref in rows]
    theirs = torch.autograd.grad((weights * torch.stack(plain)).sum(), trained)
    norm = torch.stack([g.norm() for g in theirs]).norm()
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() <= 2e-5 * norm


def test_exact_terms_are_the_others_with_another_divergence(parts):
    """`tests/training/test_exact_kl.py` has its values and gradients."""
    terms, exact = parts.terms(), parts.terms(wanted=ExactLikelihoodTerms)
    for name in ("logp_K", "logp_old_K", "entropy_K", "segment_K"):
        assert torch.equal(getattr(exact, name), getattr(terms, name)), name
    torch.testing.assert_close(exact.logp_ref_K, terms.logp_ref_K, **LOGP)
    divergence = exact.divergence().detach()
    assert torch.equal(divergence, per_row(exact.kl_K, exact.segment_K, 6, "sequence"))
    assert torch.equal(divergence, exact.divergence(GrpoConfig(kl_estimator="exact")))
    assert not torch.allclose(divergence, terms.divergence().detach(), rtol=1e-3)
    grpo = Grpo(GrpoConfig(beta0=1.0, scale="none", kl_estimator="exact"), *parts.domain.gives)
    assert grpo.wanted is ExactLikelihoodTerms and grpo.terms is LikelihoodTerms
    assert isinstance(exact, grpo.wanted) and type(terms) is parts.domain.gives[0]


def test_without_need_the_reference_is_not_asked(parts):
    terms = parts.terms(with_reference=False)
    assert terms.divergence() is None and terms.logp_ref_K is None
    exact = parts.terms(with_reference=False, wanted=ExactLikelihoodTerms)
    assert exact.divergence() is None and exact.kl_K is None
    assert torch.equal(exact.logp_K, terms.logp_K)
    assert parts.domain.divergence_metrics(parts.terms()).keys() == {"kl", "entropy"}


def test_what_is_remembered_is_the_old_log_probability(parts):
    rows = parts.domain.remember(parts.policy, parts.rows)
    before = parts.terms(rows)
    assert torch.equal(before.logp_old_K, before.logp_K.detach())
    picked = rows.take(torch.tensor([4, 0]))  # it travels and is cut like every other column
    old = parts.terms(picked).logp_old_K
    torch.testing.assert_close(
        old, torch.cat([before.logp_old_K[before.segment_K == n] for n in (4, 0)])
    )


def test_generated_log_probabilities_are_the_trained_ones(parts, monkeypatch):
    """Padded on the left, with a cache, against padded on the right without one."""
    steps, pick = [], decoding.pick

    def recorded(logits, uniforms, sampling):
        tokens = pick(logits, uniforms, sampling)
        steps.append((logits / TEMPERATURE).log_softmax(-1).gather(1, tokens[:, None])[:, 0])
        return tokens

    monkeypatch.setattr(decoding, "pick", recorded)
    monkeypatch.setattr(decoding, "SHRINK", 0.0)  # rows stay where they are
    rows = parts.sample()
    assert torch.equal(rows.tensors["completion"], parts.rows.tensors["completion"])
    generated = torch.stack(steps, 1)
    inside = torch.arange(generated.shape[1]) < rows.tensors["lengths"][:, None]
    torch.testing.assert_close(generated[inside], parts.terms().logp_K.detach(), **LOGP)


def test_samples_depend_on_seed_iteration_and_id_alone(parts):
    again = parts.sample()
    assert torch.equal(again.tensors["completion"], parts.rows.tensors["completion"])
    alone = parts.domain.sample(parts.policy, [parts.prompts[2]], torch.tensor([4]), KEY)
    assert torch.equal(alone.tensors["completion"][0], parts.rows.tensors["completion"][4])
    other = parts.domain.sample(parts.policy, [parts.prompts[2]], torch.tensor([4]), DrawKey(0, 4))
    assert not torch.equal(other.tensors["completion"][0], parts.rows.tensors["completion"][4])
    evaluation = parts.sample("evaluation").tensors["completion"]
    assert not torch.equal(evaluation, parts.rows.tensors["completion"])


def test_a_rank_without_samples_has_the_same_columns(parts):
    none = parts.domain.sample(parts.policy, [], torch.empty(0, dtype=torch.int64), KEY)
    assert none.tensors.keys() == parts.rows.tensors.keys()
    for name, tensor in none.tensors.items():
        assert tensor.shape[1:] == parts.rows.tensors[name].shape[1:]
        assert tensor.dtype == parts.rows.tensors[name].dtype
    assert parts.domain.artifacts(none) == []


def test_artifacts_and_numbers_of_rows(parts):
    completions = parts.domain.artifacts(parts.rows)
    numbers = parts.domain.row_metrics(parts.rows)
    for n, completion in enumerate(completions):
        assert len(completion.tokens) == int(parts.rows.tensors["lengths"][n])
        words = completion.text.split()
        assert len(words) == len(completion.tokens) - completion.finished  # but the end, all shown
        assert "<|im_end|>" not in completion.text
        assert numbers["truncated"][n] == 1 - completion.finished
        assert numbers["completion_tokens"][n] == len(completion.tokens)
    assert bool(parts.domain.keeps(parts.rows).all())


def test_mask_truncated_keeps_what_ended_by_itself(tmp_path):
    made = Parts(tmp_path / "model", "domain.mask_truncated=true")
    finished = made.rows.tensors["finished"].bool()
    assert 0 < int(finished.sum()) < len(finished)
    assert torch.equal(made.domain.keeps(made.rows), finished)


# ---- prompts ---------------------------------------------------------------------------------


def chat(tmp_path, *overrides):
    return text_config(tmp_path / "model", overrides).domain.chat


def words(tokenizer, ids):
    return tokenizer.decode(ids)


def test_a_prompt_becomes_what_the_template_says(tmp_path):
    tokenizer, prompt = tiny_tokenizer(), Prompt(0, "w1 w2")
    plain = "<|im_start|> user w1 w2 <|im_end|> <|im_start|> assistant"
    assert words(tokenizer, encode(tokenizer, prompt, chat(tmp_path))) == plain
    with_system = encode(tokenizer, prompt, chat(tmp_path, "domain.chat.system=w9"))
    assert words(tokenizer, with_system) == f"<|im_start|> system w9 <|im_end|> {plain}"
    off = encode(tokenizer, prompt, chat(tmp_path, "domain.chat.thinking=false"))
    assert words(tokenizer, off) == f"{plain} <think> </think>"
    raw = encode(tokenizer, prompt, chat(tmp_path, "domain.chat.template=plain"))
    assert words(tokenizer, raw) == "w1 w2"


def test_a_conversation_keeps_its_turns_and_its_own_system_message(tmp_path):
    turns = (("system", "w3"), ("user", "w1"), ("assistant", "w4"), ("user", "w2"))
    messages = tuple({"role": role, "content": text} for role, text in turns)
    tokenizer = tiny_tokenizer()
    config = chat(tmp_path, "domain.chat.system=w9", "domain.chat.max_prompt_tokens=32")
    ids = encode(tokenizer, Prompt(0, "shown", {}, messages), config)
    shown = " ".join(f"<|im_start|> {role} {text} <|im_end|>" for role, text in turns)
    assert words(tokenizer, ids) == f"{shown} <|im_start|> assistant"


def test_a_prompt_that_is_too_long_is_named_and_not_cut(tmp_path):
    prompt = Prompt(17, "w1 " * 30)
    with pytest.raises(PromptError, match=r"prompt 17 'w1 w1.* has 35 tokens, .*is 16: raise it"):
        encode(tiny_tokenizer(), prompt, chat(tmp_path))


def test_prompts_that_are_too_long_can_be_left_out_by_name(tmp_path, caplog):
    config = chat(tmp_path, "domain.chat.long_prompts=drop")
    prompts = [Prompt(0, "w1"), Prompt(1, "w2 " * 30), Prompt(2, "w3")]
    with caplog.at_level(logging.INFO):
        kept = without_long(tiny_tokenizer(), prompts, config)
    assert [prompt.id for prompt in kept] == [0, 2]
    assert "prompt 1 'w2 w2" in caplog.text and "1 of 3 prompts have more than 16" in caplog.text
    with pytest.raises(
        PromptError, match=r"every one of the 1 prompts .* \(the shortest has 35\): raise"
    ):
        without_long(tiny_tokenizer(), prompts[1:2], config)


def test_a_template_that_refuses_a_role_is_reported(tmp_path):
    tokenizer = tiny_tokenizer("{{ raise_exception('no system here') }}")
    with pytest.raises(
        PromptError, match=r"prompt 0 'w1': the chat template refuses .*'user'\].*no"
    ):
        encode(tokenizer, Prompt(0, "w1"), chat(tmp_path))


# ---- what is refused -------------------------------------------------------------------------


def refused(folder, error, match, *overrides):
    with pytest.raises(error, match=match):
        config = text_config(folder, overrides)
        domain = build_domain(config)
        build_engine(config).build_policy(domain.policy_spec())


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_that_is_missing_or_half_there(tmp_path):
    refused(tmp_path / "a", ModelNotFoundError, "is not there", "domain.model=./nothing")
    (save_tiny(tmp_path / "b") / "model.safetensors").unlink()
    refused(tmp_path / "b", ModelNotFoundError, "holds neither model.safetensors nor")
    folder = save_tiny(tmp_path / "c")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    refused(folder, ModelNotFoundError, "has no tokenizer")
    with pytest.raises(ModelNotFoundError, match=r"hf download Qwen/Qwen3-0\.6B"):
        build_domain(text_config(tmp_path / "d", ["domain.model=Qwen/Qwen3-0.6B"]))


def test_a_tokenizer_without_chat_template(tmp_path):
    folder = save_tiny(tmp_path)
    tiny_tokenizer(None).save_pretrained(folder)
    (folder / "chat_template.jinja").unlink()
    refused(folder, ConfigError, 'has no chat template .*template = "plain"')
    build_domain(text_config(folder, ["domain.chat.template=plain"]))


def test_a_tokenizer_of_another_model(tmp_path):
    folder = save_tiny(tmp_path, vocab_size=40)
    refused(folder, ConfigError, "token 63, the model a vocabulary of 40: they belong to different")


def test_a_model_that_could_never_end(tmp_path):
    folder = save_tiny(tmp_path)
    edit(folder / "config.json", eos_token_id=None)
    (folder / "generation_config.json").unlink()
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    refused(folder, ConfigError, "names no token that ends a sequence")


def test_settings_that_do_not_fit_the_model(tmp_path):
    folder = save_tiny(tmp_path)
    refused(folder, ConfigError, "takes 128 tokens", "domain.rollout.max_new_tokens=120")
    for target in ("lm_head", "model.embed_tokens", "embed_out"):
        adapted = f'domain.lora={{targets=["q_proj", "{target}"]}}'
        refused(folder, ConfigError, "output layer", 'domain.train="lora"', adapted)
    refused(folder, ConfigError, "is greedy", "domain.rollout.temperature=0.0")
    refused(
        folder,
        ConfigError,
        'template = "plain"',
        "domain.chat.template=plain",
        "domain.chat.system=w1",
    )
    edit(folder / "config.json", attention_dropout=0.1)  # it may be sampled from
    with pytest.raises(ConfigError, match=r"'attention_dropout': 0.1.*set it to 0"):
        build_domain(text_config(folder)).check_training()


def test_another_architectures_weights(tmp_path):
    folder = save_tiny(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors")
    refused(folder, WeightsError, r"1 missing \['model.norm.weight'\]")


def test_vllm_is_an_extra(tmp_path):
    with pytest.raises(ConfigError, match=r"pip install 'adrpo_scale\[vllm\]'"):
        build_trainer(text_config(tmp_path / "model", ["domain.backend=vllm"]), tmp_path / "run")
    Parts(tmp_path / "model")  # `sample` and evaluations draw in process, and need none


def test_a_tied_output_layer_that_is_stored_twice_is_read_once(tmp_path):
    folder = save_tiny(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    made = Parts(folder)
    assert made.policy.lm_head.weight is made.policy.model.embed_tokens.weight
    ids = torch.arange(5)[None]
    expected = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
    torch.testing.assert_close(made.policy(ids).logits, expected)


def test_models_that_the_domain_cannot_roll_out(tmp_path):
    mamba = MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, eos_token_id=2)
    folder = save_tiny(tmp_path / "mamba")
    mamba.save_pretrained(folder)
    refused(folder, ConfigError, r"\(mamba\) has layers with a recurrent state")
    folder = save_tiny(tmp_path / "mixed", layer_types=["linear_attention", "full_attention"])
    refused(folder, ConfigError, r"\(qwen3\) has layers with a recurrent state")
    folder = save_tiny(tmp_path / "flash")
    refused(folder, ConfigError, 'use "eager"', "domain.attention=flash_attention_2")


def test_logits_that_a_family_changes_in_an_unknown_way_are_found_out(tmp_path):
    made = Parts(tmp_path / "model")
    made.domain.begin_rollout(made.policy)
    made.domain._logprobs_checked = False
    plain = type(made.policy).forward

    def scaled(*args, **kwargs):
        output = plain(made.policy, *args, **kwargs)
        output.logits = 2 * output.logits
        return output

    logprobs_forward = made.policy.forward
    made.policy.forward = lambda *a, targets=None, **k: (
        scaled(*a, **k) if targets is None else logprobs_forward(*a, targets=targets, **k)
    )
    with pytest.raises(
        ConfigError, match=r"\(qwen3\): its log-probabilities are off by .* own logits"
    ):
        made.domain.begin_rollout(made.policy)


def test_a_template_file_may_lie_anywhere(tmp_path):
    template = tmp_path / "template.jinja"
    template.write_text(TEMPLATE.replace("assistant ", "assistant w5 "))
    made = Parts(tmp_path / "model", f"domain.chat.template_file={template}")
    ids = encode(made.domain.tokenizer, Prompt(0, "w1"), made.config.domain.chat)
    assert words(made.domain.tokenizer, ids).endswith("assistant w5")
    assert template in made.domain.frozen_files()
    run = tmp_path / "run"
    config = text_config(tmp_path / "model", [f"domain.chat.template_file={template}"])
    build_trainer(config, run)


# ---- other programs that draw tokens ---------------------------------------------------------


class Elsewhere(InProcess):
    """Draws as the policy does and says that it was another program, twice as sure of itself."""

    is_reproducible = False

    def sync(self, policy):
        self.weights = {n: t.detach().clone() for n, t in plain_weights(policy)}

    def generate(self, *arguments):
        made = super().generate(*arguments)
        return dataclasses.replace(made, logp_NT=torch.full(made.tokens_NT.shape, -0.5))


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_backend_gets_plain_weights_and_its_probabilities_correct_the_loss(tmp_path, kind):
    made = Parts(tmp_path / "model", f"domain.train={kind}")
    elsewhere = Elsewhere(made.domain.model.ends, made.domain.model.pad)
    made.domain._backend = elsewhere
    if kind == "lora":
        with torch.no_grad():
            for name, parameter in made.policy.named_parameters():
                if ".lora_B." in name:
                    parameter.normal_()
    made.domain._backend_checked = True  # it does not draw with the probabilities that it states
    made.domain.begin_rollout(made.policy)
    merged = AutoModelForCausalLM.from_pretrained(made.domain.folder)
    assert elsewhere.weights.keys() == dict(merged.named_parameters()).keys()
    merged.load_state_dict(elsewhere.weights, strict=False)
    merged.tie_weights()
    ids = torch.arange(8)[None]
    torch.testing.assert_close(merged(ids).logits, made.policy(ids).logits, rtol=1e-4, atol=1e-4)
    rows = made.sample()
    assert made.domain.sample(made.policy, [], torch.empty(0).long(), KEY).tensors.keys() == (
        rows.tensors.keys()
    )
    terms = made.terms(rows)
    assert torch.equal(terms.logp_rollout_K, torch.full_like(terms.logp_K, -0.5).detach())
    algorithm = Grpo(GrpoConfig(beta0=0.0, scale="group_std", importance_cap=0.3), LikelihoodTerms)
    ones = torch.ones(6, dtype=torch.float64)
    credit = Credit(ones, ones, 0 * ones, -ones.long(), ones)
    weight_K = (terms.logp_old_K + 0.5).exp().clamp(max=0.3)
    assert 0 < int((weight_K == 0.3).sum()) < len(weight_K)
    expected = -per_row(weight_K, terms.segment_K, 6, "sequence").sum()
    torch.testing.assert_close(algorithm.loss(terms, credit).detach(), expected)


def test_the_entropy_bonus_is_the_mean_entropy_of_each_completion(parts):
    terms = parts.terms()
    ones = torch.ones(6, dtype=torch.float64)
    credit = Credit(ones, ones, 0 * ones, -ones.long(), ones)
    configs = [GrpoConfig(beta0=0.0, scale="group_std", entropy_coef=c) for c in (0.0, 0.1)]
    without, with_bonus = (Grpo(c, LikelihoodTerms).loss(terms, credit) for c in configs)
    entropy = per_row(terms.entropy_K, terms.segment_K, 6, "sequence").sum()
    torch.testing.assert_close(without - with_bonus, 0.1 * entropy)
    trained = [p for p in parts.policy.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(with_bonus - without, trained, retain_graph=True)
    expected = torch.autograd.grad(-0.1 * entropy, trained)
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
