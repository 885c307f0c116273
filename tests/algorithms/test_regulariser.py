"""The regulariser: beta_i by shape and sign, ranks, what [regulariser] may state, and the bounds of
its ranges."""

from __future__ import annotations

import itertools
import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adrpo_scale.algorithms.adrpo import Adrpo, AdrpoConfig
from adrpo_scale.algorithms.dpo import Dpo, DpoConfig
from adrpo_scale.algorithms.group_relative import GroupRelative, GroupRelativeConfig
from adrpo_scale.algorithms.grpo import Grpo, GrpoConfig
from adrpo_scale.algorithms.orw_cfm_w2 import OrwCfmW2, OrwCfmW2Config
from adrpo_scale.algorithms.raft import Raft, RaftConfig
from adrpo_scale.algorithms.ranks import ranks
from adrpo_scale.algorithms.regulariser import RegulariserConfig
from adrpo_scale.algorithms.terms import LikelihoodTerms, RegressionTerms
from adrpo_scale.core.errors import ConfigError
from tests.support.terms_by_hand import LENGTHS, REWARDS, TOKENS, Flow, Tokens, scored

FLOW = RegressionTerms
RAISED = {"beta0": 1.0, "scale": "none"}


def held(**settings):
    return RegulariserConfig(**settings)


def adrpo(terms=FLOW, config=None, **settings):
    return Adrpo(AdrpoConfig(**(config or {})), terms, regulariser=held(**settings))


def near(values):
    return pytest.approx(values, rel=1e-15)


# ---- by hand -------------------------------------------------------------------------------------

GROUP = scored([[29.0, 29.5, 30.0, 33.0]])  # A = -1.375, -0.875, -0.375, 2.625
A = [-1.375, -0.875, -0.375, 2.625]
HALF = {"beta0": 0.8, "advantage_clip": 0.49}
LIMIT = 0.8 * 0.49


@pytest.mark.parametrize(("sign", "way"), [(None, -1), ("paper", -1), ("opposite", 1)])
def test_coefficients_by_hand_on_flow(sign, way):
    clipped = [max(-LIMIT, min(LIMIT, a)) for a in A]
    for shape, expected in {
        "clip": [0.8 + way * a for a in clipped],
        "tanh": [0.8 * (1 + way * math.tanh(a)) for a in clipped],
    }.items():
        credit = adrpo(config=HALF, shape=shape, sign=sign).credit(GROUP)
        assert credit.beta.tolist() == near(expected)
        assert credit.advantage_clipped.tolist() == near(clipped)
    ranked = adrpo(config=HALF, shape="rank", sign=sign, floor=0.5).credit(GROUP)
    assert ranked.beta.tolist() == near([max(0.4, 0.8 * (1 + way * r / 3)) for r in (-3, -1, 1, 3)])


def test_on_tokens_tanh_bends_the_unclipped_advantage():
    for sign, way in (("paper", -1), ("opposite", 1)):
        credit = adrpo(LikelihoodTerms, TOKENS, shape="tanh", sign=sign).credit(
            scored([[1.0, 0.0]])
        )
        bends = [0.04 * (1 + way * math.tanh(a)) for a in credit.advantage.tolist()]
        assert credit.beta.tolist() == near(bends)
        assert credit.advantage_clipped.tolist() == [0.04, -0.04]


def test_ranks_average_ties_leave_out_the_masked_and_are_0_where_nothing_is_ranked():
    def of(values, mask):
        kept = torch.tensor(mask, dtype=torch.bool)
        return ranks(torch.tensor(values, dtype=torch.float64), kept).tolist()

    assert of([3.0, 1.0, 2.0], [True] * 3) == [1, -1, 0]
    assert of([5.0, 1.0, 5.0, 7.0, 9.0], [True] * 4 + [False]) == near([0, -1, 0, 1, 0])
    for values, mask in (([0.3] * 3, [True] * 3), ([1.0, math.nan], [True, False]), ([], [])):
        assert of(values, mask) == [0.0] * len(values)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.booleans()), max_size=9))
def test_ranks_are_what_counting_gives(pairs):
    values = torch.tensor([value for value, _ in pairs], dtype=torch.float64)
    mask = torch.tensor([kept for _, kept in pairs], dtype=torch.bool)
    kept = values[mask].tolist()
    got = ranks(values, mask)
    for place, (value, is_kept) in enumerate(pairs):
        beaten = sum((value > other) - (value < other) for other in kept)
        expected = beaten / (len(kept) - 1) if is_kept and len(kept) > 1 else 0.0
        assert got[place].item() == pytest.approx(expected, abs=1e-15)


