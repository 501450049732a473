"""One study a file: what is measured, its numbers, its table, its figure, its caption."""
