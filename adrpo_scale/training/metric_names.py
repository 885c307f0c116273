"""The names that a run writes into its tables, and their meanings.

The reference in docs/ is generated from these rows. `tests/training/test_metric_names.py` compares
them with the files of real runs and fails for a logged number without a row here. In a name, NAME
stands for a reward's label, and PHASE for rollout, reward or update.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One name. when: the condition under which it is written; "": always."""

    name: str
    meaning: str
    when: str = ""

    def matches(self, written: str) -> bool:
        """True where a run's `written` is an instance of this name."""
        pattern = re.escape(self.name).replace("NAME", r".+")
        return (
            re.fullmatch(pattern.replace("PHASE", "(rollout|reward|update)"), written) is not None
        )


HISTOGRAMS = "every `logging.histograms_every` iterations"
SEVERAL = "several rewards"
TOKENS = "tokens"
GATED = 'a reward with `use = "gate"`'
STEERED = "`regulariser.controller`"
AUDIO = "audio"
ABSTAINED = "a reward abstains"
INFO = "a reward gives (scores, info)"
PICTURES = "pictures"
MOVES = "a moving reference"
CATEGORIES = "a prompt with a category"

ITERATION = (
    Metric("iteration", "iterations that are done, this one included"),
    Metric("reward", "mean total reward of the samples that are not masked"),
    Metric("reward_std", "its standard deviation"),
    Metric("advantage_abs_mean", "mean size of the advantage before clipping"),
    Metric("advantage_clip_fraction", "share of the samples whose advantage was clipped"),
    Metric("beta_mean", "mean coefficient of the divergence over samples"),
    Metric("beta_min", "the smallest of them"),
    Metric("beta_max", "the largest of them"),
    Metric(
        "beta_histogram",
        "how many samples have which coefficient: bin first + k, of k = 0, 1, …, has counts[k] of "
        "the coefficients from (first + k) · width on; width is a power of two",
        HISTOGRAMS,
    ),
    Metric("beta0", "the base coefficient that the controller chose for the iteration", STEERED),
    Metric("masked", "samples without a reward: one failed, or all abstained; left out everywhere"),
    Metric("degenerate_groups", "share of the groups with equal rewards or fewer than two samples"),
    Metric("reward_NAME", "mean of one reward over the samples that it scored", SEVERAL),
    Metric("gate_NAME", "mean of a reward outside the sum over the samples that it scored", GATED),
    Metric(
        "open_gates", "share of the samples that are not masked whose gate is open: held", GATED
    ),
    Metric("unscored", "samples for which every reward abstained; they are masked", ABSTAINED),
    Metric("abstained_NAME", "share of the samples for which a reward gave None", ABSTAINED),
    Metric("info_NAME", "mean of a number that a reward gave beside its scores", INFO),
    Metric("loss", "mean over the optimizer steps; null where nothing was trained on"),
    Metric(
        "divergence",
        "mean distance from the base: squared difference of velocities per latent element (flow), "
        "or KL per token (tokens); null where it was not measured",
    ),
    Metric(
        "divergence_to_reference",
        "the same distance from the reference; null where no beta needs it",
        MOVES,
    ),
    Metric("entropy", "mean exact entropy of the policy's distributions per token, nats", TOKENS),
    Metric("grad_norm", "mean global gradient norm before clipping"),
    Metric(
        "gradient_signal",
        "share of the squared gradient that is signal, from Adam's moments: 0 is noise alone, 1 "
        "none; estimates the cosine of two independent batches' gradients. Null before "
        "3/(1 - beta1) optimizer steps",
    ),
    Metric("learning_rate", "learning rate of the last optimizer step"),
    Metric("updates", "optimizer steps"),
    Metric(
        "updates_skipped",
        "of these, steps left out: the gradient was not finite, or the engine refused it",
    ),
    Metric("completion_tokens", "mean length of a completion", TOKENS),
    Metric("truncated", "share of the completions that were cut off", TOKENS),
    Metric("unheard", "share of the samples whose clip could not be read", AUDIO),
    Metric("samples", "samples of the iteration over all processes"),
    Metric("seconds_PHASE", "wall seconds of rank 0 in a phase"),
    Metric("peak_gb_PHASE", "peak memory of a phase, 10⁹ bytes, of the rank with most", "GPU"),
    Metric("seconds", "wall seconds of the iteration"),
    Metric("seconds_between", "wall seconds since the iteration before: evaluations and saves"),
    Metric("cpu_seconds", "CPU seconds of rank 0's process in the iteration"),
    Metric("samples_per_second", "samples / seconds"),
)
"""Keys of a line of `metrics.jsonl`; in TensorBoard they stand under `train/`."""

