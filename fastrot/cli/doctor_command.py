"""``fastrot doctor``, in a file of its own because the checks are slow to import."""

from __future__ import annotations

import typer

from fastrot.cli.options import AsJson
from fastrot.cli.show import show

app = typer.Typer()


@app.command("doctor")
def doctor_command(json: AsJson = False) -> None:
    """Show what is installed, what that means, and what to type."""
    from fastrot.cli.doctor import examine

    show(examine(), json)
