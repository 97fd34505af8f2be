"""Pure functions of tensors and numbers: similarity, selection, linear maps. No models, no files."""