EVALUATION = (
    Metric("reward", "mean weighted sum of the rewards trained on, over samples"),
    Metric("NAME", "mean of one other reward, over pictures", PICTURES),
    Metric("w2_sum", "sum over latent elements of (v − v_base)²: the W2 bound", PICTURES),
    Metric("pixel_diversity", "mean L2 distance of a prompt's pictures, at most 64 px", PICTURES),
    Metric("clip_diversity_l2", "the same of unnormalised CLIP embeddings", "a CLIP reward"),
    Metric("clip_diversity_cosine", "mean cosine distance of CLIP embeddings", "a CLIP reward"),
    Metric("NAME_sampled", "mean of one reward, over samples", TOKENS),
    Metric(
        "reward_greedy",
        "mean weighted sum of the rewards trained on, over greedy completions",
        TOKENS,
    ),
    Metric("NAME_greedy", "mean of one reward, over greedy completions", TOKENS),
    Metric("kl", "mean k3 estimate of the KL to the base per token, over samples", TOKENS),
    Metric("entropy", "mean entropy per token, nats, over samples", TOKENS),
    Metric("completion_tokens", "mean length of a sampled completion", TOKENS),
    Metric("truncated", "share of the sampled completions that were cut off", TOKENS),
    Metric("unheard", "share of the samples whose clip could not be read", AUDIO),
)
"""Values of `metric` in a row of `eval.jsonl`; in TensorBoard under `eval_train/`,
`eval_held_out/`."""

EVALUATION_ROW = (
    Metric("run", "name of the run folder"),
    Metric("algorithm", "name of the algorithm"),
    Metric("seed", "seed of the run"),
    Metric("iteration", "iterations that were done"),
    Metric("weights", "the measured weights: raw (the trained ones) or ema (their moving average)"),
    Metric("split", "train or held_out"),
    Metric("metric", "one of the names below"),
    Metric("value", "the mean; null where no value was finite"),
    Metric("n", "number of samples or prompts in the mean"),
)
"""Keys of a row of `eval.jsonl`."""

PROMPT_ROW = (
    Metric("iteration", "iterations that were done"),
    Metric("split", "train or held_out"),
    Metric("weights", "the measured weights: raw or ema"),
    Metric("prompts", "a hash a prompt, of its text, conversation and clip"),
    Metric("categories", "the category or tag of each prompt's row, or null", CATEGORIES),
    Metric(
        "metrics",
        "by name of a metric a list a prompt each: mean, n (finite values), and std where a prompt "
        "has several samples",
    ),
)
"""Keys of a row of `eval_prompts.jsonl`."""

COMPLETION = (
    Metric("sample", "its id in the iteration; sample // group_size is the place of its prompt"),
    Metric("prompt_id", "the prompt's place in its file"),
    Metric("prompt", "its text"),
    Metric("completion", "the text, special tokens shown"),
    Metric("tokens", "its number of tokens"),
    Metric("finished", "true where it ended with an end token, false where it was cut off"),
    Metric("reward_NAME", "each reward"),
    Metric("advantage", "advantage before clipping"),
    Metric("beta", "coefficient of its divergence"),
    Metric("divergence", "KL per token when it was first trained on; null: not measured"),
    Metric("entropy", "entropy per token at that time; null: not measured"),
)
"""Columns of `samples/completions-NNNNNN.parquet`."""

START = (
    Metric("began", "time of the start, ISO 8601"),
    Metric("launcher", "the program that started its processes: torchrun, node.sh, srun or single"),
    Metric("command", "the command, as a shell takes it; null where it is not known"),
    Metric("job_id", "Slurm's job; null outside one"),
    Metric("restart_count", "number of times that Slurm has requeued the job"),
    Metric("world_size", "number of processes"),
    Metric("hosts", "number of machines"),
    Metric("gpus", "kind → number; empty on CPUs"),
    Metric("commit", "commit of the checkout, with +changes where it was edited"),
    Metric("versions", "versions of Python and libraries"),
    Metric("cuda", "version of CUDA that torch was built for"),
    Metric("driver", "version of NVIDIA's driver"),
    Metric("disagreements", "facts that differ between processes, one line each"),
    Metric("resumed_from", "iteration of the checkpoint; null for a fresh run"),
    Metric("found", "work of the previous start that is repeated"),
    Metric("changed_settings", "settings that differ from the checkpoint's, one line each"),
    Metric("ended", "time of the end; absent where the start was killed or still runs"),
    Metric("outcome", "done, stopped by SIGNAL, lost another process, failed, or the error's text"),
    Metric("exit_code", "its exit code"),
    Metric("iteration", "iterations that were done"),
    Metric("seconds_from_signal", "seconds from the signal to the end; null without a signal"),
)
"""Keys of a record of a start, `lives/NN.json`."""
