"""The settings of a data set, in four small groups: where it is, how it is encoded, what is compared, what scores say.

Knows the names of the settings and their defaults; knows no transform, so every transform of the chain refuses the
values of its settings itself. See `slpojax.data.loading`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from slpojax import wording


class Source(NamedTuple):
    """What is read. Examples are the same wherever the same records are read from.

    Attributes:
        path: a hub name, a folder, or a comma-separated list of files; `sources.read` lists the forms.
        split: of a hub or saved data set; files have none.
        rows: "start:stop" of the source's rows, counted from 0; "" for all.
        samples: a file of the policy's samples, whose answers to the same prompts stand behind the two responses of a
            record; "" for none.
        held_out: whether the examples are evaluated on. They have no samples, and their places stay empty.
    """

    path: str
    split: str = "train"
    rows: str = ""
    samples: str = ""
    held_out: bool = False


class Encoding(NamedTuple):
    """How a record becomes token ids, and what happens to one that is too long.

    Attributes:
        format: a parser of `slpojax.data.formats`, or `package.module.name` of any importable one.
        bos: before plain prompts: "tokenizer" (where the tokenizer adds one by itself) | "never" | "always".
        chat_template: for messages: "" (the tokenizer's) | "dialogue" (HH's form) | a Jinja file | the name of one of
            the tokenizer's templates, where it has several.
        chat_template_kwargs: further variables of the template by name, as `enable_thinking`; it must read each.
        end: where a response that a chat template writes ends: "eos" (its EOS is the last token) | "template" (as it is
            written to the end of the turn).
        turns: of a response of messages, the turns whose tokens count: "all" (every token of the response, which ends
            before a user's next turn) | "assistant" (what the assistant wrote) | "last" (its last turn alone). With
            the last two the response goes on through a user's turns, which never count.
        max_length: most tokens of a prompt plus one response.
        max_prompt_length: tokens that a prompt keeps where it is cut; above 0, below `max_length`.
        too_long: "drop" | "cut_prompt" | "cut_response" | "original", the policies of `slpojax.data.too_long`.
    """

    format: str = "hh"
    bos: str = "tokenizer"
    chat_template: str = ""
    chat_template_kwargs: Mapping[str, Any] = MappingProxyType({})
    end: str = "eos"
    turns: str = "all"
    max_length: int = 512
    max_prompt_length: int = 256
    too_long: str = "cut_prompt"


class Candidates(NamedTuple):
    """Which candidates of a record are compared, and what examples are made of them.

    Attributes:
        candidates: K, the most that are taken of a record, best first. A record with fewer, but two of them, is taken
            too, and the others are absent. Beside the best, empty responses do not count, nor those with the best's
            tokens.
        ties: "drop" leaves out candidates that are ranked equal to the best, which are no negatives of it; "keep" takes
            them, for objectives that read scores. Either way a record whose candidates are all ranked equal is dropped.
        pairs: "" | "best" | "extremes" | "two_std_below" | "all" | "random": pairs that are made of the candidates. No
            candidate is then left out as a tie: it is in no pair with one of its score, but in those with others.
        accept: candidates that statistical rejection sampling leaves for the pairs, from 2 on; 0 for all.
        accept_beta: its temperature, above 0, in the unit of the scores.
        unpair: make a labelled example of every candidate: the best is desirable, the others are not.
        mismatched: add to every example, as its last candidate, a response to another prompt.
        degrade: copies that are added of each response of a pair, with more and more of its key content removed.
        swapped: add to every example, as its last candidate, the preferred response with two tokens swapped.
    """

    candidates: int = 2
    ties: str = "drop"
    pairs: str = ""
    accept: int = 0
    accept_beta: float = 0.5
    unpair: bool = False
    mismatched: bool = False
    degrade: int = 0
    swapped: bool = False


class Rules(NamedTuple):
    """What scores decide beside the order of the candidates.

    Attributes:
        length_penalty: taken from a score for each token of its response, before pairs are made; 0 for none.
        least_variance: a prompt whose preference variance, at most 1/4, is below it is dropped; 0 for none.
        least_gap: a pair whose scores are nearer to each other is left out, in their unit; 0 for none.
    """

    length_penalty: float = 0.0
    least_variance: float = 0.0
    least_gap: float = 0.0


class Settings(NamedTuple):
    """What examples depend on, beside the records, the tokenizer and the seed."""

    encoding: Encoding = Encoding()
    candidates: Candidates = Candidates()
    rules: Rules = Rules()


DEFAULTS = Settings()

# The names of all settings, one list for configurations, caches and errors.
FIELDS = (*Encoding._fields, *Candidates._fields, *Rules._fields)


class Setup(NamedTuple):
    """What a transform is made from.

    Attributes:
        source: what is read.
        encoding: how records become token ids.
        candidates: what is made of the candidates.
        rules: what their scores decide.
        tokenizer: of `tokenise.load_tokenizer`.
        seed: of every random draw.
    """

    source: Source
    encoding: Encoding
    candidates: Candidates
    rules: Rules
    tokenizer: Any
    seed: int


def settings(values: Mapping[str, Any]) -> Settings:
    """Return the settings of these names, the others by default.

    Args:
        values: name of `FIELDS` -> value.

    Example:
        >>> settings({"format": "pairs", "candidates": 1}).encoding.format
        'pairs'

    Raises:
        ValueError: a name is unknown; lists the near ones.
    """
    for name in values:
        if name not in FIELDS:
            raise wording.unknown("setting of data", name, FIELDS, listed="slpojax/defaults.py")

    def group(kind: type) -> Any:
        return kind(**{name: values[name] for name in kind._fields if name in values})  # type: ignore[attr-defined]

    return Settings(group(Encoding), group(Candidates), group(Rules))


def as_dict(chosen: Settings) -> dict[str, Any]:
    """Return all settings by name, in the order of `FIELDS`: what `settings` takes, and what a cache depends on."""
    return {name: value for group in chosen for name, value in group._asdict().items()}
