"""From typed values to a graph of stages.

planner  which stages a trial needs, and what trials share
route    the stages of one trial, as far as they are known
race     trials that depend on what others come to
costs    how long stages take
fits     what no stage could do: a trigger, a model or a clean set that does not fit
combinations  what does not go together
"""
