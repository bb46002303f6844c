"""Messages to text: a chat template writes them, and what it writes is divided into prompt and responses.

Knows messages, Jinja templates and the tokenizer that brings one; knows no token id.
"""

import builtins
import functools
import json
import pathlib
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jinja2

from slpojax import wording
from slpojax.data import counting, dividing, sandbox, turns
from slpojax.data.chain import Text, Transform, each
from slpojax.data.dividing import Template, Written
from slpojax.data.formats import Parsed, Tokens, Unusable
from slpojax.data.options import Setup
from slpojax.data.sandbox import Span
from slpojax.data.tokenise import Tokenizer
from slpojax.data.turns import Messages

# HH's dialogue form, for tokenizers without a chat template: `data.chat_template = "dialogue"`. It has no header for a
# system prompt; as Anthropic's own text form had it, that stands before the first turn.
DIALOGUE = (
    "{% for m in messages %}"
    "{% if m.role == 'assistant' %}{{ '\n\nAssistant: ' }}"
    "{% elif m.role == 'user' %}{{ '\n\nHuman: ' }}"
    "{% elif not loop.first or m.role not in ['system', 'developer'] %}"
    "{{ raise_exception('the dialogue form has a turn of the user and of the assistant alone') }}{% endif %}"
    "{{ m.content }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)

ENDS = ("eos", "template")
REFUSES = "the chat template refuses the messages"
FAILS = "the chat template fails"
_COMMON = "generation prompt of the chat template cut to what stands before the answer"
_LEFT_OUT = "the chat template leaves out or rewrites"
_WORDS = "Vtnqkx"  # an answer that no template writes by itself
_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")
_OWN = ("messages", "tools", "documents", "add_generation_prompt")  # variables that are no arguments of one's own
_NONE: Mapping[str, Any] = MappingProxyType({})
_THOUGHTS = ("reasoning_content", "thinking", "reasoning")  # names of one field; transformers fills in the others


class Rendered(NamedTuple):
    """An example as a chat template writes it, special tokens included.

    Attributes:
        prompt: up to where the assistant answers.
        responses: what each adds to that.
        ended: whether the template itself ends the last turn of each.
        notes: what the report counts.
        spans: of each response, the characters that count; () where all of all of them do.
    """

    prompt: str
    responses: tuple[str, ...]
    ended: tuple[bool, ...]
    notes: tuple[str, ...]
    spans: tuple[tuple[Span, ...], ...] = ()


def render(setup: Setup) -> Transform:
    """Write messages as text; plain text stays as it is.

    Raises:
        ValueError: `data.chat_template` names nothing, or a file that is no template; it reads no variable of
            `data.chat_template_kwargs`; `data.end` is unknown; later, messages without a template, or one that runs on
            and on.
    """
    asked, end, tokenizer = setup.encoding.chat_template, setup.encoding.end, setup.tokenizer
    arguments = setup.encoding.chat_template_kwargs
    if end not in ENDS:
        raise wording.unknown("data.end", end, ENDS)
    if asked or arguments:
        _ready(tokenizer, asked, arguments=arguments)

    def one(text: Text) -> Text:
        if isinstance(text.parsed.prompt, str | Tokens):
            return text
        try:
            written = write(text.parsed, tokenizer, asked, end=end, arguments=arguments, counted=setup.encoding.turns)
        except sandbox.TooMuch as limit:
            raise ValueError(
                f"{_called(asked)} was stopped at row {text.row}: {limit}; mend the template, or leave out this row"
            ) from None
        return text._replace(
            parsed=text.parsed._replace(prompt=written.prompt, responses=written.responses),
            templated=True,
            ended=written.ended,
            spans=written.spans,
            notes=(*text.notes, *written.notes),
        )

    return each(one)


def chat_template(tokenizer: Tokenizer, name: str, *, tools: bool = False) -> str | None:
    """Return the Jinja template that `data.chat_template` asks for, or None where there is none.

    Args:
        tokenizer: its template is taken for "".
        name: "", "dialogue" (HH's form: Human and Assistant), a file, or one of the tokenizer's templates, where it has
            several.
        tools: whether there are tools; a tokenizer may have a template of its own for them.

    Raises:
        ValueError: there is no such template, or the tokenizer has several, of which none is the default.
    """
    own = tokenizer.chat_template
    several = own if isinstance(own, dict) else {}
    if not name and several:
        default = "tool_use" if tools and "tool_use" in several else "default"
        if default not in several:
            raise ValueError(
                f"the tokenizer has several chat templates, {wording.few(sorted(several))}, and none is called "
                "default; set data.chat_template to the name of one"
            )
        return str(several[default])
    if not name:
        return own or None
    if name == "dialogue" or name in several:
        return DIALOGUE if name == "dialogue" else str(several[name])
    if not pathlib.Path(name).is_file():
        raise ValueError(
            f"data.chat_template={name!r}: no such file{wording.near_paths(name)}; expected '' (the tokenizer's), "
            f"'dialogue'{''.join(f', {other!r}' for other in sorted(several))} or a Jinja file"
        )
    try:
        return pathlib.Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"data.chat_template={name!r} cannot be read as a text in UTF-8 ({type(error).__name__}); give a Jinja file"
        ) from None


