"""Griffe extension: Sphinx's roles in docstrings (``:func:`a.b```) become plain code, which Markdown shows."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import griffe

if TYPE_CHECKING:
    import ast

ROLE = re.compile(r":(?:py:)?[a-z]+:`~?([^`]+)`")
LITERAL = re.compile(r"``([^`]+)``")


class Roles(griffe.Extension):
    """Rewrites each docstring once, as it is collected."""

    def on_instance(self, *, node: ast.AST | griffe.ObjectNode, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring:
            obj.docstring.value = LITERAL.sub(r"`\1`", ROLE.sub(r"`\1`", obj.docstring.value))
