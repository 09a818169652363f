"""Files that must be refused, each made by a function that says what it tries."""
