"""FID, inception score and FD-DINOv2: judges, their extractors and their reference statistics."""
