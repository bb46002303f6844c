r"""Objectives that need no reference model: SimPO, AlphaPO, CPO, SLiC-HF, ORPO and TPO.

With :math:`L(y) = \log P(y)`, summed over tokens, and :math:`\bar L(y) = L(y) / |y|`, its mean. A response that is
absent counts as one of probability one. Several add the negative log-likelihood of a response, NLL, in the reduction
that `nll` names: one of the functions of `slpojax.objectives.sft`. "token_mean", what TRL and most authors' code
computes, is over the tokens of the global batch and so couples its examples; "sequence_mean" and "sequence_sum" do not,
which spares a forward pass where gradients are accumulated. Without the term (weight 0) nothing is coupled. One takes
the likelihood of the prompt with that of the response, `orpo_with_prompt`; the others see no prompt.

Metrics: those of `slpojax.sequence.preference_metrics` with the reward that each docstring names, and nll_loss, the
likelihood term before its weight, where there is one. `logps/` are sums over tokens also where the loss takes means.
"""

import jax
import jax.numpy as jnp

from slpojax.base import ABSENT, Array, Float, Logps
from slpojax.numerics import log1mexp
from slpojax.objectives import require, sft
from slpojax.sequence import first, mean, preference_metrics, total

_REDUCTIONS = {
    "token_mean": sft.token_mean,
    "sequence_mean": sft.sequence_mean,
    "sequence_sum": sft.sequence_sum,
}
_LARGEST_EXPONENT = 80.0  # exp of it is 6e34: in float32's range, with room for the factors around it


def _smoothed(z: Float[Array, ""], label_smoothing: float) -> Float[Array, ""]:
    """Return -(1 - epsilon) log sigmoid(z) - epsilon log sigmoid(-z)."""
    require(0 <= label_smoothing < 0.5, "label_smoothing", label_smoothing, "a number from 0 to below 1/2")
    return jax.nn.softplus(-z) + label_smoothing * z


def _add_nll(
    loss: Array, metrics: dict[str, Array], response: Logps, key: str, weight: float, nll: str
) -> tuple[Array, dict[str, Array]]:
    """Add the weighted negative log-likelihood of candidate 0 of `response`."""
    require(weight >= 0, key, weight, "a number from 0")
    require(nll in _REDUCTIONS, "nll", nll, f"one of {', '.join(_REDUCTIONS)}")
    if weight == 0:
        return loss, metrics
    term = _REDUCTIONS[nll](response)[0]
    return loss + weight * term, metrics | {"nll_loss": jax.lax.stop_gradient(term)}