def write(
    parsed: Parsed,
    tokenizer: Tokenizer,
    name: str,
    *,
    end: str = "eos",
    arguments: Mapping[str, Any] = _NONE,
    counted: str = counting.ALL,
) -> Rendered:
    """Write messages as text: the prompt up to where the assistant answers, and what each response adds to that.

    A template may close every turn with EOS; a response of several turns then holds some, and ends with the last.
    Where the generation prompt is not what the template writes before an answer, as with thoughts that it opens, the
    prompt is cut at their common beginning. A response ends with EOS where `end` is "eos", with all that the template
    writes where it is "template". `arguments` are further variables of the template, as `enable_thinking`. `counted`
    says which turns count, as `data.turns`.

    Raises:
        Unusable: the template refuses the messages or fails, or writes the turns of the prompt differently once a
            response follows, or those of a response whose turns do not all count once later ones do.
        ValueError: there is no template, or a faulty one.
        sandbox.TooMuch: the template goes over a limit.
    """
    prompt, responses = parsed.prompt, parsed.responses
    assert not isinstance(prompt, str | Tokens)
    template = _ready(tokenizer, name, tools=bool(parsed.tools), arguments=arguments)
    dialogues: list[Messages] = [(*prompt, *response) for response in responses]  # type: ignore[misc]
    asked = template.draw(prompt, parsed.tools, True)
    wholes = [template.draw(dialogue, parsed.tools, False) for dialogue in dialogues]
    lost = set().union(*(_left_out(d, parsed.tools, whole) for d, whole in zip(dialogues, wholes, strict=True)))
    notes: tuple[str, ...] = (f"{_LEFT_OUT} {wording.few(sorted(lost))}",) if lost else ()
    cut = dividing.begin(template, prompt, parsed.tools, asked, wholes, tokenizer, dividing.DIFFERENT)
    notes += (_COMMON,) * (cut < len(asked))
    texts = tuple(whole[cut:] for whole in wholes)
    if end == "eos":
        texts = tuple(dividing.until_eos(text, tokenizer.eos_token) for text in texts)
    spans: tuple[tuple[Span, ...], ...] = ()
    if counted != counting.ALL:
        found = [
            dividing.spans(template, counted, Written(dialogue, len(prompt), parsed.tools, whole, cut), tokenizer, end)
            for dialogue, whole in zip(dialogues, wholes, strict=True)
        ]
        spans = tuple(counting.within(one, cut, len(text)) for one, text in zip(found, texts, strict=True))
        if not all(spans):
            raise Unusable(counting.NOTHING)
        open_ends = (text[one[-1][1] :].strip() for one, text in zip(spans, texts, strict=True))
        notes += (counting.OPEN_END,) * sum(map(bool, open_ends))
        spans *= not all(map(counting.covers, spans, texts))
    # A call of a tool may end otherwise than words do, but also with a special token.
    specials = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    ends = tuple(end for end in (template.end.strip(), *specials) if end)
    ended = tuple(text.rstrip().endswith(ends) for text in texts)
    return Rendered(asked[:cut], texts, ended, notes, spans)


def dialogue(messages: Messages, tokenizer: Tokenizer, name: str = "") -> str:
    """Write a whole dialogue, with all that the template puts behind its last turn.

    Raises:
        Unusable: the template refuses the messages or fails.
        ValueError: there is no template, or a faulty one.
        sandbox.TooMuch: the template goes over a limit.
    """
    return _ready(tokenizer, name).draw(messages, (), False)


def ask(
    messages: Messages,
    tokenizer: Tokenizer,
    name: str,
    *,
    tools: tuple[dict[str, Any], ...] = (),
    arguments: Mapping[str, Any] = _NONE,
) -> str:
    """Return messages as a template writes them for the assistant to answer; see `write` for what is raised."""
    return _ready(tokenizer, name, tools=bool(tools), arguments=arguments).draw(messages, tools, True)


def special(setup: Setup) -> str:
    """Return a line on the special tokens of what a chat template writes: how a response ends, and whether with BOS."""
    tokenizer = setup.tokenizer
    template = _ready(tokenizer, setup.encoding.chat_template, arguments=setup.encoding.chat_template_kwargs)
    eos = f"EOS {tokenizer.eos_token} ({tokenizer.eos_token_id})"
    bos = f"BOS {tokenizer.bos_token} ({tokenizer.bos_token_id})"
    end = template.end.strip()
    by_itself = end and not end.endswith(tokenizer.eos_token)
    ending = (
        f"{template.end!r} of the chat template ends a response, no {eos}" if by_itself else f"{eos} ends a response"
    )
    begins = tokenizer.bos_token and template.begins.startswith(tokenizer.bos_token)
    return f"{ending}; {f'{bos} of the chat template' if begins else 'no BOS'}"


