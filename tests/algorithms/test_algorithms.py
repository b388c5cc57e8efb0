"""What every algorithm must do, generated from the table: its paper's gradient and value, and conformance."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from algorithms import rows
from algorithms.table import ROWS, Row, Variant
from algorithms.updates import as_a_paper_sees_it, cast, with_garbage
from gro.algorithms import build, declaration, names, parameters
from gro.objective import Algorithm, coefficients, counts, loss_value, surrogate
from gro.types import ROLES, Batch

EXACT = 1e-10
SAMPLE = ROLES.index("sample")


@dataclass(frozen=True)
class Case:
    row: Row
    variant: Variant

    def __str__(self) -> str:
        chosen = {**self.variant.params, **self.variant.state}
        return f"{self.row.name}[{','.join(f'{k}={v}' for k, v in chosen.items())}]"

    @property
    def algorithm(self) -> Algorithm:
        return build(self.row.name, **self.variant.params)

    def credited(self, batch: Batch) -> Batch:
        """With the advantages of this case's credit."""
        advantage_BX, _ = self.algorithm.credit(batch, dict(self.variant.state))
        return replace(batch, advantage_BX=advantage_BX)

    def update(self, seed: int = 0) -> tuple[Tensor, Batch]:
        logp_BT, batch = self.row.make(seed)
        return logp_BT, self.credited(batch)

    def pulls(self, logp_BT: Tensor, batch: Batch) -> Tensor:
        return coefficients(logp_BT, batch, self.algorithm)


CASES = [Case(row, variant) for row in ROWS for variant in row.variants]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def test_every_algorithm_has_a_row():
    assert rows.__all__
    assert {row.name for row in ROWS} == set(names())


@pytest.mark.parametrize("name", names())
def test_every_parameter_is_under_test(name: str):
    used = [case.variant.params for case in CASES if case.row.name == name]
    for key, parameter in parameters(declaration(name)).items():
        values = {params.get(key, parameter.default) for params in used}
        assert values - {parameter.default}, f"no variant sets {key}"
        if isinstance(parameter.default, bool):
            assert values == {True, False}


@every_case
@pytest.mark.parametrize("seed", range(3))
def test_gradient_and_value_are_the_papers(case: Case, seed: int):
    logp_BT, batch = case.update(seed)
    leaf_BT = logp_BT.clone().requires_grad_()
    loss = case.row.loss(as_a_paper_sees_it(leaf_BT, batch), **case.variant.params, **case.variant.told)
    (gradient_BT,) = torch.autograd.grad(loss, leaf_BT)
    assert bool(gradient_BT.any()), "the paper's loss must have a gradient here, or nothing is tested"
    torch.testing.assert_close(-case.pulls(logp_BT, batch), gradient_BT, rtol=0, atol=EXACT)
    torch.testing.assert_close(loss_value(logp_BT, batch, case.algorithm), loss.detach(), rtol=0, atol=EXACT)


# --- conformance -----------------------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("parts", [1, 2, 3, 99])
def test_micro_batches_sum_to_the_update(case: Case, parts: int):
    """Of whole groups, or of any rows where the algorithm says that it looks no further than a row."""
    logp_BT, batch = case.update()
    whole_BT = case.pulls(logp_BT, batch)
    random = torch.Generator().manual_seed(parts)
    part_B = torch.randint(parts, (len(logp_BT),), generator=random)
    if case.algorithm.scope == "group":
        part_B = part_B[batch.group_B]
    indices = [torch.nonzero(part_B == p)[:, 0] for p in part_B.unique()]
    numbers = [counts(batch.rows(index_R), case.algorithm) for index_R in indices]
    total = tuple(map(math.fsum, zip(*numbers, strict=True)))
    assert total == counts(batch, case.algorithm)
    value = torch.zeros((), dtype=torch.float64)
    for index_R in indices:
        micro = replace(batch.rows(index_R), counts_K=total)
        torch.testing.assert_close(case.pulls(logp_BT[index_R], micro), whole_BT[index_R], rtol=0, atol=1e-12)
        value += loss_value(logp_BT[index_R], micro, case.algorithm)
    torch.testing.assert_close(value, loss_value(logp_BT, batch, case.algorithm), rtol=0, atol=1e-12)


