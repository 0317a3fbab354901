"""Theory and studies that the package does not need."""
