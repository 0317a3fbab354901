"""The theory behind the correction on laws whose denoiser is exact: `core` the identities, `runs` the rest, `page` the page."""
