"""What does the docs site say that no hand writes? Pages made of registries, docstrings, the command line, the JSON Schema and the root's documents.

`scripts/docs_pages.py` is the hook that gives them to mkdocs.
"""
