"""Model folders: finding them, reading and writing their tensors, loading, saving and verifying.

May import errors, canon, progress, models, data, plan and score. Nothing here decides what to prune.
"""
