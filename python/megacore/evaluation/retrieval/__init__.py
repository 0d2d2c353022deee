"""Open-domain question answering by retrieval: two encoders, an index of evidence, accuracy."""
