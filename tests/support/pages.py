"""The pages of the documentation, read: command lines, TOML, links, names of settings and files.

A page is read by the parser that builds it, so a block here is a block there.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.colon_fence import colon_fence_plugin
from mdit_py_plugins.deflist import deflist_plugin

ROOT = Path(__file__).parents[2]
SHELL = {"sh", "console", "bash", ""}  # an indented block has no language
OUTSIDE = (
    "README.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "tests/README.md",
    "tests/gpu/README.md",
)
MADE = {"slurm/site.env", "docs/reference/", "docs/paper/"}  # by a command that the pages show
SEPARATORS = {"&&", "||", "|", ";"}


def pages() -> list[Path]:
    """Every page that somebody reads, those that are generated too."""
    inside = [p for p in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in p.parts]
    return [*(ROOT / name for name in OUTSIDE if (ROOT / name).is_file()), *inside]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Block:
    """language: "" for an indented block. caption: the file's name, where one is shown."""

    language: str
    text: str
    caption: str = ""


@cache
def tokens(page: Path) -> list[Token]:
    parser = MarkdownIt("commonmark").enable("table")
    parser.use(colon_fence_plugin).use(deflist_plugin)
    found = parser.parse(page.read_text())
    return [inner for token in found for inner in (token, *(token.children or []))]


def blocks(page: Path) -> list[Block]:
    found = []
    for token in tokens(page):
        if token.type in ("fence", "colon_fence", "code_block"):
            directive = re.match(r"\{code-block\}\s*(\S+)", token.info)
            language = directive[1] if directive else token.info.strip()
            caption = re.match(r":caption:\s*(\S+)\n", token.content) if directive else None
            text = token.content[caption.end() :] if caption else token.content
            found.append(Block(language, text, caption[1] if caption else ""))
    return found


def inline_code(page: Path) -> Iterator[str]:
    """Text between single backticks."""
    return (token.content for token in tokens(page) if token.type == "code_inline")


def links(page: Path) -> Iterator[str]:
    """Targets of links and pictures."""
    for token in tokens(page):
        if token.type in ("link_open", "image"):
            yield str(token.attrs.get("href") or token.attrs["src"])


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub and MyST make them."""
    found, all_tokens = set(), tokens(page)
    for token, text in itertools.pairwise(all_tokens):
        if token.type == "heading_open":
            plain = re.sub(r"[^\w\- ]", "", text.content.lower().replace("`", ""))
            found.add(plain.strip().replace(" ", "-"))
    return found


def command_lines(page: Path) -> Iterator[list[str]]:
    """The words of every command in shell blocks, without comments, variables that are set before
    them, and what a pipe leads to."""
    for block in blocks(page):
        if block.language in SHELL:
            for line in block.text.replace("\\\n", " ").splitlines():
                yield from commands_of(line)


def mentions(page: Path) -> Iterator[list[str]]:
    """The words of every inline code that names a command, perhaps without its arguments."""
    for text in inline_code(page):
        if is_command(text):
            yield from commands_of(text)


def is_command(text: str) -> bool:
    return text.startswith(("adrpo-scale ", "torchrun ", "make ", "python ", "sbatch "))


def commands_of(line: str) -> Iterator[list[str]]:
    words: list[str] = []
    for word in [*shlex.split(line, comments=True), ";"]:
        if word in SEPARATORS:
            while words and re.fullmatch(r"\w+=.*", words[0]):
                words = words[1:]
            if words:
                yield words
            words = []
        else:
            words.append(word)


def files_in(words: Sequence[str]) -> list[str]:
    """Those of the words that name a file or folder of the repository."""
    folders = ("adrpo_scale", "configs", "slurm", "launchers", "benchmarks", "tests", "docs")
    named = [w for w in words if re.fullmatch(rf"({'|'.join(folders)})/[\w./-]*", w)]
    return [w for w in named if w not in MADE and "_build" not in w]
