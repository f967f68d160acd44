"""Conditions on the columns of a row, written as text: `lang == "de" and num_tokens_chosen < 512`.

The text has the grammar of a Python expression, of which only the nodes below are known. It is never run as Python: it
becomes an expression of Arrow, which looks at whole columns. As in SQL, a row whose condition is null is left out.

    a == 1, a != 1, a < 1, a <= b, 0 < a < 1       comparisons of numbers and texts
    a in ["x", "y"], a not in [1, 2]               lists
    a is None, a is not None                       null or not
    p and q, p or q, not p                         logic
    a + b, a - b, a * b, a / b, -a                 arithmetic; / gives a float
    meta.lang                                      a field of a struct
    column("a name with spaces")                   a column of any name
    length(a), lower(a), contains(a, "x"), startswith(a, "x"), endswith(a, "x"), abs(a)
    number(a)                                      a number that is written as text
"""

import ast
import functools
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ConfigError
from pipeline.schema import require_columns
from pipeline.shown import shown

_MOST_CHARS: Final = 10_000
_COMPARED: Final[dict[type[ast.cmpop], Callable[[Any, Any], Any]]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a.isin(b),
    ast.NotIn: lambda a, b: ~a.isin(b),
}
_OPERATORS: Final[dict[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda a, b: a.cast(pa.float64()) / b,
}
_FUNCTIONS: Final[dict[str, tuple[Callable[..., Any], int]]] = {
    "length": (pc.utf8_length, 0),
    "lower": (pc.utf8_lower, 0),
    "abs": (pc.abs, 0),
    "number": (lambda column: column.cast(pa.float64()), 0),
    "contains": (pc.match_substring, 1),
    "startswith": (pc.starts_with, 1),
    "endswith": (pc.ends_with, 1),
}
"""Functions of a column, and how many texts they take besides."""
_KNOWN: Final = f"Known are comparisons, in, is None, and, or, not, + - * /, column(...), {', '.join(_FUNCTIONS)}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """A condition that was read. columns: the columns that it looks at."""

    text: str
    expression: pc.Expression
    columns: tuple[str, ...]

    def check(self, schema: pa.Schema, where: str) -> None:
        """Raise an AlignpotError if a column is missing, or if the condition does not fit its type."""
        require_columns(schema, self.columns, where=where, remedy="Name columns that are there.")
        self.holds(schema.empty_table(), where)

    def holds(self, table: pa.Table, where: str) -> npt.NDArray[np.bool_]:
        """Whether the condition holds, bool [num_rows]; false where it is null. Raises as `check`."""
        import pyarrow.dataset as ds  # this loads pandas

        try:
            rows = ds.dataset(table.select(self.columns))
            holds = rows.to_table(columns={"holds": self.expression})["holds"]
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowKeyError, KeyError) as error:
            raise self._unfit(where, str(error)) from None
        if not (pa.types.is_boolean(holds.type) or pa.types.is_null(holds.type)):
            raise self._unfit(where, f"it gives {holds.type}, not true or false")
        found: npt.NDArray[np.bool_] = holds.cast(pa.bool_()).fill_null(False).to_numpy().astype(np.bool_)  # noqa: FBT003
        return found

    def _unfit(self, where: str, why: str) -> ConfigError:
        return ConfigError(f"{where} {shown(self.text)} does not fit the columns: {shown(why.splitlines()[0], 200)}.")


def parse_where(text: str) -> Where:
    """Read a condition.

    Raises:
        ValueError: it is no condition of the grammar above.
    """
    if len(text) > _MOST_CHARS:
        raise ValueError(f"a condition has at most {_MOST_CHARS} characters, got {len(text)}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        names: dict[str, None] = {}
        expression = _built(tree, names)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"no condition ({type(error).__name__}); wanted one such as: lang == 'de'") from None
    if not isinstance(expression, pc.Expression) or not names:
        raise ValueError("a condition must look at a column, such as: lang == 'de'")
    return Where(text=text, expression=expression, columns=tuple(names))


def _built(node: ast.AST, names: dict[str, None]) -> Any:
    """The expression of a node, or its constant. The columns that it reads are added to `names`."""
    match node:
        case ast.Constant(value=str() | int() | float() | bool() as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.Call(func=ast.Name(id="column"), args=[ast.Constant(value=str() as name)], keywords=[]):
            names[name] = None
            return pc.field(name)
        case ast.Call(func=ast.Name(id=name), args=[first, *rest], keywords=[]) if name in _FUNCTIONS:
            function, num_texts = _FUNCTIONS[name]
            texts = [each.value for each in rest if isinstance(each, ast.Constant) and isinstance(each.value, str)]
            if len(texts) == len(rest) == num_texts:
                return function(_expression(first, names), *texts)
        case ast.Name() | ast.Attribute():
            path = _path(node)
            names[path[0]] = None
            return pc.field(*path)
    return _combined(node, names)


def _combined(node: ast.AST, names: dict[str, None]) -> pc.Expression:
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return pc.negate(_expression(operand, names))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return ~_expression(operand, names)
        case ast.BoolOp(op=op, values=values):
            either = operator.and_ if isinstance(op, ast.And) else operator.or_
            return functools.reduce(either, [_expression(value, names) for value in values])
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_expression(left, names), _built(right, names))
        case ast.Compare():
            return functools.reduce(operator.and_, _comparisons(node, names))
    raise ValueError(f"{ast.unparse(node)!r} is not known in a condition. {_KNOWN}")


def _expression(node: ast.AST, names: dict[str, None]) -> pc.Expression:
    found = _built(node, names)
    return found if isinstance(found, pc.Expression) else pc.scalar(found)


def _comparisons(node: ast.Compare, names: dict[str, None]) -> Iterator[pc.Expression]:
    left = node.left
    for op, right in zip(node.ops, node.comparators, strict=True):
        match op, right:
            case ((ast.Is() | ast.Eq()), ast.Constant(value=None)):
                yield _expression(left, names).is_null()
            case ((ast.IsNot() | ast.NotEq()), ast.Constant(value=None)):
                yield ~_expression(left, names).is_null()
            case ((ast.In() | ast.NotIn()), (ast.List(elts=values) | ast.Tuple(elts=values))):
                yield _COMPARED[type(op)](_expression(left, names), [_built(value, {}) for value in values])
            case ((ast.In() | ast.NotIn() | ast.Is() | ast.IsNot()), _):
                raise ValueError(f"{ast.unparse(node)!r}: `in` wants a list such as ['a', 'b'], `is` wants None")
            case _:
                yield _COMPARED[type(op)](_expression(left, names), _built(right, names))
        left = right


def _path(node: ast.AST) -> list[str]:
    match node:
        case ast.Name(id=name):
            return [name]
        case ast.Attribute(value=value, attr=name):
            return [*_path(value), name]
    raise ValueError(f"{ast.unparse(node)!r} names no column; write column.field")
