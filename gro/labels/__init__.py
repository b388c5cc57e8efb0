"""What people prefer: items, answers, the file that keeps them, agreement, and export as data sets."""
