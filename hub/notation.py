"""The notation of compositions: reading what a composition prints as.

stack(de@2, average(a, b; 0.7, 0.3))

An operator's name, its parts in parentheses, and after a semicolon its settings: an average's
weights, the positions at which a split changes, what leads a fuse. A part is a reference, `none`
for the bare base, or an operator again. A reference with a space, a comma, a parenthesis, a
semicolon or a quote in it stands in double quotes, as in JSON.
"""

from __future__ import annotations

import json
from functools import cache

from lark import Lark, Token, Transformer, UnexpectedInput, v_args

from hub.composition import OPERATORS, Operator, Part
from hub.errors import AttachError
from hub.printing import NONE, PLAIN

GRAMMAR = rf"""
    ?start: part
    ?part: operator | leaf
    operator: NAME "(" parts [";" settings] ")"
    parts: part ("," part)*
    settings: leaf ("," leaf)*
    leaf: PLAIN | QUOTED
    NAME.2: /[a-z]+(?=\s*\()/
    PLAIN: /{PLAIN.pattern}/
    QUOTED: /"(?:[^"\\]|\\.)*"/
    %ignore /\s+/
"""
SHOWN = {"LPAR": "'('", "RPAR": "')'", "COMMA": "','", "SEMICOLON": "';'", "$END": "the end"}


def parse_composition(text: str) -> Part:
    """The composition that `text` says: an operator, a reference, or None.

    Raises AttachError where it says none, with the place.
    """
    if not isinstance(text, str):
        raise AttachError(f"a composition is read from text, not from a {type(text).__name__}")
    try:
        part: Part = make_parser().parse(text)  # type: ignore[assignment]
    except UnexpectedInput as error:
        expected = getattr(error, "accepts", None) or getattr(error, "allowed", None) or set()
        due = sorted({SHOWN.get(name, "a part") for name in expected})
        at = len(text) if getattr(error, "token", None) == "" else error.pos_in_stream or 0
        found = repr(text[at : at + 12]) if at < len(text) else "the end"
        raise AttachError(
            f"{text!r} is no composition: at {at + 1} there is {found}, where "
            f"{' or '.join(due)} is due"
        ) from None
    except AttachError as error:
        raise AttachError(f"{text!r} is no composition: {error}") from None
    return part


@cache
def make_parser() -> Lark:
    """The parser, made once. It builds from the leaves up, so no depth is too deep for it."""
    return Lark(GRAMMAR, parser="lalr", transformer=Builder())


class Builder(Transformer[Token, Part]):
    """From what was read to values."""

    parts = list
    settings = list

    @v_args(inline=True)
    def leaf(self, token: Token) -> str | None:
        """A reference, or None."""
        if token.type == "QUOTED":
            return str(json.loads(token))
        if token.startswith("<"):
            raise AttachError(f"{token} is an adapter that was never saved; register it first")
        return None if token == NONE else str(token)

    @v_args(inline=True)
    def operator(self, name: Token, parts: list[Part], told: list[str] | None) -> Operator:
        """An operator over its parts."""
        kind = OPERATORS.get(str(name))
        if kind is None:
            raise AttachError(f"there is no {name}; there are {', '.join(OPERATORS)}")
        return kind.make(parts, told or ())
