"""Which heads make a behaviour? Patching, attribution and what to believe of them."""
