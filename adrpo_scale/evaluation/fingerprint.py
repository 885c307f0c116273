"""The weights behind a source, as one hash: a folder may hold another export later."""

from __future__ import annotations

from adrpo_scale.evaluation.sample import Source
from adrpo_scale.hub.weights import combined_sha256
from adrpo_scale.run.build import build_domain


def fingerprint(source: Source) -> str:
    """A hash of the weights. Reads all weights of a published model once."""
    if source.reader is not None:
        return source.reader.sha256  # of files that `evaluate` has compared with their hashes
    domain = build_domain(source.config)
    spec = domain.reference_spec() or domain.policy_spec()
    return f"{spec.weights.sha256()} {combined_sha256(domain.frozen_files(), domain.folder)}"
