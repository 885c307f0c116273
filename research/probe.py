"""What a base draws: shares, guidance, best of 12 by CLIP, and how well CLIP ranks the right ones."""


def probe(base, clip_dir, n=240, layers=3):
    clip = transformers.CLIPModel.from_pretrained(clip_dir).eval().requires_grad_(False)
    encoder = sd3_mod.build_text_encoder(clip)
    train, held = lab.split()
    model = build(layers).eval()
    model.load_state_dict(torch.load(base))
    model.requires_grad_(False)
    e = encode(encoder, [""])
    for name, ps in (("train", train), ("held", held)):
        seq, pooled = encode(encoder, [p.text for p in ps])
        tn = rl.features(clip, [p.text for p in ps])
        P = n // 12
        pick = torch.arange(P) % len(ps)
        rows = pick.repeat_interleave(12)
        for w in (1.0, 2.0, 3.0):
            if w > 1 and name == "train":
                continue
            g = torch.Generator().manual_seed(3)
            x = sample(model, seq[rows], pooled[rows], g, 8, guidance=w, empty=e)
            v, right = verdicts(to_images(x), [ps[i].spec for i in rows])
            s = clip_scores(clip, x, tn[rows])
            right = torch.tensor(right)
            best = right.view(P, 12)[torch.arange(P), s.view(P, 12).argmax(1)].mean()
            r, b = s[right > 0], s[right == 0]
            auc = (r[:, None] > b[None]).float().mean()
            cen = s.view(P, 12) - s.view(P, 12).mean(1, keepdim=True)
            cor = torch.corrcoef(
                torch.stack(
                    [
                        cen.flatten(),
                        (right.view(P, 12) - right.view(P, 12).mean(1, keepdim=True))
                        .flatten()
                        .float(),
                    ]
                )
            )[0, 1]
            print(
                name,
                "guidance",
                w,
                v.round(3),
                "clip",
                round(float(s.mean()), 1),
                "right/wrong",
                round(float(r.mean()), 1),
                round(float(b.mean()), 1),
                "auc",
                round(float(auc), 3),
                "corr",
                round(float(cor), 3),
                "best12",
                round(float(best), 3),
            )
            per = {}
            for i, z in zip(rows.tolist(), right.tolist()):
                per.setdefault(ps[i].spec.things[0].count, []).append(z)
            print("   by count", {k: round(sum(z) / len(z), 2) for k, z in sorted(per.items())})
            if w == 1.0:  # what is wrong
                from collections import Counter

                c = Counter()
                for im, i in zip(to_images(x), rows.tolist()):
                    gl = task.parse_image(im)
                    t = ps[i].spec.things[0]
                    if gl is None:
                        c["unreadable"] += 1
                        continue
                    good = sum(q.shape == t.shape and q.color == t.color for q in gl)
                    c[f"{good - t.count:+d} asked, {len(gl) - good} others"] += 1
                print("   ", c.most_common(9))
