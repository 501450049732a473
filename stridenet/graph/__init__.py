"""A network as a graph of operations: traced, with the sizes and factors of its maps."""
