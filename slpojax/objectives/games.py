r"""Objectives that play against a second policy: INPO on pairs, XPO and Nash-MD on samples of the policy itself.

With :math:`\rho(y) = \log P(y) - \log P_{ref}(y)`, summed over tokens. XPO and Nash-MD are for responses that the
policy has just drawn; nothing here samples, and on other data their gradients are not those of the game.
"""

import jax
import jax.numpy as jnp

from slpojax.base import Array, Float, Logps, Scalar
from slpojax.objectives import dpo, require
from slpojax.sequence import first, log_ratio, preference_metrics, total


def inpo(
    policy: Logps, ref: Logps, previous: Logps, *, eta: Scalar = 0.0075, tau: Scalar = 0.0025
) -> tuple[Array, dict[str, Array]]:
    r"""Iterative Nash policy optimisation: one step of online mirror descent, as a regression.

    .. math:: L = \Big(h - \frac{1}{2 \eta}\Big)^2, \quad h = \Delta - \frac{\tau}{\eta} \Delta_{ref}
        - \frac{\eta - \tau}{\eta} \Delta_{previous}, \quad \Delta = \log P(y_w) - \log P(y_l)

    The pairs are drawn from the previous iterate and judged against each other. tau = eta leaves the previous iterate
    out: IPO in sums.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        previous: the same responses under the iterate that this round starts from.
        eta: the step of the descent, per nat.
        tau: strength of the pull to the reference, per nat, from above 0 to eta; the paper has a third of eta.

    Returns:
        The loss (4444 where all three models agree and eta is 0.0075), and the metrics, with the reward eta times the
        log-ratio to the geometric mixture of reference and previous iterate that h is made of: a pair's target is 1/2.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> print(f"{inpo(policy, ref, ref, eta=0.1, tau=0.05)[0]:.4f}")
        10.5625

    Verified:
        The paper's formula in 120 digits. TRL has none.

    Reference:
        Yuheng Zhang, Dian Yu, Baolin Peng, Linfeng Song, Ye Tian, Mingyue Huo, Nan Jiang, Haitao Mi, Dong Yu, Iterative
        Nash Policy Optimization: Aligning LLMs with General Preferences via No-Regret Learning, 2024, arXiv:2407.00617.
    """
    require(eta > 0, "eta", eta, "a number above 0")
    require((0 < tau) & (tau <= eta), "tau", tau, f"a number from above 0 to eta = {eta}")
    here, share = first(policy, 2), tau / eta
    ratio = share * log_ratio(here, first(ref, 2)) + (1 - share) * log_ratio(here, first(previous, 2))
    return (ratio[0] - ratio[1] - 1 / (2 * eta)) ** 2, preference_metrics(policy, eta * ratio)


def _winner_first(y: Logps, score: Float[Array, " K"]) -> Logps:
    """Return candidates 0 and 1, the one of the higher score first; a tie is candidate 0's."""
    swap = score[1] > score[0]
    return jax.tree.map(lambda x: jnp.where(swap, x[::-1], x), first(y, 2))


def _add_optimism(pair: tuple[Array, dict[str, Array]], policy: Logps, alpha: Scalar) -> tuple[Array, dict[str, Array]]:
    require(alpha >= 0, "alpha", alpha, "a number from 0")
    logp = total(policy)[1]
    return pair[0] + alpha * logp, pair[1] | {"logps/reference_sample": jax.lax.stop_gradient(logp)}


