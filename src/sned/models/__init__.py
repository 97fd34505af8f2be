"""What a Hugging Face decoder is: families, geometry, live views, surgery. Knows no statistics and no files."""
