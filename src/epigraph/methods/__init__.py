"""What makes virtual tokens, one paper a file."""
