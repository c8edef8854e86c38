"""What other programs load of this package: one file per program."""
