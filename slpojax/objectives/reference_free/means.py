"""SimPO and its relatives: the mean log-prob of a token as the reward; see `slpojax.objectives.reference_free`."""

import jax
import jax.numpy as jnp

from slpojax.base import Array, Logps, Scalar
from slpojax.numerics import saturating
from slpojax.objectives import require
from slpojax.objectives.pairs import smoothed
from slpojax.sequence import first, mean, preference_metrics, size

_LARGEST_EXPONENT = 80.0  # exp of it is 6e34: in float32's range, with room for the factors around it


def simpo(
    policy: Logps, *, beta: Scalar = 2.0, gamma: Scalar = 1.0, label_smoothing: Scalar = 0.0
) -> tuple[Array, dict[str, Array]]:
    r"""SimPO: the mean log-prob of a token as the reward, and a margin that the chosen must win by.

    .. math:: L = -\log \sigma\big(\beta (\bar L(y_w) - \bar L(y_l)) - \gamma\big)

    This is the paper's parametrisation and TRL's: TRL writes :math:`\beta (\Delta - \gamma / \beta)`, the authors' code
    asks for the ratio gamma / beta. beta multiplies means, so DPO's 0.1 hardly trains (TRL's default for this loss).

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        beta: scale of the reward; the paper has 2 to 2.5, and 10.
        gamma: the target margin between the rewards; the paper has 0.1 to 0.8 times beta.
        label_smoothing: epsilon, from 0 to below 1/2, the probability that a label is wrong; as in TRL.

    Returns:
        The loss in nats, and the metrics, with the reward beta times the mean log-prob.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> print(f"{simpo(policy, beta=2.0, gamma=1.0)[0]:.6f}")
        0.078890

    Verified:
        TRL 1.16's CPOTrainer, `simpo` (losses, rewards, gradients), and the paper's formula in 120 digits.

    Reference:
        Yu Meng, Mengzhou Xia, Danqi Chen, SimPO: Simple Preference Optimization with a Reference-Free Reward, 2024,
        arXiv:2405.14734, equation 6.
    """
    return alphapo(policy, alpha=0.0, beta=beta, gamma=gamma, label_smoothing=label_smoothing)


def alphapo(
    policy: Logps, *, alpha: Scalar = 0.25, beta: Scalar = 2.5, gamma: Scalar = 0.1, label_smoothing: Scalar = 0.0
) -> tuple[Array, dict[str, Array]]:
    r"""AlphaPO: SimPO with a reward that is a power of the mean token probability. TRL's `simpo` with `alpha`.

    .. math:: L = -\log \sigma\big(\beta (r(y_w) - r(y_l)) - \gamma\big),
        \quad r(y) = \frac{1 - e^{-\alpha \bar L(y)}}{\alpha}

    alpha = 0 is the limit r = L / |y|: SimPO. Above 0 an unlikely response weighs more, below 0 less. The exponent is
    held at 80, which takes a mean of -320 nats per token at alpha = 0.25: beyond it a response gets no gradient.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        alpha: shape of the reward, any number.
        beta: scale of the reward.
        gamma: the target margin between the rewards, from 0.
        label_smoothing: epsilon, from 0 to below 1/2, the probability that a label is wrong; as in TRL.

    Returns:
        The loss in nats, and the metrics, with the reward beta r.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> print(f"{alphapo(policy, alpha=0.25, beta=2.5, gamma=0.1)[0]:.6f}")
        0.003202

    Verified:
        TRL 1.16's CPOTrainer, `simpo` with `alpha` (losses, rewards, gradients), and the paper's formula in 120 digits.

    Reference:
        Aman Gupta, Shao Tang, Qingquan Song, Sirou Zhu, Jiwoo Hong, Ankan Saha, Viral Gupta, Noah Lee, Eunki Kim, Siyu
        Zhu, Parag Agrawal, Natesh Pillai, S. Sathiya Keerthi, AlphaPO: Reward Shape Matters for LLM Alignment, 2025,
        arXiv:2501.03884.
    """
    require(beta > 0, "beta", beta, "a number above 0")
    require(gamma >= 0, "gamma", gamma, "a number from 0")
    reward = beta * saturating(mean(first(policy, 2)), alpha, _LARGEST_EXPONENT)
    return smoothed(reward[0] - reward[1] - gamma, label_smoothing), preference_metrics(policy, reward)


def simper(policy: Logps) -> tuple[Array, dict[str, Array]]:
    r"""SimPER: the inverse perplexity of the chosen up, that of the rejected down; there is nothing to tune.

    .. math:: L = -e^{\bar L(y_w)} + e^{\bar L(y_l)}

    The geometric mean of the tokens' probabilities is from 0 to 1, and its gradient fades with it: a response that is
    unlikely already is not pushed further down, and one that is unlikely is hardly pulled up.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.

    Returns:
        The loss, from -1 to 1, and the metrics, with the reward e to the mean log-prob.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> print(f"{simper(policy)[0]:.5f}")
        -0.64347

    Verified:
        The formula in 120 digits; the paper's, in a published summary of it, and that of the authors' code agree.

    Reference:
        Teng Xiao, Yige Yuan, Zhengyu Chen, Mingxiao Li, Shangsong Liang, Zhaochun Ren, Vasant G. Honavar, SimPER: A
        Minimalist Approach to Preference Alignment without Hyperparameters, 2025, arXiv:2502.00883.
    """
    reward = jnp.exp(mean(first(policy, 2)))
    return reward[1] - reward[0], preference_metrics(policy, reward)


