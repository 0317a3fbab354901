"""How each shipped file was made."""
