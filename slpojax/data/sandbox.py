"""Chat templates run within limits: of steps and of sizes, so that none runs for ever or fills the memory.

Knows Jinja, and the environment in which transformers renders chat templates; knows no message and no tokenizer.
Jinja's sandbox keeps a template from Python's internals. Here the turns of its loops, its calls and its operations are
counted, and the texts and lists that it makes are measured. Counts decide, not a clock: a template that ends on one
machine ends on all. What a template writes within `{% generation %}`, a tag of transformers for what the assistant
writes, can be told from the rest.
"""

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import jinja2
from jinja2 import ext, meta, nodes, visitor
from jinja2.sandbox import ImmutableSandboxedEnvironment

STEPS = 1_000_000  # turns of loops, calls, filters and operations of one text
SIZE = 10_000_000  # characters of a value, an item of a list counting as many as `_ITEM`
_ITEM = 16
_WORK = 200_000_000  # characters and items of all values of one text, and what one operation may multiply to
_NUMBER = 1_000_000  # of a call, as a width or a number of repeats; range has a limit of its own
_BITS = 10_000  # of a whole number
_UNKNOWN = 100_000  # items of a generator, at most as many as range gives
_WIDTH = re.compile(r"\d{7}")  # in a format string


# Private characters around what stands within `{% generation %}`, where the marks are asked for.
BEGINS, ENDS = "\U0010fffc", "\U0010fffd"

Span: TypeAlias = tuple[int, int]  # of characters: the first, and the one behind the last


class TooMuch(Exception):
    """A template went over a limit; the message says over which."""


@functools.lru_cache(maxsize=32)
def compiled(source: str, marks: bool = False) -> Callable[..., str]:
    """Return a function that renders a template with the variables that it is given by name.

    Args:
        source: of the template.
        marks: whether `BEGINS` and `ENDS` stand around what is written within `{% generation %}`.

    Raises:
        jinja2.TemplateSyntaxError: the template is none; later whatever it raises, and `TooMuch`.
    """
    environment = _environment()
    tree = environment.parse(source)
    _Counted().visit(tree)
    tree.set_environment(environment)
    try:
        code = environment.compile(tree)
    except (RecursionError, SyntaxError, MemoryError) as error:  # what Python says of nesting without end
        raise jinja2.TemplateSyntaxError(f"nested too deeply ({type(error).__name__})", 1) from None
    template = jinja2.Template.from_code(environment, code, environment.make_globals(None))

    def render(**variables: Any) -> str:
        environment.begin(marks)
        return template.render(**variables)

    return render


@functools.lru_cache(maxsize=16)
def variables(source: str) -> frozenset[str]:
    """Return the names of the variables that a template reads and does not set itself."""
    return frozenset(meta.find_undeclared_variables(_environment().parse(source)))


@functools.lru_cache(maxsize=16)
def generates(source: str) -> bool:
    """Say whether a template marks what the assistant writes, by `{% generation %}`."""
    calls = (block.call.node for block in _environment().parse(source).find_all(nodes.CallBlock))
    return any(isinstance(node, nodes.ExtensionAttribute) and node.name == _Generation.hold.__name__ for node in calls)


def spans(text: str) -> tuple[str, list[Span]] | None:
    """Return a rendered text without its marks, and where in it they stood; None where one of them lacks the other.

    Example:
        >>> spans(f"ab{BEGINS}c{ENDS}{BEGINS}{ENDS}d")
        ('abcd', [(2, 3), (3, 3)])
    """
    found: list[Span] = []
    open_: list[int] = []
    for number, mark in enumerate(re.finditer(f"[{BEGINS}{ENDS}]", text)):
        at = mark.start() - number
        if mark[0] == BEGINS:
            open_.append(at)
        elif not open_:
            return None
        else:
            found.append((open_.pop(), at))
    return None if open_ else (re.sub(f"[{BEGINS}{ENDS}]", "", text), sorted(found))


