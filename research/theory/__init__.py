"""The theory, on laws whose denoiser is exact: `core` has the identities, `runs` all else, and `__main__` writes the page."""
