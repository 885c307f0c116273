"""The loop of ADRPO on the laboratory's world; `run` is one training, settings by keyword."""

import json
import time
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from transformers import CLIPModel

import lab
from lab import (
    build,
    clip_mod,
    clip_scores,
    encode,
    sample,
    sd3_mod,
    to_images,
    velocity,
    verdicts,
    Tensor,
)
from adrpo_scale.algorithms.advantages import advantages
from adrpo_scale.domains.sd3 import ATTENTION

DEFAULTS = dict(
    base="",
    clip="",
    layers=3,
    reward="clip",
    beta0=1.0,
    scale="group_std",
    amin=-1.0,
    amax=1.0,
    algo="adrpo",
    lr=3e-3,
    rank=16,
    full=False,
    P=6,
    G=12,
    draws=4,
    updates=1,
    ref="base",
    decay=0.8,
    every=10,
    steps=8,
    cpu=60.0,
    iters=1000,
    seed=0,
    eval_every=10,
    beta2=0.999,
    tag="",
    n_eval=144,
    base_coef=0.0,
    save="",
    shift=1.0,
    log="runs/lab/runs.jsonl",
)


def features(clip, texts):
    out = clip.get_text_features(clip_mod.token_ids(clip_mod.build_clip_tokenizer(), texts))
    return F.normalize(out if isinstance(out, Tensor) else out.pooler_output, dim=-1)


def run(**given):
    a = SimpleNamespace(**(DEFAULTS | given))
    assert not set(given) - set(DEFAULTS), set(given) - set(DEFAULTS)
    clip = CLIPModel.from_pretrained(a.clip).eval().requires_grad_(False)
    encoder = sd3_mod.build_text_encoder(clip)
    train, held = lab.split()
    model = build(a.layers).eval()
    model.load_state_dict(torch.load(a.base))
    model.requires_grad_(False)
    torch.manual_seed(a.seed)
    if a.full:
        model.requires_grad_(True)
    else:
        inject_adapter_in_model(
            LoraConfig(r=a.rank, lora_alpha=a.rank, target_modules=list(ATTENTION)), model
        )
    params = [p for p in model.parameters() if p.requires_grad]
    base0 = [p.detach().clone() for p in params]
    ref = [p.detach().clone() for p in params]

    class use:
        def __init__(self, w):
            self.w = w

        def __enter__(self):
            self.own = [p.data for p in params]
            for p, w in zip(params, self.w):
                p.data = w

        def __exit__(self, *e):
            for p, o in zip(params, self.own):
                p.data = o

    opt = torch.optim.AdamW(params, lr=a.lr, betas=(0.9, a.beta2), weight_decay=0.0)
    prompts = [*train, *held]
    texts, specs = [p.text for p in prompts], [p.spec for p in prompts]
    seq, pooled = encode(encoder, texts)
    tn = features(clip, texts)

    def reward(x, rows):
        if a.reward == "clip":
            return clip_scores(clip, x, tn[rows])
        return torch.tensor(verdicts(to_images(x), [specs[i] for i in rows])[1])

    def evaluate(steps=a.steps, **how):
        out = {}
        for name, lo, hi in (("train", 0, len(train)), ("held", len(train), len(specs))):
            g = torch.Generator().manual_seed(11)
            rows = torch.arange(a.n_eval) % (hi - lo) + lo
            x = sample(model, seq[rows], pooled[rows], g, steps, **how)
            v, _ = verdicts(to_images(x), [specs[i] for i in rows])
            out[name] = [round(float(z), 3) for z in v]
            out[name + "_clip"] = round(float(clip_scores(clip, x, tn[rows]).mean()), 2)
        t = torch.rand(len(rows), generator=g)[:, None, None, None]
        xt = (1 - t) * torch.randn(x.shape, generator=g) + t * x
        with torch.no_grad():
            v1 = velocity(model, xt, t.flatten(), seq[rows], pooled[rows])
            with use(base0):
                v0 = velocity(model, xt, t.flatten(), seq[rows], pooled[rows])
        out["w2"] = round(float((v1 - v0).square().flatten(1).sum(1).mean()), 2)
        return out

    gen = torch.Generator().manual_seed(1000 + a.seed)
    spent, samples, curve, order, k, rolled = 0.0, 0, [], [], 0, []
    while True:
        done = spent > a.cpu or k >= a.iters
        if k % a.eval_every == 0 or done:
            e = {"it": k, "cpu": round(spent, 1), "n": samples, **evaluate()}
            e["roll"] = [round(sum(z) / len(z), 2) for z in zip(*rolled)] if rolled else []
            rolled = []
            curve.append(e)
            print(a.tag, json.dumps(e), flush=True)
        if done:
            break
        begin = time.process_time()
        while len(order) < a.P:
            order += torch.randperm(len(train), generator=gen).tolist()
        chosen, order = order[: a.P], order[a.P :]
        rows = torch.tensor(chosen).repeat_interleave(a.G)
        x1 = sample(model, seq[rows], pooled[rows], gen, a.steps)
        r = reward(x1, rows).double().view(a.P, a.G)
        adv = advantages(r, torch.ones_like(r, dtype=torch.bool), scale=a.scale).flatten().float()
        rolled.append((float(r.mean()), float(adv.abs().mean())))
        adv = adv.clamp(a.amin, a.amax)
        beta = a.beta0 - adv if a.algo == "adrpo" else torch.full_like(adv, a.beta0)
        for _ in range(a.updates):
            for _ in range(a.draws):
                u = torch.rand(len(rows), generator=gen)
                s = a.shift * u / (1 + (a.shift - 1) * u)
                t = 1 - s
                tt = t[:, None, None, None]
                x0 = torch.randn(x1.shape, generator=gen)
                xt, target = (1 - tt) * x0 + tt * x1, x1 - x0
                with torch.no_grad(), use(ref):
                    vr = velocity(model, xt, t, seq[rows], pooled[rows])
                v = velocity(model, xt, t, seq[rows], pooled[rows])
                loss = adv * (v - target).square().flatten(1).mean(1)
                loss = loss + beta * (v - vr).square().flatten(1).mean(1)
                (loss.mean() / a.draws).backward()
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            opt.step()
            opt.zero_grad(set_to_none=True)
        with torch.no_grad():
            if a.ref == "ema":
                torch._foreach_lerp_(ref, [p.data for p in params], 1 - a.decay)
            elif a.ref == "snapshot" and (k + 1) % a.every == 0:
                ref = [p.detach().clone() for p in params]
        samples += len(rows)
        k += 1
        spent += time.process_time() - begin
    open(a.log, "a").write(json.dumps({"args": vars(a), "curve": curve}) + "\n")
    if a.save:
        torch.save(model.state_dict(), a.save)
