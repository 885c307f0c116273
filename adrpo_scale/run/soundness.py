"""Whether the models of a run are what their libraries would load: asked at a first start, by
`sample` of a published model, and by `preflight`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

from adrpo_scale.domains.base import Domain
from adrpo_scale.engines.loading import build_on_meta
from adrpo_scale.hub.needs import HubNeed
from adrpo_scale.hub.soundness import disagreements, notices
from adrpo_scale.hub.weights import agreement, find_model

log = logging.getLogger(__name__)


def check_models(needs: Iterable[HubNeed], domain: Domain, *, is_new: bool = True) -> None:
    """Warns of weights that are left alone. Raises WeightsError where a library would load another
    model than is trained, or the weights do not fit the model. is_new: False only warns of the
    former, because a run that resumes trains what it began with, and leaves the latter to its
    loading.
    """
    needs = list(needs)
    for line in notices_of(needs):
        log.warning("%s", line)
    agreement(disagreements_of(needs, domain), is_new=is_new)
    if is_new:
        build_on_meta(domain.policy_spec(), trained=True)


def notices_of(needs: Iterable[HubNeed]) -> Iterator[str]:
    """Lines of `notices` of all models."""
    for need in needs:
        if need.type == "model":
            yield from notices(find_model(need), need)


def disagreements_of(needs: Iterable[HubNeed], domain: Domain) -> Iterator[str]:
    """Lines of `disagreements` of all models, and of the policy's tied weights."""
    for need in needs:
        if need.type == "model":
            yield from disagreements(find_model(need), need)
    weights = domain.policy_spec().weights
    untrue_copies = getattr(weights, "untrue_copies", None)  # a user's own source has none
    if untrue_copies is not None:
        yield from untrue_copies()
        weights.close()