class _Limited(ImmutableSandboxedEnvironment):
    """Jinja's sandbox that counts, by the hooks that it offers."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def begin(self, marks: bool = False) -> None:
        self.steps, self.work, self.marks = 0, 0, marks

    def step(self) -> None:
        self.steps += 1
        if self.steps > STEPS:
            raise TooMuch(f"it takes more than {STEPS:,} steps for one text")

    def measure(self, value: Any) -> Any:
        """Count a step and what a value holds; return the value."""
        self.step()
        self.work += _size(value)
        if self.work > _WORK:
            raise TooMuch(f"it makes values of more than {_WORK:,} characters for one text")
        return value

    def counted(self, values: Iterable[Any]) -> Iterator[Any]:
        """Count the turns of a loop."""
        for value in values:
            self.step()
            yield value

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 (Jinja's own names)
        bound = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        if __obj is not __self.globals["range"]:
            _check(bound, (*args, *kwargs.values()), _NUMBER)
        if getattr(__obj, "__name__", "") in ("format", "format_map"):
            _check_format(bound)
        return __self.measure(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*" and not (_is_number(left) and _is_number(right)):
            _check_product(_factor(left), _factor(right))
        elif operator == "**" and isinstance(left, int) and _is_number(right):
            _check_bits(left.bit_length() * right)
        elif operator == "%" and isinstance(left, str):
            _check(left, right if isinstance(right, tuple) else (right,), _NUMBER)
            _check_format(left)
        return self.measure(super().call_binop(context, operator, left, right))


class _Generation(ext.Extension):
    """The tag `{% generation %}` of transformers' chat templates, around what the assistant writes.

    Theirs counts the characters that were written before it, which is wrong within a macro or a `{% set %}`; marks in
    the text itself are right wherever it goes.
    """

    tags = {"generation"}

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method(_Generation.hold.__name__), [], [], body).set_lineno(line)

    def hold(self, caller: Callable[[], str]) -> str:
        text, environment = caller(), self.environment
        assert isinstance(environment, _Limited)
        return f"{BEGINS}{text}{ENDS}" if environment.marks else text


class _Counted(visitor.NodeTransformer):
    """Has the loops of a template counted, and measured what is made and compared without a call."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _through("counted", node.iter)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _through("measure", node.expr)
        for operand in node.ops:
            operand.expr = _through("measure", operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _through("measure", node) if isinstance(node.arg, nodes.Slice) and node.ctx == "load" else node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _through("measure", node) if node.ctx == "load" else node

    def _made(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return _through("measure", node)

    visit_Concat = visit_List = visit_Dict = _made


def _through(name: str, node: nodes.Node) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


@functools.cache
def _environment() -> _Limited:
    """Return transformers' environment for chat templates, with limits; one text is rendered at a time."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    theirs = _compile_jinja_template("").environment
    environment = _Limited(
        trim_blocks=theirs.trim_blocks,
        lstrip_blocks=theirs.lstrip_blocks,
        extensions=[_Generation, *(type(e) for e in theirs.extensions.values() if not e.tags & _Generation.tags)],
    )
    environment.begin()
    environment.finalize = environment.measure
    environment.globals |= theirs.globals
    environment.filters |= theirs.filters
    del environment.globals["lipsum"]  # paragraphs without end
    del environment.filters["wordwrap"]  # takes the square of a text's length
    of_filters = {name: _limited(environment, value, name) for name, value in environment.filters.items()}
    environment.filters |= of_filters | {"counted": environment.counted, "measure": environment.measure}
    environment.tests |= {name: _limited(environment, value, name) for name, value in theirs.tests.items()}
    return environment


def _limited(environment: _Limited, function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return a filter or test that checks its arguments before it makes anything of them."""
    most = 100 if name == "tojson" else 10_000  # an indentation is written once a line and level

    @functools.wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        first, *others = args[1:] if hasattr(function, "jinja_pass_arg") else args
        environment.work += _length(first)
        _check(first, (*others, *kwargs.values()), most)
        if name == "format":
            _check_format(first)
        return environment.measure(function(*args, **kwargs))

    return limited


def _check(first: Any, others: Iterable[Any], most: int) -> None:
    """Refuse a call whose result could be too large: for a number above `most`, or for a product of sizes."""
    for other in others:
        if _is_number(other) and abs(other) > most:
            raise TooMuch(f"a number above {most:,} goes into an operation")
        _check_product(max(1, _length(first)), _factor(other))


def _check_product(first: int | float, second: int | float) -> None:
    if first * second > _WORK:
        raise TooMuch(f"an operation may make more than {_WORK:,} characters")


def _check_bits(count: int | float) -> None:
    if count > _BITS:
        raise TooMuch(f"it makes a number of more than {_BITS:,} bits")


def _check_format(text: Any) -> None:
    if isinstance(text, str) and _WIDTH.search(text):
        raise TooMuch("a format has a width of more than six digits")


def _factor(value: Any) -> int | float:
    return abs(value) if _is_number(value) else _length(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _length(value: Any) -> int:
    """Return how many characters or items a value has, by itself."""
    try:
        return len(value)
    except TypeError:
        return _UNKNOWN if hasattr(value, "__next__") else 1


def _size(value: Any) -> int:
    """Return how many characters and items a value holds, with all that is inside of it.

    Raises:
        TooMuch: more than `SIZE`.
    """
    total, todo = 0, [value]
    while todo:
        inner = todo.pop()
        if isinstance(inner, str):
            total += len(inner)
        elif isinstance(inner, int):
            total += 1
            if inner.bit_length() > _BITS:
                _check_bits(inner.bit_length())
        elif isinstance(inner, Mapping):
            total += _ITEM * len(inner)
            todo += [*inner.keys(), *inner.values()]
        elif isinstance(inner, list | tuple):
            total += _ITEM * len(inner)
            todo += inner
        else:
            total += 1
        if total > SIZE:
            raise TooMuch(f"it makes a value of more than {SIZE:,} characters")
    return total
