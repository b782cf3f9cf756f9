"""From typed values to a graph of stages.

planner  which stages a trial needs, and what trials share
route    the stages of one trial, as far as they are known
race     trials that depend on what others come to
costs    how long stages take
combinations, fits  what does not go together, and what a stage would fail with
"""
