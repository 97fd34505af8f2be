"""What the tests share: tiny models of every family, tokens, a tokenizer, planted truths, and one tolerance."""
