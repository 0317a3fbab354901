"""Training a denoiser: EDM's objective and preconditioning, a weight average, exact resumption, a model file and its card."""