def simpo(
    policy: Logps, *, beta: float = 2.0, gamma: float = 1.0, label_smoothing: float = 0.0
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
    policy: Logps, *, alpha: float = 0.25, beta: float = 2.5, gamma: float = 0.1, label_smoothing: float = 0.0
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
    require(abs(alpha) < float("inf"), "alpha", alpha, "a finite number")
    require(beta > 0, "beta", beta, "a number above 0")
    require(gamma >= 0, "gamma", gamma, "a number from 0")
    logp = mean(first(policy, 2))
    shaped = -jnp.expm1(jnp.minimum(-alpha * logp, _LARGEST_EXPONENT)) / alpha if alpha else logp
    reward = beta * shaped
    return _smoothed(reward[0] - reward[1] - gamma, label_smoothing), preference_metrics(policy, reward)


def cpo(
    policy: Logps, *, beta: float = 0.1, cpo_alpha: float = 1.0, label_smoothing: float = 0.0, nll: str = "token_mean"
) -> tuple[Array, dict[str, Array]]:
    r"""Contrastive preference optimisation: DPO under a uniform reference, and the likelihood of the chosen.

    .. math:: L = -\log \sigma\big(\beta (L(y_w) - L(y_l))\big) + \alpha \, NLL(y_w)

    The paper's likelihood term is the sum over the response (`nll="sequence_sum"`); its authors' code, which TRL keeps,
    is the mean over tokens, of the same size as the first term, and the default here.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        beta: scale of the reward, per nat.
        cpo_alpha: alpha, weight of the likelihood, from 0.
        label_smoothing: epsilon, from 0 to below 1/2, the probability that a label is wrong; as in TRL.
        nll: "token_mean", "sequence_mean" or "sequence_sum".

    Returns:
        The loss in nats, and the metrics, with the reward beta log P.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> print(f"{cpo(policy, beta=0.1, nll='sequence_mean')[0]:.6f}")
        0.859470

    Verified:
        TRL 1.16's CPOTrainer, `sigmoid` (losses, rewards, gradients), and the paper's formula in 120 digits; the
        likelihood is that of `sft`.

    Reference:
        Haoran Xu, Amr Sharaf, Yunmo Chen, Weiting Tan, Lingfeng Shen, Benjamin Van Durme, Kenton Murray, Young Jin Kim,
        Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine Translation, 2024,
        arXiv:2401.08417.
    """
    require(beta > 0, "beta", beta, "a number above 0")
    reward = beta * total(first(policy, 2))
    loss = _smoothed(reward[0] - reward[1], label_smoothing)
    return _add_nll(loss, preference_metrics(policy, reward), policy, "cpo_alpha", cpo_alpha, nll)


def cpo_hinge(
    policy: Logps, *, beta: float = 0.1, cpo_alpha: float = 1.0, nll: str = "token_mean"
) -> tuple[Array, dict[str, Array]]:
    r"""CPO with a hinge: TRL's CPOTrainer, `hinge`. beta is one over the margin asked for.

    .. math:: L = \max\big(0, 1 - \beta (L(y_w) - L(y_l))\big) + \alpha \, NLL(y_w)

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        beta: per nat.
        cpo_alpha: alpha, weight of the likelihood, from 0.
        nll: "token_mean", "sequence_mean" or "sequence_sum".

    Returns:
        The loss, and the metrics, with the reward beta log P.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> print(f"{cpo_hinge(policy, beta=0.1, nll='sequence_mean')[0]:.6f}")
        1.075000

    Verified:
        TRL 1.16's CPOTrainer, `hinge` (losses, rewards, gradients), and the formula in 120 digits.

    Reference:
        Haoran Xu et al., Contrastive Preference Optimization, 2024, arXiv:2401.08417, with the hinge of Yao Zhao et
        al., SLiC-HF: Sequence Likelihood Calibration with Human Feedback, 2023, arXiv:2305.10425.
    """
    require(beta > 0, "beta", beta, "a number above 0")
    reward = beta * total(first(policy, 2))
    loss = jax.nn.relu(1 - (reward[0] - reward[1]))
    return _add_nll(loss, preference_metrics(policy, reward), policy, "cpo_alpha", cpo_alpha, nll)


def cpo_ipo(
    policy: Logps, *, beta: float = 0.1, cpo_alpha: float = 1.0, nll: str = "token_mean"
) -> tuple[Array, dict[str, Array]]:
    r"""CPO with IPO's square: TRL's CPOTrainer, `ipo`, on means over tokens.

    .. math:: L = \Big(\bar L(y_w) - \bar L(y_l) - \frac{1}{2 \beta}\Big)^2 + \alpha \, NLL(y_w)

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        beta: IPO's tau.
        cpo_alpha: alpha, weight of the likelihood, from 0.
        nll: "token_mean", "sequence_mean" or "sequence_sum".

    Returns:
        The loss, and the metrics, with the reward beta times the mean log-prob.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> print(f"{cpo_ipo(policy, beta=0.1, nll='sequence_mean')[0]:.6f}")
        10.812500

    Verified:
        TRL 1.16's CPOTrainer, `ipo` (losses, rewards, gradients), and the formula in 120 digits.

    Reference:
        Haoran Xu et al., Contrastive Preference Optimization, 2024, arXiv:2401.08417, with the loss of Mohammad
        Gheshlaghi Azar et al., A General Theoretical Paradigm to Understand Learning from Human Preferences, 2023,
        arXiv:2310.12036, equation 17.
    """
    require(beta > 0, "beta", beta, "a number above 0")
    logp = mean(first(policy, 2))
    loss = (logp[0] - logp[1] - 1 / (2 * beta)) ** 2
    return _add_nll(loss, preference_metrics(policy, beta * logp), policy, "cpo_alpha", cpo_alpha, nll)


def slic_hf(
    policy: Logps, *, delta: float = 1.0, nll_weight: float = 0.1, nll: str = "sequence_sum"
) -> tuple[Array, dict[str, Array]]:
    r"""SLiC-HF: a hinge on the log-probs, and the likelihood of the chosen.

    .. math:: L = \max(0, \delta - L(y_w) + L(y_l)) + \lambda \, NLL(y_w)

    The paper regularises with a supervised target or with the best of the ranked responses; here it is the chosen.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        delta: the margin asked for, in nats, from 0.
        nll_weight: lambda, weight of the likelihood, from 0; the default is that of public code, not the paper's.
        nll: "token_mean", "sequence_mean" or, as in the paper, "sequence_sum".

    Returns:
        The loss in nats, and the metrics, with the reward log P.

    Example:
        >>> policy = Logps(jnp.float32([[-1.25], [-2.0]]), jnp.float32([[-0.34], [-0.15]]), jnp.int32([1, 1]))
        >>> print(f"{slic_hf(policy, delta=1.0, nll_weight=0.1)[0]:.6f}")
        0.375000

    Verified:
        The paper's formula in 120 digits. TRL has none.

    Reference:
        Yao Zhao, Rishabh Joshi, Tianqi Liu, Misha Khalman, Mohammad Saleh, Peter J. Liu, SLiC-HF: Sequence Likelihood
        Calibration with Human Feedback, 2023, arXiv:2305.10425.
    """
    require(delta >= 0, "delta", delta, "a number from 0")
    logp = total(first(policy, 2))
    loss = jax.nn.relu(delta - logp[0] + logp[1])
    return _add_nll(loss, preference_metrics(policy, logp), policy, "nll_weight", nll_weight, nll)


def orpo(policy: Logps, *, beta: float = 0.1, nll: str = "token_mean") -> tuple[Array, dict[str, Array]]:
    r"""ORPO: the likelihood of the chosen, and the ratio of the two odds per token.

    .. math:: L = NLL(y_w) - \beta \log \sigma\Big(\log \frac{o(y_w)}{o(y_l)}\Big),
        \quad \log o(y) = \bar L(y) - \log(1 - e^{\bar L(y)})

    This is the paper's form, whose likelihood is that of the chosen given the prompt; the authors' code and TRL have
    `orpo_with_prompt`, which trains on the prompts as well. Nothing is clamped but the odds of a response whose tokens
    are all certain: from a mean log-prob of zero up they are held at e^87 in float32 (see `numerics.log1mexp`).

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        beta: the paper's lambda, weight of the odds ratio; TRL's name.
        nll: "token_mean", "sequence_mean" or "sequence_sum".

    Returns:
        The loss in nats, and the metrics, with the reward beta times the mean log-prob, and as in TRL log_odds_chosen,
        the log of the odds ratio, and log_odds_ratio, its log-sigmoid.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> print(f"{orpo(policy, beta=0.1, nll='sequence_mean')[0]:.6f}")
        0.254350

    Verified:
        TRL 1.16's ORPOTrainer (the odds term, rewards, gradients; float32, as it computes), and the paper's formula in
        120 digits.

    Reference:
        Jiwoo Hong, Noah Lee, James Thorne, ORPO: Monolithic Preference Optimization without Reference Model, 2024,
        arXiv:2403.07691, equations 6 and 7.
    """
    return _odds_ratio(policy, policy, beta, nll)


def orpo_with_prompt(
    policy: Logps, prompt: Logps, *, beta: float = 0.1, nll: str = "token_mean"
) -> tuple[Array, dict[str, Array]]:
    r"""ORPO as its authors' code and TRL train it: the likelihood is that of the prompt and the chosen together.

    .. math:: L = NLL(x, y_w) - \beta \log \sigma\Big(\log \frac{o(y_w)}{o(y_l)}\Big),
        \quad \log o(y) = \bar L(y) - \log(1 - e^{\bar L(y)})

    Beside `orpo`, the prompt's own likelihood comes to the loss and its length to the mean's divisor: where prompts are
    long, the chosen's tokens weigh little against them, and less than the odds. The odds are those of the responses
    given the prompt in both. The prompt's first token, which nothing predicts, counts nowhere. TRL and the authors take
    the mean over the tokens of each micro-batch of each device, here it is over those of the global batch.

    Args:
        policy: [K, T] log-probs; candidate 0 is preferred to candidate 1.
        prompt: [P] log-probs of the prompt's tokens; they count where the chosen is there.
        beta: the paper's lambda, weight of the odds ratio; TRL's name.
        nll: "token_mean" as in TRL and the authors' code, "sequence_mean" or "sequence_sum", over prompt and chosen.

    Returns:
        The loss in nats, and the metrics of `orpo`.

    Example:
        >>> policy = Logps(jnp.float32([[-0.25], [-2.0]]), jnp.float32([[-1.5], [-0.15]]), jnp.int32([1, 1]))
        >>> prompt = Logps(jnp.float32([-1.0]), jnp.float32([-0.46]), jnp.int32(1))
        >>> print(f"{orpo_with_prompt(policy, prompt, beta=0.1, nll='sequence_mean')[0]:.5f}")
        0.62935

    Verified:
        TRL 1.16's ORPOTrainer (whole runs, float32: losses, likelihoods, odds, gradient norms, weights), and the
        formula in float64 with its gradient by both.

    Reference:
        Jiwoo Hong, Noah Lee, James Thorne, ORPO: Monolithic Preference Optimization without Reference Model, 2024,
        arXiv:2403.07691, equations 6 and 7, with the likelihood of github.com/xfactlab/orpo.
    """
    chosen = first(policy, 1)
    there = chosen.length[0] > 0
    own = Logps(*(jnp.where(there, x, none) for x, none in zip(prompt, (0.0, ABSENT, 0), strict=True)))
    token, other = (jnp.concatenate([a[None], b], axis=-1) for a, b in zip(own[:2], chosen[:2], strict=True))
    return _odds_ratio(policy, Logps(token, other, own.length + chosen.length), beta, nll)


def _odds_ratio(policy: Logps, likely: Logps, beta: float, nll: str) -> tuple[Array, dict[str, Array]]:
    """Return ORPO with the likelihood of candidate 0 of `likely`."""
    require(beta > 0, "beta", beta, "a number above 0")
    logp = mean(first(policy, 2))
    odds = logp - log1mexp(logp)
    ratio = -jax.nn.softplus(odds[1] - odds[0])
    told = jax.lax.stop_gradient({"log_odds_chosen": odds[0] - odds[1], "log_odds_ratio": ratio})
    return _add_nll(-beta * ratio, preference_metrics(policy, beta * logp) | told, likely, "nll", 1.0, nll)


def _after_gold(policy: Logps) -> Logps:
    """Return the chosen and the rejected of (gold, chosen, rejected)."""
    return Logps(*(x[1:] for x in first(policy, 3)))


def tpo(
    policy: Logps, *, beta: float = 0.01, tpo_alpha: float = 1.0, label_smoothing: float = 0.0, nll: str = "token_mean"
) -> tuple[Array, dict[str, Array]]:
    r"""Triple preference optimisation: the likelihood of a gold response, and a preference between two others.

    .. math:: L = -\log \sigma\big(\beta (L(y_w) - L(y_l))\big) + \alpha \, NLL(y_{gold})

    Three candidates in the order in which ranked data comes: the gold response, the chosen, the rejected.

    Args:
        policy: [K, T] log-probs; candidate 0 is the gold response, candidate 1 is preferred to candidate 2.
        beta: scale of the reward, per nat.
        tpo_alpha: alpha, weight of the gold response's likelihood, from 0.
        label_smoothing: epsilon, from 0 to below 1/2, the probability that a label is wrong; as in TRL.
        nll: "token_mean" as in TRL, "sequence_mean" or "sequence_sum".

    Returns:
        The loss in nats, and the metrics of the pair, with the reward beta log P; nll_loss is the gold response's.

    Example:
        >>> token = jnp.float32([[-0.5], [-0.25], [-2.0]])
        >>> policy = Logps(token, jnp.float32([[-0.93], [-1.5], [-0.15]]), jnp.int32([1, 1, 1]))
        >>> print(f"{tpo(policy, beta=0.1, nll='sequence_mean')[0]:.6f}")
        1.109470

    Verified:
        TRL 1.16's TPOTrainer, `sigmoid` (loss, and gradients by the logits), and the formula in 120 digits.

    Reference:
        Amir Saeidi, Shivanshu Verma, Aswin RRV, Kashif Rasul, Chitta Baral, Triple Preference Optimization: Achieving
        Better Alignment using a Single Step Optimization, 2024, arXiv:2405.16681.
    """
    pair = cpo(_after_gold(policy), beta=beta, cpo_alpha=0.0, label_smoothing=label_smoothing)
    return _add_nll(*pair, policy, "tpo_alpha", tpo_alpha, nll)


def tpo_hinge(
    policy: Logps, *, beta: float = 0.01, tpo_alpha: float = 1.0, nll: str = "token_mean"
) -> tuple[Array, dict[str, Array]]:
    r"""TPO with a hinge: TRL's TPOTrainer, `hinge`.

    .. math:: L = \max\big(0, 1 - \beta (L(y_w) - L(y_l))\big) + \alpha \, NLL(y_{gold})

    Args:
        policy: [K, T] log-probs; candidate 0 is the gold response, candidate 1 is preferred to candidate 2.
        beta: one over the margin asked for, per nat.
        tpo_alpha: alpha, weight of the gold response's likelihood, from 0.
        nll: "token_mean", "sequence_mean" or "sequence_sum".

    Returns:
        The loss, and the metrics of `tpo`.

    Example:
        >>> token = jnp.float32([[-0.5], [-0.25], [-2.0]])
        >>> policy = Logps(token, jnp.float32([[-0.93], [-1.5], [-0.15]]), jnp.int32([1, 1, 1]))
        >>> print(f"{tpo_hinge(policy, beta=0.1, nll='sequence_mean')[0]:.6f}")
        1.325000

    Verified:
        TRL 1.16's TPOTrainer, `hinge` (loss, and gradients by the logits), and the formula in 120 digits.

    Reference:
        Amir Saeidi et al., Triple Preference Optimization, 2024, arXiv:2405.16681, with the hinge of `cpo_hinge`.
    """
    pair = cpo_hinge(_after_gold(policy), beta=beta, cpo_alpha=0.0)
    return _add_nll(*pair, policy, "tpo_alpha", tpo_alpha, nll)


def tpo_ipo(
    policy: Logps, *, beta: float = 0.01, tpo_alpha: float = 1.0, nll: str = "token_mean"
) -> tuple[Array, dict[str, Array]]:
    r"""TPO with IPO's square: TRL's TPOTrainer, `ipo`, on means over tokens.

    .. math:: L = \Big(\bar L(y_w) - \bar L(y_l) - \frac{1}{2 \beta}\Big)^2 + \alpha \, NLL(y_{gold})

    Args:
        policy: [K, T] log-probs; candidate 0 is the gold response, candidate 1 is preferred to candidate 2.
        beta: IPO's tau.
        tpo_alpha: alpha, weight of the gold response's likelihood, from 0.
        nll: "token_mean", "sequence_mean" or "sequence_sum".

    Returns:
        The loss, and the metrics of `tpo`, with the reward beta times the mean log-prob.

    Example:
        >>> token = jnp.float32([[-0.5], [-0.25], [-2.0]])
        >>> policy = Logps(token, jnp.float32([[-0.93], [-1.5], [-0.15]]), jnp.int32([1, 1, 1]))
        >>> print(f"{tpo_ipo(policy, beta=0.1, nll='sequence_mean')[0]:.6f}")
        11.062500

    Verified:
        TRL 1.16's TPOTrainer, `ipo` (loss, and gradients by the logits), and the formula in 120 digits.

    Reference:
        Amir Saeidi et al., Triple Preference Optimization, 2024, arXiv:2405.16681, with the loss of `cpo_ipo`.
    """
    pair = cpo_ipo(_after_gold(policy), beta=beta, cpo_alpha=0.0)
    return _add_nll(*pair, policy, "tpo_alpha", tpo_alpha, nll)


def tpo_l(
    policy: Logps,
    *,
    beta: float = 0.01,
    gamma: float = 0.5,
    tpo_alpha: float = 1.0,
    label_smoothing: float = 0.0,
    nll: str = "token_mean",
) -> tuple[Array, dict[str, Array]]:
    r"""TPO-L: TPO with SimPO's preference, on means over tokens and with a margin. TRL's `tpo-l`.

    .. math:: L = -\log \sigma\big(\beta (\bar L(y_w) - \bar L(y_l)) - \gamma\big) + \alpha \, NLL(y_{gold})

    Args:
        policy: [K, T] log-probs; candidate 0 is the gold response, candidate 1 is preferred to candidate 2.
        beta: scale of the reward; the authors have 0.01 and, with a weight of 0.05 on the likelihood, 2.
        gamma: the target margin between the rewards, from 0; TRL's `tpo_l_gamma`.
        tpo_alpha: alpha, weight of the gold response's likelihood, from 0.
        label_smoothing: epsilon, from 0 to below 1/2, the probability that a label is wrong; as in TRL.
        nll: "token_mean" as in TRL, "sequence_mean" or "sequence_sum".

    Returns:
        The loss in nats, and the metrics of `tpo`, with the reward beta times the mean log-prob.

    Example:
        >>> token = jnp.float32([[-0.5], [-0.25], [-2.0]])
        >>> policy = Logps(token, jnp.float32([[-0.93], [-1.5], [-0.15]]), jnp.int32([1, 1, 1]))
        >>> print(f"{tpo_l(policy, beta=2.0, gamma=1.0, nll='sequence_mean')[0]:.6f}")
        0.578890

    Verified:
        TRL 1.16's TPOTrainer, `tpo-l` (loss, and gradients by the logits), and the formula in 120 digits.

    Reference:
        Amir Saeidi, Shivanshu Verma, Aswin RRV, Kashif Rasul, Chitta Baral, Triple Preference Optimization: Achieving
        Better Alignment using a Single Step Optimization, 2024, arXiv:2405.16681.
    """
    pair = simpo(_after_gold(policy), beta=beta, gamma=gamma, label_smoothing=label_smoothing)
    return _add_nll(*pair, policy, "tpo_alpha", tpo_alpha, nll)
