r"""Objectives over all K candidates of a prompt: a noise-contrastive family, rankings, and contrastive divergence.

With the reward :math:`r_k = \beta (\log P(y_k) - \log P_{ref}(y_k))`, summed over tokens, of each candidate. Candidates
that are absent have no weight and no gradient, and a single one gives the loss 0; K below is the number of those that
are there. Which of them an objective sees may be a selector's choice (`slpojax.selectors`): MC-PO is `rnce` behind
`mc_kernel`.

Metrics, without gradient: rewards/chosen of candidate 0, rewards/rejected the mean of the others, rewards/margins their
difference, rewards/accuracies the share of the others that candidate 0 beats (a tie counts one half), logps/chosen and
logps/rejected likewise, so that two candidates give what `slpojax.sequence.preference_metrics` does; and
candidates/effective, how many of the others the softmax of their rewards is spread over: :math:`1 / \sum_k w_k^2`, from
1 to their number, 0 where there is none.
"""

import jax
import jax.numpy as jnp

from slpojax.base import ABSENT, Array, Bool, Float, Logps, Scalar
from slpojax.objectives import require
from slpojax.sequence import first, log_ratio, total

OVER_ALL = ("rnce", "infonca", "nca", "exo", "plackett_luce", "contrastive_divergence")

_POSITIVE = "a number above 0"


def _rewards(policy: Logps, ref: Logps, beta: Scalar) -> tuple[Float[Array, " K"], Bool[Array, " K"]]:
    """Return the rewards, 0 where a candidate is absent, and which are there."""
    require(beta > 0, "beta", beta, _POSITIVE)
    first(policy, 2)  # refuses data of one candidate
    here = jnp.asarray(policy.length) > 0
    return jnp.where(here, beta * log_ratio(policy, ref), 0.0), here


def _log_target(score: Float[Array, " K"], here: Bool[Array, " K"], name: str, temperature: Scalar) -> Array:
    """Return the log-softmax of score / temperature over the candidates that are there."""
    require(temperature > 0, name, temperature, _POSITIVE)
    return jax.nn.log_softmax(jnp.where(here, score / temperature, ABSENT))


def against_the_rest(reward: Float[Array, " K"], here: Bool[Array, " K"]) -> Float[Array, " K-1"]:
    r"""Return :math:`-\log (e^{r_k} / \sum_{j \ge k} e^{r_j})` of all but the last, 0 for those that are absent.

    As a softplus of a difference, it and its gradient stay exact where candidate k is far ahead.
    """
    place = jnp.arange(reward.shape[0])
    behind = here[None, :] & (place[None, :] > place[:-1, None])
    rest = jax.nn.logsumexp(jnp.where(behind, reward[None, :], ABSENT), axis=1)
    return jnp.where(here[:-1], jax.nn.softplus(rest - reward[:-1]), 0.0)


def mean_of_others(x: Float[Array, " K"], here: Bool[Array, " K"]) -> Float[Array, ""]:
    """Return the mean of all that are there but candidate 0; 0 where there is none."""
    return jnp.sum(jnp.where(here[1:], x[1:], 0.0)) / jnp.maximum(jnp.sum(here[1:]), 1)


def _metrics(policy: Logps, reward: Float[Array, " K"], here: Bool[Array, " K"]) -> dict[str, Array]:
    reward, logp = jax.lax.stop_gradient((reward, total(policy)))
    rejected, some = mean_of_others(reward, here), jnp.any(here[1:])
    weight = jax.nn.softmax(jnp.where(here, reward, ABSENT)[1:])
    return {
        "rewards/chosen": reward[0],
        "rewards/rejected": rejected,
        "rewards/margins": reward[0] - rejected,
        "rewards/accuracies": jnp.where(some, mean_of_others((1 + jnp.sign(reward[0] - reward)) / 2, here), 0.5),
        "logps/chosen": logp[0],
        "logps/rejected": mean_of_others(logp, here),
        "candidates/effective": jnp.where(some, 1 / jnp.sum(weight**2), 0.0),
    }


