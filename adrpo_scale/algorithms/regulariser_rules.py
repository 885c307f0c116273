"""What [regulariser] may state beside an algorithm, and what the algorithm's name fills in.

An algorithm says by class attributes which shapes it takes (`shapes`), which one its name states
(`shape`), and where beta0 and the advantages come from (`beta0_key`, `has_advantages`).
"""

from __future__ import annotations

from adrpo_scale.algorithms.regulariser import Regularised, Regulariser, RegulariserConfig, Shape
from adrpo_scale.algorithms.terms import RegressionTerms
from adrpo_scale.core.errors import ConfigError, given

NOTHING = RegulariserConfig()
_OF_ADVANTAGES = ("advantage_clip", "baseline", "scale")
_ADVANTAGES = ("clip", "tanh")  # the shapes that read them


def chosen(algorithm: Regularised, config: RegulariserConfig) -> Regulariser | None:
    """The regulariser of an algorithm; None where its own code chooses beta_i as it always did.

    Raises ConfigError where [regulariser] contradicts the algorithm's name, states what [algorithm]
    has, or leaves out what it needs.
    """
    clip = getattr(algorithm.config, "advantage_clip", None)
    if config == NOTHING and clip is None:
        return None
    name = algorithm.config.name
    only_steered = config == RegulariserConfig(controller=config.controller)
    has_own_code = not (algorithm.shapes or algorithm.has_advantages)
    if has_own_code and not (only_steered and algorithm.beta0_key):
        raise ConfigError(
            f"[regulariser] with algorithm.name = {name!r}, which chooses the coefficient of the "
            "divergence itself: leave the section out, or derive the algorithm from GroupRelative "
            "(for a controller alone, name the setting that it steers in beta0_key)"
        )
    if has_own_code:
        return None  # its `at` is all that a controller asks for
    shape = _shape(algorithm, config)
    _check_sign(shape, config)
    key = algorithm.beta0_key
    if key is not None and config.beta0 is not None:
        raise ConfigError(
            f"regulariser.beta0 = {config.beta0:g} with algorithm.name = {name!r}, whose beta0 is "
            f"algorithm.{key}: set that instead"
        )
    if key is None and config.beta0 is None:
        raise ConfigError(
            f"regulariser.beta0 is missing: algorithm.name = {name!r} has no coefficient of the "
            "divergence of its own; state one, e.g. beta0 = 1.0 (flow) or 0.04 (tokens)"
        )
    _check_advantages(algorithm, shape, config)
    as_named = config.model_copy(update={"shape": None, "sign": None}) == NOTHING
    if as_named and shape == algorithm.shape and config.sign != "opposite" and clip is None:
        return None
    _check_controller(algorithm, config)
    return Regulariser(
        beta0=config.beta0 or (getattr(algorithm.config, key) if key else 0.0),
        shape=shape,
        sign=config.sign or "paper",
        bends_clipped=issubclass(algorithm.terms, RegressionTerms),
        floor=config.floor,
        controller=config.controller,
        gate=config.gate,
        clip=1.0 if config.advantage_clip is None else config.advantage_clip,
        baseline=config.baseline or "group",
        scale=config.scale or "none",
    )


def _shape(algorithm: Regularised, config: RegulariserConfig) -> Shape | None:
    """The stated shape, or the one of the name. An algorithm's own `beta` is neither."""
    name, shapes = algorithm.config.name, _shapes(algorithm)
    if config.shape is None:
        if algorithm.shape is None and not algorithm.has_advantages:
            raise ConfigError(
                f"[regulariser] without shape: algorithm.name = {name!r} has no regulariser by "
                f"itself; state shape, one of {', '.join(map(repr, shapes))}"
            )
        return algorithm.shape if algorithm.shape in shapes else None
    if config.shape in shapes:
        return config.shape
    if not shapes:
        remedy = "its class has a beta of its own: leave shape out"
    elif shapes == ("constant",):
        remedy = 'whose coefficient is constant: take algorithm.name = "adrpo", or leave shape out'
    else:
        remedy = (
            f"whose coefficient follows the advantage ({', '.join(map(repr, shapes))}): take "
            'algorithm.name = "grpo", or leave shape out'
        )
    raise ConfigError(
        f"regulariser.shape = {config.shape!r} contradicts algorithm.name = {name!r}, {remedy}"
    )


def _shapes(algorithm: Regularised) -> tuple[Shape, ...]:
    """The shapes that an algorithm takes; () where a class below has written its own `beta`."""
    home = next(kind for kind in type(algorithm).__mro__ if "shapes" in vars(kind))
    is_own = getattr(type(algorithm), "beta", None) is not getattr(home, "beta", None)
    return () if is_own else algorithm.shapes


def _check_sign(shape: Shape | None, config: RegulariserConfig) -> None:
    if config.sign is not None and shape in ("constant", None):
        what = "a constant" if shape else "an algorithm with a beta of its own"
        raise ConfigError(
            f"regulariser.sign = {config.sign!r} with {what}, which has no sign: leave it out, or "
            'set regulariser.shape to "clip", "tanh" or "rank"'
        )


def beta0_of(algorithm: Regularised) -> float:
    """The base value of beta_i of an algorithm that has one."""
    if algorithm.beta0_key is not None:
        return float(getattr(algorithm.config, algorithm.beta0_key))
    return given(algorithm.regulariser).beta0


def _check_controller(algorithm: Regularised, config: RegulariserConfig) -> None:
    """Raises ConfigError where the first beta0 is not within the controller's bounds."""
    low, high, key = config.controller.low, config.controller.high, algorithm.beta0_key
    beta0: float = getattr(algorithm.config, key) if key else given(config.beta0)
    if low is not None and high is not None and not low <= beta0 <= high:
        place = f"algorithm.{key}" if key else "regulariser.beta0"
        raise ConfigError(
            f"{place} = {beta0:g} is not within regulariser.controller.low = {low:g} and high = "
            f"{high:g}, between which it is steered: move a bound, or start with another beta0"
        )


def _check_advantages(
    algorithm: Regularised, shape: Shape | None, config: RegulariserConfig
) -> None:
    stated = [key for key in _OF_ADVANTAGES if getattr(config, key) is not None]
    name = algorithm.config.name
    if stated and algorithm.has_advantages:
        raise ConfigError(
            f"regulariser.{stated[0]} with algorithm.name = {name!r}, whose advantages have their "
            f"settings in [algorithm]: set algorithm.{stated[0]} instead"
        )
    if stated and shape not in _ADVANTAGES:
        raise ConfigError(
            f"regulariser.{stated[0]} with regulariser.shape = {shape!r}, which reads no "
            'advantage: leave it out, or set shape to "clip" or "tanh"'
        )
    if shape in _ADVANTAGES and config.scale is None and not algorithm.has_advantages:
        raise ConfigError(
            f"regulariser.scale is missing: with shape = {shape!r}, advantages must be of the size "
            'of beta0; state "group_std", or "none" where rewards are of that size'
        )
