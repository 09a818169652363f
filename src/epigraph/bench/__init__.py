"""Measuring: ours and the peers' side by side, in one process, in turns. Writes records; draws nothing."""
