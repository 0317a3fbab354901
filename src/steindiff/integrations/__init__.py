"""Doors to other people's models and samplers; each module needs the library it is named after, and nothing here imports it."""
