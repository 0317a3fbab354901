"""Files, pictures and processes: what touches the world outside."""