@every_case
def test_order_of_rows_and_groups_means_nothing(case: Case):
    logp_BT, batch = case.row.make(1)
    whole_BT = case.pulls(logp_BT, case.credited(batch))
    random = torch.Generator().manual_seed(3)
    key_of_group = torch.randperm(int(batch.group_B.max()) + 1, generator=random)
    shuffled_B = torch.randperm(len(logp_BT), generator=random)
    order_B = shuffled_B[key_of_group[batch.group_B[shuffled_B]].argsort(stable=True)]
    moved = replace(batch.rows(order_B), group_B=key_of_group[batch.group_B[order_B]])
    found_BT = case.pulls(logp_BT[order_B], case.credited(moved))
    torch.testing.assert_close(found_BT, whole_BT[order_B], rtol=0, atol=1e-12)


def rewritten(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """`change` applied to every [B, T] tensor but the advantage."""
    shape = batch.mask_BT.shape
    tensors = {name: getattr(batch, name) for name in batch.__dataclass_fields__ if name.endswith("_BT")}
    return replace(batch, **{n: change(t) for n, t in tensors.items() if t is not None and t.shape == shape})


@every_case
def test_padding_and_what_is_in_it_mean_nothing(case: Case):
    logp_BT, batch = case.row.make(2)
    whole_BT = case.pulls(logp_BT, case.credited(batch))
    assert not bool(whole_BT[~batch.mask_BT].any())

    def padded(t_BT: Tensor) -> Tensor:  # two columns on the left, one in the middle, three on the right
        middle = t_BT.shape[1] // 2
        return torch.cat(
            [torch.zeros_like(t_BT[:, :2]), t_BT[:, :middle], torch.zeros_like(t_BT[:, :1]), t_BT[:, middle:],
             torch.zeros_like(t_BT[:, :3])], dim=1
        )  # fmt: skip

    wide = rewritten(batch, padded)
    filled = rewritten(wide, lambda t: t if t.dtype == torch.bool else with_garbage(t, wide.mask_BT))
    for variant, logp in ((wide, padded(logp_BT)), (filled, with_garbage(padded(logp_BT), wide.mask_BT))):
        torch.testing.assert_close(case.pulls(logp, case.credited(variant)), padded(whole_BT), rtol=0, atol=1e-12)
        wide_value, value = (
            loss_value(x, case.credited(b), case.algorithm) for x, b in ((logp, variant), (logp_BT, batch))
        )
        torch.testing.assert_close(wide_value, value, rtol=0, atol=1e-12)


@every_case
def test_precision(case: Case):
    logp_BT, batch = case.update()
    double_BT = case.pulls(logp_BT, batch)
    assert double_BT.dtype == torch.float64
    single = case.credited(cast(case.row.make(0)[1], torch.float32))
    single_BT = case.pulls(logp_BT.float(), single)
    assert single_BT.dtype == torch.float32
    torch.testing.assert_close(single_BT.double(), double_BT, rtol=2e-4, atol=2e-6)
    value = loss_value(logp_BT.float(), single, case.algorithm)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), loss_value(logp_BT, batch, case.algorithm), rtol=1e-4, atol=1e-5)
    # Rewards may come in another precision than log-probs: the log-probs' is the one that counts.
    assert case.pulls(logp_BT.float(), batch).dtype == torch.float32
    assert loss_value(logp_BT.float(), batch, case.algorithm).dtype == torch.float32
    assert case.pulls(logp_BT.bfloat16(), batch).isfinite().all()


