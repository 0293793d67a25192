"""Policies at work: the weights permuted, the attention that runs, its cache, and `apply`."""
