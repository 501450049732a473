"""What stands in the twin for each operation: a rule for each kind, and the table of them."""
