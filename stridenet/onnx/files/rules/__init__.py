"""One rule an operator: what stands for it in a file of unit strides."""