def xpo(
    policy: Logps, ref: Logps, score: Float[Array, " K"], *, beta: Scalar = 0.1, alpha: Scalar = 1e-5
) -> tuple[Array, dict[str, Array]]:
    r"""Exploratory preference optimisation: DPO, and less probability for what the reference says.

    .. math:: L = -\log \sigma(\beta h) + \alpha \log P(y_{ref}), \quad h = \rho(y_w) - \rho(y_l)

    One of the two responses is a sample of the policy, the other, y_ref, one of the reference; the higher score wins.
    To make y_ref less likely is to explore. The term has no lower bound.

    Args:
        policy: [K, T] log-probs; candidate 0 is the policy's sample, candidate 1 the reference's.
        ref: the same responses under the reference.
        score: [K] of a judge or a reward model; the higher wins, a tie is the policy's.
        beta: strength of the pull to the reference, per nat.
        alpha: strength of the optimism, per nat, from 0 (DPO).

    Returns:
        The loss in nats, and the metrics of `dpo.sigmoid`, of winner and loser, with logps/reference_sample.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> print(f"{xpo(policy, ref, jnp.float32([1, 0]), beta=0.1, alpha=0.01)[0]:.6f}")
        0.589470

    Verified:
        TRL 1.13's XPOTrainer, the last before its removal, `sigmoid` (loss, its two terms, gradients), and the paper's
        formula in 120 digits.

    Reference:
        Tengyang Xie, Dylan J. Foster, Akshay Krishnamurthy, Corby Rosset, Ahmed Awadallah, Alexander Rakhlin,
        Exploratory Preference Optimization: Harnessing Implicit Q*-Approximation for Sample-Efficient RLHF, 2024,
        arXiv:2405.21046, algorithm 1.
    """
    pair = dpo.sigmoid(_winner_first(policy, score), _winner_first(ref, score), beta=beta)
    return _add_optimism(pair, policy, alpha)


def xpo_ipo(
    policy: Logps, ref: Logps, score: Float[Array, " K"], *, beta: Scalar = 0.1, alpha: Scalar = 1e-5
) -> tuple[Array, dict[str, Array]]:
    r"""XPO with IPO's square, in sums over tokens: TRL's XPOTrainer, `ipo`.

    .. math:: L = \Big(h - \frac{1}{2 \beta}\Big)^2 + \alpha \log P(y_{ref})

    Args:
        policy: [K, T] log-probs; candidate 0 is the policy's sample, candidate 1 the reference's.
        ref: the same responses under the reference.
        score: [K] of a judge or a reward model; the higher wins, a tie is the policy's.
        beta: IPO's tau.
        alpha: strength of the optimism, per nat, from 0.

    Returns:
        The loss, and the metrics of `xpo`.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> print(f"{xpo_ipo(policy, ref, jnp.float32([1, 0]), beta=0.1, alpha=0.01)[0]:.4f}")
        10.5425

    Verified:
        TRL 1.13's XPOTrainer, the last before its removal, `ipo` (loss, its two terms, gradients), and the formula in
        120 digits.

    Reference:
        Tengyang Xie et al., Exploratory Preference Optimization, 2024, arXiv:2405.21046, with the loss of Mohammad
        Gheshlaghi Azar et al., A General Theoretical Paradigm to Understand Learning from Human Preferences, 2023,
        arXiv:2310.12036, equation 17.
    """
    pair = dpo.ipo(_winner_first(policy, score), _winner_first(ref, score), beta=beta, length_normalize=False)
    return _add_optimism(pair, policy, alpha)


def _policy_gradient(
    policy: Logps, probability: Array, ratio: Float[Array, " T"], penalty: Float[Array, " T"], beta: Scalar
) -> tuple[Array, dict[str, Array]]:
    """Return the surrogate that weighs every token's log-prob by its penalty less the advantage."""
    require(beta >= 0, "beta", beta, "a number from 0")
    y, preference = first(policy, 1), probability[0]
    weight = jax.lax.stop_gradient(beta * penalty - (preference - 0.5))
    metrics = {"preference": preference, "kl": jnp.sum(ratio), "logps/policy_sample": total(y)[0]}
    return jnp.sum(weight * y.token[0]), jax.lax.stop_gradient(metrics)


