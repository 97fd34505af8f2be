"""What was lost and what was won: perplexity, divergence from the dense model, samples, speed."""
