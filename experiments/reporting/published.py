"""What the paper published: Tables 1 and 2."""

import pandas as pd

# Tables 1 and 2 of the paper, of one run each on MNIST. It does not print the last layer, fc 10.
PAPER = pd.DataFrame(
    [
        {
            "maps": "1x28x28 20x24x24 20x12x12 50x8x8 50x4x4 500",
            "layers": "5x5 conv 20, 2x2 conv 20 stride 2, 5x5 conv 50, 2x2 conv 50 stride 2, "
            "fc 500, fc 10",
            "paper_accuracy_percent": 98.17,
            "paper_training_seconds": 451.91,
        },
        {
            "maps": "16x7x7 320x6x6 80x6x6 200x4x4 50x4x4 500",
            "layers": "2x2 conv 320, 1x1 conv 80, 3x3 conv 200, 1x1 conv 50, fc 500, fc 10",
            "paper_accuracy_percent": 98.23,
            "paper_training_seconds": 680.97,
        },
    ]
)


PAPER_DIFFERENCE = round(float(PAPER.paper_accuracy_percent.diff().iloc[1]), 2)  # points