@every_case
def test_rows_that_take_no_part_cannot_spoil_the_others(case: Case):
    logp_BT, batch = case.row.make(0)
    assert batch.reward_B is not None
    assert batch.role_B is not None
    idle_B1 = ((batch.role_B != SAMPLE) | batch.reward_B.isnan())[:, None]
    spoilt = rewritten(batch, lambda t: t if t.dtype == torch.bool else torch.where(idle_B1, torch.nan, t))
    expected_BT = case.pulls(logp_BT, case.credited(batch))
    torch.testing.assert_close(case.pulls(logp_BT, case.credited(spoilt)), expected_BT, rtol=0, atol=0)


@every_case
def test_demonstrations_leave_the_samples_alone(case: Case):
    logp_BT, batch = case.row.make(0)
    assert batch.role_B is not None
    index_R = torch.nonzero(batch.role_B == SAMPLE)[:, 0]
    alone = replace(batch.rows(index_R), role_B=None)
    expected_RT = case.pulls(logp_BT[index_R], case.credited(alone))
    found_RT = case.pulls(logp_BT, case.credited(batch))[index_R]
    torch.testing.assert_close(found_RT, expected_RT, rtol=0, atol=1e-12)


@every_case
def test_autocast_around_it_changes_nothing(case: Case):
    logp_BT, batch = case.row.make(0)
    batch = cast(batch, torch.float32)
    expected_BT = case.pulls(logp_BT.float(), case.credited(batch))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found_BT = case.pulls(logp_BT.float(), case.credited(batch))
    torch.testing.assert_close(found_BT, expected_BT, rtol=0, atol=0)


@every_case
def test_surrogate_is_linear_in_the_log_probs(case: Case):
    logp_BT, batch = case.update()
    parameters_BT = logp_BT.nan_to_num(0, 0, 0).clone().requires_grad_()
    computed_BT = parameters_BT - 0.1 * parameters_BT.square()  # any differentiable way to get to log-probs
    (gradient_BT,) = torch.autograd.grad(surrogate(computed_BT, batch, case.algorithm), parameters_BT)
    c_BT = case.pulls(computed_BT, batch)
    assert not c_BT.requires_grad
    expected_BT = -c_BT * (1 - 0.2 * parameters_BT.detach())
    torch.testing.assert_close(gradient_BT, expected_BT, rtol=0, atol=1e-12)


# --- degenerate updates ----------------------------------------------------------------------------------------------


