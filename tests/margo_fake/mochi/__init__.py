"""A fake: see `mochi.margo`."""