def test_ranks_are_within_a_group_and_by_the_whole_reward():
    rewards = scored([[1.0, 2.0], [9.0, 9.0], [5.0, 3.0]])
    credit = adrpo(LikelihoodTerms, TOKENS, shape="rank").credit(rewards)
    assert credit.beta.tolist() == near([0.08, 0.0, 0.04, 0.04, 0.0, 0.08])


# ---- what the names state ------------------------------------------------------------------------


def loss_of(algorithm):
    made = Flow(8) if algorithm.terms is FLOW else Tokens(LENGTHS)
    loss = algorithm.loss(made.terms(), algorithm.credit(REWARDS))
    return loss, made.gradient(loss)


@pytest.mark.filterwarnings("ignore:algorithm.*no lower bound")
@pytest.mark.parametrize("terms", [FLOW, LikelihoodTerms], ids=["flow", "tokens"])
@pytest.mark.parametrize(
    ("algorithm", "settings", "stated"),
    [
        (Adrpo, TOKENS, {"shape": "clip", "sign": "paper"}),
        (Adrpo, TOKENS, {"shape": "clip"}),
        (Adrpo, TOKENS, {"sign": "paper"}),
        (Grpo, TOKENS, {"shape": "constant"}),
        (OrwCfmW2, {"beta": 0.7}, {"shape": "constant"}),
        (OrwCfmW2, {"beta": 0.7}, {}),
        (Raft, {}, {}),
        (Dpo, {"beta": 0.1}, {}),
    ],
)
def test_stating_what_the_name_states_changes_no_bit(algorithm, settings, stated, terms):
    config = algorithm.Config(**settings)
    plain = algorithm(config, terms)
    same = algorithm(config, terms, regulariser=held(**stated))
    assert torch.equal(plain.credit(REWARDS).beta, same.credit(REWARDS).beta)
    for one, other in zip(loss_of(plain), loss_of(same), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("terms", [FLOW, LikelihoodTerms], ids=["flow", "tokens"])
def test_a_clip_in_units_of_beta0_is_the_clip_by_its_limits_to_the_bit(terms):
    limits = {"advantage_min": -0.02, "advantage_max": 0.04}
    by_limits = Adrpo(AdrpoConfig(**TOKENS | limits), terms)
    base = {name: value for name, value in TOKENS.items() if name not in limits}
    in_units = Adrpo(AdrpoConfig(**base, advantage_clip=[-0.5, 1]), terms)
    for one, other in zip(loss_of(by_limits), loss_of(in_units), strict=True):
        assert torch.equal(one, other)
    ten_times = in_units.at(0.4)
    assert ten_times.limits(0.4) == (-0.2, 0.4) and in_units.config.beta0 == 0.04
    swept = Adrpo(AdrpoConfig(**base | {"beta0": 0.4}, advantage_clip=[-0.5, 1]), terms)
    assert torch.equal(ten_times.credit(REWARDS).beta, swept.credit(REWARDS).beta)


class BentConfig(GroupRelativeConfig):
    name: str = "bent"


class Bent(GroupRelative):
    """A beta of one's own, as docs/extend/algorithm.md has it."""

    Config = BentConfig

    def beta(self, advantage_clipped):
        return self.config.beta0 - advantage_clipped / 2


class BentAdrpo(Adrpo):
    def beta(self, advantage_clipped):
        return self.config.beta0 - advantage_clipped / 2


class OldFashioned(Bent):
    def __init__(self, config, *gives):
        super().__init__(config, *gives)


def test_a_beta_of_ones_own_keeps_working():
    for kind in (Bent, BentAdrpo, OldFashioned):
        mine = kind(kind.Config(), FLOW)
        assert mine.credit(GROUP).beta.tolist() == [1.5, 1.4375, 1.1875, 0.5]
        assert mine.at(2.0).credit(GROUP).beta.tolist() == [2.5, 2.4375, 2.1875, 1.5]
    floored = Bent(Bent.Config(), FLOW, regulariser=held(floor=1.2))
    assert floored.credit(GROUP).beta.tolist() == near([1.5, 1.4375, 1.2, 1.2])


# ---- contradictions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "settings", "message"),
    [
        (Adrpo, {"shape": "constant"}, "shape = 'constant' contradicts .* 'adrpo'.*\"grpo\""),
        (Grpo, {"shape": "clip"}, "shape = 'clip' contradicts .* 'grpo'.*\"adrpo\""),
        (Grpo, {"shape": "rank", "sign": "opposite"}, "shape = 'rank' contradicts"),
        (Grpo, {"sign": "paper"}, "sign = 'paper' with a constant, which has no sign"),
        (OrwCfmW2, {"sign": "opposite"}, "sign = 'opposite' with a constant"),
        (Raft, {"shape": "constant", "sign": "paper", "beta0": 1.0}, "with a constant"),
        (Bent, {"shape": "tanh"}, "'tanh' contradicts .*a beta of its own"),
        (BentAdrpo, {"shape": "tanh"}, "'tanh' contradicts .*a beta of its own"),
        (Bent, {"sign": "opposite"}, "a beta of its own, which has no sign"),
        (Adrpo, {"beta0": 1.0}, r"regulariser.beta0 = 1 .*algorithm.beta0: set that"),
        (Grpo, {"scale": "none"}, r"regulariser.scale .*set algorithm.scale"),
        (Adrpo, {"advantage_clip": 1.0}, r"regulariser.advantage_clip .*set algorithm.adv"),
        (OrwCfmW2, {"shape": "rank", "beta0": 1.0}, r"beta0 is algorithm.beta: set that"),
        (Raft, {"sign": "paper"}, "without shape: .*'raft' has no regulariser"),
        (Dpo, {"floor": 1.0}, "without shape: .*'dpo' has no regulariser"),
        (Raft, {"shape": "rank"}, r"regulariser.beta0 is missing"),
        (Raft, {"shape": "clip", "beta0": 1.0}, r"regulariser.scale is missing"),
        (Dpo, {"shape": "rank", "beta0": 1.0, "scale": "none"}, "which reads no advantage"),
    ],
)
def test_a_section_that_contradicts_the_name_is_refused(algorithm, settings, message):
    with pytest.raises(ConfigError, match=message):
        algorithm(algorithm.Config(), FLOW, regulariser=held(**settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"advantage_clip": 0.5, "advantage_min": -0.04}, "state the clip in units of beta0 alone"),
        ({"advantage_clip": 0.5, "advantage_max": 0.5}, "or the two limits alone"),
        ({"advantage_clip": [0.5, 1.0]}, "reversed or leaves out 0"),
        ({"advantage_clip": [1.0, -1.0]}, "reversed or leaves out 0"),
        ({"advantage_clip": -1.0}, r"-1.0: c >= 0 is expected"),
        ({"advantage_clip": [1.0]}, r"\[1.0\]: two limits are expected"),
        ({"advantage_clip": [-1.0, "1"]}, "a number c for ± c, or"),
        ({"advantage_clip": True}, "True: a number c for ± c, or"),
        ({"advantage_clip": [-math.inf, 1.0]}, "limits between -1e"),
    ],
)
def test_clips_that_say_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AdrpoConfig(**settings)
    if len(settings) == 1:
        with pytest.raises(ValueError, match=message):
            held(**settings)


