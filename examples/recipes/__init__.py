"""A library of job files, one a recipe and hardware; models and data are the user's."""
