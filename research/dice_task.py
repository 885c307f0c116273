"""Dice: "three red rings" is three red rings in the places of a die. One word of a picture's caption is
wrong three times in four, in a known way: the colour's neighbour, the shape's neighbour, one glyph off."""

NUMS = (1, 2, 3, 4)
PLACES = {1: [4], 2: [0, 8], 3: [0, 4, 8], 4: [0, 2, 6, 8], 5: [0, 2, 4, 6, 8]}
NEXT_COUNT = {1: 2, 2: 3, 3: 4, 4: 5}


def nxt(seq, x):
    return seq[(seq.index(x) + 1) % len(seq)]


def render(spec, rng):
    (t,) = spec.things
    image = np.full((SIZE, SIZE, 3), rng.uniform(*task._GREY_RANGE))
    for cell in PLACES[t.count]:
        row, col = divmod(cell, GRID)
        color = task._PALETTE_C3[task.COLORS.index(t.color)] + rng.uniform(-18, 18, size=3)
        image[row * CELL : (row + 1) * CELL, col * CELL : (col + 1) * CELL][
            MASKS[SHAPES.index(t.shape)]
        ] = color
    image += rng.normal(0.0, 3.0, size=image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


task.render = render
task.NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}


def things():
    return [Thing(s, c, n) for n in NUMS for c in task.COLORS for s in SHAPES]


def enumerate_prompts():
    return tuple(ImagePrompt(prompt_text(s), s) for s in (Spec((t,)) for t in things()))


def wrong_modes(spec):
    (t,) = spec.things
    return [
        Spec((Thing(t.shape, nxt(task.COLORS, t.color), t.count),)),
        Spec((Thing(nxt(SHAPES, t.shape), t.color, t.count),)),
        Spec((Thing(t.shape, t.color, NEXT_COUNT[t.count]),)),
    ]


def draw_spec(spec, right, rng):
    if rng.random() < right:
        return spec
    return wrong_modes(spec)[rng.integers(3)]


def split(seed=0):
    """Held out: 12 of 48, every word seen in training; two (colour, shape) pairs wholly unseen."""
    pairs = {("green", SHAPES[1]), ("yellow", SHAPES[0])}
    more = {
        (1, "red", SHAPES[2]),
        (2, "blue", SHAPES[0]),
        (3, "yellow", SHAPES[1]),
        (4, "green", SHAPES[2]),
    }
    out = lambda p: (
        (p.spec.things[0].color, p.spec.things[0].shape) in pairs
        or (p.spec.things[0].count, p.spec.things[0].color, p.spec.things[0].shape) in more
    )
    ps = enumerate_prompts()
    return [p for p in ps if not out(p)], [p for p in ps if out(p)]


for name in ("things", "enumerate_prompts", "wrong_modes", "draw_spec", "split"):
    setattr(lab, name, globals()[name])
