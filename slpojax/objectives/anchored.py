r"""Objectives of a pair that anchor each response's reward by itself, and not only the difference of the two.

With the reward :math:`r(y) = \beta (\log P(y) - \log P_{ref}(y))`, summed over tokens. An absent response has the
reward 0. Metrics: those of `slpojax.sequence.preference_metrics`.
"""

import jax
import jax.numpy as jnp

from slpojax.base import Array, Float, Logps, Scalar
from slpojax.objectives.pairs import present, rewards


def nca_pair(policy: Logps, ref: Logps, *, beta: Scalar = 0.01) -> tuple[Array, dict[str, Array]]:
    r"""NCA on a pair: the chosen against noise, the rejected as noise. TRL's `nca_pair`.

    .. math:: L = -\log \sigma(r_w) - \frac{1}{2} \log \sigma(-r_w) - \frac{1}{2} \log \sigma(-r_l)

    The chosen's own optimum is finite: :math:`r_w = \log 2`.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        beta: strength of the pull to the reference, per nat.

    Returns:
        The loss in nats (2 log 2 where policy and reference agree), and the metrics.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> print(f"{nca_pair(policy, ref, beta=0.1)[0]:.6f}")
        1.344223

    Verified:
        TRL 1.16 and 0.24 (values, gradients, rewards) and the formula in 120 digits.

    Reference:
        Huayu Chen, Guande He, Lifan Yuan, Ganqu Cui, Hang Su, Jun Zhu, Noise Contrastive Alignment of Language Models
        with Explicit Rewards, 2024, arXiv:2402.05369.
    """
    reward, metrics = rewards(beta, policy, ref)
    push, pull = jax.nn.softplus(-reward), jax.nn.softplus(reward)
    return push[0] + (pull[0] + pull[1]) / 2, metrics


def bco_pair(
    policy: Logps, ref: Logps, state: tuple = (0.0, 0.0), *, beta: Scalar = 0.01
) -> tuple[Array, dict[str, Array], tuple]:
    r"""BCO on a pair: a binary classifier of the reward, shifted by its running mean.

    .. math:: L = -\log \sigma(r_w - \delta) - \log \sigma(-(r_l - \delta)),
        \quad \delta = \frac{1}{2} (E[r_w] + E[r_l])

    The expectations are the means over every response seen so far, this batch included; so does TRL 0.24. TRL 1.16's
    `bco_pair` has no shift: `bco_pair_unshifted`.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        state: the mean reward so far, and the number of responses it is of.
        beta: strength of the pull to the reference, per nat.

    Returns:
        The loss in nats (2 log 2 where policy and reference agree), the metrics with `delta`, and the new state.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> batch = jax.tree.map(lambda x: x[None], (policy, ref))
        >>> loss, metrics, _ = jax.vmap(lambda p, r: bco_pair(p, r, beta=0.1), axis_name="batch")(*batch)
        >>> print(f"{loss[0]:.6f} {metrics['delta'][0]:.4f}")
        1.300708 -0.0125

    Verified:
        TRL 0.24 (values, gradients, rewards, delta after one batch) and the formula in 120 digits; three batches
        against NumPy.

    Reference:
        Seungjae Jung, Gunsoo Han, Daniel Wontae Nam, Kyoung-Woon On, Binary Classifier Optimization for Large Language
        Model Alignment, 2024, arXiv:2404.04656.
    """
    reward, metrics = rewards(beta, policy, ref)
    there, held = present(policy), jax.lax.stop_gradient(reward)
    mean, seen = state
    count = jax.lax.psum(jnp.sum(there), "batch")
    seen = seen + count
    moved = jax.lax.psum(jnp.sum(jnp.where(there, held - mean, 0.0)), "batch")
    delta = mean + moved / jnp.maximum(seen, 1)
    loss = jax.nn.softplus(delta - reward[0]) + jax.nn.softplus(reward[1] - delta)
    return loss, metrics | {"delta": delta}, (delta, seen)


def bco_pair_unshifted(policy: Logps, ref: Logps, *, beta: Scalar = 0.01) -> tuple[Array, dict[str, Array]]:
    r"""BCO on a pair without its shift. TRL 1.16's `bco_pair`.

    .. math:: L = -\log \sigma(r_w) - \log \sigma(-r_l)

    The code of the authors of NCA calls it biased NCA.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        beta: strength of the pull to the reference, per nat.

    Returns:
        The loss in nats (2 log 2 where policy and reference agree), and the metrics.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> print(f"{bco_pair_unshifted(policy, ref, beta=0.1)[0]:.6f}")
        1.300747

    Verified:
        TRL 1.16 (values, gradients, rewards, metrics) and the formula in 120 digits.

    Reference:
        Seungjae Jung, Gunsoo Han, Daniel Wontae Nam, Kyoung-Woon On, Binary Classifier Optimization for Large Language
        Model Alignment, 2024, arXiv:2404.04656.
    """
    reward, metrics = rewards(beta, policy, ref)
    return jax.nn.softplus(-reward[0]) + jax.nn.softplus(reward[1]), metrics


def _distance(reward: Array, win: Array, beta: Scalar) -> Array:
    return jnp.sum(((reward - (win - 0.5)) / beta) ** 2)