def _ready(tokenizer: Tokenizer, name: str, *, tools: bool = False, arguments: Mapping[str, Any] = _NONE) -> Template:
    """Return the template that is asked for, ready to write.

    Raises:
        ValueError: there is no template, it is none that Jinja can read, or it does not read one of the arguments.
    """
    source = chat_template(tokenizer, name, tools=tools)
    if source is None:
        raise ValueError(
            "the records hold messages, and the tokenizer has no chat template; set data.chat_template to 'dialogue' "
            "(HH's form) or to a Jinja file, or take the tokenizer of a chat model"
        )
    names = sorted(tokenizer.special_tokens_map.items())
    given = tuple((key, value if isinstance(value, str) else tuple(map(str, value))) for key, value in names)
    try:
        _require_known(arguments, source, (*_OWN, *tokenizer.special_tokens_map), _called(name))
        return _compiled(source, given, json.dumps(dict(arguments)))
    except sandbox.TooMuch as limit:
        raise ValueError(
            f"{_called(name)} was stopped at a dialogue of two turns: {limit}; mend the template"
        ) from None
    except (jinja2.TemplateSyntaxError, RecursionError) as error:
        line = f"line {error.lineno}: {error.message}" if isinstance(error, jinja2.TemplateSyntaxError) else "too deep"
        raise ValueError(f"{_called(name)} is no Jinja template: {line[:300]}; mend it, or take another one") from None


def _require_known(arguments: Mapping[str, Any], source: str, own: Sequence[str], called: str) -> None:
    """Refuse arguments that a template does not read, or that are set by who writes with it."""
    for key in arguments:
        known = sandbox.variables(source) - {*own}
        if key not in known:
            reads = f"it reads {wording.few(sorted(known), 20)}" if known else "it reads none of one's own"
            raise ValueError(
                f"config.data.chat_template_kwargs.{key}: {called} reads no variable of this name"
                f"{wording.near(key, known)}; {reads}"
            )


@functools.lru_cache(maxsize=16)
def _compiled(source: str, given: tuple[tuple[str, Any], ...], arguments: str) -> Template:
    plain, further = sandbox.compiled(source), json.loads(arguments)

    def draw(messages: Messages, tools: tuple[dict[str, Any], ...], ask: bool, run: Callable[..., str] = plain) -> str:
        said = [_as_transformers(turn) for turn in messages]
        try:
            return run(
                **dict(given),
                **further,
                messages=said,
                tools=list(tools) or None,
                documents=None,
                add_generation_prompt=ask,
            )
        except sandbox.TooMuch:
            raise
        except Exception as error:  # whatever a template's own code makes of Jinja and Python
            raise _reason(error, source) from None

    question, answer = {"role": "user", "content": "?"}, {"role": "assistant", "content": _WORDS}
    try:
        end = draw((question, answer), (), False).partition(_WORDS)[2]
        begins = draw((question,), (), True)
    except Unusable:
        end = begins = ""
    marked = None
    if sandbox.generates(source):
        marked = functools.partial(draw, run=sandbox.compiled(source, marks=True))
    return Template(draw, end, begins, marked)


def _as_transformers(turn: dict[str, Any]) -> dict[str, Any]:
    """Return a message as transformers hands it to a template: thoughts by the names that templates know."""
    thought = next((turn[name] for name in _THOUGHTS if turn.get(name) is not None), None)
    return turn if thought is None else {"thinking": thought, **turn, "reasoning_content": thought}


def _reason(error: Exception, source: str) -> Unusable:
    """Return the reason why a template stopped: in its own words, as far as they stand in the template itself.

    What it puts into its words may be the text of a row, which no reason holds.
    """
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
    place, words = f" in line {lines[-1]}" if lines else "", str(error)
    if type(error) is jinja2.TemplateError:
        own = next((n for n in range(min(len(words), 200), 7, -1) if words[:n] in source), 0)
        said = f": {words[:own].strip()}{'...' * (own < len(words))}" if own else ""
        return Unusable(f"{REFUSES}{place}{said}")
    names = [name for pair in _QUOTED.findall(words) for name in pair if name and not name.endswith(" object")]
    known = all(name in source or name == "NoneType" or hasattr(builtins, name) for name in names)
    told = known and isinstance(error, jinja2.UndefinedError | TypeError)
    return Unusable(f"{FAILS}{place} ({type(error).__name__}{f': {words[:200]}' if told else ''})")


def _left_out(messages: Messages, tools: tuple[dict[str, Any], ...], written: str) -> set[str]:
    """Return the fields whose texts a template did not write as they are."""
    said = [part for turn in messages for part in turns.said(turn)]
    said += [("tools", turns.function_name(tool)) for tool in tools]
    return {name for name, text in said if text.strip() not in written}


def _called(name: str) -> str:
    return f"data.chat_template={name!r}" if name else "the tokenizer's chat template"
