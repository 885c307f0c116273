"""One glyph too many: prompts "a red ring", "two blue squares", "three green triangles"."""

COLORS4 = task.COLORS
NUMS = (1, 2, 3)
TOKENS = 5
lab.TOKENS = TOKENS


def things():
    return [Thing(s, c, n) for n in NUMS for c in COLORS4 for s in task.SHAPES]


def enumerate_prompts():
    return tuple(ImagePrompt(prompt_text(s), s) for s in (Spec((t,)) for t in things()))


def wrong_modes(spec):  # a stray glyph of any other colour or shape, or one more of the same
    (t,) = spec.things
    stray = [Thing(s, c) for c in COLORS4 for s in task.SHAPES]
    return [Spec((t, x)) for x in stray]


def draw_spec(spec, right, rng):
    if rng.random() < right:
        return spec
    modes = wrong_modes(spec)
    (t,) = spec.things
    if rng.random() < SAME:
        return Spec((Thing(t.shape, t.color, t.count + 1),))
    return modes[rng.integers(len(modes))]


SAME = 0.0

HELD = {(task.SHAPES[1], "green"), (task.SHAPES[0], "yellow")}


def split(seed=0):
    out = lambda p: (p.spec.things[0].shape, p.spec.things[0].color) in HELD
    ps = enumerate_prompts()
    return [p for p in ps if not out(p)], [p for p in ps if out(p)]


for name in ("things", "enumerate_prompts", "wrong_modes", "draw_spec", "split"):
    setattr(lab, name, globals()[name])
