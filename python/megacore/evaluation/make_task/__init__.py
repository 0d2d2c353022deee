"""Small data sets in the formats of published tasks, made from any text."""
