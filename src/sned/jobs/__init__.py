"""Whole jobs: what one command does from model to folder, without a word about terminals."""
