"""Sphinx: Markdown pages by MyST, the theme Furo, and a reference that is made from the code."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from docs import generate, generate_paper  # noqa: E402 (needs the path)

project = "adrpo_scale"
author = "the authors of adrpo_scale"
copyright = "the authors of adrpo_scale; Apache 2.0"
extensions = ["myst_parser", "sphinx_copybutton"]
myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 3  # a heading can be linked to by its text: page.md#the-heading
nitpicky = True
exclude_patterns = ["_build", "examples"]
highlight_language = "none"
smartquotes = False  # quotes are TOML's and the shell's
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = "adrpo_scale"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_copy_source = False
html_show_sphinx = False

generate.write(HERE / "reference")
generate.write(HERE / "paper", generate_paper.PAGES)
