"""What an algorithm computes, in words: whose mean is the baseline, by what it divides, which KL it has.

One name stands for different things in different libraries; here the numbers that tell them apart are said.
"""

from __future__ import annotations

from typing import Any

from gro.objective import Algorithm, Critic, Term
from gro.objective import credit as credits
from gro.objective.weights import K2, K3, ClippedRatio, One, RatioK3, Stay, TruncatedRatio


def in_words(algorithm: Algorithm) -> tuple[tuple[str, str], ...]:
    """(what, in words): baseline, scale, normaliser and KL; without the first two where nothing is credited.

    Then the ratio's bounds and what the critic learns, where there are any.
    """
    bare = _bare(algorithm.credit)
    rows = [("baseline", _baseline(bare)), ("scale", _scale(algorithm.credit))]
    if isinstance(bare, credits.NoBaseline | credits.Labels | credits.Versus):
        rows = []
    shares = dict.fromkeys(_first(t.share) for t in algorithm.terms)
    rows += [("normaliser", "; ".join(shares)), ("KL", "; ".join(_kl(algorithm)) or "none")]
    rows += [("bounds", bounds)] if (bounds := "; ".join(_bounds(algorithm))) else []
    return (*rows, *([("critic", _critic(algorithm.critic))] if algorithm.critic is not None else []))


def _bare(credit: Any) -> Any:
    """The credit without what is wrapped around it."""
    return _bare(credit.inner) if hasattr(credit, "inner") else credit


def _baseline(credit: Any) -> str:
    group = "the mean reward of the prompt's completions, the completion's own included"
    match credit:
        case credits.GroupMean() | credits.GroupZScore():
            return group
        case credits.LeaveOneOut() | credits.LeaveOneOutZScore():
            return "the mean reward of the prompt's other completions"
        case credits.MovingAverage():
            return "the mean reward of earlier steps"
        case credits.BatchMean():
            return "the mean reward of the batch"
        case credits.TokenZScore(group_baseline=True):
            return f"{group}; then the mean over all completion tokens of the batch"
        case credits.TokenZScore():
            return "the mean reward-to-go of all completion tokens of the batch"
        case credits.Greedy():
            return "the reward of the prompt's greedy completion"
        case credits.Gae(gamma=gamma, lam=lam):
            return f"a critic's value at every token, advantages by GAE with γ = {gamma:g} and λ = {lam:g}"
        case credits.StateValue():
            return "a critic's value of the prompt"
        case credits.Constant(baseline=baseline):
            return f"{baseline:g}"
        case _:
            return _first(credit)


def _scale(credit: Any) -> str:
    match credit:
        case credits.Normalised(rate=rate):
            return f"divided by the root of the running mean of A², a new batch counting {rate:g}"
        case credits.KlAfterwards(inner=inner) | credits.AdaptiveKl(inner=inner):
            return _scale(inner)
        case credits.GroupZScore(ddof=ddof, eps=eps):
            return f"divided by the group's standard deviation, ddof {ddof} (÷ {_less('G', ddof)}), plus ε = {eps:g}"
        case credits.LeaveOneOutZScore(eps=eps):
            return f"divided by the others' standard deviation, ddof 1 (÷ (G − 2)), plus ε = {eps:g}, where it is not 0"
        case credits.BatchMean(std=True, ddof=ddof, eps=eps):
            return f"divided by the batch's standard deviation, ddof {ddof} (÷ {_less('B', ddof)}), plus ε = {eps:g}"
        case credits.TokenZScore(floor=floor):
            return f"divided by the standard deviation of all tokens, ddof 0 (÷ N), the variance at least {floor:g}"
        case credits.Gae(whiten=True):
            return "divided by the standard deviation of all tokens, ddof 0 (÷ N), plus ε = 1e-08, and centred"
        case _:
            return "not divided by a standard deviation"


def _less(number: str, ddof: int) -> str:
    return f"({number} − {ddof})" if ddof else number


