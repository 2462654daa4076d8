"""Whether ranks go forward, which one does not, and how a group is asked to stop. For the recipes and the driver.

Nothing here imports torch. Ranks report to files in the stage's folder `ranks`, which every rank and the driver see.
"""
