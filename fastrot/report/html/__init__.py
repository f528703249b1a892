"""One self-contained HTML page: template, style, text and pictures."""
