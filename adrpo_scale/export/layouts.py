"""The layout of an export: by the library that loads it, and by whether the model hears."""

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
    """The layout of a target; a target with a processor hears."""
    return HEARING if target.processor else LAYOUTS[target.library]