def rnce(policy: Logps, ref: Logps, *, beta: Scalar = 0.1) -> tuple[Array, dict[str, Array]]:
    r"""Ranking noise-contrastive estimation: candidate 0 against all others. Two candidates are DPO.

    .. math:: L = -\log \frac{e^{r_0}}{\sum_k e^{r_k}},
        \quad \frac{\partial L}{\partial r_m} = \frac{e^{r_m}}{\sum_k e^{r_k}} - [m = 0]

    With the others drawn at random from the noise distribution (the selector `random`) this is the paper's equation 7
    for the likelihood of candidate 0 under :math:`\mu(y) e^{r(y)} / Z`; with those that `mc_kernel` draws it is MC-PO.

    Args:
        policy: [K, T] log-probs; candidate 0 is the preferred one, the others in any order.
        ref: the same responses under the reference.
        beta: strength of the pull to the reference, per nat.

    Returns:
        The loss in nats (log K where policy and reference agree), and the metrics listed above.

    Example:
        >>> logp, length = jnp.float32([[-0.25], [-2.0], [-1.0]]), jnp.int32([1, 1, 1])
        >>> ref = Logps(jnp.full((3, 1), -1.0), jnp.full((3, 1), -0.46), length)
        >>> print(f"{rnce(Logps(logp, jnp.log1p(-jnp.exp(logp)), length), ref, beta=0.1)[0]:.6f}")
        1.017836

    Verified: the paper's equation, gradient and lemmas in float64; DPO for K = 2.

    Reference:
        Zhuotong Chen, Fang Liu, Xuan Zhu, Haozhu Wang, Yanjun Qi, Mohammad Ghavamzadeh, Preference Optimization via
        Contrastive Divergence: Your Reward Model is Secretly an NLL Estimator, 2025, arXiv:2502.04567, equation 7.
        Amanda Olmin, Jakob Lindqvist, Lennart Svensson, Fredrik Lindsten, On the connection between Noise-Contrastive
        Estimation and Contrastive Divergence, 2024, arXiv:2402.16688.
    """
    reward, here = _rewards(policy, ref, beta)
    return against_the_rest(reward, here)[0], _metrics(policy, reward, here)


def infonca(
    policy: Logps, ref: Logps, score: Float[Array, " K"], *, beta: Scalar = 0.01, alpha: Scalar = 0.01
) -> tuple[Array, dict[str, Array]]:
    r"""InfoNCA: cross-entropy of the rewards' softmax to that of the scores.

    .. math:: L = -\sum_k \text{softmax}(s / \alpha)_k \log \text{softmax}(r)_k

    A target on candidate 0 alone (scores far apart, alpha small) makes it `rnce`.

    Args:
        policy: [K, T] log-probs, in any order.
        ref: the same responses under the reference.
        score: higher is better; candidates of equal score share the target. (The authors' code adds 0.01 to that of
            candidate 0.)
        beta: strength of the pull to the reference, per nat.
        alpha: temperature of the scores, in their unit. The authors' code divides by 0.0001, a target on the best.

    Returns:
        The loss in nats (log K where policy and reference agree), and the metrics listed above.

    Example:
        >>> logp, length = jnp.float32([[-0.25], [-2.0], [-1.0]]), jnp.int32([1, 1, 1])
        >>> ref = Logps(jnp.full((3, 1), -1.0), jnp.full((3, 1), -0.46), length)
        >>> policy = Logps(logp, jnp.log1p(-jnp.exp(logp)), length)
        >>> print(f"{infonca(policy, ref, jnp.float32([3.0, 2.0, 2.5]), beta=0.1, alpha=1.0)[0]:.6f}")
        1.073483

    Verified: the paper's equation in float64, which agrees with the authors' code; `rnce` for a one-hot target.

    Reference:
        Huayu Chen, Guande He, Lifan Yuan, Ganqu Cui, Hang Su, Jun Zhu, Noise Contrastive Alignment of Language Models
        with Explicit Rewards, 2024, arXiv:2402.05369.
    """
    reward, here = _rewards(policy, ref, beta)
    target = jnp.exp(_log_target(score, here, "alpha", alpha))
    log_share = jax.nn.log_softmax(jnp.where(here, reward, ABSENT))
    return -jnp.sum(jnp.where(here, target * log_share, 0.0)), _metrics(policy, reward, here)


