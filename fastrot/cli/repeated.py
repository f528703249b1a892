"""Refuse an option that takes one value and is given twice: one value would be lost silently.

Options that may repeat are left alone: of two ``--set`` with the same key the last one counts, so
that a script can append its own settings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastrot.errors import UsageError


def refuse_repeats(command: Any) -> None:
    """Make a command and its subcommands refuse a single-value option that is given twice.

    Args:
        command: a click command, or Typer's own kind of one; changed in place.
    """
    for below in getattr(command, "commands", {}).values():
        refuse_repeats(below)
    make_parser = command.make_parser

    def make_strict_parser(context: Any) -> Any:
        parser = make_parser(context)
        for name, option in {**parser._short_opt, **parser._long_opt}.items():
            if option.action == "store" and not hasattr(option.process, "strict"):
                option.process = _once(name, option, option.process)
        return parser

    command.make_parser = make_strict_parser


def _once(name: str, option: Any, process: Callable[[Any, Any], None]) -> Callable[..., None]:
    def strict(value: Any, state: Any) -> None:
        before = state.opts.get(option.dest)
        if before is not None:
            raise UsageError(f"{name} is given twice: {_text(before)} and {_text(value)}; keep one")
        process(value, state)

    strict.strict = True  # type: ignore[attr-defined]
    return strict


def _text(value: Any) -> str:
    return " ".join(map(repr, value)) if isinstance(value, tuple | list) else repr(value)
