"""What tests of exports ask of them."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from adrpo_scale.checkpoint.locate import open_checkpoint
from adrpo_scale.core.errors import ExportError
from adrpo_scale.export.base import Request
from adrpo_scale.export.exporter import export


def tensors_of(place):
    return {n: t for file in place.glob("*.safetensors") for n, t in load_file(file).items()}


def trained(root, run):
    reader = open_checkpoint(str(root / "runs" / run))
    return {n: reader.whole(n) for n in reader.names()}


def refused(root, run, to, kind, message, **settings):
    request = Request(to, kind, **{"verify": "none", **settings})
    with pytest.raises(ExportError, match=message):
        export(str(root / "runs" / run), request)
    assert not to.exists()
