"""Language models (paper, eq. 3 and 7): any causal language model of transformers.

The terms of each token of a completion: its log-probability under the policy, under the policy
before its first step and under the reference, and the policy's entropy; `LikelihoodTerms` has the
formulas of the losses. All are of the tempered distribution (logits / temperature) before top-p and
top-k. A completion includes the token that ends it. Rollouts are padded on the left (`decoding`).
The pass of training is padded on the right, where a causal model needs no mask and its positions
are those of generation; or completions share their prompt's pass (`shared_prefix`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from adrpo_scale.algorithms.terms import ExactLikelihoodTerms, LikelihoodTerms, Terms
from adrpo_scale.algorithms.tokens import per_row
from adrpo_scale.core.errors import given
from adrpo_scale.core.seeding import Purpose, derive_seed, generator
from adrpo_scale.core.types import Completion, DrawKey, Prompt, Rows
from adrpo_scale.domains import logprobs
from adrpo_scale.domains.backend_choice import build_backend, check_backend
from adrpo_scale.domains.backends import Backend, InProcess, evaluating
from adrpo_scale.domains.base import Mode, Published, Reference, measured_under
from adrpo_scale.domains.chat import encode_all, token_ids, without_long
from adrpo_scale.domains.completions import Packed, packed
from adrpo_scale.domains.decoding import audio_inputs
from adrpo_scale.domains.export_target import ExportTarget
from adrpo_scale.domains.given_answers import GivenAnswers
from adrpo_scale.domains.language_model import LINEAR, WEIGHTS, LanguageModel
from adrpo_scale.domains.logprobs_check import check_drawn, check_logprobs
from adrpo_scale.domains.shared_prefix import fits, shared
from adrpo_scale.domains.text_checks import check_settings
from adrpo_scale.domains.text_config import TextConfig
from adrpo_scale.domains.text_export import chat_target, generate_arguments
from adrpo_scale.engines.spec import LoraConfig, ModelSpec
from adrpo_scale.engines.workload import Workload
from adrpo_scale.hub.weights import SafetensorsFolder, find_model


class TextDomain(GivenAnswers):
    """The domain `text`; the module docstring describes it."""

    gives: ClassVar = (LikelihoodTerms, ExactLikelihoodTerms)
    medium: ClassVar[Literal["pictures", "completions"]] = "completions"
    evaluations: tuple[Mode, ...] = ("evaluation", "greedy")
    Config: ClassVar[type[TextConfig]] = TextConfig
    adapted: ClassVar[tuple[str, ...]] = LINEAR

    @classmethod
    def recognises(cls, model: Published) -> bool:
        return model.model_type() is not None

    @classmethod
    def published(cls, model: str) -> dict[str, Any]:
        # There is no rollout, so its length must not exceed a model with few positions.
        return super().published(model) | {"rollout": {"max_new_tokens": 1}}

    @classmethod
    def weights_in(cls, folder: Path) -> SafetensorsFolder:
        return SafetensorsFolder(folder, WEIGHTS)

    @classmethod
    def workload(cls, config: Any, dtype: torch.dtype) -> Workload:
        from adrpo_scale.domains.text_workload import text_workload

        return text_workload(config)

    def __init__(self, config: TextConfig) -> None:
        self.config = config
        (need,) = config.needs_from_hub()
        self.folder = find_model(need)
        self.model = self._read_model()
        self.tokenizer = self.model.tokenizer
        check_settings(config, self.model.config)
        # Other layers than full attention take the plain pass.
        self.shares_prompts = config.shared_prefix and fits(config.attention, self.model.config)

    def _read_model(self) -> LanguageModel:
        return LanguageModel(self.folder, self.config.model, self.config.chat)

    def rules(self) -> dict[str, Any]:
        return self.model.rules()

    def keep_rules(self, rules: Mapping[str, Any]) -> None:
        self.model.keep_rules(rules)

    def policy_spec(self) -> ModelSpec:
        lora = self.config.lora or LoraConfig()
        trained = lora if self.config.train == "lora" else None
        return self.model.spec(self.config.attention, trained)

    def reference_spec(self) -> ModelSpec | None:
        return None if self.config.train == "lora" else self.model.spec(self.config.attention)

    def frozen_files(self) -> list[Path]:
        template = self.config.chat.template_file
        return sorted({*self.model.files(), *([Path(template)] if template is not None else [])})

    def export_target(self) -> ExportTarget:
        from transformers import AutoModelForCausalLM

        seeded = torch.Generator().manual_seed(0)
        ids = torch.randint(self.model.config.vocab_size, (2, 12), generator=seeded)
        return ExportTarget(
            library="transformers",
            model="AutoModelForCausalLM",
            component="",
            stem=WEIGHTS,
            task="text-generation",
            inputs={"input_ids": ids},
            call=generate_arguments(self.config.evaluation, self.model.ends, self.model.banned),
            chat=chat_target(self.tokenizer, self.config.chat, *self._example()),
            # The attention of training may need a GPU.
            build=lambda: AutoModelForCausalLM.from_config(
                self.model.config, dtype=torch.float32, trust_remote_code=False
            ),
        )

    def _example(self) -> tuple[Prompt, Sequence[int]]:
        """A prompt, and its tokens in training."""
        prompt = Prompt(0, "What is 2 + 3?")
        return prompt, token_ids(self.tokenizer, prompt, self.config.chat)

    def check_training(self) -> None:
        check_backend(self.config)
        self.model.check_training()

    def usable(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        return without_long(self.tokenizer, self.model.spoken(prompts), self.config.chat)

    def as_before(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        return self.model.spoken(prompts)

    def prepare(self, prompts: Sequence[Prompt], device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._prepare_prompts(prompts)
        self._greedy = self.config.evaluation.model_copy(update={"temperature": 0.0})
        self._in_process = InProcess(self.model.ends, self.model.pad, self.config.decoding)
        self._logprobs_checked = self._backend_checked = False

    def _prepare_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Tokenises the prompts. Raises PromptError for one that is too long."""
        self._ids = encode_all(self.tokenizer, prompts, self.config.chat)
        self._first = prompts[0].id if prompts else 0

    def _tokens(self, prompt_id: int) -> Sequence[int]:
        """Tokens of a prompt, one of those given to `prepare`."""
        return self._ids[prompt_id]

    def _audio(self, prompt_ids: Sequence[int]) -> Sequence[Tensor] | None:
        """Embeddings at the audio tokens of each prompt, [tokens, H]; None in a text domain."""
        return None

    @functools.cached_property
    def _backend(self) -> Backend:
        """The back-end of rollouts; evaluations and `sample` draw in this process."""
        return build_backend(self.config, self.model, self.device, self.dtype)

    def begin_rollout(self, policy: nn.Module) -> None:
        self._check_logprobs(policy)
        self._backend.sync(policy)

    def end_rollout(self) -> None:
        self._backend.rest()

    def _check_logprobs(self, policy: nn.Module) -> None:
        """Compares log-probabilities with the model's own logits, once per start."""
        if self._logprobs_checked:
            return
        ids = torch.tensor([list(self._tokens(self._first)[-16:])] * 2, device=self.device)
        ids[1] = ids[1].flip(0)
        what = f"domain.model = {self.config.model!r} ({self.model.config.model_type})"
        temperature = self.config.rollout.temperature
        with evaluating(policy):
            check_logprobs(policy, ids, self.model.banned, temperature, self.dtype, what)
        self._logprobs_checked = True

    @torch.no_grad()
    def _check_backend(self, policy: nn.Module, rows: Rows) -> None:
        """Compares the first rows of a back-end that draws by itself with the policy."""
        if self._backend_checked or "logp_rollout" not in rows.tensors:
            return
        made = self._packed(rows)
        with evaluating(policy):
            logp_K, *_ = self._measured(policy, rows, made)
        drawn_K = rows.tensors["logp_rollout"][made.segment_K, made.place_K]
        check_drawn(logp_K, drawn_K, self.config.rollout, self.dtype)
        self._backend_checked = True

    @torch.no_grad()
    def sample(
        self,
        policy: nn.Module,
        prompts_N: Sequence[Prompt],
        sample_ids_N: Tensor,
        key: DrawKey,
        mode: Mode = "rollout",
    ) -> Rows:
        if mode == "rollout":
            backend, sampling, purpose = self._backend, self.config.rollout, Purpose.TOKEN
        else:
            backend, purpose = self._in_process, Purpose.EVALUATION
            sampling = self._greedy if mode == "greedy" else self.config.evaluation
        rows, width = len(prompts_N), sampling.max_new_tokens
        ids_N = torch.tensor([p.id for p in prompts_N], dtype=torch.int64)
        if not rows:
            return Rows(sample_ids_N, ids_N, self._no_rows(width, backend))
        uniforms_NT = torch.stack(
            [torch.rand(width, generator=generator(key, int(s), purpose)) for s in sample_ids_N]
        )
        seeds = [derive_seed(key.seed, key.iteration, int(s), int(purpose)) for s in sample_ids_N]
        prompts, audio_N = [self._tokens(p.id) for p in prompts_N], self._audio(ids_N.tolist())
        uniforms_NT = uniforms_NT.to(self.device)
        made = backend.generate(policy, prompts, seeds, uniforms_NT, sampling, audio_N)
        found = Rows(sample_ids_N, ids_N, made.tensors())
        self._check_backend(policy, found)
        return found

    def _no_rows(self, width: int, backend: Backend) -> dict[str, Tensor]:
        none = torch.empty(0, dtype=torch.int64, device=self.device)
        tensors = {"completion": none.view(0, width), "lengths": none, "finished": none}
        if not backend.is_reproducible:
            tensors["logp_rollout"] = torch.empty(0, width, device=self.device)
        return tensors

    def artifacts(self, rows: Rows) -> list[Completion]:
        found = []
        columns = [rows.tensors[n].tolist() for n in ("completion", "lengths", "finished")]
        for padded, length, finished in zip(*columns, strict=True):
            tokens = padded[:length]
            text = self.tokenizer.decode(tokens[:-1] if finished else tokens)
            found.append(Completion(text.strip(), tuple(tokens), bool(finished)))
        return found

    def keeps(self, rows: Rows) -> Tensor:
        finished = rows.tensors["finished"].bool().cpu()
        return super().keeps(rows) & (finished | (not self.config.mask_truncated))

    def sizes(self, rows: Rows) -> Tensor:
        prompts = torch.tensor([len(self._tokens(i)) for i in rows.prompt_ids_N.tolist()])
        return prompts.long() + rows.tensors["lengths"].cpu()

    def row_metrics(self, rows: Rows) -> dict[str, Tensor]:
        lengths, finished = rows.tensors["lengths"].cpu(), rows.tensors["finished"].cpu()
        return {"completion_tokens": lengths.double(), "truncated": 1 - finished.double()}

    def segments(self, rows: Rows) -> Tensor:
        return rows.tensors["lengths"]

    @torch.no_grad()
    def remember(self, policy: nn.Module, rows: Rows) -> Rows:
        made = self._packed(rows)
        logp_K, _ = self._measured(policy, rows, made)
        logp_NT = torch.zeros(rows.tensors["completion"].shape, device=logp_K.device)
        logp_NT[made.segment_K, made.place_K] = logp_K
        return Rows(rows.sample_ids_N, rows.prompt_ids_N, {**rows.tensors, "logp_old": logp_NT})

    def terms(
        self,
        policy: nn.Module,
        reference: Reference | None,
        rows: Rows,
        noise_ids_N: Tensor,
        key: DrawKey,
        wanted: type[Terms],
        base: Reference | None = None,
    ) -> LikelihoodTerms:
        made, is_exact = self._packed(rows), issubclass(wanted, ExactLikelihoodTerms)
        logp_ref_K, kl_K, beside = None, None, None

        def logp(model: nn.Module) -> Tensor:
            return self._measured(model, rows, made)[0]

        def states(model: nn.Module) -> logprobs.Beside:
            places = (made.row_K, made.before_K)
            asked = logprobs.States(*places, with_layer=model is not policy)
            return logprobs.Beside(*self._called(model, rows, made, asked))

        if is_exact:
            beside = measured_under(reference, states)
        else:
            logp_ref_K = measured_under(reference, logp)
        logp_base_K = measured_under(base, logp)
        logp_K, entropy_K, *compared = self._measured(policy, rows, made, beside)
        if compared:
            kl_K, logp_ref_K = compared

        def stored(name: str) -> Tensor | None:
            found = rows.tensors.get(name)
            return None if found is None else found[made.segment_K, made.place_K]

        logp_old_K = stored("logp_old")
        terms = LikelihoodTerms(
            rows=len(rows),
            logp_K=logp_K,
            logp_old_K=logp_K.detach() if logp_old_K is None else logp_old_K,
            segment_K=made.segment_K,
            logp_ref_K=logp_ref_K,
            logp_rollout_K=stored("logp_rollout"),
            entropy_K=entropy_K,
            logp_base_K=logp_base_K,
        )
        return ExactLikelihoodTerms.of(terms, kl_K) if is_exact else terms

    def _packed(self, rows: Rows) -> Packed:
        prompts = [self._tokens(i) for i in rows.prompt_ids_N.tolist()]
        if self.shares_prompts:
            return shared(prompts, rows, self.model.pad, self.model.config.hidden_size)
        return packed(prompts, rows, self.model.pad)

    def _measured(
        self, model: nn.Module, rows: Rows, made: Packed, beside: logprobs.Beside | None = None
    ) -> Sequence[Tensor]:
        """(logp_K, entropy_K) of the completions' tokens, and (kl_K, logp_ref_K) with `beside`."""
        targets = logprobs.Targets(
            made.row_K,
            made.before_K,
            made.tokens_K,
            self.config.rollout.temperature,
            self.config.head_chunk,
            beside,
        )
        return self._called(model, rows, made, targets)

    def _called(self, model: nn.Module, rows: Rows, made: Packed, targets: Any) -> Any:
        heard = [int(rows.prompt_ids_N[sample]) for sample in made.spoken]
        more = audio_inputs(self._audio(heard))
        return model(input_ids=made.ids_GT, targets=targets, **made.inputs, **more)

    def divergence_metrics(self, terms: Terms) -> dict[str, Tensor]:
        """`kl`: mean of k3 over a completion's tokens; `entropy`: mean over them, in nats."""
        divergence_N, entropies = given(terms.divergence()), given(terms.entropies())
        return {"kl": divergence_N, "entropy": per_row(*entropies, len(divergence_N), "sequence")}
