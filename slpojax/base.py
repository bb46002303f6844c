"""The shared vocabulary: axes, and the records that cross from one floor to the next.

Knows shapes and names; knows no model, no objective, no mesh and no configuration.

Axes
    B  examples in the global batch         R  rows of a batch
    K  candidates of an example             L  length of a row, in tokens
    T  positions of a response              G  groups of rows that are scored together
    D  width of the model                   S  scored tokens of a group
    V  vocabulary                           P  scored positions of a prompt: all but the first
"""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

Array: TypeAlias = jax.Array | np.ndarray
Params: TypeAlias = Any  # a nested dict of arrays
Key: TypeAlias = jax.Array
Scalar: TypeAlias = float | Float[Array, ""]  # a hyperparameter: a Python number, or an array where it is traced

# log(1 - p) where there is no token. exp() of it is 0, and sums of thousands of it stay finite in float32.
ABSENT = -1e30
# Before the names of a step's metrics that are of every example, [B], and no means.
EACH = "each/"
# An adapter's pair and its scale, by their names beside the weight of a linear map.
ADAPTER = ("lora_a", "lora_b", "lora_scale")
# The scales of a weight that is kept as codes of few bits, by their name beside it.
NARROW = "weight_scale"


def stream_number(name: str) -> int:
    """Return the number that stands for a named stream of random numbers: 31 bits of a digest above 2^31.

    No count of steps or examples reaches it, so no stream that folds in a count is one that folds in a name.

    Example:
        >>> stream_number("judge") >= 2**31, stream_number("judge") == stream_number("pairs")
        (True, False)
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) | 2**31


def named_key(key: Key, name: str) -> Key:
    """Return the key of a named stream: what draws from it shares no random number with any other name or count.

    Args:
        key: of the run; nothing else is drawn from it.
        name: of the stream, such as "judge".
    """
    return jax.random.fold_in(key, stream_number(name))


class Logps(NamedTuple):
    """Log-probabilities of one or more responses, or of prompts; leading axes are free.

    Where there is no token, `token` is 0 (probability one) and `other` is `ABSENT` (probability zero), the identity
    elements of the reductions in `slpojax.sequence`, so nothing downstream needs a mask.

    Attributes:
        token: log p(y_t | x, y_<t), in nats, float32.
        other: log(1 - p(y_t | x, y_<t)), in nats, float32, exact also where p rounds to one.
        length: the number of response tokens that count (all, EOS included, unless `data.turns` leaves some out); 0
            where a candidate is absent. Of a prompt it is one less than its tokens, as nothing predicts the first one.
    """

    token: Float[Array, "*lead T"]
    other: Float[Array, "*lead T"]
    length: Int[Array, "*lead"]


class Rows(NamedTuple):
    """What a model reads: packed rows in which each example stores its prompt once and its responses as branches.

    A query attends to a key of the same example that stands no later in the row and belongs to the prompt (branch 0)
    or to the query's own branch.

    Attributes:
        token: token ids.
        position: position for the model's rotary embedding; every branch restarts at its prompt's length.
        example: 1, 2, ... within the row; 0 marks padding.
        branch: 0 for the prompt, k + 1 for candidate k.
    """

    token: Int[Array, "R L"]
    position: Int[Array, "R L"]
    example: Int[Array, "R L"]
    branch: Int[Array, "R L"]


class Scored(NamedTuple):
    """The scored tokens of packed rows: where each is predicted, what it is, and where its log-prob goes.

    They are those of the responses that count, and the prompts' too where an objective asks for these. T numbers the
    tokens that count, one behind the other; others have no slot.

    A group is R / G neighbouring rows, those of one micro-batch that one device holds. Only the sum over a group sets
    how many positions the vocabulary meets, not the row that has the most.

    Attributes:
        source: index among the group's cells (0..R/G*L-1) of the hidden state that predicts the token; the last prompt
            position serves the first token of every branch. 0 where unused.
        target: the token id. 0 where unused.
        slot: (b * K + k) * T + t in the flattened [B, K, T] of the *global* batch; behind these, for token t + 1 of a
            prompt, B * K * T + b * P + t; B * (K * T + P) where unused.
        cell: index, counted as `source`, of the token's own hidden state, which a score head reads; 0 where unused.
            None where nobody reads it.
    """

    source: Int[Array, "G S"]
    target: Int[Array, "G S"]
    slot: Int[Array, "G S"]
    cell: Int[Array, "G S"] | None = None


class Batch(NamedTuple):
    """One global batch. `rows` and `scored` are split over the mesh along R and G; the rest is small and everywhere.

    Attributes:
        rows: what the model reads.
        scored: which hidden states are scored.
        length: tokens of each response that count; 0 where a candidate is absent.
        score: rank scores or rewards of the candidates, higher is better; 0 where the data has none.
        label: 1 where candidate 0 is desirable, 0 where it is not; 1 where the data has none, 0 for a filler.
        weight: of the example in the loss, for objectives that read it; 1 unless the prompts are matched.
        index: the example's index in its dataset; -1 for a filler example (only in evaluations).
        ref: the reference's log-probs where they are cached, else None.
        previous: the same of a second frozen model.
    """

    rows: Rows
    scored: Scored
    length: Int[Array, "B K"]
    score: Float[Array, "B K"]
    label: Float[Array, " B"]
    weight: Float[Array, " B"]
    index: Int[Array, " B"]  # type: ignore[assignment]  # tuple.index, which nobody calls on a batch
    ref: Logps | None
    previous: Logps | None


class Share(NamedTuple):
    """Which rows of a batch this process holds: some of the equal parts that the rows are cut into.

    Processes that hold the same rows, as those do that a tensor axis spans, have the same parts.

    Attributes:
        parts: numbers of the parts, rising.
        of: how many parts there are; it divides the rows and the groups.
    """

    parts: tuple[int, ...] = (0,)
    of: int = 1


class Shapes(NamedTuple):
    """The static sizes of a batch; fixed for a run, so that one compilation serves it, or one for each of `lengths`."""

    examples: int  # B
    candidates: int  # K
    response: int  # T
    rows: int  # R
    length: int  # L
    scored: int  # S
    groups: int = 1  # G
    # Where every example has a row of its own: (L, S) of the sizes that batches come in, rising in L; else none.
    lengths: tuple[tuple[int, int], ...] = ()
    prompt: int = 0  # P; 0 where prompts are not scored


class State(NamedTuple):
    """Everything that a train step changes.

    Attributes:
        step: steps taken.
        params: what the optimiser moves: the policy's, or a part of them or adapters (see `slpojax.trained`), and those
            of readers.
        optimizer: its state.
        objective: running statistics, or None.
        key: of the run; every step folds its number in.
        reference: the reference's parameters where it follows the policy, as far as they move; one that stays is no
            part of this.
    """

    step: Int[Array, ""]
    params: Params
    optimizer: Any
    objective: Any
    key: Key
    reference: Params | None = None


class Frozen(NamedTuple):
    """Weights that no step changes; they are never donated.

    Attributes:
        base: those that the trained ones complete to a policy; None where all of the policy's are trained.
        reference: the reference's; None where its log-probs come with the batches, or it follows the policy.
    """

    base: Params | None = None
    reference: Params | None = None


class Model(NamedTuple):
    """A model as pure functions and two tables.

    Attributes:
        init: key -> params, float32, a nested dict; the layers are stacked along a leading axis.
        apply: (params, rows, cache) -> (hidden, cache). `hidden` [R, L, D] is normalised and ready for the unembedding,
            in the compute dtype. With `cache=None` the rows are self-contained and None comes back.
        layers: (params, rows, read) -> (hidden, what `read` makes of every layer's output [R, L, D], stacked).
        unembed: params -> [D, V], the array that turns hidden states into logits (the embedding transposed if tied);
            ValueError where there is a score head in its place.
        empty_cache: (rows, length) -> cache for `rows` sequences of up to `length` tokens.
        empty_pool: (parts, lanes, width, blocks, slots, tokens) -> cache for sampling, see `models.attention.Pool`.
        sharding: (regular expression on the '/'-joined path of a parameter, PartitionSpec over fsdp and tensor) pairs;
            the first match counts.
        tensors: the table between parameters and the tensors of a Hugging Face checkpoint (see `slpojax.hf`).
        score: params -> [D], the weights of a score head; None for a language model.
        linear: paths of the layers' linear maps, each of which adds the product of an adapter's pair where the
            parameters hold one beside its weight (see `slpojax.trained.lora`).
        cap: of the logits, which are cap tanh(product with the unembedding / cap); None for the product itself.
    """

    init: Callable[[Key], Params]
    apply: Callable[..., tuple[Float[Array, "R L D"], Any]]
    layers: Callable[[Params, Rows, Callable[[Array], Any]], tuple[Float[Array, "R L D"], Any]]
    unembed: Callable[[Params], Float[Array, "D V"]]
    empty_cache: Callable[[int, int], Any]
    empty_pool: Callable[..., Any]
    sharding: tuple[tuple[str, jax.sharding.PartitionSpec], ...]
    tensors: tuple[Any, ...]
    score: Callable[[Params], Float[Array, " D"]] | None = None
    linear: tuple[str, ...] = ()
    cap: float | None = None


__all__ = [
    "ABSENT",
    "ADAPTER",
    "EACH",
    "NARROW",
    "Array",
    "Batch",
    "Bool",
    "Float",
    "Frozen",
    "Int",
    "Key",
    "Logps",
    "Model",
    "Params",
    "Rows",
    "Scalar",
    "Scored",
    "Shapes",
    "Share",
    "State",
    "named_key",
    "stream_number",
]
