"""One run: data, network, training, and the folder in which it is kept."""
