"""Running a model, or a program exported from one, on what a person has: files, folders, arrays."""
