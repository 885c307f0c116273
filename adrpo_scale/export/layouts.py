"""Which layout an export has: that of the library which loads it, and of what a model is given."""

from __future__ import annotations

from adrpo_scale.domains.export_target import ExportTarget
from adrpo_scale.export.base import Layout
from adrpo_scale.export.diffusers_layout import DiffusersLayout
from adrpo_scale.export.omni_layout import HearingLayout
from adrpo_scale.export.transformers_layout import TransformersLayout

LAYOUTS: dict[str, Layout] = {
    "diffusers": DiffusersLayout(),
    "transformers": TransformersLayout(),
}
HEARING = HearingLayout()


def layout_of(target: ExportTarget) -> Layout:
    return HEARING if target.processor else LAYOUTS[target.library]
