"""Names in a model card: those of runs, rewards, bases and licences are text and nothing else."""

from __future__ import annotations

import ast
import os
import re
import shlex
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from adrpo_scale.core.markdown import code, inline, table
from adrpo_scale.core.tensor_files import FileFacts
from adrpo_scale.domains.export_target import ChatTarget, ExportTarget
from adrpo_scale.export.base import Base, Use, Written
from adrpo_scale.export.card import Provenance, Story, base_licence, write_card
from adrpo_scale.export.transformers_layout import vllm_line
from adrpo_scale.export.verify import Verdict

NAMES = [
    "a](https://x.example) [b",
    "![p](https://x.example/p.png)",
    "<img src=x onerror=alert(1)><script>x</script>",
    "a | b | c",
    "a\\| b \\",
    "x\n\n# Verified by everyone\n\n| a |",
    "`code` ``more``` `",
    "**bold** ~~gone~~ &lt;b&gt; &amp;",
    "---\nlicense: mit\n---",
    "\x1b[2J\x00\u202eodd\ud83d\x85",
    "<!-- hidden",
    "<https://x.example>",
    "``` \n```toml",
    '"; rm -rf ~; echo "$(id)`id`',
]


def story_of(name: str) -> Story:
    chat = ChatTarget(True, None, None, {}, "T", name, (1,))
    target = ExportTarget("transformers", "M", "", "model", "text-generation", {}, {}, chat=chat)
    settings = {"algorithm.name": name, "seed": 0, "engine.dtype": "bfloat16", "a.b": name}
    settings |= {"evaluation.weights": "raw", f"more.{name}": 1}
    rewards = {name: {"count": 2, "mean": 1.0, "m2": 0.1, "min": 0.0, "max": 1.0}}
    run = name.replace("/", "").replace("\\", "")  # of which the last part is shown
    source = Provenance(
        run, 3, name, 1, False, settings, [(name, name, 1.0, 2.0)], 3, rewards, name
    )
    return Story(
        form="adapter",
        dtype="float32",
        base=Base(name, True, name, "0" * 64),
        licence={"license": name, "license_name": name, "license_link": name},
        target=target,
        provenance=source,
        written=Written({"f": FileFacts("f", 1, "0")}, 2, 1),
        verdict=Verdict("tensors", {"values": 0.1}, {"torch": "2"}, name),
        lora={"rank": 4, "alpha": 4},
    )


def shape(text: str) -> list[tuple[str, ...]]:
    """The card's blocks, and what is inside their lines."""
    body = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(body)
    return [(token.type, *(child.type for child in token.children or ())) for token in tokens]


def card_of(name: str, folder: Path) -> str:
    write_card(story_of(name), folder)
    return (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_changes_nothing_about_a_card_but_its_text(name: str, tmp_path: Path) -> None:
    plain, hostile = card_of("plain", tmp_path), card_of(name, tmp_path)
    assert shape(hostile) == shape(plain)
    assert not [c for c in hostile if not c.isprintable() and c != "\n"]
    data, expected = ModelCard(hostile).data, ModelCard(plain).data
    assert data.to_dict().keys() == expected.to_dict().keys()
    assert data.library_name == "transformers" and data.pipeline_tag == "text-generation"


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_one_word_of_code_and_of_a_shell(name: str, tmp_path: Path) -> None:
    story = story_of(name)
    use = Use("adapter", story.base, story.target, "bfloat16", 4)
    words = shlex.split(vllm_line(use))
    assert words[:2] == ["vllm", "serve"] and words[3:4] == ["--revision"] and words[5] == "--dtype"
    blocks = re.findall(r"```python\n(.*?)\n```", card_of(name, tmp_path), re.DOTALL)
    assert blocks
    for block in blocks:
        ast.parse(block)


@pytest.mark.parametrize("name", NAMES)
def test_names_in_markdown(name: str) -> None:
    parser = MarkdownIt("gfm-like", {"linkify": False})
    for made in (inline(name), code(name)):
        (_, content, _) = parser.parse(f"see {made} there")
        assert [child.type for child in content.children] in (
            [["text"], ["text", "code_inline", "text"]]
        )
    cells = [["a", "b"], [name, inline(name)], [code(name), "x"]]
    tokens = parser.parse(table(cells))
    assert [t.type for t in tokens].count("td_open") == 4


def licence_in(folder: Path, card: bytes) -> dict:
    (folder / "README.md").write_bytes(card)
    return base_licence(folder)


BOMB = b"---\na: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (98 + n, 98 + n, b",".join([b"*%c" % (97 + n)] * 9)) for n in range(9)
)
CARDS = {
    "a bomb of aliases": BOMB + b"license: *j\n---\n",
    "lists in lists": b"---\nlicense: " + b"[" * 30_000 + b"\n---\n",
    "a list": b"---\nlicense: [mit, gpl]\n---\n",
    "null": b"---\nlicense: null\nlicense_name: ~\nlicense_link:\n---\n",
    "a block": b"---\nlicense: >-\n  mit\n---\n",
    "another's": b"---\nmodel:\n  license: mit\n---\n",
    "no end": b"---\nlicense: mit\n" + b"#" * 300_000,
    "no YAML": b"---\nlicense: 'mit\n---\n",
    "an object": b"---\nlicense: !!python/object/apply:os.system ['id']\n---\n",
    "no metadata": b"# A model\n",
    "nothing": b"",
}


@pytest.mark.parametrize("card", CARDS.values(), ids=[*CARDS])
def test_a_licence_is_a_text_or_unknown(card: bytes, tmp_path: Path) -> None:
    assert licence_in(tmp_path, card) == {}


def test_a_licence_is_read_as_it_was(tmp_path: Path) -> None:
    card = b"---\r\nlicense: other  # ours\r\nlicense_name: 'My ''Terms'''\r\ntags:\r\n- a\r\n"
    card += b'license_link: "https://x.example/#a"\r\n---\r\n# x\nlicense: mit\n'
    expected = {"license": "other", "license_name": "My 'Terms'"}
    assert licence_in(tmp_path, card) == expected | {"license_link": "https://x.example/#a"}
    odd = b"---\nlicense: \xff\x1b[2J\n---\n"
    assert licence_in(tmp_path, odd) == {"license": "\ufffd\\x1b[2J"}
    os.remove(tmp_path / "README.md")
    os.mkfifo(tmp_path / "README.md")
    assert base_licence(tmp_path) == {}
    assert base_licence(tmp_path / "gone") == {}
