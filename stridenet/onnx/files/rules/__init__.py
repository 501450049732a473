"""Has one rule for each operator, which builds what stands for it in a file of unit strides."""
