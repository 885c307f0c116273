"""Guidance and best-of-12 without training, on the dice demo's assets; plain torch, fixed noise."""

import numpy as np, torch, torch.nn.functional as F
from diffusers import SD3Transformer2DModel
from transformers import CLIPModel, CLIPTextModelWithProjection
from adrpo_scale.core.paths import ASSETS
from adrpo_scale.demo.dice.build import DICE
from adrpo_scale.demo.dice.task import check, mistakes, satisfies, split_prompts, SHEET
from adrpo_scale.demo.image.clip import build_clip_tokenizer, clip_cosines, to_pixels, token_ids
from adrpo_scale.demo.image.sd3 import encode_texts

torch.set_num_threads(1)
D = ASSETS / "dice"
model = SD3Transformer2DModel.from_pretrained(D / "transformer", torch_dtype=torch.float32).eval()
enc = CLIPTextModelWithProjection.from_pretrained(D / "text_encoder").eval()
clip = CLIPModel.from_pretrained(D / "reward_clip").eval()


def v(x, t, s, p):
    return -model(
        hidden_states=x,
        timestep=torch.full((len(x),), 1000 * (1 - t)),
        encoder_hidden_states=s,
        pooled_projections=p,
    ).sample


@torch.no_grad()
def sample(texts, w, seed=0, steps=8):
    x = torch.randn(len(texts), 3, 9, 9, generator=torch.Generator().manual_seed(seed))
    s, p = encode_texts(enc, texts, DICE)
    e, q = encode_texts(enc, [""], DICE)
    for k in range(steps):
        c = v(x, k / steps, s, p)
        if w != 1:
            u = v(x, k / steps, e.expand_as(s), q.expand_as(p))
            c = u + w * (c - u)
        x = x + c / steps
    return ((x / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


@torch.no_grad()
def score(im, texts):
    o = clip(input_ids=token_ids(build_clip_tokenizer(DICE), texts), pixel_values=to_pixels(im))
    return 100 * (o.image_embeds * o.text_embeds).sum(-1)


for name, ps in zip(("train", "held_out"), split_prompts()):
    texts = [p.text for p in ps for _ in range(12 if name == "train" else 48)]
    specs = [p.spec for p in ps for _ in range(12 if name == "train" else 48)]
    for w in (1.0, 1.5, 2.0, 3.0, 5.0):
        im = sample(texts, w)
        sc = score(im, texts)
        ok = torch.tensor([float(check(i, t)) for i, t in zip(im, texts)])
        read = [SHEET.read(i) for i in im]
        wrong = np.mean(
            [
                g is not None and any(satisfies(g, m) for m in mistakes(s))
                for g, s in zip(read, specs)
            ]
        )
        best = ok.view(-1, 12)[torch.arange(len(ok) // 12), sc.view(-1, 12).argmax(1)].mean()
        auc = (sc[ok > 0][:, None] > sc[ok == 0][None]).float().mean()
        print(
            name,
            "guidance",
            w,
            "right %.3f one mistake %.3f unreadable %.3f clip %.1f auc %.3f best-of-12 %.3f"
            % (ok.mean(), wrong, np.mean([g is None for g in read]), sc.mean(), auc, best),
            flush=True,
        )