def equal_rewards(logp_BT: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
    assert batch.reward_B is not None
    return logp_BT, replace(batch, reward_B=torch.where(batch.reward_B.isnan(), batch.reward_B, 0.1))


def nearly_equal_rewards(logp_BT: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
    logp_BT, batch = equal_rewards(logp_BT, batch)
    assert batch.reward_B is not None
    return logp_BT, replace(batch, reward_B=batch.reward_B + 1e-9 * torch.arange(len(batch.reward_B)))


def all_failed(logp_BT: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
    assert batch.reward_B is not None
    return logp_BT, replace(batch, reward_B=torch.full_like(batch.reward_B, torch.nan))


def nothing_trained(logp_BT: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
    return logp_BT, replace(batch, mask_BT=torch.zeros_like(batch.mask_BT))


def one_group_untrained(logp_BT: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
    return logp_BT, replace(batch, mask_BT=batch.mask_BT & (batch.group_B != 0)[:, None])


def no_tokens(logp_BT: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
    return logp_BT[:, :0], rewritten(batch, lambda t: t[:, :0])


def single_tokens(logp_BT: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
    first = rewritten(batch, lambda t: t.nan_to_num(0, 0, 0)[:, :1] if t.dtype != torch.bool else t[:, :1])
    return logp_BT[:, :1].nan_to_num(-1, -1, -1), replace(first, mask_BT=torch.ones_like(first.mask_BT))


def identical_completions(logp_BT: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
    same = rewritten(batch, lambda t: t[:1].expand_as(t))
    return logp_BT[:1].expand_as(logp_BT), same


def certain(logp_BT: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
    return torch.zeros_like(logp_BT), batch


def far_away(logp_BT: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
    """Log-ratios of ±1000, alternating over rows and tokens."""
    sign_BT = 1 - 2 * ((torch.arange(logp_BT.shape[0])[:, None] + torch.arange(logp_BT.shape[1])) % 2)
    clean = rewritten(batch, lambda t: t if t.dtype == torch.bool else torch.full_like(t, -1.0))
    return (-1.0 + 1e3 * sign_BT).to(logp_BT), clean


def far_below(logp_BT: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
    """Whole completions at ±1000 per token."""
    logp_BT, batch = far_away(logp_BT, batch)
    sign_B1 = 1 - 2 * (torch.arange(len(logp_BT)) % 2)[:, None]
    return (1e3 * sign_B1).expand_as(logp_BT).to(logp_BT), batch


RESTING = (equal_rewards, nearly_equal_rewards)
EMPTY = (all_failed, nothing_trained, no_tokens)
OTHER = (one_group_untrained, single_tokens, identical_completions, certain, far_away, far_below)


@every_case
@pytest.mark.parametrize("spoil", RESTING + EMPTY + OTHER, ids=lambda f: f.__name__)
def test_degenerate_updates_are_defined(case: Case, spoil: Callable):
    for dtype in (torch.float32, torch.float64):
        logp_BT, batch = spoil(*case.row.make(0))
        check_degenerate(case, spoil, logp_BT.to(dtype), case.credited(cast(batch, dtype)))


def check_degenerate(case: Case, spoil: Callable, logp_BT: Tensor, batch: Batch) -> None:
    assert batch.role_B is not None
    c_BT = case.pulls(logp_BT, batch)
    value = loss_value(logp_BT, batch, case.algorithm)
    assert bool(c_BT.isfinite().all())
    assert bool(value.isfinite())
    samples_BT = c_BT[batch.role_B == SAMPLE]
    if spoil in EMPTY or (spoil in RESTING and case.variant.rests):
        assert not bool(samples_BT.any()), "nothing was better or worse than expected"
    if spoil in (nothing_trained, no_tokens):
        assert not bool(c_BT.any())
        assert value == 0


@every_case
def test_a_prompt_with_one_completion(case: Case):
    logp_BT, batch = case.row.make(0)
    lonely = replace(batch, group_B=torch.arange(len(logp_BT)))
    if case.algorithm.credit.group_size > 1:
        with pytest.raises(ValueError, match=r"needs at least 2 completions per prompt; \d+ prompts have 1"):
            case.credited(lonely)
    else:
        assert bool(case.pulls(logp_BT, case.credited(lonely)).isfinite().all())


# --- an algorithm is a value -----------------------------------------------------------------------------------------


@every_case
def test_an_algorithm_is_a_value(case: Case):
    algorithm, again = case.algorithm, case.algorithm
    assert algorithm is not again
    assert algorithm == again
    assert hash(algorithm) == hash(again)
    assert pickle.loads(pickle.dumps(algorithm)) == algorithm
    assert repr(algorithm).startswith(f"Algorithm(name='{case.row.name}', credit=")
    assert " object at " not in repr(algorithm), "some slot prints as an address"
    assert algorithm.paper
    assert algorithm.equation
    attribute: str = "name"
    with pytest.raises(FrozenInstanceError):
        setattr(algorithm, attribute, "other")


def test_parameters_tell_algorithms_apart():
    different: dict[str, set[Any]] = {}
    for case in CASES:
        different.setdefault(case.row.name, set()).add(case.algorithm)
    for name, algorithms in different.items():
        settings = {tuple(sorted(case.variant.params.items())) for case in CASES if case.row.name == name}
        assert len(algorithms) == len(settings)