def nash_md(
    policy: Logps, ref: Logps, probability: Float[Array, " K"], *, beta: Scalar = 0.1
) -> tuple[Array, dict[str, Array]]:
    r"""Nash-MD: policy gradient of the probability to beat the other player, regularised towards the reference.

    .. math:: L = \sum_t sg\Big[\beta \sum_{s \ge t} \rho_s - \big(P(y \succ y') - \tfrac{1}{2}\big)\Big]
        \log \pi(y_t | y_{<t})

    y is a sample of the policy, y' one of the geometric mixture of policy and reference, :math:`\rho_s` the log-ratio
    of token s. The gradient is that of :math:`\beta KL(\pi || \pi_{ref}) - P(y \succ y')` without bias: a token
    answers for the divergence from itself on, which has the expectation of the whole sequence's log-ratio, the paper's
    weight, and less noise. TRL's weight, which is biased, is in `nash_md_per_token`. The loss itself means nothing;
    as a product of log-probs it is no float32 where a token's is below -1e19, while its gradient is one.

    Args:
        policy: [K, T] log-probs; candidate 0 is the policy's sample, the others are not read.
        ref: the same responses under the reference.
        probability: [K], from 0 to 1; its first number is P(y > y') by a preference model.
        beta: strength of the pull to the reference, per nat, from 0.

    Returns:
        The surrogate loss, and the metrics preference (P), kl (the summed log-ratio) and logps/policy_sample.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25, -2.0]]), jnp.float32([[-1.5, -0.15]]), jnp.int32([2]))
        >>> ref = Logps(jnp.float32([[-1.0, -1.0]]), jnp.float32([[-0.46, -0.46]]), jnp.int32([2]))
        >>> print(f"{nash_md(policy, ref, jnp.float32([0.75]), beta=0.1)[0]:.5f}")
        0.76875

    Verified:
        Its expectation by enumeration of all sequences of a small model equals the gradient of the regularised game.

    Reference:
        Remi Munos, Michal Valko, Daniele Calandriello, Mohammad Gheshlaghi Azar, Mark Rowland, Zhaohan Daniel Guo,
        Yunhao Tang, Matthieu Geist, Thomas Mesnard, Andrea Michi, Marco Selvi, Sertan Girgin, Nikola Momchev, Olivier
        Bachem, Daniel J. Mankowitz, Doina Precup, Bilal Piot, Nash Learning from Human Feedback, 2023,
        arXiv:2312.00886.
    """
    ratio = first(policy, 1).token[0] - first(ref, 1).token[0]
    return _policy_gradient(policy, probability, ratio, jax.lax.cumsum(ratio, reverse=True), beta)


def nash_md_per_token(
    policy: Logps, ref: Logps, probability: Float[Array, " K"], *, beta: Scalar = 0.1
) -> tuple[Array, dict[str, Array]]:
    r"""Nash-MD as TRL computes it: a token answers for its own log-ratio alone.

    .. math:: L = \sum_t sg\big[\beta \rho_t - \big(P(y \succ y') - \tfrac{1}{2}\big)\big] \log \pi(y_t | y_{<t})

    Its expectation is the gradient of the divergence with the states held where they are: what a token does to the
    divergence of later ones is left out, a bias. For parity, and for its low noise.

    Args:
        policy: [K, T] log-probs; candidate 0 is the policy's sample, the others are not read.
        ref: the same responses under the reference.
        probability: [K], from 0 to 1; its first number is P(y > y') by a preference model.
        beta: strength of the pull to the reference, per nat, from 0.

    Returns:
        The surrogate loss, and the metrics of `nash_md`.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25, -2.0]]), jnp.float32([[-1.5, -0.15]]), jnp.int32([2]))
        >>> ref = Logps(jnp.float32([[-1.0, -1.0]]), jnp.float32([[-0.46, -0.46]]), jnp.int32([2]))
        >>> print(f"{nash_md_per_token(policy, ref, jnp.float32([0.75]), beta=0.1)[0]:.5f}")
        0.74375

    Verified:
        TRL 1.13's NashMDTrainer, the last before its removal (loss, score, kl, gradients by every token).

    Reference:
        Remi Munos et al., Nash Learning from Human Feedback, 2023, arXiv:2312.00886, as TRL computes it.
    """
    ratio = first(policy, 1).token[0] - first(ref, 1).token[0]
    return _policy_gradient(policy, probability, ratio, ratio, beta)
