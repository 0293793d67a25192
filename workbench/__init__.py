"""Attention-head workbench: prompts → capture → scores → labels → { kernels | circuits | dashboard | files }.

    import workbench as wb
    model = wb.load("smollm2-135m")
    scores = wb.score(model, ["induction", "retrieval"])
    labels = wb.label(scores)
    labels.save("heads.json")
"""