def _kl(algorithm: Algorithm) -> list[str]:
    """Every penalty on a KL, with its strength and what its gradient is."""
    found = []
    match algorithm.credit:
        case credits.KlAfterwards(kl=beta, limit=limit) if beta:
            cut = f", each k1 cut off at ±{limit:g}" if limit is not None else ""
            found.append(f"k1 to the reference in the reward, *after* the baseline, token by token, β = {beta:g}{cut}")
        case credits.AdaptiveKl(target=target, horizon=horizon):
            found.append(
                f"k1 to the reference in the reward, β = {_bare(algorithm.credit).kl:g} at first, then moved towards "
                f"{target:g} nats per completion over {horizon:g} completions"
            )
        case credit if beta := getattr(credit, "kl", 0.0):
            found.append(f"k1 to the reference in the reward, {_folded(credit)}, β = {beta:g}")
    for term in algorithm.terms:
        match term.weight if isinstance(term, Term) else None:
            case K2(beta=beta):
                found.append(
                    f"k2 to the reference in the loss, β = {beta:g}: its gradient is the reverse KL's, token by token"
                )
            case K3(beta=beta, limit=limit):
                cut = f", cut off at {limit:g}" if limit is not None else ""
                found.append(
                    f"k3 to the reference in the loss, β = {beta:g}{cut}: its value estimates the reverse KL, its "
                    "gradient is the *forward* KL's"
                )
            case RatioK3(beta=beta):
                found.append(
                    f"the ratio times k3 to the reference in the loss, β = {beta:g}: its gradient is exactly the "
                    "reverse KL's"
                )
            case Stay(beta=beta):
                found.append(f"KL(old‖θ) in the loss, β = {beta:g}")
            case One() if isinstance(term, Term) and term.anchor.base == "ref" and term.scale < 0:
                found.append(f"the log-ratio to the reference in the loss, on its own samples, β = {-term.scale:g}")
            case _:
                pass
    if algorithm.step is not None:
        found.append(f"a step's KL(old‖θ) is at most {algorithm.step.delta:g} nats per token")
    if algorithm.max_kl is not None:
        found.append(f"the passes over a batch end above a KL(old‖θ) of {algorithm.max_kl:g} nats per token")
    return found


def _bounds(algorithm: Algorithm) -> list[str]:
    """How far a ratio counts."""
    found = []
    for term in algorithm.terms:
        match term.weight if isinstance(term, Term) else None:
            case ClippedRatio(low=low, high=high, dual=dual):
                also = f" or above {dual:g}" if dual is not None else ""
                found.append(
                    f"no push by a ratio above {1 + high:g} where A > 0, nor by one below {1 - low:g}{also} where A < 0"
                )
            case TruncatedRatio(high=high, low=low):
                least = f" and no less than {low:g}" if low else ""
                found.append(f"a ratio counts as no more than {high:g}{least}, and is not differentiated")
            case _:
                pass
    return found


def _critic(critic: Critic) -> str:
    """What values learn."""
    clip = f", V no further than {critic.clip:g} from its old value" if critic.clip is not None else ""
    factor = "" if critic.coefficient == 1 else f"{critic.coefficient:g} · "
    frozen = "; only before the policy moves" if critic.frozen else ""
    return f"learns {factor}½(V − return)²{clip}, the mean over all completion tokens{frozen}"


def _folded(credit: Any) -> str:
    """Where in the reward the penalty stands."""
    match credit:
        case credits.Greedy():
            return "of the sample only, after the baseline"
        case credits.TokenZScore() | credits.MovingAverage() | credits.Gae():
            return "token by token"
        case _:
            return "as a total, before the baseline"


def _first(member: Any) -> str:
    """The first sentence of what a member's docstring says, without the source."""
    text = " ".join((type(member).__doc__ or "").split("\n\n")[0].split())
    return text.partition(" (")[0].rstrip(".")