def nca(
    policy: Logps, ref: Logps, score: Float[Array, " K"], *, beta: Scalar = 0.01, alpha: Scalar = 0.01
) -> tuple[Array, dict[str, Array]]:
    r"""NCA: each candidate against noise of its own, so that the rewards have an absolute level.

    .. math:: L = -\sum_k \Big[ \text{softmax}(s / \alpha)_k \log \sigma(r_k) + \frac{1}{K} \log \sigma(-r_k) \Big]

    At its minimum :math:`\sigma(r_k) = t_k / (t_k + 1 / K)` with the target t: a candidate of average target stays
    where the reference has it. Two candidates and a one-hot target are TRL's `nca_pair`.

    Args:
        policy: [K, T] log-probs, in any order.
        ref: the same responses under the reference.
        score: higher is better; candidates of equal score share the target. (The authors' code adds 0.01 to that of
            candidate 0.)
        beta: strength of the pull to the reference, per nat.
        alpha: temperature of the scores, in their unit. The authors' code divides by 0.0001, a target on the best.

    Returns:
        The loss in nats (2 log 2 where policy and reference agree), and the metrics listed above.

    Example:
        >>> logp, length = jnp.float32([[-0.25], [-2.0], [-1.0]]), jnp.int32([1, 1, 1])
        >>> ref = Logps(jnp.full((3, 1), -1.0), jnp.full((3, 1), -0.46), length)
        >>> policy = Logps(logp, jnp.log1p(-jnp.exp(logp)), length)
        >>> print(f"{nca(policy, ref, jnp.float32([3.0, 2.0, 2.5]), beta=0.1, alpha=1.0)[0]:.6f}")
        1.373691

    Verified: the paper's equation in float64, which agrees with the authors' code; TRL 1.16's `nca_pair` for K = 2.

    Reference:
        Huayu Chen, Guande He, Lifan Yuan, Ganqu Cui, Hang Su, Jun Zhu, Noise Contrastive Alignment of Language Models
        with Explicit Rewards, 2024, arXiv:2402.05369.
    """
    reward, here = _rewards(policy, ref, beta)
    target, count = jnp.exp(_log_target(score, here, "alpha", alpha)), jnp.sum(here)
    terms = target * jax.nn.softplus(-reward) + jax.nn.softplus(reward) / jnp.maximum(count, 1)
    return jnp.sum(jnp.where(here & (count > 1), terms, 0.0)), _metrics(policy, reward, here)


def exo(
    policy: Logps, ref: Logps, score: Float[Array, " K"], *, beta: Scalar = 0.5, beta_r: Scalar = 0.5
) -> tuple[Array, dict[str, Array]]:
    r"""EXO with a reward model: divergence of the rewards' softmax from that of the scores, seeking the mode.

    .. math:: L = KL(p || q), \quad p = \text{softmax}(r), \quad q = \text{softmax}(s / \beta_r)

    Where InfoNCA measures KL(q || p). A candidate that the policy gives no share has no gradient, however high its
    score. Two candidates whose scores differ by :math:`\beta_r \log((1 - \epsilon) / \epsilon)` are EXO
    for pairs, TRL's `exo_pair`.

    Args:
        policy: [K, T] log-probs, in any order.
        ref: the same responses under the reference.
        score: rewards, higher is better.
        beta: strength of the pull to the reference, per nat; beta_pi in the paper, 0.5 in the authors' runs on HH and
            TL;DR.
        beta_r: temperature of the scores, in their unit; 0.5 there too.

    Returns:
        The loss in nats (0 at the target), and the metrics listed above.

    Example:
        >>> logp, length = jnp.float32([[-0.25], [-2.0], [-1.0]]), jnp.int32([1, 1, 1])
        >>> ref = Logps(jnp.full((3, 1), -1.0), jnp.full((3, 1), -0.46), length)
        >>> policy = Logps(logp, jnp.log1p(-jnp.exp(logp)), length)
        >>> print(f"{exo(policy, ref, jnp.float32([3.0, 2.0, 2.5]), beta=0.5, beta_r=0.5)[0]:.6f}")
        0.090719

    Verified: the paper's equation in float64, which agrees with the authors' code; the pairwise form for K = 2.

    Reference:
        Haozhe Ji, Cheng Lu, Yilin Niu, Pei Ke, Hongning Wang, Jun Zhu, Jie Tang, Minlie Huang, Towards Efficient Exact
        Optimization of Language Model Alignment, 2024, arXiv:2402.00856.
    """
    reward, here = _rewards(policy, ref, beta)
    log_target = _log_target(score, here, "beta_r", beta_r)
    log_share = jax.nn.log_softmax(jnp.where(here, reward, ABSENT))
    terms = jnp.exp(log_share) * (log_share - log_target)
    return jnp.sum(jnp.where(here, terms, 0.0)), _metrics(policy, reward, here)


