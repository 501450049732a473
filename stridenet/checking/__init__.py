"""Is a twin equal to its model? The two side by side, operation by operation, up to rounding."""
