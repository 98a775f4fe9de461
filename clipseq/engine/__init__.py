"""What fast similarities are made of: tiles, working memory, unit vectors, kernels, operators."""
