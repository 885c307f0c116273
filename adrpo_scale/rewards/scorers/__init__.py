"""Published scorers of pictures, each with its formula, preprocessing, weights and licence."""
