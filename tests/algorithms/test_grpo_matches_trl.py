"""GRPO on tokens against trl's GRPOTrainer, an independent implementation: same loss and gradient.

trl's options that give our formula (the paper's eq. 3 with a fixed beta; k3 is inferred):

    loss_type = "grpo"                       mean over a completion's tokens, then over completions
    importance_sampling_level = "token"      one ratio per token
    beta                                     coefficient of k3
    use_bias_correction_kl = False           trl's default multiplies k3 by the ratio
    epsilon, epsilon_high                    our clip_low, clip_high; delta = None: no upper clamp
    temperature                              log-probabilities of logits / temperature
    num_iterations = 2                       several updates per rollout: logp_old is an input
    top_entropy_quantile = 1, entropy_coef = 0, no off-policy mask, gradient accumulation 1
    mask_truncated_completions = False; scale_rewards only concerns advantages, an input here
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from adrpo_scale.algorithms.adrpo import Adrpo, AdrpoConfig
from adrpo_scale.algorithms.advantages import advantages
from adrpo_scale.algorithms.grpo import Grpo
from adrpo_scale.algorithms.grpo import GrpoConfig as OurConfig
from adrpo_scale.algorithms.terms import LikelihoodTerms
from adrpo_scale.core.types import Credit, DrawKey, Rows
from adrpo_scale.domains import logprobs
from adrpo_scale.domains.chat import ChatConfig
from adrpo_scale.domains.decoding import SamplingConfig
from adrpo_scale.domains.text import TextDomain
from adrpo_scale.domains.text_config import TextConfig
from tests.support.closeness import CANCELLED, EPS, near

pytestmark = [
    # trl sets its own deprecated default.
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
]

TERMS = 0.1  # the size of what the loss adds up
VOCABULARY, PROMPT, COMPLETION = 64, 4, 6
TEMPERATURE, BETA, EPS_LOW, EPS_HIGH = 0.8, 0.04, 0.2, 0.28
PROMPT_LENGTHS = [4, 4, 4, 2, 2, 2]
LENGTHS = [6, 1, 4, 3, 6, 2]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{i}": i for i in range(VOCABULARY - 2)} | {"<pad>": 62, "<eos>": 63}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="w0"
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=32,
        initializer_range=0.3,
        tie_word_embeddings=True,
        pad_token_id=62,
        eos_token_id=63,
    )
    folder = tmp_path_factory.mktemp("qwen3")  # trl loads its reference from where the policy was
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return Qwen3ForCausalLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def trainer(model, tmp_path_factory) -> GRPOTrainer:
    args = GRPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")),
        report_to="none",
        use_cpu=True,
        bf16=False,
        beta=BETA,
        use_bias_correction_kl=False,
        epsilon=EPS_LOW,
        epsilon_high=EPS_HIGH,
        temperature=TEMPERATURE,
        loss_type="grpo",
        importance_sampling_level="token",
        num_iterations=2,
        num_generations=3,
        per_device_train_batch_size=6,
        gradient_accumulation_steps=1,
        max_completion_length=COMPLETION,
    )
    return GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=args,
        train_dataset=Dataset.from_dict({"prompt": ["w1 w2"] * 6}),
        processing_class=tiny_tokenizer(),
    )


@pytest.fixture(scope="module")
def inputs(model) -> dict[str, torch.Tensor]:
    """Six completions of two prompts as trl lays them out: prompts padded left, completions right.

    Old and reference log-probabilities lie so far from the policy's that both clips are at work.
    """
    random = torch.Generator().manual_seed(1)
    rows = len(LENGTHS)
    prompt_mask = torch.tensor([[0] * (PROMPT - n) + [1] * n for n in PROMPT_LENGTHS])
    completion_mask = torch.tensor([[1] * n + [0] * (COMPLETION - n) for n in LENGTHS])
    ids = torch.randint(0, 62, (rows, PROMPT + COMPLETION), generator=random)
    mask = torch.cat([prompt_mask, completion_mask], 1)
    ids = torch.where(mask == 1, ids, 62)
    with torch.no_grad():
        logp = completion_logp(model, ids, mask)
    noise = 0.4 * torch.randn(2, rows, COMPLETION, generator=random)
    rewards = torch.tensor([[1.0, 0.0, 0.5], [0.2, 0.2, 0.9]], dtype=torch.float64)
    every = torch.ones(2, 3, dtype=torch.bool)
    return {
        "prompt_ids": ids[:, :PROMPT],
        "prompt_mask": prompt_mask,
        "completion_ids": ids[:, PROMPT:],
        "completion_mask": completion_mask,
        "advantages": advantages(rewards, every, scale="group_std").flatten().float(),
        "old_per_token_logps": logp + noise[0],
        "ref_per_token_logps": logp + noise[1],
        "num_items_in_batch": completion_mask.sum(),
    }


def completion_logp(model, ids, mask):
    """[rows, COMPLETION], from the logits of the model's ordinary forward pass."""
    logits = model(input_ids=ids, attention_mask=mask).logits[:, PROMPT - 1 : -1]
    tempered = (logits / TEMPERATURE).log_softmax(-1)
    return tempered.gather(2, ids[:, PROMPT:, None])[..., 0]


