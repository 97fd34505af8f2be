"""One file per way to decide how many weights of each matrix go; each yields shares, never ops."""
