"""The schema of a catalogue, one step a file; alembic takes them in order. They know nothing of schema.py."""
