"""Files that must be refused, each made by a function that says what it tries, and what refusing one may cost."""

MOST_SECONDS = 1.0
MOST_MIB = 64