# ---- bounds --------------------------------------------------------------------------------------


def refusal_of(algorithm, clip, beta0=1.0, base=0.0, **settings):
    """Why a clip range is refused on flow; "" where it is accepted."""
    config = algorithm.Config(beta0=beta0, advantage_clip=clip)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            algorithm(config, FLOW, regulariser=held(**settings), base_coefficient=base)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("algorithm", "settings", "beta0", "last", "first"),
    [
        (Adrpo, {"shape": "clip", "sign": "opposite"}, 1.0, 0.499, 0.5),
        (Adrpo, {"shape": "clip", "sign": "opposite"}, 0.04, 0.499, 0.5),
        (Grpo, {}, 1.0, 0.999, 1.0),
        (Grpo, {}, 0.04, 0.999, 1.0),
        (Adrpo, {"shape": "tanh", "sign": "opposite"}, 1.0, 0.521, 0.522),
        (Adrpo, {"shape": "tanh", "sign": "opposite"}, 4.0, 0.24, 0.25),
        (Adrpo, {"shape": "tanh"}, 1.0, 1.96, 1.97),
        (Adrpo, {"shape": "tanh"}, 0.001, 1.0, 1.002),
        (Adrpo, {}, 1.0, 50.0, None),
    ],
)
def test_the_clip_from_which_a_loss_on_flow_has_no_lower_bound(
    algorithm, settings, beta0, last, first
):
    assert refusal_of(algorithm, last, beta0, **settings) == ""
    if first is not None:
        refused = refusal_of(algorithm, first, beta0, **settings)
        assert "curvature of a row's loss can reach 0" in refused
        largest = float(refused.rpartition("advantage_clip is ")[2])
        assert last - 0.02 <= largest < first
        assert refusal_of(algorithm, largest, beta0, **settings) == ""
        assert refusal_of(algorithm, largest + 0.0011, beta0, **settings)