def repo(policy: Logps, *, gamma: Scalar = 0.6) -> tuple[Array, dict[str, Array]]:
    r"""RePO: a hinge in the place of SimPO's logistic loss, so that no beta is left.

    .. math:: L = \max\big(0, \gamma - (\bar L(y_w) - \bar L(y_l))\big)

    The limit of `simpo` over beta as beta grows, with gamma here per token and without beta: a pair that wins by gamma
    teaches nothing, any other one as much as the next. The gradient at the kink is 0. The paper's schedules, a gamma
    that falls in the course of training, are not here.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        gamma: the margin asked for, in nats per token, from 0; the authors' code has 0.6 for Llama 3.

    Returns:
        The loss in nats per token (gamma where both responses are as likely per token), and the metrics, with the
        reward the mean log-prob.

    Example:
        >>> policy = Logps(jnp.float32([[-1.25], [-1.5]]), jnp.float32([[-0.34], [-0.25]]), jnp.int32([1, 1]))
        >>> print(f"{repo(policy, gamma=0.6)[0]:.6f}")
        0.350000

    Verified:
        The formula in 120 digits, and SimPO's loss over a large beta; the formula is that of the authors' code, which
        was read.

    Reference:
        Junkang Wu, Kexin Huang, Xue Wang, Jinyang Gao, Bolin Ding, Jiancan Wu, Xiangnan He, Xiang Wang, RePO:
        ReLU-based Preference Optimization, 2025, arXiv:2503.07426.
    """
    require(gamma >= 0, "gamma", gamma, "a number from 0")
    reward = mean(first(policy, 2))
    return jax.nn.relu(gamma - (reward[0] - reward[1])), preference_metrics(policy, reward)


def confpo(policy: Logps, *, beta: Scalar = 2.0, gamma: Scalar = 1.0) -> tuple[Array, dict[str, Array]]:
    r"""ConfPO: SimPO on the tokens of which the policy is less sure than of the response's tokens on average.

    .. math:: L = -\log \sigma\big(\beta (c(y_w) - c(y_l)) - \gamma\big), \quad
        c(y) = \frac{1}{|S|} \sum_{t \in S} \log p(y_t), \; S = \Big\{t : p(y_t) < \frac{1}{|y|} \sum_s p(y_s)\Big\}

    Which tokens are meant has no gradient, and changes as the policy does. A response has none where all its tokens are
    as likely, as with a single token; its pair then has the loss 0.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        beta: scale of the reward; the default is this package's for `simpo`, not the paper's.
        gamma: the target margin between the rewards, from 0; likewise.

    Returns:
        The loss in nats, and the metrics, with the reward beta c, and mask/chosen and mask/rejected, the share of the
        tokens that are meant.

    Example:
        >>> token, other = jnp.float32([[-0.25, -1.0], [-2.0, -0.5]]), jnp.float32([[-1.5, -0.46], [-0.15, -0.93]])
        >>> policy = Logps(token, other, jnp.int32([2, 2]))
        >>> print(f"{confpo(policy, beta=2.0, gamma=1.0)[0]:.6f}")
        0.313262

    Verified:
        The formula in 120 digits; the formula, and the loss 0 of a response without such tokens, are those of the
        authors' code, which was read.

    Reference:
        Hee Suk Yoon, Eunseop Yoon, Mark Hasegawa-Johnson, Sungwoong Kim, Chang D. Yoo, ConfPO: Exploiting Policy Model
        Confidence for Critical Token Selection in Preference Optimization, 2025, arXiv:2506.08712.
    """
    require(beta > 0, "beta", beta, "a number above 0")
    require(gamma >= 0, "gamma", gamma, "a number from 0")
    pair = first(policy, 2)
    here = jnp.arange(pair.token.shape[-1])[None, :] < jnp.asarray(pair.length)[:, None]
    p = jnp.where(here, jnp.exp(pair.token), 0.0)
    meant = here & (p < jnp.sum(p, axis=-1, keepdims=True) / size(pair)[:, None])
    count = jnp.sum(meant, axis=-1, dtype=p.dtype)
    reward = beta * jnp.sum(jnp.where(meant, pair.token, 0.0), axis=-1) / jnp.maximum(count, 1)
    chosen, rejected = count / size(pair)
    loss = jnp.where(jnp.all(count > 0), jax.nn.softplus(gamma - (reward[0] - reward[1])), 0.0)
    return loss, preference_metrics(policy, reward) | {"mask/chosen": chosen, "mask/rejected": rejected}
