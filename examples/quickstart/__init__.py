"""The quickstart: a small real model and real dialogues, made by build targets, and the job that trains on them."""
