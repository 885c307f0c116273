"""The reference is there before the pages are listed, because other pages link to it; and the
examples can be imported, because commands of the pages name them."""

import sys

from docs import generate_paper
from docs.generate import write
from tests.support.pages import ROOT

write(ROOT / "docs/reference")
write(ROOT / "docs/paper", generate_paper.PAGES)
sys.path.append(str(ROOT / "docs/examples"))
