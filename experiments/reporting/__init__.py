"""What all studies share: numbers as text, tables as files, figures, statistics, provenance."""