def our_terms(model, inputs) -> LikelihoodTerms:
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    kept = inputs["completion_mask"].bool()
    logp_K = completion_logp(model, ids, mask)[kept]
    return LikelihoodTerms(
        rows=len(ids),
        logp_K=logp_K,
        logp_old_K=inputs["old_per_token_logps"][kept],
        segment_K=kept.nonzero()[:, 0],
        logp_ref_K=inputs["ref_per_token_logps"][kept],
    )


def our_loss(algorithm, model, inputs, terms=None):
    advantage = inputs["advantages"].double()
    clipped = advantage.clamp(algorithm.config.advantage_min, algorithm.config.advantage_max)
    none = torch.full_like(advantage, -1, dtype=torch.int64)
    every = torch.ones_like(advantage)
    credit = Credit(advantage, clipped, algorithm.beta(clipped), none, every)
    loss = algorithm.loss(our_terms(model, inputs) if terms is None else terms, credit)
    return loss / algorithm.row_counts(credit, inputs["completion_mask"].sum(1)).sum()


def gradient(model, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def settings(**more):
    return {
        "beta0": BETA,
        "scale": "group_std",  # advantages are inputs here
        "clip_low": EPS_LOW,
        "clip_high": EPS_HIGH,
        "advantage_min": 0.0,
        "advantage_max": 0.0,
    } | more


@pytest.mark.parametrize(
    "algorithm",
    [(Grpo, OurConfig), (Adrpo, AdrpoConfig)],
)
def test_loss_and_gradient_equal_trls(algorithm, model, trainer, inputs):
    algorithm = algorithm[0](algorithm[1](**settings()), LikelihoodTerms)
    theirs = trainer.compute_loss(model, inputs)
    ours = our_loss(algorithm, model, inputs)
    assert ours.item() == near(theirs.item(), TERMS)
    assert abs(ours.item()) > 1e-3
    their_gradient, our_gradient = gradient(model, theirs), gradient(model, ours)
    assert their_gradient.norm() > 0.01
    assert (our_gradient - their_gradient).norm() <= CANCELLED * EPS * their_gradient.norm()


def test_the_text_domain_as_a_whole_gives_trls_loss_and_gradient(model, trainer, inputs, tmp_path):
    """Its own passes: padded on the right, logits made in chunks, a reference of its own."""
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    chat = ChatConfig(template="plain")
    limits = SamplingConfig(max_new_tokens=COMPLETION, temperature=TEMPERATURE)
    domain = TextDomain(
        TextConfig(
            model=str(tmp_path), chat=chat.model_copy(update={"max_prompt_tokens": 8}),
            rollout=limits, evaluation=limits, head_chunk=5,
        )
    )  # fmt: skip
    domain.prepare([], torch.device("cpu"), torch.float32)
    prompts = [
        ids[-n:].tolist() for ids, n in zip(inputs["prompt_ids"], PROMPT_LENGTHS, strict=True)
    ]
    domain._ids = dict(enumerate(prompts))
    policy, reference = (Qwen3ForCausalLM.from_pretrained(tmp_path) for _ in range(2))
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
    for each in (policy, reference):
        logprobs.install(each)
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    with torch.no_grad():
        inputs = inputs | {"ref_per_token_logps": completion_logp(reference, ids, mask)}
    rows = Rows(
        torch.arange(6),
        torch.arange(6),
        {
            "completion": inputs["completion_ids"],
            "lengths": torch.tensor(LENGTHS),
            "logp_old": inputs["old_per_token_logps"],
        },
    )
    terms = domain.terms(
        policy, lambda: nullcontext(reference), rows, rows.sample_ids_N, DrawKey(0, 0),
        LikelihoodTerms,
    )  # fmt: skip
    theirs = trainer.compute_loss(model, inputs)
    ours = our_loss(Grpo(OurConfig(**settings()), LikelihoodTerms), model, inputs, terms)
    assert ours.item() == near(theirs.item(), TERMS)
    their_gradient, our_gradient = gradient(model, theirs), gradient(policy, ours)
    assert (our_gradient - their_gradient).norm() <= CANCELLED * EPS * their_gradient.norm()


def test_both_clips_and_the_kl_are_at_work(model, trainer, inputs):
    trainer.compute_loss(model, inputs)
    metrics = trainer._metrics["train" if model.training else "eval"]
    assert metrics["clip_ratio/low_mean"][-1] > 0
    assert metrics["clip_ratio/high_mean"][-1] > 0
    assert metrics["kl"][-1] > 0.01


@pytest.mark.parametrize("wrong", [{"beta0": 0.05}, {"clip_high": 0.2}, {"aggregation": "token"}])
def test_the_comparison_would_notice_another_formula(wrong, model, trainer, inputs):
    theirs = trainer.compute_loss(model, inputs).item()
    ours = our_loss(Grpo(OurConfig(**settings(**wrong)), LikelihoodTerms), model, inputs).item()
    assert ours != pytest.approx(theirs, rel=1e-4)
