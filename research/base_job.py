def make(
    out, clip_dir, clip_steps=250, steps=2000, batch=48, lr=4e-3, right=0.25, layers=3, copies=100
):
    if not os.path.exists(clip_dir):
        t = time.process_time()
        clip = clip_mod.train_clip(
            0,
            clip_mod.ClipRecipe(steps=clip_steps, batch=min(128, len(lab.enumerate_prompts()))),
            print,
        )
        clip.save_pretrained(clip_dir)
        print("clip cpu", time.process_time() - t)
    clip = transformers.CLIPModel.from_pretrained(clip_dir).eval().requires_grad_(False)
    encoder = sd3_mod.build_text_encoder(clip)
    train, held = lab.split()
    seq, pooled = encode(encoder, [p.text for p in train])

    def evaluate(model):
        model.eval()
        g = torch.Generator().manual_seed(7)
        rows = torch.randint(len(train), (96,), generator=g)
        x = sample(model, seq[rows], pooled[rows], g)
        model.train()
        return verdicts(to_images(x), [train[i].spec for i in rows])[0].round(2)

    model = lab.pretrain(encoder, 0, steps, batch, lr, right, layers, copies, evaluate=evaluate)
    torch.save(model.state_dict(), out)
