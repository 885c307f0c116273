"""The reference is there before the pages are listed: other pages link to it."""

from docs.generate import write
from tests.support.pages import ROOT

write(ROOT / "docs/reference")