def plackett_luce(policy: Logps, ref: Logps, *, beta: Scalar = 0.1) -> tuple[Array, dict[str, Array]]:
    r"""DPO for rankings: candidate 0 against all others, then candidate 1 against those behind it, and so on.

    .. math:: L = -\sum_{k < K - 1} \log \frac{e^{r_k}}{\sum_{j \ge k} e^{r_j}}

    Its first term is `rnce`; two candidates are DPO. Ties are taken in the order of the candidates.

    Args:
        policy: [K, T] log-probs; the candidates are ranked, best first.
        ref: the same responses under the reference.
        beta: strength of the pull to the reference, per nat.

    Returns:
        The loss in nats (log K! where policy and reference agree), and the metrics listed above.

    Example:
        >>> logp, length = jnp.float32([[-0.25], [-1.0], [-2.0]]), jnp.int32([1, 1, 1])
        >>> ref = Logps(jnp.full((3, 1), -1.0), jnp.full((3, 1), -0.46), length)
        >>> print(f"{plackett_luce(Logps(logp, jnp.log1p(-jnp.exp(logp)), length), ref, beta=0.1)[0]:.6f}")
        1.662233

    Verified: the paper's equation in float64, as the probability of the ranking by drawing without replacement.

    Reference:
        Rafael Rafailov, Archit Sharma, Eric Mitchell, Stefano Ermon, Christopher D. Manning, Chelsea Finn, Direct
        Preference Optimization: Your Language Model is Secretly a Reward Model, 2023, arXiv:2305.18290, appendix A.3.
    """
    reward, here = _rewards(policy, ref, beta)
    return jnp.sum(against_the_rest(reward, here)), _metrics(policy, reward, here)


def contrastive_divergence(policy: Logps, ref: Logps, *, beta: Scalar = 0.1) -> tuple[Array, dict[str, Array]]:
    r"""Contrastive divergence: raise candidate 0, lower what the model itself draws.

    .. math:: L = -r_0 + \frac{1}{M} \sum_{m=1}^{M} r_m

    With the others drawn from :math:`p(y) = \mu(y) e^{r(y)} / Z` its expected gradient is that of the negative
    log-likelihood of candidate 0 (the paper's equation 8), so it belongs behind the selector `mc_kernel`. It is linear
    in the rewards: nothing bounds it, and only the draw, which leaves responses that have become unlikely alone, ends
    the push. MC-PO is not this loss but `rnce`, which weighs the picked candidates once more.

    Args:
        policy: [K, T] log-probs; candidate 0 is the preferred one, the others in any order.
        ref: the same responses under the reference.
        beta: strength of the pull to the reference, per nat.

    Returns:
        The loss in nats (0 where policy and reference agree), and the metrics listed above.

    Example:
        >>> logp, length = jnp.float32([[-0.25], [-2.0], [-1.0]]), jnp.int32([1, 1, 1])
        >>> ref = Logps(jnp.full((3, 1), -1.0), jnp.full((3, 1), -0.46), length)
        >>> policy = Logps(logp, jnp.log1p(-jnp.exp(logp)), length)
        >>> print(f"{contrastive_divergence(policy, ref, beta=0.1)[0]:.6f}")
        -0.125000

    Verified: its gradient, over every draw, is that of the negative log-likelihood in float64.

    Reference:
        Zhuotong Chen, Fang Liu, Xuan Zhu, Haozhu Wang, Yanjun Qi, Mohammad Ghavamzadeh, Preference Optimization via
        Contrastive Divergence: Your Reward Model is Secretly an NLL Estimator, 2025, arXiv:2502.04567, equation 8.
        Geoffrey Hinton, Training Products of Experts by Minimizing Contrastive Divergence, 2002.
    """
    reward, here = _rewards(policy, ref, beta)
    loss = mean_of_others(reward, here) - reward[0]
    return jnp.where(here[0] & jnp.any(here[1:]), loss, 0.0), _metrics(policy, reward, here)