def test_the_second_penalty_widens_the_range():
    opposite = {"shape": "clip", "sign": "opposite"}
    assert refusal_of(Adrpo, 0.6, **opposite) and not refusal_of(Adrpo, 0.6, base=0.3, **opposite)
    assert refusal_of(Grpo, 1.2, base=0.1) and not refusal_of(Grpo, 1.2, base=0.3)


@pytest.mark.parametrize("sign", ["paper", "opposite"])
def test_ranks_on_flow_need_no_negative_advantage_or_a_floor(sign):
    refused = refusal_of(Adrpo, 0.3, shape="rank", sign=sign)
    assert "advantage_clip = [0.0, 0.3]" in refused and "regulariser.floor above 0.3" in refused
    assert refusal_of(Adrpo, [0.0, 0.3], shape="rank", sign=sign) == ""
    assert refusal_of(Adrpo, 0.3, shape="rank", sign=sign, floor=0.31) == ""
    assert refusal_of(Adrpo, 0.3, shape="rank", sign=sign, floor=0.3)
    limits = AdrpoConfig(advantage_min=0.0)
    Adrpo(limits, FLOW, regulariser=held(shape="rank", sign=sign))


@given(st.sampled_from(["clip", "tanh"]), st.sampled_from(["paper", "opposite"]), st.data())
def test_an_accepted_range_has_a_positive_curvature_everywhere(shape, sign, data):
    beta0, clip = data.draw(st.floats(0.05, 8)), data.draw(st.floats(0.01, 4))
    floor = data.draw(st.none() | st.floats(0, 2))
    if refusal_of(Adrpo, clip, beta0, shape=shape, sign=sign, floor=floor):
        return
    algorithm = adrpo(
        config={"beta0": beta0, "advantage_clip": clip}, shape=shape, sign=sign, floor=floor
    )
    span = torch.linspace(-clip * beta0, clip * beta0, 201, dtype=torch.float64)
    credit = algorithm.credit(scored([(span - span.mean()).tolist()]))
    assert (credit.advantage_clipped + credit.beta).min() > -1e-12 * beta0


def test_grpo_with_todays_keys_keeps_its_warning():
    for section in ({}, {"shape": "constant"}):
        with pytest.warns(UserWarning, match="algorithm.advantage_min = -1.0 .*no lower bound"):
            Grpo(GrpoConfig(), FLOW, regulariser=held(**section))
    with pytest.raises(ConfigError, match=r"The largest safe algorithm.advantage_clip is 0.999"):
        Grpo(GrpoConfig(advantage_clip=1.0), FLOW)
    with pytest.raises(ConfigError, match=r"beta0 = 0.*advantage 0"):
        Adrpo(AdrpoConfig(beta0=0.0, advantage_clip=1.0), FLOW)


def test_on_tokens_a_negative_beta_is_a_warning():
    config = {"beta0": 0.04, "scale": "group_std", "advantage_clip": 2.0}
    for sign, end in (("paper", "0.08"), ("opposite", "-0.08")):
        with pytest.warns(UserWarning, match=f"A_clip = {end} is -0.04.*floor"):
            adrpo(LikelihoodTerms, config, shape="clip", sign=sign)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adrpo(LikelihoodTerms, config, shape="clip", sign="opposite", floor=0.0)
        for shape, sign in itertools.product(["tanh", "rank"], ["paper", "opposite"]):
            adrpo(LikelihoodTerms, config, shape=shape, sign=sign)


# ---- additions -----------------------------------------------------------------------------------

CLIP = {"shape": "clip", "scale": "group_std"}


