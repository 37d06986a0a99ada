"""Do signals order the blocks as training does? Each block's worth, found by training it alone, beside each signal.

The worth of a block is the fall of the held-out loss when only that block and the head train, for a fixed number of
steps. Plans of one pair and seed see the same rows in the same order, and begin with the same head. The learning rate
of a pair is the best of three for its middle block, with a seed of its own. The worth of a cut is that of all blocks
above it, in as many steps as fit in the predicted time of the shortest plan's (with the frozen bottom cached).
"""
