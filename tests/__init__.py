"""The tests; the folders mirror ds4export/."""