def sppo(
    policy: Logps, ref: Logps, probability: Float[Array, " K"], *, beta: Scalar = 1e-3
) -> tuple[Array, dict[str, Array]]:
    r"""SPPO: regress each response's log-ratio on how often it wins.

    .. math:: L = \sum_{y \in \{y_w, y_l\}} \Big(\log \frac{P(y)}{P_{ref}(y)}
        - \frac{1}{\beta} \Big(P(y \succ \pi_{ref}) - \frac{1}{2}\Big)\Big)^2

    The method is iterative, and its reference is the iterate that the responses were sampled from
    (`reference.path`). The authors' code has half of this loss.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the iterate that wrote them.
        probability: [K] of the responses to win, from 0 to 1, as a preference model estimates them.
        beta: one over the paper's eta, 1000: a sure win asks for 500 nats.

    Returns:
        The loss, and the metrics.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> print(f"{sppo(policy, ref, jnp.float32([0.75, 0.25]), beta=0.1)[0]:.4f}")
        5.3125

    Verified:
        The formula in 120 digits, and `sppo_hard`, which is this with the probabilities 1 and 0.

    Reference:
        Yue Wu, Zhiqing Sun, Huizhuo Yuan, Kaixuan Ji, Yiming Yang, Quanquan Gu, Self-Play Preference Optimization for
        Language Model Alignment, 2024, arXiv:2405.00675.
    """
    reward, metrics = rewards(beta, policy, ref)
    return _distance(reward, probability[:2], beta), metrics


def sppo_hard(policy: Logps, ref: Logps, *, beta: Scalar = 1e-3) -> tuple[Array, dict[str, Array]]:
    r"""SPPO with a sure win and a sure loss. TRL's `sppo_hard`.

    .. math:: L = \Big(\log \frac{P(y_w)}{P_{ref}(y_w)} - \frac{1}{2 \beta}\Big)^2
        + \Big(\log \frac{P(y_l)}{P_{ref}(y_l)} + \frac{1}{2 \beta}\Big)^2

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the iterate that wrote them.
        beta: one over the paper's eta, 1000.

    Returns:
        The loss (500,000 where policy and reference agree and beta is 0.001), and the metrics.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> print(f"{sppo_hard(policy, ref, beta=0.1)[0]:.4f}")
        34.0625

    Verified:
        TRL 1.16 and 0.24 (values, gradients, rewards) and the formula in 120 digits.

    Reference:
        Yue Wu, Zhiqing Sun, Huizhuo Yuan, Kaixuan Ji, Yiming Yang, Quanquan Gu, Self-Play Preference Optimization for
        Language Model Alignment, 2024, arXiv:2405.00675.
    """
    reward, metrics = rewards(beta, policy, ref)
    return _distance(reward, jnp.array([1.0, 0.0]), beta), metrics


def apo_zero(policy: Logps, ref: Logps, *, beta: Scalar = 0.1) -> tuple[Array, dict[str, Array]]:
    r"""APO-zero: the chosen up, the rejected down, for a policy worse than the chosen. TRL's `apo_zero`.

    .. math:: L = 1 - \sigma(r_w) + \sigma(r_l)

    Bounded: a pair that is far off either way has no gradient.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        beta: strength of the pull to the reference, per nat.

    Returns:
        The loss (1 where policy and reference agree), and the metrics.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> print(f"{apo_zero(policy, ref, beta=0.1)[0]:.6f}")
        0.956280

    Verified:
        TRL 1.16 and 0.24 (values, gradients, rewards) and the formula in 120 digits.

    Reference:
        Karel D'Oosterlinck, Winnie Xu, Chris Develder, Thomas Demeester, Amanpreet Singh, Christopher Potts, Douwe
        Kiela, Shikib Mehri, Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification
        in Alignment, 2024, arXiv:2408.06266.
    """
    reward, metrics = rewards(beta, policy, ref)
    return jax.nn.sigmoid(-reward[0]) + jax.nn.sigmoid(reward[1]), metrics


def apo_down(policy: Logps, ref: Logps, *, beta: Scalar = 0.1) -> tuple[Array, dict[str, Array]]:
    r"""APO-down: both down, the rejected more, for a policy better than the chosen. TRL's `apo_down`.

    .. math:: L = \sigma(r_w) + 1 - \sigma(r_w - r_l)

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        ref: the same responses under the reference.
        beta: strength of the pull to the reference, per nat.

    Returns:
        The loss (1 where policy and reference agree), and the metrics.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> ref = Logps(jnp.float32([[-1.0], [-1.0]]), jnp.float32([[-0.46], [-0.46]]), jnp.int32([1, 1]))
        >>> print(f"{apo_down(policy, ref, beta=0.1)[0]:.6f}")
        0.975103

    Verified:
        TRL 1.16 and 0.24 (values, gradients, rewards) and the formula in 120 digits.

    Reference:
        Karel D'Oosterlinck, Winnie Xu, Chris Develder, Thomas Demeester, Amanpreet Singh, Christopher Potts, Douwe
        Kiela, Shikib Mehri, Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification
        in Alignment, 2024, arXiv:2408.06266.
    """
    reward, metrics = rewards(beta, policy, ref)
    return jax.nn.sigmoid(reward[0]) + jax.nn.sigmoid(reward[1] - reward[0]), metrics
