"""Data sets: cards say where files are and what masks mean, a folder data set reads them; nothing heavy here."""
