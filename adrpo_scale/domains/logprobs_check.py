"""Log-probabilities against a model's own logits (a family may transform its logits in a way
unknown to `logprobs`), and against those of another program for the tokens that it drew."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adrpo_scale.core.errors import ConfigError, of_one_rank
from adrpo_scale.domains.decoding import SamplingConfig
from adrpo_scale.domains.logprobs import Targets

# Mean difference in nats that rounding explains: near 20, bfloat16 logits are 0.125 apart.
LOGPROBS_AGREE = {torch.float32: 0.01, torch.bfloat16: 0.5}


@torch.no_grad()
def check_logprobs(
    policy: nn.Module,
    ids: Tensor,
    banned: Sequence[int],
    temperature: float,
    dtype: torch.dtype,
    what: str,
) -> None:
    """Raises ConfigError where the log-probabilities of tokens that are not banned differ from
    those of the policy's logits. ids: int64 [N, T]. what: the model, in the error."""
    rows, places = (~torch.isin(ids[:, 1:], ids.new_tensor(banned))).nonzero(as_tuple=True)
    tokens = ids[rows, places + 1]
    plain = policy(input_ids=ids, use_cache=False).logits[rows, places].float()
    logp, _ = policy(input_ids=ids, targets=Targets(rows, places, tokens, temperature))
    expected = (plain / temperature).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    off = float((logp - expected).abs().mean()) if len(tokens) else 0.0
    if not off <= LOGPROBS_AGREE[dtype]:
        raise ConfigError(
            f"{what}: its log-probabilities are off by {off:.3g} nats from its own logits, more "
            f"than {LOGPROBS_AGREE[dtype]}: it transforms logits in a way unknown to "
            "adrpo_scale.domains.logprobs; use another model, and please open an issue"
        )


def check_drawn(
    logp_K: Tensor, logp_rollout_K: Tensor, sampling: SamplingConfig, dtype: torch.dtype
) -> None:
    """Compares what another program drew tokens with, [K], with the policy's own log-probabilities.
    Weights that did not arrive, or another temperature, would only show as a loss that is corrected
    away. Nothing is compared where top-p or top-k change the distribution. ConfigError, on this
    rank, where they differ."""
    if sampling.top_p < 1 or sampling.top_k or not len(logp_K):
        return
    off = float((logp_K - logp_rollout_K).abs().mean())
    if not off <= LOGPROBS_AGREE[dtype]:
        raise of_one_rank(
            ConfigError(
                f"the program of domain.backend gives its tokens log-probabilities that are off by "
                f"{off:.3g} nats from the policy's, more than {LOGPROBS_AGREE[dtype]}: it draws "
                'from another model; set domain.backend = "in_process", and please open an issue'
            )
        )
