"""The entry point of ``python -m fastrot``, which torchrun starts."""

from __future__ import annotations

from fastrot.cli.app import main

if __name__ == "__main__":
    main()
