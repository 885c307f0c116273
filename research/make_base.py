import argparse, sys, time, pickle
import torch

sys.path.insert(0, "research")
import lab
from lab import *

a = argparse.ArgumentParser()
a.add_argument("--out")
a.add_argument("--module", default="")
a.add_argument("--copies", type=int, default=200)
a.add_argument("--steps", type=int, default=3000)
a.add_argument("--batch", type=int, default=64)
a.add_argument("--lr", type=float, default=4e-3)
a.add_argument("--right", type=float, default=0.25)
a.add_argument("--layers", type=int, default=3)
a.add_argument("--clip")
a.add_argument("--clip-steps", type=int, default=500)
a = a.parse_args()
if a.module:
    exec(open(a.module).read())
patch()
from transformers import CLIPModel
import os

if not os.path.exists(a.clip):
    t = time.process_time()
    clip = clip_mod.train_clip(
        0, clip_mod.ClipRecipe(steps=a.clip_steps, batch=min(128, len(enumerate_prompts()))), print
    )
    clip.save_pretrained(a.clip)
    print("clip cpu", time.process_time() - t)
clip = CLIPModel.from_pretrained(a.clip).eval().requires_grad_(False)
encoder = sd3_mod.build_text_encoder(clip)
train, held = split()
seq, pooled = encode(encoder, [p.text for p in train])


def evaluate(model):
    model.eval()
    g = torch.Generator().manual_seed(7)
    rows = torch.randint(len(train), (96,), generator=g)
    x = sample(model, seq[rows], pooled[rows], g)
    model.train()
    return verdicts(to_images(x), [train[i].spec for i in rows])[0].round(2)


model = pretrain(encoder, 0, a.steps, a.batch, a.lr, a.right, a.layers, a.copies, evaluate=evaluate)
torch.save(model.state_dict(), a.out)