@pytest.mark.parametrize("sign", ["paper", "opposite"])
@pytest.mark.parametrize("shape", ["clip", "tanh", "rank"])
def test_orw_holds_each_sample_by_its_own_beta(shape, sign):
    scale = {} if shape == "rank" else {"scale": "none"}
    section = held(shape=shape, sign=sign, **scale)
    orw = OrwCfmW2(OrwCfmW2Config(beta=0.7), FLOW, regulariser=section)
    plain = OrwCfmW2(OrwCfmW2Config(beta=0.7), FLOW)
    flow, credit = Flow(8), orw.credit(REWARDS)
    rewards = REWARDS.total_PG
    advantage = (rewards - rewards.mean(1, keepdim=True)).flatten()
    clipped = advantage.clamp(-0.7, 0.7)
    way = -1 if sign == "paper" else 1
    expected = {
        "clip": 0.7 + way * clipped,
        "tanh": 0.7 * (1 + way * clipped.tanh()),
        "rank": 0.7 * (1 + way * torch.tensor([1, 3, -3, -1, 0, 0, 0, 0]).double() / 3),
    }[shape]
    torch.testing.assert_close(credit.beta, expected, rtol=1e-12, atol=1e-12)
    difference = orw.loss(flow.terms(), credit) - plain.loss(flow.terms(), plain.credit(REWARDS))
    by_hand = ((expected - 0.7) * ((flow.v - flow.v_ref) ** 2).mean(1)).sum()
    torch.testing.assert_close(difference, by_hand, rtol=1e-10, atol=1e-12)
    assert torch.equal(credit.advantage, plain.credit(REWARDS).advantage)


def test_raft_adds_the_divergence_of_its_winners():
    rewards = scored([[1.0, 4.0], [2.0, 1.0]])
    raft = Raft(RaftConfig(), FLOW, regulariser=held(beta0=2.0, **CLIP | {"scale": "none"}))
    plain, flow = Raft(RaftConfig(), FLOW), Flow(2)
    credit = raft.credit(rewards)
    chosen = raft.select(rewards, credit)
    assert chosen.tolist() == plain.select(rewards, plain.credit(rewards)).tolist() == [1, 2]
    assert credit.beta.tolist() == [3.5, 0.5, 1.5, 2.5]
    assert raft.needs_reference(credit) and not plain.needs_reference(plain.credit(rewards))
    loss = raft.loss(flow.terms(), credit.take(chosen))
    divergence = ((flow.v - flow.v_ref) ** 2).mean(1)
    expected = ((flow.v - flow.u) ** 2).mean(1).sum() + 0.5 * divergence[0] + 1.5 * divergence[1]
    torch.testing.assert_close(loss, expected)


def test_dpo_adds_the_mean_of_a_pairs_two():
    rewards = scored([[1.0, 4.0], [2.0, 1.0]])
    section = held(beta0=2.0, shape="tanh", sign="opposite", scale="none")
    added = Dpo(DpoConfig(beta=3.0), FLOW, regulariser=section)
    plain, flow = Dpo(DpoConfig(beta=3.0), FLOW), Flow(4)
    credit = added.credit(rewards)
    chosen = added.select(rewards, credit)
    assert chosen.tolist() == plain.select(rewards, plain.credit(rewards)).tolist()
    mine = added.loss(flow.terms(), credit.take(chosen))
    theirs = plain.loss(flow.terms(), plain.credit(rewards).take(chosen))
    beta = torch.tensor([2 * (1 + math.tanh(a)) for a in (1.5, -1.5, 0.5, -0.5)]).double()
    expected = (beta * ((flow.v - flow.v_ref) ** 2).mean(1)).sum() / 2
    torch.testing.assert_close(mine - theirs, expected)


def test_the_bounds_of_additions():
    def refusal(algorithm, config, **section):
        with pytest.raises(ConfigError) as error:
            algorithm(config, FLOW, regulariser=held(**section))
        return str(error.value)

    orw, raft = OrwCfmW2Config(beta=0.5), RaftConfig()
    for sign in ("paper", "opposite"):
        OrwCfmW2(orw, FLOW, regulariser=held(**CLIP, sign=sign, advantage_clip=1.0))
        text = refusal(OrwCfmW2, orw, **CLIP, sign=sign, advantage_clip=1.5)
        assert "largest safe regulariser.advantage_clip is 1" in text
        OrwCfmW2(orw, FLOW, regulariser=held(shape="rank", sign=sign))
    Raft(raft, FLOW, regulariser=held(**CLIP, beta0=0.5, advantage_clip=2.9))
    text = refusal(Raft, raft, **CLIP, beta0=0.5, advantage_clip=3.0)
    assert "regulariser.advantage_clip is [0, 2.999]" in text
    # A winner is not below its group's mean, yet may be below the batch's.
    opposite = CLIP | {"sign": "opposite", "beta0": 0.5, "advantage_clip": 3.0}
    Raft(raft, FLOW, regulariser=held(**opposite))
    refusal(Raft, raft, **opposite, baseline="batch")
    with pytest.warns(UserWarning, match="negative beta"):
        Dpo(DpoConfig(), FLOW, regulariser=held(**CLIP, beta0=0.5, advantage_clip=3.0))
