"""Training what pruning left: replacement layers inside a method, and whole models afterwards."""
